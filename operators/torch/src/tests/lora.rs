//! Adapters of whole models: what is trained, merged, saved and refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine_core::policy::{
    LoadOptions, LoraOptions, Loss, Masters, Policy, Precision, TrainOptions, TrainSequence,
    WeightSet,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::follows_pytorch::{golden, published};
use super::golden::{Golden, MODELS, folder, policy};
use super::persistence::Scratch;
use super::saved::digest;
use super::{CPU, inference, sequences};
use crate::optimizer::Gradients;
use crate::philox;
use crate::policy::TorchPolicy;

const MODEL: &str = "qwen2_5_vl/grouped_tied";
const FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// Options with adapters of rank 3.
fn lora(targets: &[&str], change: impl Fn(&mut TrainOptions)) -> LoadOptions {
    let mut training = TrainOptions {
        lora: Some(LoraOptions {
            rank: 3,
            alpha: 4.5,
            targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        }),
        seed: 7,
        ..TrainOptions::default()
    };
    change(&mut training);
    LoadOptions {
        precision: Precision::Float32,
        training: Some(training),
    }
}

fn step(policy: &mut TorchPolicy, rate: f64) -> f64 {
    let report = policy
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap();
    policy.optimizer_step(rate).unwrap();
    report.loss
}

/// Gives every `B` values, so that adapters change the model.
fn fill(policy: &mut TorchPolicy) {
    for index in policy.weights.trained() {
        let (name, tensor) = (
            &policy.weights.list[index].name,
            &policy.weights.tensors[index],
        );
        if name.ends_with("lora_B.weight") {
            let mut values = vec![0.0_f32; tensor.numel()];
            philox::fill_uniform(index as u64, 0.2, &mut values);
            let values = Tensor::from_slice(&values).view(tensor.size().as_slice());
            tensor.detach().copy_(&values);
        }
    }
    policy.weights.merge_adapters();
}

fn refusal(options: &LoadOptions) -> String {
    TorchPolicy::load(&folder(MODEL), options, CPU)
        .unwrap_err()
        .to_string()
}

/// The modules that have adapters, as they are published.
fn adapted(policy: &TorchPolicy) -> Vec<String> {
    let list = &policy.weights.list;
    let names = policy
        .weights
        .trained()
        .into_iter()
        .map(|index| list[index].parts[0].name.clone());
    let mut names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(".lora_A.weight")?.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn fresh_adapters_change_nothing_and_trained_ones_what_they_adapt() {
    let mut plain = policy(MODEL, &inference());
    let mut learner = policy(MODEL, &lora(&[], |_| {}));
    assert_eq!(learner.info(), plain.info());
    let before = plain.logprobs(&sequences()).unwrap();
    assert_eq!(before, learner.logprobs(&sequences()).unwrap());
    let first = step(&mut learner, 1e-2);
    for _ in 0..30 {
        step(&mut learner, 1e-2);
    }
    let last = step(&mut learner, 1e-2);
    assert!(last < 0.5 * first, "{first} {last}");
    for (parameter, tensor) in learner.weights.own() {
        let is_same = *tensor == plain.weights.get(&parameter.name);
        let is_adapted = parameter.name.starts_with("model.layers.") && parameter.is_matrix();
        assert_eq!(is_same, !is_adapted, "{}", parameter.name);
    }
    let after = learner.logprobs(&sequences()).unwrap();
    learner.use_weights(WeightSet::Base).unwrap();
    assert_eq!(before, learner.logprobs(&sequences()).unwrap());
    learner.use_weights(WeightSet::Current).unwrap();
    assert_eq!(after, learner.logprobs(&sequences()).unwrap());
    let scratch = Scratch::new("lora-merged");
    learner.save(&scratch.0).unwrap();
    let mut saved = TorchPolicy::load(&scratch.0, &inference(), CPU).unwrap();
    assert_eq!(after, saved.logprobs(&sequences()).unwrap());
}

#[test]
fn targets_are_found_by_the_ends_of_names() {
    let found = |targets: &[&str]| adapted(&policy(MODEL, &lora(targets, |_| {})));
    let layers = found(&[]);
    assert_eq!(layers.len(), 2 * 7);
    assert!(layers.iter().all(|name| name.starts_with("model.layers.")));
    assert_eq!(
        found(&["q_proj", "layers.1.self_attn.v_proj"]),
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.v_proj",
        ]
    );
    // As in peft the tower's layers of this name are meant too.
    assert_eq!(found(&["gate_proj"]).len(), 2 + 3);
    let frozen = lora(&["gate_proj"], |options| {
        options.freeze = vec!["visual.".to_owned()];
    });
    assert_eq!(adapted(&policy(MODEL, &frozen)).len(), 2);
    // The whole name in transformers.
    assert_eq!(
        found(&["model.language_model.layers.0.mlp.up_proj"]),
        ["model.layers.0.mlp.up_proj"]
    );

    let unknown = refusal(&lora(&["q_proj", "query"], |_| {}));
    assert!(
        unknown.contains("target `query`")
            && unknown.contains("down_proj, gate_proj, k_proj, o_proj, proj, q_proj"),
        "{unknown}"
    );
    for target in ["lm_head", "embed_tokens", "proj.weight", "_proj"] {
        assert!(refusal(&lora(&[target], |_| {})).contains(target));
    }
    let rank = refusal(&lora(&[], |options| {
        options.lora.as_mut().unwrap().rank = 0;
    }));
    assert!(rank.contains("rank 0"), "{rank}");
    let alpha = refusal(&lora(&[], |options| {
        options.lora.as_mut().unwrap().alpha = f64::NAN;
    }));
    assert!(alpha.contains("alpha"), "{alpha}");
    let mut rounding = lora(&[], |options| options.masters = Masters::StochasticRounding);
    rounding.precision = Precision::Bfloat16;
    assert!(refusal(&rounding).contains("32 bits"));
    let slow = lora(&[], |options| {
        options.learning_rates = vec![("visual.".to_owned(), 0.5)];
    });
    assert!(refusal(&slow).contains("no trained weight"));
}

#[test]
fn first_values_are_peft_s_and_depend_on_the_seed() {
    let weights =
        |seed: u64| policy(MODEL, &lora(&["down_proj"], |options| options.seed = seed)).weights;
    let (one, again, other) = (weights(1), weights(1), weights(2));
    for index in one.trained() {
        let name = &one.list[index].name;
        let (one, again, other) = (
            one.get(name).detach(),
            again.get(name).detach(),
            other.get(name).detach(),
        );
        assert_eq!(one, again);
        if name.ends_with("lora_B.weight") {
            assert_eq!(one.abs().max().double_value(&[]), 0.0);
        } else {
            assert_ne!(one, other);
            // Kaiming's bound for a = sqrt(5) is one over the root of the inputs.
            let bound = 1.0 / (one.size()[1] as f64).sqrt();
            let largest = one.abs().max().double_value(&[]);
            assert!(
                largest <= bound && largest > 0.95 * bound,
                "{name}: {largest} {bound}"
            );
        }
    }
}

/// A learner of the golden model's second case, in 64 bits with filled adapters.
fn learner_in_64_bits(name: &str, options: &LoadOptions) -> (TorchPolicy, Vec<TrainSequence>) {
    tch::set_num_threads(1);
    let mut policy = TorchPolicy::load_as(&folder(name), options, Kind::Double, CPU).unwrap();
    fill(&mut policy);
    let mut prompt = Golden::read(name).prompt(1);
    let completion = prompt.token_ids.split_off(prompt.token_ids.len() - 4);
    let sequence = TrainSequence {
        prompt: std::sync::Arc::new(prompt),
        completion,
        token_weight: 0.25,
        ..TrainSequence::default()
    };
    (policy, vec![sequence])
}

/// Compares the derivative in a random direction of all adapters with the change of the loss.
fn check_gradient(name: &str, options: &LoadOptions) {
    let (mut policy, sequences) = learner_in_64_bits(name, options);
    let value = |policy: &mut TorchPolicy| {
        policy.weights.merge_adapters();
        policy.training.as_mut().unwrap().gradients = Gradients::default();
        policy
            .forward_backward(&sequences, Loss::CrossEntropy)
            .unwrap()
            .loss
    };
    value(&mut policy);
    let gradients: Vec<Tensor> = (policy.training.as_ref().unwrap().gradients.buffers())
        .iter()
        .map(Tensor::copy)
        .collect();
    for (bucket, gradient) in gradients.iter().enumerate() {
        let mut direction = vec![0.0_f32; gradient.numel()];
        philox::fill_normal(bucket as u64, 1.0, &mut direction);
        let direction = Tensor::from_slice(&direction).to_kind(Kind::Double);
        let expected = direction.dot(gradient).double_value(&[]);
        let step = 1e-6;
        let shifted = |policy: &mut TorchPolicy, by: f64| {
            tch::no_grad(|| policy.weights.buckets[bucket].flat += &direction * by);
            value(policy)
        };
        let found = (shifted(&mut policy, step) - shifted(&mut policy, -2.0 * step)) / (2.0 * step);
        shifted(&mut policy, step);
        assert!(
            expected.abs() > 1e-3 && (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{name} {bucket}: {found} {expected}"
        );
    }
}

#[test]
fn gradients_of_adapters_agree_with_finite_differences() {
    for name in [
        MODEL,
        "qwen3_vl/grouped_tied",
        "qwen2/odd_untied",
        "qwen3/wide_heads",
        "llama/smol",
    ] {
        check_gradient(name, &lora(&[], |_| {}));
        check_gradient(name, &lora(&["k_proj", "up_proj", "o_proj"], |_| {}));
    }
    check_gradient(
        MODEL,
        &lora(&["qkv", "gate_proj", "mlp.0", "mlp.2", "v_proj"], |_| {}),
    );
    check_gradient(
        "qwen3_vl/grouped_tied",
        &lora(&["qkv", "attn.proj", "linear_fc1", "linear_fc2"], |_| {}),
    );
    check_gradient(
        MODEL,
        &lora(&["attn.proj"], |options| {
            options.freeze = vec!["model.".to_owned()];
        }),
    );
}

#[test]
fn sixteen_bit_models_have_adapters_of_32_bits() {
    let mut options = lora(&[], |options| options.averaging = Some(0.5));
    options.precision = Precision::Bfloat16;
    let mut learner = policy(MODEL, &options);
    let first = step(&mut learner, 1e-2);
    let mut last = first;
    for _ in 0..30 {
        last = step(&mut learner, 1e-2);
    }
    assert!(last < 0.6 * first, "{first} {last}");
    for index in learner.weights.trained() {
        assert_eq!(learner.weights.tensors[index].kind(), Kind::Float);
    }
    let current = learner.logprobs(&sequences()).unwrap();
    learner.use_weights(WeightSet::Averaged).unwrap();
    assert_ne!(current, learner.logprobs(&sequences()).unwrap());
    learner.use_weights(WeightSet::Current).unwrap();
    assert_eq!(current, learner.logprobs(&sequences()).unwrap());
}

#[test]
fn saved_adapters_are_those_in_use() {
    let scratch = Scratch::new("adapters");
    let options = lora(&["o_proj"], |options| options.averaging = Some(0.5));
    let mut learner = policy(MODEL, &options);
    for _ in 0..3 {
        step(&mut learner, 1e-2);
    }
    let saved = |learner: &TorchPolicy, name: &str| -> BTreeMap<String, Tensor> {
        learner.save_adapter(&scratch.0.join(name)).unwrap();
        let path = scratch.0.join(name).join(FILES[0]);
        Tensor::read_safetensors(path)
            .unwrap()
            .into_iter()
            .collect()
    };
    let current = saved(&learner, "current");
    let name = "base_model.model.model.language_model.layers.1.self_attn.o_proj.lora_B.weight";
    assert_eq!(current.len(), 4);
    let part = (learner.weights.list.iter()).find(|one| {
        one.name
            .ends_with("layers.1.self_attn.o_proj.lora_B.weight")
    });
    assert_eq!(
        current[name],
        published(&learner.weights, &part.unwrap().parts[0])
    );
    learner.use_weights(WeightSet::Averaged).unwrap();
    assert_ne!(current[name], saved(&learner, "averaged")[name]);
    learner.use_weights(WeightSet::Base).unwrap();
    assert!(learner.save_adapter(&scratch.0).is_err());
    assert!(
        policy(MODEL, &inference())
            .save_adapter(&scratch.0)
            .is_err()
    );
}

/// What `check_adapters.py` looks at: every golden model with all its language layers adapted, and some with layers of the tower.
fn adapters_to_save() -> Vec<(String, TorchPolicy)> {
    let mut list: Vec<(String, &str, Vec<&str>)> = MODELS
        .iter()
        .map(|name| ((*name).to_owned(), *name, Vec::new()))
        .collect();
    list.push((format!("{MODEL}-gates"), MODEL, vec!["gate_proj", "q_proj"]));
    list.push((
        format!("{MODEL}-tower"),
        MODEL,
        vec!["qkv", "attn.proj", "mlp.0", "v_proj"],
    ));
    let three = "qwen3_vl/grouped_tied";
    list.push((
        format!("{three}-tower"),
        three,
        vec!["qkv", "linear_fc1", "k_proj"],
    ));
    let load = |(label, name, targets): (String, &str, Vec<&str>)| {
        let mut policy = policy(name, &lora(&targets, |_| {}));
        fill(&mut policy);
        (label, policy)
    };
    list.into_iter().map(load).collect()
}

#[test]
fn saved_adapters_are_those_that_peft_loaded() {
    let scratch = Scratch::new("peft");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(golden("lora/saved.json")).unwrap()).unwrap();
    let saved = adapters_to_save();
    assert_eq!(expected.as_object().unwrap().len(), saved.len());
    for (label, policy) in saved {
        policy.save_adapter(&scratch.0.join(&label)).unwrap();
        let digests =
            FILES.map(|file| digest(&std::fs::read(scratch.0.join(&label).join(file)).unwrap()));
        assert_eq!(expected[&label]["digests"], json!(digests), "{label}");
    }
}

#[test]
#[ignore = "writes the folders that tests/golden/lora/check_adapters.py reads"]
fn write_saved_adapters() {
    let out: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/adapters");
    for (label, policy) in adapters_to_save() {
        policy.save(&out.join(&label)).unwrap();
        policy
            .save_adapter(&out.join(&label).join("adapter"))
            .unwrap();
    }
}
