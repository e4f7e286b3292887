//! What the shared keys refuse, and what the policy gets.

use std::collections::BTreeMap;

use engine_core::policy::{Masters, Precision};

use super::{AdamW, Lora, TrainingKeys};
use crate::faults::ValueFaults;

struct Values {
    adamw: AdamW,
    freeze: Vec<String>,
    learning_rates: BTreeMap<String, f64>,
    lora: Option<Lora>,
    masters: Masters,
    precision: Precision,
    averaging: Option<f64>,
    micro_batch_tokens: Option<u32>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            adamw: AdamW::default(),
            freeze: Vec::new(),
            learning_rates: BTreeMap::new(),
            lora: None,
            masters: Masters::Float32,
            precision: Precision::Bfloat16,
            averaging: None,
            micro_batch_tokens: None,
        }
    }
}

impl Values {
    fn keys(&self) -> TrainingKeys<'_> {
        TrainingKeys {
            precision: self.precision,
            adamw: &self.adamw,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            freeze: &self.freeze,
            learning_rates: &self.learning_rates,
            lora: self.lora.as_ref(),
            masters: self.masters,
            averaging: self.averaging,
            recompute: true,
            micro_batch_tokens: self.micro_batch_tokens,
            deterministic: true,
        }
    }

    fn faults(&self) -> Vec<(String, String)> {
        let mut faults = ValueFaults::default();
        self.keys().check(&mut faults);
        let faults = faults.or(&[], ()).err().unwrap_or_default();
        faults
            .into_iter()
            .map(|fault| (fault.path.join("/"), fault.message))
            .collect()
    }
}

fn lora(rank: u32, alpha: f64, targets: &[&str]) -> Option<Lora> {
    Some(Lora {
        rank,
        alpha,
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    })
}

fn rates(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
    pairs
        .iter()
        .map(|(prefix, factor)| ((*prefix).to_owned(), *factor))
        .collect()
}

#[test]
fn what_can_be_combined_is_accepted() {
    for values in [
        Values::default(),
        Values {
            lora: lora(8, 16.0, &["q_proj"]),
            freeze: vec!["model.layers.0.".to_owned()],
            averaging: Some(0.99),
            micro_batch_tokens: Some(4096),
            ..Values::default()
        },
        Values {
            masters: Masters::StochasticRounding,
            freeze: vec!["visual.".to_owned()],
            learning_rates: rates(&[("model.embed_tokens.", 0.1), ("", 2.0)]),
            ..Values::default()
        },
    ] {
        assert_eq!(values.faults(), []);
    }
}

#[test]
fn wrong_combinations_are_refused_with_the_fix() {
    let cases: [(Values, &str, &str); 9] = [
        (
            Values {
                masters: Masters::StochasticRounding,
                precision: Precision::Float32,
                ..Values::default()
            },
            "masters",
            "set `precision: bfloat16`",
        ),
        (
            Values {
                masters: Masters::StochasticRounding,
                lora: lora(8, 16.0, &[]),
                ..Values::default()
            },
            "masters",
            "leave one of them out",
        ),
        (
            Values {
                lora: lora(8, 16.0, &[]),
                freeze: vec!["model.".to_owned()],
                ..Values::default()
            },
            "freeze",
            "leave `model.` out",
        ),
        (
            Values {
                freeze: vec![String::new()],
                ..Values::default()
            },
            "freeze",
            "name a part",
        ),
        (
            Values {
                averaging: Some(1.0),
                ..Values::default()
            },
            "averaging",
            "above 0 and below 1",
        ),
        (
            Values {
                freeze: vec!["visual.".to_owned()],
                learning_rates: rates(&[("visual.merger.", 0.5)]),
                ..Values::default()
            },
            "learning-rates/visual.merger.",
            "take one of them away",
        ),
        (
            Values {
                learning_rates: rates(&[("visual.", 0.0)]),
                ..Values::default()
            },
            "learning-rates/visual.",
            "name it in `freeze`",
        ),
        (
            Values {
                lora: lora(0, 16.0, &[]),
                ..Values::default()
            },
            "lora/rank",
            "at least 1",
        ),
        (
            Values {
                lora: lora(4, 16.0, &["q_proj", "q_proj"]),
                ..Values::default()
            },
            "lora/targets",
            "twice",
        ),
    ];
    for (values, path, word) in cases {
        let faults = values.faults();
        assert_eq!(faults.len(), 1, "{path}: {faults:?}");
        assert_eq!(faults[0].0, path);
        assert!(faults[0].1.contains(word), "{}", faults[0].1);
    }
}

#[test]
fn the_policy_gets_every_key() {
    let values = Values {
        lora: lora(8, 16.0, &["q_proj"]),
        freeze: vec!["visual.".to_owned()],
        learning_rates: rates(&[("model.", 0.5)]),
        averaging: Some(0.9),
        micro_batch_tokens: Some(100),
        ..Values::default()
    };
    let options = values.keys().load_options(3);
    assert_eq!(options.precision, Precision::Bfloat16);
    let training = options.training.unwrap();
    assert_eq!(training.freeze, ["visual."]);
    assert_eq!(training.learning_rates, [("model.".to_owned(), 0.5)]);
    let adapters = training.lora.unwrap();
    assert_eq!((adapters.rank, adapters.alpha), (8, 16.0));
    assert_eq!(adapters.targets, ["q_proj"]);
    assert_eq!(training.averaging, Some(0.9));
    assert_eq!(training.micro_batch_tokens, Some(100));
    assert_eq!((training.recompute, training.deterministic), (true, true));
    assert_eq!(training.weight_decay, 0.1);
    assert_ne!(
        training.seed,
        values.keys().load_options(4).training.unwrap().seed
    );
}
