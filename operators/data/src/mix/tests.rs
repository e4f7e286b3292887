use serde_json::json;

use super::*;
use crate::testing::{TestIo, examples, text_values};

fn config(value: serde_json::Value) -> Mix {
    serde_json::from_value(value).unwrap()
}

fn run(mix: &Mix, seed: u64, parts: usize) -> Vec<String> {
    let own = examples(&[
        ("c", "1", "self"),
        ("a", "2", "self"),
        ("b", "3", "self"),
        ("a", "0", "self"),
    ]);
    let expert = examples(&[("e", "5", "expert"), ("d", "4", "expert")]);
    let mut io = TestIo::new();
    let mut batches: Vec<_> = (0..4)
        .step_by(parts)
        .map(|start| own.slice(start, parts.min(4 - start)))
        .collect();
    batches.push(expert);
    io.input("examples", &batches);
    io.run(mix, seed).unwrap();
    text_values(&io.output("examples"), "text")
}

/// So many of `self` and so many of `expert`.
fn counts(texts: &[String]) -> (usize, usize) {
    let own = texts.iter().filter(|text| text.as_str() < "4").count();
    (own, texts.len() - own)
}

#[test]
fn without_shuffle_the_order_is_by_origin_and_prompt() {
    let mix = config(json!({ "shuffle": false }));
    assert_eq!(run(&mix, 0, 4), ["4", "5", "0", "2", "3", "1"]);
    assert_eq!(run(&mix, 1, 1), ["4", "5", "0", "2", "3", "1"]);
}

#[test]
fn a_shuffle_is_a_permutation_by_seed() {
    let mix = config(json!({ "shuffle": true }));
    let drawn: Vec<Vec<String>> = (0..5).map(|seed| run(&mix, seed, 4)).collect();
    assert!(drawn.iter().any(|order| order != &drawn[0]));
    for mut order in drawn.clone() {
        order.sort();
        assert_eq!(order, ["0", "1", "2", "3", "4", "5"]);
    }
    assert_eq!(run(&mix, 2, 1), drawn[2]);
}

#[test]
fn caps_hold_by_origin() {
    let mix = config(json!({ "shuffle": false, "max": { "self": 2, "nobody": 0 } }));
    let kept = run(&mix, 0, 4);
    assert_eq!(kept.len(), 4);
    assert_eq!(kept[..2], ["4", "5"]);
    assert_eq!(run(&mix, 0, 1), kept);
}

#[test]
fn a_ratio_takes_exact_shares_of_all_that_there_is() {
    for (ratio, expected) in [
        (json!({ "self": 1, "expert": 1 }), (2, 2)),
        (json!({ "self": 0.75, "expert": 0.25 }), (4, 1)),
        (json!({ "self": 2, "expert": 1 }), (4, 2)),
        (json!({ "self": 0, "expert": 1 }), (0, 2)),
        (json!({ "self": 1, "expert": 1, "nobody": 0 }), (2, 2)),
        (json!({ "self": 1, "expert": 1, "nobody": 1 }), (0, 0)),
    ] {
        let mix = config(json!({ "shuffle": true, "ratio": ratio }));
        let kept = run(&mix, 3, 4);
        assert_eq!(counts(&kept), expected, "{ratio}");
        assert_eq!(run(&mix, 3, 1), kept);
    }
    let capped =
        json!({ "shuffle": false, "ratio": { "self": 1, "expert": 1 }, "max": { "self": 1 } });
    assert_eq!(counts(&run(&config(capped), 0, 4)), (1, 1));
    let three = json!({ "shuffle": false, "ratio": { "self": 1, "expert": 1 }, "total": 3 });
    // Equal remainders: the first by name has one more.
    assert_eq!(counts(&run(&config(three), 0, 4)), (1, 2));
}

#[test]
fn a_total_draws_from_all_origins() {
    let mix = config(json!({ "shuffle": false, "total": 3 }));
    let drawn: Vec<Vec<String>> = (0..10).map(|seed| run(&mix, seed, 4)).collect();
    assert!(drawn.iter().all(|kept| kept.len() == 3));
    assert!(drawn.iter().any(|kept| kept != &drawn[0]));
    assert_eq!(run(&mix, 4, 1), drawn[4]);
}

#[test]
fn what_a_ratio_cannot_give_is_an_error() {
    for (mix, expected) in [
        (
            json!({ "shuffle": false, "ratio": { "self": 1 } }),
            "origin `expert`, which `ratio` does not name",
        ),
        (
            json!({ "shuffle": false, "ratio": { "self": 1, "expert": 1 }, "total": 6 }),
            "there are 4: `expert` is what runs short",
        ),
    ] {
        let mut io = TestIo::new();
        let rows = [
            ("a", "0", "self"),
            ("b", "1", "self"),
            ("c", "2", "self"),
            ("d", "4", "expert"),
            ("e", "5", "expert"),
        ];
        io.input("examples", &[examples(&rows)]);
        let error = io.run(&config(mix), 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (mix, key) in [
        (json!({ "shuffle": false, "total": 0 }), "total"),
        (json!({ "shuffle": false, "ratio": { "self": 0 } }), "ratio"),
    ] {
        let faults = config(mix).output_types(&PortTypes::new()).unwrap_err();
        assert_eq!(faults[0].path, [key]);
    }
}

#[test]
fn remainders_add_up_to_the_total() {
    assert_eq!(largest_remainders(&[1, 1, 1], 10), [4, 3, 3]);
    assert_eq!(largest_remainders(&[5, 3, 2], 7), [4, 2, 1]);
    assert_eq!(largest_remainders(&[1, 999], 100), [0, 100]);
    assert_eq!(largest_remainders(&[7, 11], 0), [0, 0]);
    let counts = largest_remainders(&[1, 2, u64::MAX / 4], u64::MAX / 2);
    assert_eq!(counts.iter().sum::<u64>(), u64::MAX / 2);
}
