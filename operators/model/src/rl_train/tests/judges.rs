//! A model that judges beside the one that is trained.

use engine_core::StageEvent;
use engine_core::{OperatorConfig, PortTypes};
use serde_json::json;

use super::{PLAIN, RIGHT, WRONG, metric, one_prompt, rl_train, text_column, tokens};
use crate::test_support::{Call, FakeBackend, MemoryIo, model_folder, run};

fn judged() -> MemoryIo {
    one_prompt().with_model("judge", model_folder())
}

#[test]
fn a_loaded_judge_decides_what_the_rule_does_not_after_all_answers_are_sampled() {
    let stage = rl_train(&json!({
        "verify": {"any": {"of": [{"math": {}}, {"judge": {"max-new-tokens": 40}}]}}, "steps": 2,
    }));
    let ports: Vec<String> = (stage.ports().inputs.into_iter())
        .map(|port| port.name)
        .collect();
    assert_eq!(ports, ["prompts", "model", "reference", "judge"]);
    assert!(stage.output_types(&PortTypes::new()).is_ok());
    let mut backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG, PLAIN]));
    backend.of_others = Some(tokens(&["I see.\nVERDICT: CORRECT"]));
    let mut io = judged();
    run(&stage, &backend, &mut io).unwrap();
    // The second answer is another number, and the judge takes it; the third has no answer that one could show it.
    let rollouts = io.output("rollouts");
    assert_eq!(
        text_column(&rollouts, "verdict")[..4],
        ["correct", "correct", "unparsed", "correct"]
    );
    assert!(metric(&io.output("metrics"), 2, "reward").is_some());
    // The cache of one is gone before that of the other is there.
    let worked: Vec<&str> = (backend.calls().iter())
        .filter_map(|call| match call {
            Call::Generate { requests: 4, .. } => Some("sample"),
            Call::Generate { .. } => Some("judge"),
            Call::Release => Some("release"),
            _ => None,
        })
        .collect();
    assert_eq!(worked[..4], ["sample", "release", "judge", "release"]);
    let events = io.events.lock().unwrap();
    let is_told = |event: &StageEvent| matches!(event, StageEvent::Note(note) if note == "judge: 1.0 GiB more, together at most 2.0 GiB of 16.0 GiB");
    assert!(events.iter().any(is_told), "{events:?}");
}

#[test]
fn a_judge_that_says_nothing_masks_the_answer() {
    let stage = rl_train(&json!({
        "verify": {"judge": {"max-new-tokens": 40, "reminders": 0}}, "max-unusable": 0.5,
    }));
    let mut backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    backend.of_others = Some(tokens(&["well"]));
    let error = run(&stage, &backend, &mut judged()).unwrap_err();
    let words = "4 of 4 answers have no usable verdict";
    assert!(error.to_string().contains(words), "{error}");
}
