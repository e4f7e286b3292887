//! Training that stops and goes on from files.

use std::collections::HashMap;
use std::path::Path;

use engine_core::policy::{
    LoadOptions, LoraOptions, Loss, LossReport, Masters, Policy, Precision, TrainSequence,
    WeightSet,
};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};

use super::persistence::Scratch;
use super::{inference, policy, sequences, training};
use crate::policy::TorchPolicy;

const CLIP: Loss = Loss::clipped(0.2, 0.28);

/// One optimizer step in two calls, with sequences that depend on its number. Returns all that it reports.
fn step(policy: &mut TorchPolicy, number: usize, loss: Loss) -> (Vec<LossReport>, f64) {
    let mut sequences: Vec<TrainSequence> = sequences();
    sequences.rotate_left(number % 6);
    if loss != Loss::CrossEntropy {
        let logprobs = policy.logprobs(&sequences).unwrap();
        for (index, (sequence, logprobs)) in sequences.iter_mut().zip(logprobs).enumerate() {
            sequence.advantages = vec![if index % 2 == 0 { 1.0 } else { -0.5 }];
            sequence.sampler_logprobs = logprobs.iter().map(|logprob| logprob - 0.1).collect();
        }
    }
    let (left, right) = sequences.split_at(2 + number % 3);
    let reports = vec![
        policy.forward_backward(left, loss).unwrap(),
        policy.forward_backward(right, loss).unwrap(),
    ];
    let rate = 3e-3 / (number + 1) as f64;
    (reports, policy.optimizer_step(rate).unwrap().grad_norm)
}

fn saved_bytes(policy: &TorchPolicy, folder: &Path) -> Vec<u8> {
    policy.save(folder).unwrap();
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

fn with_adapters(targets: &[&str]) -> LoadOptions {
    let mut options = training(&[]);
    options.training.as_mut().unwrap().lora = Some(LoraOptions {
        rank: 2,
        alpha: 4.0,
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    });
    options
}

#[test]
fn training_goes_on_bit_for_bit() {
    let mut decaying = training(&["visual."]);
    decaying.training.as_mut().unwrap().weight_decay = 0.1;
    let mut narrow = training(&[]);
    narrow.precision = Precision::Bfloat16;
    let mut rates = training(&[]);
    let options = rates.training.as_mut().unwrap();
    options.learning_rates = vec![("visual.".to_owned(), 0.1)];
    options.averaging = Some(0.9);
    let mut rounding = narrow.clone();
    let options = rounding.training.as_mut().unwrap();
    options.masters = Masters::StochasticRounding;
    options.averaging = Some(0.9);
    let mut adapted = with_adapters(&[]);
    adapted.training.as_mut().unwrap().averaging = Some(0.9);
    let mut narrow_adapted = with_adapters(&["gate_proj", "qkv", "v_proj"]);
    narrow_adapted.precision = Precision::Bfloat16;
    for (name, options) in [
        ("whole", training(&[])),
        ("frozen", decaying),
        ("narrow", narrow),
        ("rates", rates),
        ("rounding", rounding),
        ("adapted", adapted),
        ("narrow-adapted", narrow_adapted),
    ] {
        for loss in [Loss::CrossEntropy, CLIP] {
            let scratch = Scratch::new(&format!("resume-{name}-{}", loss == CLIP));
            let mut straight = policy("grouped_tied", &options);
            for number in 0..3 {
                step(&mut straight, number, loss);
            }
            straight.save_state(&scratch.0.join("state")).unwrap();
            let mut resumed = policy("grouped_tied", &options);
            // Gradients that nobody stepped with are not part of a state, and do not survive one.
            resumed
                .forward_backward(&sequences(), Loss::CrossEntropy)
                .unwrap();
            resumed.load_state(&scratch.0.join("state")).unwrap();
            for number in 3..7 {
                assert_eq!(
                    step(&mut straight, number, loss),
                    step(&mut resumed, number, loss),
                    "{name} {loss:?} {number}"
                );
            }
            let mut sets = vec![WeightSet::Current];
            let options = options.training.as_ref().unwrap();
            sets.extend(options.averaging.map(|_| WeightSet::Averaged));
            for set in sets {
                straight.use_weights(set).unwrap();
                resumed.use_weights(set).unwrap();
                assert!(
                    saved_bytes(&straight, &scratch.0.join("straight"))
                        == saved_bytes(&resumed, &scratch.0.join("resumed")),
                    "{name} {set:?}"
                );
            }
            for (policy, folder) in [(&straight, "one"), (&resumed, "two")] {
                policy.save_state(&scratch.0.join(folder)).unwrap();
            }
            for entry in std::fs::read_dir(scratch.0.join("one")).unwrap() {
                let file = entry.unwrap().path();
                let other = scratch.0.join("two").join(file.file_name().unwrap());
                assert!(std::fs::read(&file).unwrap() == std::fs::read(other).unwrap());
            }
        }
    }
}

fn refusal(folder: &Path, options: &LoadOptions) -> String {
    let mut policy = policy("grouped_tied", options);
    let before = policy.weights.get("model.norm.weight").copy();
    let error = policy.load_state(folder).unwrap_err().to_string();
    assert_eq!(before, policy.weights.get("model.norm.weight"));
    error
}

#[test]
fn a_state_of_another_configuration_is_refused_by_name() {
    let scratch = Scratch::new("refused-state");
    let state = scratch.0.join("state");
    let options = training(&["visual."]);
    policy("grouped_tied", &options).save_state(&state).unwrap();

    let more = refusal(&state, &training(&[]));
    assert!(
        more.contains("/visual.") && more.contains("missing"),
        "{more}"
    );
    let fewer = refusal(&state, &training(&["visual.", "model.norm."]));
    assert!(
        fewer.contains("/model.norm.weight")
            && fewer.contains("optimizer-0000")
            && fewer.contains("frozen"),
        "{fewer}"
    );
    let mut narrow = options.clone();
    narrow.precision = Precision::Bfloat16;
    let narrow = refusal(&state, &narrow);
    assert!(
        narrow.contains("state.json") && narrow.contains("bfloat16"),
        "{narrow}"
    );

    let path = state.join("optimizer-00001.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let name = "first-moment/model.layers.0.self_attn.k_proj.weight";
    let flat = |tensor: &str, view: TensorView<'_>| {
        if tensor == name {
            vec![view.shape().iter().product()]
        } else {
            view.shape().to_vec()
        }
    };
    let views: HashMap<String, TensorView<'_>> = parsed
        .iter()
        .map(|(tensor, view)| {
            let shape = flat(tensor, view.clone());
            let view = TensorView::new(view.dtype(), shape, view.data()).unwrap();
            (tensor.to_owned(), view)
        })
        .collect();
    serialize_to_file(views, None, &path).unwrap();
    let misshaped = refusal(&state, &options);
    assert!(
        misshaped.contains(name) && misshaped.contains("has shape [512], but the model has"),
        "{misshaped}"
    );
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let cut = refusal(&state, &options);
    assert!(cut.contains("optimizer-00001.safetensors"), "{cut}");
    std::fs::remove_file(&path).unwrap();
    let gone = refusal(&state, &options);
    assert!(
        gone.contains("optimizer-00001.safetensors") && gone.contains("No such file"),
        "{gone}"
    );
}

#[test]
fn states_of_other_options_are_refused_and_older_ones_read() {
    let scratch = Scratch::new("other-states");
    let state = scratch.0.join("state");
    policy("grouped_tied", &with_adapters(&["q_proj"]))
        .save_state(&state)
        .unwrap();
    let none = refusal(&state, &training(&[]));
    assert!(
        none.contains("adapters of rank 2 and alpha 4, and this one has no adapters"),
        "{none}"
    );
    let mut other = with_adapters(&["q_proj"]);
    other
        .training
        .as_mut()
        .unwrap()
        .lora
        .as_mut()
        .unwrap()
        .alpha = 8.0;
    assert!(refusal(&state, &other).contains("alpha 8"));
    let more = refusal(&state, &with_adapters(&["q_proj", "k_proj"]));
    assert!(
        more.contains("k_proj.lora_A.weight") && more.contains("missing"),
        "{more}"
    );

    let plain = training(&[]);
    let mut straight = policy("grouped_tied", &plain);
    step(&mut straight, 0, Loss::CrossEntropy);
    straight.save_state(&state).unwrap();
    let mut averaging = plain.clone();
    averaging.training.as_mut().unwrap().averaging = Some(0.9);
    let average = refusal(&state, &averaging);
    assert!(
        average.contains("average/") && average.contains("missing"),
        "{average}"
    );

    // Format 1 is what is written without any of the newer options, and did not state them.
    let path = state.join("state.json");
    let mut summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(summary["format"], 2);
    summary["format"] = 1.into();
    summary.as_object_mut().unwrap().remove("lora");
    std::fs::write(&path, summary.to_string()).unwrap();
    let mut resumed = policy("grouped_tied", &plain);
    resumed.load_state(&state).unwrap();
    assert_eq!(
        step(&mut straight, 1, Loss::CrossEntropy),
        step(&mut resumed, 1, Loss::CrossEntropy)
    );
    summary["format"] = 3.into();
    std::fs::write(&path, summary.to_string()).unwrap();
    assert!(refusal(&state, &plain).contains("formats up to 2"));
}

#[test]
fn a_model_that_is_not_trained_has_no_state() {
    let scratch = Scratch::new("no-state");
    let mut reader = policy("grouped_tied", &inference());
    assert!(reader.save_state(&scratch.0).is_err());
    assert!(reader.load_state(&scratch.0).is_err());
}

#[test]
fn prompts_are_checked_without_running_them() {
    let policy = policy("grouped_tied", &inference());
    let prompt = super::prompt(1, 9, None);
    policy.check_prompt(&prompt, 5).unwrap();
    let error = policy.check_prompt(&prompt, 100_000).unwrap_err();
    assert!(error.to_string().contains("do not fit"), "{error}");
}
