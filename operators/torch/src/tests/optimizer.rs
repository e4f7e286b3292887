//! The optimizer: PyTorch's results, learning rates by prefix, averages, rounding at random.

use engine_core::policy::{LoadOptions, Loss, Masters, Policy, Precision, TrainOptions, WeightSet};
use tch::{Device, Kind, Tensor};

use super::follows_pytorch::{golden, tensors};
use super::persistence::Scratch;
use super::{CPU, golden_folder, policy, sequences, training};
use crate::layout::{Init, Parameter, Part};
use crate::optimizer::{AdamW, Gradients};
use crate::parameters::Parameters;
use crate::policy::TorchPolicy;

fn options(change: impl Fn(&mut TrainOptions)) -> LoadOptions {
    let mut options = training(&[]);
    change(options.training.as_mut().unwrap());
    options
}

fn narrow(change: impl Fn(&mut TrainOptions)) -> LoadOptions {
    LoadOptions {
        precision: Precision::Bfloat16,
        ..options(change)
    }
}

/// One step on the usual sequences; returns the loss before it.
fn step(policy: &mut TorchPolicy, rate: f64) -> f64 {
    let report = policy
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap();
    policy.optimizer_step(rate).unwrap();
    report.loss
}

fn refusal(options: &LoadOptions) -> String {
    TorchPolicy::load(&golden_folder("grouped_tied"), options, CPU)
        .unwrap_err()
        .to_string()
}

fn value(policy: &TorchPolicy, name: &str) -> Tensor {
    policy.weights.get(name).detach().to_kind(Kind::Double)
}

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

#[test]
fn twenty_steps_equal_those_of_pytorch() {
    let steps = tensors("sft/adamw/steps.safetensors");
    let list: Vec<Parameter> = [("matrix", vec![6, 5]), ("vector", vec![7])]
        .into_iter()
        .map(|(name, shape)| Parameter {
            name: name.to_owned(),
            parts: vec![Part {
                name: name.to_owned(),
                shape: shape.clone(),
            }],
            shape,
            init: Init::Zeros,
        })
        .collect();
    let runs = [(0.0, f64::INFINITY, 1.0), (0.1, 1.0, 1.0), (0.1, 1.0, 0.1)];
    for (run, (weight_decay, max_grad_norm, factor)) in runs.into_iter().enumerate() {
        let options = TrainOptions {
            weight_decay,
            max_grad_norm,
            learning_rates: vec![("vec".to_owned(), factor)],
            ..TrainOptions::default()
        };
        let folder = golden("sft/adamw");
        let mut weights = Parameters::load(
            list.clone(),
            &folder,
            Some(&options),
            Kind::Float,
            Device::Cpu,
        )
        .unwrap();
        let mut optimizer = AdamW::new(&options, &weights).unwrap();
        tch::no_grad(|| {
            for step in 0..20 {
                let mut gradients = Gradients::new(&weights);
                for (index, parameter) in list.iter().enumerate() {
                    let gradient = steps[&format!("gradients.{}", parameter.name)].get(step);
                    gradients.sum(&weights, index).copy_(&gradient);
                }
                let rate = 1e-2 / (step + 1) as f64;
                optimizer.step(&mut weights, gradients, rate).unwrap();
            }
        });
        for parameter in &list {
            let expected = &steps[&format!("{run}.{}", parameter.name)];
            let gap = largest(&((weights.get(&parameter.name).detach() - expected) / expected));
            assert!(gap < 1e-6, "run {run}, {}: {gap}", parameter.name);
        }
    }
}

#[test]
fn the_longest_prefix_gives_the_learning_rate() {
    let rates = |list: &[(&str, f64)]| {
        let list: Vec<(String, f64)> = list
            .iter()
            .map(|(name, rate)| ((*name).to_owned(), *rate))
            .collect();
        options(move |options| options.learning_rates.clone_from(&list))
    };
    let mut plain = policy("grouped_tied", &training(&[]));
    let mut some = policy(
        "grouped_tied",
        &rates(&[
            ("visual.", 0.1),
            ("visual.merger.", 10.0),
            ("model.layers.1.", 0.0),
        ]),
    );
    let names = [
        ("visual.blocks.0.attn.qkv.weight", 0.1),
        ("visual.merger.ln_q.weight", 10.0),
        ("model.layers.1.mlp.down_proj.weight", 0.0),
        ("model.layers.0.mlp.down_proj.weight", 1.0),
    ];
    let before = names.map(|(name, _)| value(&plain, name));
    step(&mut plain, 1e-3);
    step(&mut some, 1e-3);
    for ((name, factor), before) in names.iter().zip(&before) {
        let (base, found) = (value(&plain, name) - before, value(&some, name) - before);
        assert!(largest(&base) > 5e-4);
        assert!(largest(&(found - base * *factor)) < 1e-6, "{name}");
    }

    let idle = refusal(&rates(&[("visual.", 0.1), ("model.visual.", 0.1)]));
    assert!(
        idle.contains("`model.visual.`, with which no trained weight's name begins"),
        "{idle}"
    );
    let mut frozen = rates(&[("visual.merger.", 0.1)]);
    frozen.training.as_mut().unwrap().freeze = vec!["visual.".to_owned()];
    assert!(refusal(&frozen).contains("`visual.merger.`"));
    let parts = refusal(&rates(&[("model.layers.0.self_attn.q_proj", 0.1)]));
    assert!(parts.contains("one learning rate to all of"), "{parts}");
    let negative = refusal(&rates(&[("visual.", -1.0)]));
    assert!(negative.contains("-1"), "{negative}");
}

#[test]
fn an_average_follows_the_weights_and_can_be_used() {
    let averaging = |decay: f64| options(move |options| options.averaging = Some(decay));
    let name = "model.layers.0.mlp.down_proj.weight";
    let mut policy = policy("grouped_tied", &averaging(0.75));
    let mut expected = value(&policy, name);
    for _ in 0..5 {
        step(&mut policy, 3e-3);
        expected = expected * 0.75 + value(&policy, name) * 0.25;
    }
    let current = policy.logprobs(&sequences()).unwrap();
    policy.use_weights(WeightSet::Averaged).unwrap();
    let averaged = policy.logprobs(&sequences()).unwrap();
    assert_ne!(current, averaged);
    let found = policy.weights_in_use().get(name).to_kind(Kind::Double);
    assert!(largest(&(found - expected)) < 1e-6);
    let scratch = Scratch::new("averaged");
    policy.save(&scratch.0).unwrap();
    let mut saved = TorchPolicy::load(&scratch.0, &super::inference(), CPU).unwrap();
    assert_eq!(saved.logprobs(&sequences()).unwrap(), averaged);

    let error = policy
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap_err();
    assert!(error.to_string().contains("current weights"), "{error}");
    assert!(policy.optimizer_step(1e-3).is_err());
    policy.use_weights(WeightSet::Current).unwrap();
    assert_eq!(policy.logprobs(&sequences()).unwrap(), current);
    step(&mut policy, 3e-3);

    let error = policy.use_weights(WeightSet::Base).unwrap_err().to_string();
    assert!(error.contains("`lora`"), "{error}");
    let mut plain = super::policy("grouped_tied", &training(&[]));
    let error = plain
        .use_weights(WeightSet::Averaged)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`averaging`"), "{error}");
    for decay in [1.0, -0.1, f64::NAN] {
        assert!(refusal(&averaging(decay)).contains("decay"));
    }
}

#[test]
fn rounding_at_random_learns_what_rounding_to_the_nearest_loses() {
    let rounding = narrow(|options| options.masters = Masters::StochasticRounding);
    let mut policy = policy("grouped_tied", &rounding);
    let mut masters = super::policy("grouped_tied", &narrow(|_| {}));
    let bytes = |policy: &TorchPolicy| {
        policy
            .training
            .as_ref()
            .unwrap()
            .optimizer
            .bytes(&policy.weights)
    };
    // Two moments of 2 bytes beside two of 4 and a master.
    assert_eq!(bytes(&policy).0 * 3, bytes(&masters).0);

    // Steps of a tenth of the distance of two 16-bit numbers around 1.
    let name = "model.norm.weight";
    let before = value(&policy, name);
    let moved = |policy: &TorchPolicy| {
        (value(policy, name) - &before)
            .mean(Kind::Double)
            .double_value(&[])
    };
    let first = step(&mut policy, 5e-4);
    let mut last = step(&mut masters, 5e-4);
    assert!((first - last).abs() < 1e-6);
    for _ in 1..40 {
        last = step(&mut policy, 5e-4);
        step(&mut masters, 5e-4);
    }
    assert!(last < 0.8 * first, "{first} {last}");
    assert!(
        (moved(&policy) - moved(&masters)).abs() < 2e-3,
        "{} {}",
        moved(&policy),
        moved(&masters)
    );

    let wide = refusal(&options(|options| {
        options.masters = Masters::StochasticRounding;
    }));
    assert!(
        wide.contains("16 bits") && wide.contains("bfloat16"),
        "{wide}"
    );
}
