//! Rules, programs and judges together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use operators_verdict::Outcome::{Correct, Failed, Unparsed, Wrong};
use serde_json::json;

use super::*;
use crate::judge::Conversation;
use crate::test_support::{NoView, ask, assert_says, config, judge, open, outcomes};

/// A model that finds right whatever has an even digit, and counts.
struct Even(Arc<AtomicUsize>);

impl JudgeModel for Even {
    fn answer(
        &mut self,
        conversations: &[Conversation],
        _view: &dyn StageView,
    ) -> Result<Vec<Result<String, String>>, OperatorError> {
        self.0.fetch_add(conversations.len(), Ordering::SeqCst);
        let answer = |conversation: &Conversation| {
            let shown = conversation.turns[0]
                .1
                .split("Answer to grade ===")
                .nth(1)
                .unwrap();
            let is_even = shown.contains(['0', '2', '4', '6', '8']);
            Ok(format!(
                "I looked.\nVERDICT: {}",
                if is_even { "CORRECT" } else { "WRONG" }
            ))
        };
        Ok(conversations.iter().map(answer).collect())
    }
}

fn with_judge(value: serde_json::Value) -> (Verifier, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let verifier = open(&config(value), std::path::Path::new("."))
        .unwrap()
        .with_model(Box::new(Even(Arc::clone(&count))));
    (verifier, count)
}

#[test]
fn a_rule_says_what_it_says_alone() {
    let math = json!({ "math": {} });
    let verifier = open(&config(math.clone()), std::path::Path::new(".")).unwrap();
    let rule: Rule = serde_json::from_value(math).unwrap();
    let texts = [
        "<answer>7</answer>",
        "\\boxed{8}",
        "seven",
        "<answer>14/2</answer>",
    ];
    for (judged, text) in judge(&verifier, &texts).into_iter().zip(texts) {
        assert_eq!(judged.verdict, rule.verdict("7", text));
        assert!(!judged.reason.is_empty());
    }
    let mut lost = ask("<answer>7</answer>");
    lost.gold = None;
    let judged = verifier.judge(&[lost], &NoView::default()).unwrap();
    assert_eq!(outcomes(&judged), [Failed]);
    assert_eq!(judged[0].reason, "gold answer: it has none");
}

#[test]
fn any_asks_the_judge_only_where_the_rule_says_no() {
    let (verifier, asked) =
        with_judge(json!({ "any": { "of": [{ "judge": {} }, { "math": {} }] } }));
    let texts = [
        "<answer>7</answer>",
        "<answer>8</answer>",
        "<answer>9</answer>",
        "no idea",
        "<answer>8</answer>",
    ];
    let judged = judge(&verifier, &texts);
    assert_eq!(
        outcomes(&judged),
        [Correct, Correct, Wrong, Unparsed, Correct]
    );
    assert_eq!(
        asked.load(Ordering::SeqCst),
        2,
        "equal answers are asked once"
    );
    let agreements: Vec<Option<f64>> = judged.iter().map(|judged| judged.agreement).collect();
    assert_eq!(
        agreements,
        [Some(1.0), Some(0.5), Some(1.0), Some(1.0), Some(0.5)]
    );
    assert_says(
        &judged[1].reason,
        &["math wrong: ", "judge correct: I looked."],
    );
    assert!(!judged[0].reason.contains("judge"), "{}", judged[0].reason);
    assert_eq!(judged[0].verdict.extracted.as_deref(), Some("7"));
}

#[test]
fn all_asks_the_judge_only_where_the_rules_agree() {
    let (verifier, asked) = with_judge(json!({ "all": {
        "of": [{ "judge": { "of": "completion" } }, { "format": { "tags": ["answer"] } }, { "any": { "of": [{ "math": {} }, { "numeric": { "absolute": 1.0 } }] } }],
        "format": "any",
    } }));
    let judged = judge(
        &verifier,
        &[
            "<answer>7</answer>",
            "<answer>8</answer>",
            "\\boxed{7}",
            "<answer>20</answer>",
        ],
    );
    assert_eq!(outcomes(&judged), [Wrong, Correct, Wrong, Wrong]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(judged.iter().all(|judged| judged.verdict.format_ok));
}

#[test]
fn a_gold_answer_that_nothing_can_read_asks_nobody() {
    let (verifier, asked) =
        with_judge(json!({ "all": { "of": [{ "math": {} }, { "judge": {} }] } }));
    let mut question = ask("<answer>7</answer>");
    question.gold = Some("{");
    let judged = verifier.judge(&[question], &NoView::default()).unwrap();
    assert_eq!(outcomes(&judged), [Failed]);
    assert_says(&judged[0].reason, &["gold answer:", "braces"]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // Where a judge alone can read it, it judges.
    let (verifier, asked) =
        with_judge(json!({ "any": { "of": [{ "math": {} }, { "judge": {} }] } }));
    let mut question = ask("<answer>8</answer>");
    question.gold = Some("{");
    let judged = verifier.judge(&[question], &NoView::default()).unwrap();
    assert_eq!(
        (outcomes(&judged), asked.load(Ordering::SeqCst)),
        (vec![Correct], 1)
    );
}

#[test]
fn a_judge_without_a_model_is_told() {
    let verifier = open(&config(json!({ "judge": {} })), std::path::Path::new(".")).unwrap();
    let error = verifier
        .judge(&[ask("<answer>7</answer>")], &NoView::default())
        .unwrap_err();
    assert_says(&error.to_string(), &["`endpoint`", "input `judge`"]);
}

#[test]
fn bare_answers_need_no_marks() {
    let (verifier, _) = with_judge(json!({ "any": { "of": [{ "math": {} }, { "judge": {} }] } }));
    let verifier = verifier.of_bare_answers();
    let judged = judge(&verifier, &["7", "8", "9", ""]);
    assert_eq!(outcomes(&judged), [Correct, Correct, Wrong, Unparsed]);
}
