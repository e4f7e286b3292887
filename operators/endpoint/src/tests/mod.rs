//! The client against a real HTTP server on loopback that fails, stalls, cuts off and lies by seed.

mod faulty;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::{
    Answers, ApiKey, Client, Endpoint, EndpointError, Part, Price, Question, Sampling, Turn,
};
use faulty::{Behaviour, FaultyServer};

const KEY: &str = "sk-secret-of-the-tests";

fn questions(count: u64) -> Vec<Question> {
    let question = |seed: u64| {
        let turn = Turn {
            role: "user".to_owned(),
            content: vec![Part::Text(format!("question {seed}"))],
        };
        Question {
            messages: crate::messages(&[turn]),
            seed: 2 * seed,
        }
    };
    (0..count).map(question).collect()
}

fn config(server: &FaultyServer) -> Endpoint {
    Endpoint {
        concurrency: 8,
        timeout_seconds: 1,
        give_up_seconds: 3,
        ..Endpoint::new(server.url(), "m")
    }
}

fn client(config: &Endpoint) -> Client {
    Client::with_key(config, Some(ApiKey::new(KEY))).unwrap()
}

fn ask(client: &Client, count: u64) -> Answers {
    let sampling = Sampling::new(1.0, 16);
    let mut go_on = |_: &crate::Tally| ControlFlow::Continue(());
    client
        .ask(&questions(count), &sampling, &mut go_on)
        .unwrap()
}

fn texts(answers: &Answers) -> Vec<String> {
    let texts = answers.answers.iter();
    texts
        .map(|answer| answer.as_ref().unwrap().text.clone())
        .collect()
}

fn expected(count: u64) -> Vec<String> {
    (0..count)
        .map(|seed| format!("question {seed} by {seed}"))
        .collect()
}

#[test]
fn every_answer_comes_in_its_place_although_the_server_fails_by_seed() {
    let server = FaultyServer::start(Behaviour {
        faults: 0.4,
        seed: 11,
        ..Behaviour::default()
    });
    let endpoint = Endpoint {
        retries: 30,
        give_up_seconds: 45,
        price: Some(Price {
            input: 1.0,
            output: 2.0,
        }),
        ..config(&server)
    };
    let client = client(&endpoint);
    let answers = ask(&client, 60);
    assert_eq!(answers.end, None);
    assert_eq!(texts(&answers), expected(60));
    let first = answers.answers[0].as_ref().unwrap();
    assert_eq!(first.token_ids, Some(vec![0, 1, 2]));
    assert_eq!(first.logprobs.as_ref().map(Vec::len), Some(3));
    let tally = client.tally();
    assert_eq!(
        (tally.answers, tally.prompt_tokens, tally.completion_tokens),
        (60, 300, 180)
    );
    assert!((tally.cost.unwrap() - 660e-6).abs() < 1e-9);
    // All kinds of faults had their turn.
    let met = server.faults_met();
    assert_eq!(met.len(), 8, "{met:?}");
    assert!(tally.again > 0);
    assert!(
        server
            .keys_seen()
            .iter()
            .all(|key| key == &format!("Bearer {KEY}"))
    );
}

#[test]
fn equal_questions_are_asked_once() {
    let server = FaultyServer::start(Behaviour::default());
    let client = client(&config(&server));
    assert_eq!(texts(&ask(&client, 5)), expected(5));
    assert_eq!(texts(&ask(&client, 6)), expected(6));
    assert_eq!(server.requests(), 6);
    assert_eq!(client.tally().known, 5);
}

#[test]
fn answers_of_a_process_that_was_killed_are_not_asked_for_again() {
    let server = FaultyServer::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("requests");
    let first = client(&config(&server));
    first.keep_answers(&folder);
    let answers = ask(&first, 5);
    // A process that is killed drops nothing, and its last line may be cut off.
    std::mem::forget(first);
    let files = || -> Vec<_> {
        folder
            .read_dir()
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    };
    let kept = std::fs::read(&files()[0]).unwrap();
    assert!(!String::from_utf8_lossy(&kept).contains(KEY));
    std::fs::write(&files()[0], &kept[..kept.len() - 20]).unwrap();

    let second = client(&config(&server));
    second.keep_answers(&folder);
    let again = ask(&second, 5);
    assert_eq!(
        again.answers, answers.answers,
        "token ids and log-probabilities too"
    );
    assert_eq!((second.tally().known, server.requests()), (4, 6));
    drop(second);
    assert_eq!(files().len(), 1, "that of a process which still lives");
    std::fs::remove_file(&files()[0]).unwrap();

    // Another model is another question; and who is done leaves nothing behind.
    let other = Endpoint {
        revision: Some("r2".to_owned()),
        ..config(&server)
    };
    let third = client(&other);
    third.keep_answers(&folder);
    ask(&third, 2);
    assert_eq!(third.tally().known, 0);
    drop(third);
    assert!(!folder.exists());
}

#[test]
fn answers_stay_on_the_disk_while_others_are_missing() {
    let server = FaultyServer::start(Behaviour {
        refuses: Some("question 1".to_owned()),
        ..Behaviour::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let client = client(&config(&server));
    client.keep_answers(folder.path());
    ask(&client, 3);
    drop(client);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn a_server_that_dies_is_named_and_what_was_answered_is_kept() {
    let server = FaultyServer::start(Behaviour {
        dies_after: Some(10),
        ..Behaviour::default()
    });
    let client = client(&config(&server));
    let begun = Instant::now();
    let answers = ask(&client, 40);
    assert!(begun.elapsed().as_secs() < 60);
    let answered = answers
        .answers
        .iter()
        .filter(|answer| answer.is_ok())
        .count();
    assert_eq!(answered, 10);
    let Some(EndpointError::Gone(message)) = &answers.end else {
        panic!("{:?}", answers.end);
    };
    assert!(message.contains(&server.url()), "{message}");
    assert!(message.contains("requests in a row failed"), "{message}");
    assert!(!message.contains(KEY));
    let again = client.ask(&questions(1), &Sampling::new(1.0, 16), &mut |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(again.unwrap_err(), answers.end.unwrap(), "at once");
}

#[test]
fn the_questions_of_a_dead_server_go_to_the_others() {
    let dying = FaultyServer::start(Behaviour {
        dies_after: Some(4),
        ..Behaviour::default()
    });
    let living = FaultyServer::start(Behaviour::default());
    let endpoint = Endpoint {
        replicas: vec![living.url()],
        ..config(&dying)
    };
    let answers = ask(&client(&endpoint), 40);
    assert_eq!(answers.end, None);
    assert_eq!(texts(&answers), expected(40));
    assert!(dying.requests() > 0 && living.requests() >= 36);
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_is_dead_too() {
    let server = FaultyServer::start(Behaviour {
        is_mute: true,
        ..Behaviour::default()
    });
    let endpoint = Endpoint {
        timeout_seconds: 600,
        ..config(&server)
    };
    let begun = Instant::now();
    let answers = ask(&client(&endpoint), 3);
    assert!(
        matches!(answers.end, Some(EndpointError::Gone(_))),
        "{:?}",
        answers.end
    );
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_refused_question_fails_alone_and_a_refused_key_ends_it_all() {
    let server = FaultyServer::start(Behaviour {
        refuses: Some("question 3".to_owned()),
        ..Behaviour::default()
    });
    let answers = ask(&client(&config(&server)), 6);
    assert_eq!(answers.end, None);
    let failed: Vec<usize> = (0..6)
        .filter(|index| answers.answers[*index].is_err())
        .collect();
    assert_eq!(failed, [3]);
    assert!(
        answers.answers[3]
            .as_ref()
            .unwrap_err()
            .contains("too long")
    );

    let strict = FaultyServer::start(Behaviour {
        key: Some("another".to_owned()),
        ..Behaviour::default()
    });
    let answers = ask(&client(&config(&strict)), 3);
    let Some(EndpointError::Refused(message)) = answers.end else {
        panic!("{:?}", answers.end);
    };
    assert!(
        message.contains("api-key-env") && !message.contains(KEY),
        "{message}"
    );

    let other = Endpoint {
        model: "n".to_owned(),
        ..config(&server)
    };
    let answers = ask(&client(&other), 3);
    let Some(EndpointError::Refused(message)) = answers.end else {
        panic!("{:?}", answers.end);
    };
    assert!(message.ends_with("has no model `n`; it has m"), "{message}");
}

#[test]
fn keys_that_a_server_does_not_know_are_left_out() {
    let server = FaultyServer::start(Behaviour {
        is_narrow: true,
        ..Behaviour::default()
    });
    let answers = ask(&client(&config(&server)), 20);
    assert_eq!(texts(&answers), expected(20));
    let kinds: BTreeSet<bool> = answers
        .answers
        .iter()
        .map(|answer| answer.as_ref().unwrap().token_ids.is_some())
        .collect();
    assert_eq!(kinds, BTreeSet::from([false]));
}

#[test]
fn a_server_that_asks_to_wait_is_left_alone_for_so_long() {
    let server = FaultyServer::start(Behaviour {
        busy_seconds: Some(1.5),
        ..Behaviour::default()
    });
    let endpoint = Endpoint {
        concurrency: 1,
        ..config(&server)
    };
    assert_eq!(texts(&ask(&client(&endpoint), 2)), expected(2));
    assert_eq!(server.too_early(), 0);
}

#[test]
fn the_caller_may_break_off() {
    let server = FaultyServer::start(Behaviour {
        is_mute: true,
        ..Behaviour::default()
    });
    let client = client(&config(&server));
    let mut told = 0;
    let outcome = client.ask(&questions(2), &Sampling::new(1.0, 16), &mut |_| {
        told += 1;
        if told > 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(outcome.unwrap_err(), EndpointError::Interrupted);
}

#[test]
fn a_key_is_never_shown() {
    assert!(!format!("{:?}", ApiKey::new(KEY)).contains(KEY));
    let server = FaultyServer::start(Behaviour::default());
    assert!(!format!("{:?}", client(&config(&server))).contains(KEY));
    let unset = ApiKey::from_environment("METIS_FLOW_NO_SUCH_KEY").unwrap_err();
    assert!(unset.to_string().contains("METIS_FLOW_NO_SUCH_KEY"));
}
