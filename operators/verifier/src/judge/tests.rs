//! Judges behind a server that obeys, mumbles, refuses or dies.

use operators_verdict::Outcome::{Correct, Failed, TimedOut, Unparsed, Wrong};
use serde_json::{Value, json};

use crate::Verifier;
use crate::test_support::{
    JudgeServer, NoView, Reply, ask, assert_says, config, judge, open, outcomes,
};

fn verifier(server: &JudgeServer, mut options: Value) -> Verifier {
    options["endpoint"] = json!({
        "url": server.url(), "model": "m", "retries": 2, "give-up-seconds": 2, "timeout-seconds": 5
    });
    open(
        &config(json!({ "judge": options })),
        std::path::Path::new("."),
    )
    .unwrap()
}

/// What the judge is told first.
fn told(request: &Value) -> &str {
    request["messages"][0]["content"].as_str().unwrap()
}

fn says(text: &str) -> Reply {
    Reply::Says(text.to_owned())
}

#[test]
fn a_judge_decides_by_the_default_rubric() {
    let server = JudgeServer::start(|_, request| {
        let verdict = if told(request).contains("\nseven\n") {
            "CORRECT"
        } else {
            "WRONG"
        };
        Reply::Says(format!("The reference is 7.\nVERDICT: {verdict}"))
    });
    let verifier = verifier(&server, json!({}));
    let long = format!("<answer>{}</answer>", "x".repeat(100_000));
    let judged = judge(
        &verifier,
        &[
            "<answer>seven</answer>",
            "<answer>eight</answer>",
            "well",
            "<answer>seven</answer>",
            &long,
        ],
    );
    assert_eq!(
        outcomes(&judged),
        [Correct, Wrong, Unparsed, Correct, TimedOut]
    );
    assert_eq!(judged[0].reason, "The reference is 7.");
    assert_eq!(judged[0].agreement, None);
    assert_eq!(judged[0].verdict.extracted.as_deref(), Some("seven"));
    let requests = server.requests();
    assert_eq!(
        requests.len(),
        2,
        "equal answers are asked once, none for what is no answer"
    );
    assert_eq!(
        (&requests[0]["temperature"], &requests[0]["max_tokens"]),
        (&json!(0.0), &json!(1024))
    );
    assert_says(
        told(&requests[0]),
        &[
            "3 + 4?",
            "Reference answer",
            "\n7\n",
            "VERDICT: CORRECT\nor",
        ],
    );
}

#[test]
fn a_judge_that_mumbles_is_reminded_and_then_failed() {
    let server = JudgeServer::start(|_, request| {
        let turns = request["messages"].as_array().unwrap().len();
        if told(request).contains("\neight\n") {
            says("VERDICT: CORRECT? I cannot say")
        } else if turns == 1 {
            says("<think>Hm.</think>The answer fits well.")
        } else {
            says("VERDICT: CORRECT")
        }
    });
    let verifier = verifier(&server, json!({}));
    let judged = judge(
        &verifier,
        &["<answer>seven</answer>", "<answer>eight</answer>"],
    );
    assert_eq!(outcomes(&judged), [Correct, Failed]);
    assert_eq!(judged[0].reason, "The answer fits well.");
    assert_says(
        &judged[1].reason,
        &["no verdict in the form", "I cannot say"],
    );
    assert_eq!(server.requests().len(), 2 + 3, "one reminder and two");
    let last = server.requests().pop().unwrap();
    assert_eq!(last["messages"][1]["role"], "assistant");
}

#[test]
fn more_than_half_of_the_votes_decide() {
    let server = JudgeServer::start(|_, request| {
        // A judge that is sure of one answer, and draws for the other.
        let seed = request["seed"].as_u64().unwrap();
        let is_right = told(request).contains("\nseven\n") || seed.is_multiple_of(2);
        if told(request).contains("\nnine\n") {
            return says("hm");
        }
        Reply::Says(format!(
            "VERDICT: {}",
            if is_right { "CORRECT" } else { "WRONG" }
        ))
    });
    let verifier = verifier(
        &server,
        json!({ "votes": 4, "temperature": 0.7, "reminders": 0 }),
    );
    let judged = judge(
        &verifier,
        &[
            "<answer>seven</answer>",
            "<answer>nine</answer>",
            "<answer>eight</answer>",
        ],
    );
    assert_eq!(outcomes(&judged[..2]), [Correct, Failed]);
    assert_eq!(
        (judged[0].agreement, judged[1].agreement),
        (Some(1.0), None)
    );
    assert_says(&judged[0].reason, &["4 of 4 votes"]);
    assert_says(
        &judged[1].reason,
        &["0 correct, 0 wrong, 4 unclear", "\"hm\""],
    );
    let seeds: std::collections::BTreeSet<u64> = server
        .requests()
        .iter()
        .map(|request| request["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(seeds.len(), 12, "every vote draws by itself");
    let even = server
        .requests()
        .iter()
        .filter(|request| told(request).contains("\neight\n"))
        .filter(|request| request["seed"].as_u64().unwrap().is_multiple_of(2))
        .count();
    let expected = match even {
        3 | 4 => Correct,
        2 => Failed,
        _ => Wrong,
    };
    assert_eq!(outcomes(&judged[2..]), [expected], "{even} of 4");
}

#[test]
fn what_a_server_refuses_fails_alone_and_faults_are_asked_again() {
    let server = JudgeServer::start(|number, request| match told(request) {
        told if told.contains("\nrefuse\n") => Reply::Status("400 Bad Request"),
        _ if number == 0 => Reply::Cuts,
        _ if number == 1 => Reply::Status("503 Service Unavailable"),
        _ => says("fine\nVERDICT: CORRECT"),
    });
    let verifier = verifier(&server, json!({ "of": "completion", "format": "any" }));
    let judged = judge(&verifier, &["seven", "refuse", "7.0", ""]);
    assert_eq!(outcomes(&judged), [Correct, Failed, Correct, Unparsed]);
    assert_says(&judged[1].reason, &["could not be asked", "400"]);
    assert_eq!(judged[0].verdict.extracted, None);
    let open: Vec<bool> = judged.iter().map(|judged| judged.is_open).collect();
    assert_eq!(
        open,
        [false, true, false, false],
        "only what another day may decide"
    );
}

#[test]
fn what_a_judge_could_not_be_asked_is_open_only_where_it_can_decide() {
    let server = JudgeServer::start(|_, request| {
        let seed = request["seed"].as_u64().unwrap_or(1);
        if told(request).contains("\nrefuse\n") {
            Reply::Status("400 Bad Request")
        } else if told(request).contains("\nhalf\n") && seed.is_multiple_of(2) {
            Reply::Status("422 Unprocessable Entity")
        } else {
            says("VERDICT: CORRECT")
        }
    });
    let endpoint = json!({ "url": server.url(), "model": "m" });
    let asked = json!({ "judge": { "endpoint": endpoint, "of": "completion" } });
    let math = json!({ "math": {} });
    let judged_by = |value: Value, texts: &[&str]| {
        let verifier = open(&config(value), std::path::Path::new(".")).unwrap();
        let judged = judge(&verifier, texts);
        let opens = judged.iter().map(|judged| judged.is_open);
        (opens.collect::<Vec<bool>>(), outcomes(&judged))
    };
    // The rule says no, and the judge might have said yes: that is not a wrong answer.
    let any = json!({ "any": { "of": [math, asked], "format": "any" } });
    assert_eq!(
        judged_by(any, &["refuse", "\\boxed{7}", "8"]),
        (vec![true, false, false], vec![Failed, Correct, Correct])
    );
    let all = json!({ "all": { "of": [{ "regex": { "pattern": "r", "of": "completion" } }, asked], "format": "any" } });
    assert_eq!(
        judged_by(all, &["refuse", "8"]),
        (vec![true, false], vec![Failed, Wrong])
    );
    // Most votes are there, whatever the others would be.
    let votes = json!({ "judge": {
        "endpoint": endpoint, "of": "completion", "votes": 9, "temperature": 1.0,
    } });
    let (is_open, decided) = judged_by(votes, &["half", "8"]);
    let heard = server.requests().into_iter().filter(|request| {
        told(request).contains("\nhalf\n") && !request["seed"].as_u64().unwrap().is_multiple_of(2)
    });
    let is_decided = 2 * heard.count() > 9;
    assert_eq!(is_open, [!is_decided, false]);
    assert_eq!(decided[0], if is_decided { Correct } else { Failed });
}

#[test]
fn the_account_has_what_every_judge_was_asked() {
    let server = JudgeServer::start(|_, _| says("VERDICT: CORRECT"));
    let judge_of = |revision: Option<&str>| {
        json!({ "judge": { "of": "completion", "endpoint": {
            "url": server.url(), "model": "m", "revision": revision, "price": { "input": 2000.0, "output": 10000.0 },
        } } })
    };
    let both = json!({ "all": { "of": [judge_of(None), { "any": { "of": [judge_of(Some("2"))] } }], "format": "any" } });
    let verifier = open(&config(both), std::path::Path::new(".")).unwrap();
    let view = NoView::default();
    verifier.tell_account(&view);
    assert!(
        view.notes.lock().unwrap().is_empty(),
        "nothing was asked yet"
    );
    for _ in 0..2 {
        verifier.judge(&[ask("seven"), ask("8")], &view).unwrap();
    }
    verifier.tell_account(&view);
    assert_eq!(
        *view.notes.lock().unwrap(),
        [
            "judge: asked m: 2 answers, 2 more known from equal questions, 10 tokens in, 6 out, cost 0.0800",
            "judge: asked m@2: 2 answers, 2 more known from equal questions, 10 tokens in, 6 out, cost 0.0800",
        ]
    );
}

#[test]
fn a_server_that_is_gone_is_named() {
    let server = JudgeServer::start(|_, _| Reply::Status("500 Internal Server Error"));
    let mut gone = json!({});
    gone["reminders"] = json!(0);
    let verifier = verifier(&server, gone);
    let failed = judge(&verifier, &["<answer>seven</answer>"]);
    // The server lives and fails the question.
    assert_eq!(outcomes(&failed), [Failed]);
    assert_says(&failed[0].reason, &["asked 3 times", "500"]);

    let dead = config(json!({ "judge": { "endpoint": {
        "url": "http://127.0.0.1:9/v1", "model": "m", "give-up-seconds": 1
    } } }));
    let dead = open(&dead, std::path::Path::new(".")).unwrap();
    let error = dead
        .judge(&[ask("<answer>seven</answer>")], &NoView::default())
        .unwrap_err();
    assert_says(&error.to_string(), &["judge: ", "http://127.0.0.1:9/v1"]);

    let keyless = config(json!({ "judge": { "endpoint": {
        "url": server.url(), "model": "m", "api-key-env": "NO_SUCH_KEY_ANYWHERE"
    } } }));
    let error = open(&keyless, std::path::Path::new(".")).unwrap_err();
    assert_says(&error.to_string(), &["`NO_SUCH_KEY_ANYWHERE`"]);
}
