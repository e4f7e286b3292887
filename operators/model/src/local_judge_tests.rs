//! A loaded model that is asked as a judge is.

use std::path::Path;

use operators_verifier::{Question, Verifier, VerifyConfig};
use serde_json::json;

use super::*;
use crate::test_support::{Call, FakeBackend, MemoryIo, model_folder};

fn conversation(text: &str, vote: u32) -> Conversation {
    Conversation {
        turns: vec![("user", text.to_owned())],
        vote,
        stream: 7,
    }
}

fn options(value: serde_json::Value) -> JudgeOptions {
    serde_json::from_value(value).unwrap()
}

fn context(backend: &FakeBackend) -> StageContext<'_> {
    StageContext {
        stage: "test",
        seed: 0,
        root: Path::new("."),
        backend: Some(backend),
    }
}

#[test]
fn a_model_answers_every_conversation_that_it_has_room_for() {
    let io = MemoryIo::new().with_model("judge", model_folder());
    let mut backend = FakeBackend::in_turn(vec![vec![25, 2]]);
    backend.positions = 300;
    let options = options(json!({ "max-new-tokens": 8 }));
    let mut judge = LocalJudge::open(&options, "judge", &context(&backend), &io).unwrap();
    let long = "why ".repeat(400);
    let asked = [
        conversation("is it?", 0),
        conversation(&long, 0),
        conversation("is it?", 1),
    ];
    let answers = judge.answer(&asked, &io).unwrap();
    assert_eq!(
        (answers[0].as_deref(), answers[2].as_deref()),
        (Ok("3"), Ok("3"))
    );
    let refused = answers[1].as_ref().unwrap_err();
    assert!(!refused.is_empty());
    let requests: Vec<usize> = backend
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Generate { requests, .. } => Some(*requests),
            _ => None,
        })
        .collect();
    assert_eq!(requests, [2], "all that fit are asked together");
}

#[test]
fn a_model_without_a_verdict_is_reminded_and_failed() {
    let io = MemoryIo::new().with_model("judge", model_folder());
    let backend = FakeBackend::in_turn(vec![vec![25, 2]]);
    let config: VerifyConfig =
        serde_json::from_value(json!({ "judge": { "reminders": 1 } })).unwrap();
    let context = context(&backend);
    let model = LocalJudge::open(config.local_judge().unwrap(), "judge", &context, &io).unwrap();
    let verifier = Verifier::open(&config, &context, &io)
        .unwrap()
        .with_model(Box::new(model));
    let question = Question {
        prompt_id: "p",
        question: "3 + 4?",
        gold: Some("7"),
        text: "<answer>seven</answer>",
    };
    let judged = verifier.judge(&[question], &io).unwrap();
    assert_eq!(judged[0].verdict.outcome.as_str(), "failed");
    assert!(judged[0].reason.contains("\"3\""), "{}", judged[0].reason);
}

#[test]
fn a_judge_beside_training_gives_its_memory_back_and_must_fit() {
    let io = MemoryIo::new().with_model("judge", model_folder());
    let backend = FakeBackend::in_turn(vec![vec![25, 2]]);
    let options = options(json!({ "max-new-tokens": 8 }));
    let gib = 1 << 30;
    let open = |available| {
        LocalJudge::beside_training(&options, 3 * gib, available, &context(&backend), &io)
    };
    let refused = open(3 * gib).err().unwrap().to_string();
    for words in ["judge: 1.0 GiB more", "4.0 GiB of 3.0 GiB", "`endpoint`"] {
        assert!(refused.contains(words), "{refused}");
    }
    let mut judge = open(4 * gib).unwrap();
    for _ in 0..2 {
        judge.answer(&[conversation("is it?", 0)], &io).unwrap();
    }
    let worked: Vec<Call> = (backend.calls().into_iter())
        .filter(|call| matches!(call, Call::Generate { .. } | Call::Release))
        .collect();
    assert!(
        matches!(
            worked[..],
            [
                Call::Generate { .. },
                Call::Release,
                Call::Generate { .. },
                Call::Release
            ]
        ),
        "{worked:?}"
    );
}
