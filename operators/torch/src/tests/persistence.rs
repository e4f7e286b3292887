//! Model folders: saving, loading, initialising, and errors that name the tensor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use engine_core::policy::{LoadOptions, Loss, ModelBackend, Policy, Precision};
use safetensors::{Dtype, SafeTensors};

use super::{CPU, golden_folder, inference, policy, sequences, training};
use crate::policy::TorchPolicy;
use crate::{DeviceChoice, TorchBackend};

/// A folder below the build's own that is removed when the test is done.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("operators-torch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn load(folder: &Path, options: &LoadOptions) -> TorchPolicy {
    TorchPolicy::load(folder, options, CPU).unwrap()
}

/// Name, type and shape of each tensor of a folder.
fn tensors(folder: &Path) -> Vec<(String, Dtype, Vec<usize>)> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut list: Vec<_> = parsed
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec()))
        .collect();
    list.sort_by(|left, right| left.0.cmp(&right.0));
    list
}

#[test]
fn a_saved_model_loads_with_the_same_names_and_probabilities() {
    for name in ["grouped_tied", "odd_untied"] {
        let scratch = Scratch::new(&format!("save-{name}"));
        let mut learner = policy(name, &training(&[]));
        let sequences: Vec<_> = sequences()
            .into_iter()
            .filter(|sequence| sequence.prompt.images.is_empty())
            .map(|mut sequence| {
                let prompt = sequence
                    .prompt
                    .token_ids
                    .iter()
                    .map(|id| 7 + id % 80)
                    .collect();
                sequence.prompt = std::sync::Arc::new(engine_core::policy::TokenizedPrompt {
                    token_ids: prompt,
                    images: vec![],
                });
                sequence
            })
            .collect();
        learner
            .forward_backward(&sequences, Loss::CrossEntropy)
            .unwrap();
        learner.optimizer_step(1e-2).unwrap();
        learner.save(&scratch.0).unwrap();
        assert_eq!(tensors(&scratch.0), tensors(&golden_folder(name)));
        assert_eq!(
            load(&scratch.0, &inference()).logprobs(&sequences).unwrap(),
            learner.logprobs(&sequences).unwrap()
        );
    }
}

#[test]
fn sixteen_bit_models_stay_in_sixteen_bits() {
    let scratch = Scratch::new("bfloat16");
    let mut options = training(&[]);
    options.precision = Precision::Bfloat16;
    let mut learner = policy("grouped_tied", &options);
    let first = learner
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap()
        .loss;
    let mut last = first;
    for _ in 0..20 {
        learner.optimizer_step(3e-3).unwrap();
        last = learner
            .forward_backward(&sequences(), Loss::CrossEntropy)
            .unwrap()
            .loss;
    }
    assert!(last < 0.5 * first, "{first} {last}");
    learner.save(&scratch.0).unwrap();
    assert!(
        tensors(&scratch.0)
            .iter()
            .all(|(_, dtype, _)| *dtype == Dtype::BF16)
    );
    let options = LoadOptions {
        precision: Precision::Bfloat16,
        training: None,
    };
    assert_eq!(
        load(&scratch.0, &options).logprobs(&sequences()).unwrap(),
        learner.logprobs(&sequences()).unwrap()
    );
}

#[test]
fn initial_weights_depend_on_the_seed_alone_and_load() {
    let scratch = Scratch::new("initialise");
    let backend = TorchBackend::new(DeviceChoice::Cpu, None).unwrap();
    let folders = [1, 1, 2].map(|seed| (seed, scratch.0.join(format!("{seed}"))));
    let bytes = folders.map(|(seed, folder)| {
        let info = backend
            .initialise(&golden_folder("grouped_tied"), seed, &folder)
            .unwrap();
        assert_eq!(&info, load(&folder, &inference()).info());
        std::fs::read(folder.join("model.safetensors")).unwrap()
    });
    assert_eq!(bytes[0], bytes[1]);
    assert_ne!(bytes[0], bytes[2]);
    assert_eq!(
        tensors(&scratch.0.join("1")),
        tensors(&golden_folder("grouped_tied"))
    );
    assert_eq!(backend.describe(), "libtorch 2.11.0 cpu");
}

/// Writes the golden model with some tensors renamed, reshaped or left out.
fn altered(
    scratch: &Scratch,
    alter: impl Fn(&str) -> Option<(String, Option<Vec<usize>>)>,
) -> String {
    let source = golden_folder("grouped_tied");
    std::fs::copy(source.join("config.json"), scratch.0.join("config.json")).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let views: HashMap<String, _> = parsed
        .iter()
        .filter_map(|(name, view)| {
            let (name, shape) = alter(name)?;
            let shape = shape.unwrap_or_else(|| view.shape().to_vec());
            Some((
                name,
                safetensors::tensor::TensorView::new(view.dtype(), shape, view.data()).unwrap(),
            ))
        })
        .collect();
    safetensors::serialize_to_file(views, None, &scratch.0.join("model.safetensors")).unwrap();
    TorchPolicy::load(&scratch.0, &inference(), CPU)
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    let scratch = Scratch::new("altered");
    let keep = |name: &str| Some((name.to_owned(), None));
    let name = "model.layers.1.self_attn.k_proj.weight";
    let error = altered(
        &scratch,
        |tensor| if tensor == name { None } else { keep(tensor) },
    );
    assert!(
        error.contains(name)
            && error.contains("missing; config.json asks for it with shape [16, 32]"),
        "{error}"
    );
    let error = altered(&scratch, |tensor| {
        if tensor == name {
            Some((name.to_owned(), Some(vec![32, 16])))
        } else {
            keep(tensor)
        }
    });
    assert!(
        error.contains("has shape [32, 16], but config.json asks for [16, 32]"),
        "{error}"
    );
    let error = altered(&scratch, |tensor| {
        if tensor == "visual.merger.ln_q.weight" {
            Some(("visual.merger.odd".to_owned(), None))
        } else {
            keep(tensor)
        }
    });
    assert!(error.contains("visual.merger.ln_q.weight"), "{error}");
    std::fs::remove_file(scratch.0.join("model.safetensors")).unwrap();
    let error = TorchPolicy::load(&scratch.0, &inference(), CPU)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn a_saved_configuration_states_the_format_of_its_weights() {
    let scratch = Scratch::new("stated-dtype");
    let stale = scratch.0.join("stale");
    std::fs::create_dir_all(&stale).unwrap();
    for entry in std::fs::read_dir(golden_folder("grouped_tied")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, stale.join(path.file_name().unwrap())).unwrap();
    }
    let config = stale.join("config.json");
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let mut stated = read(&config);
    stated["torch_dtype"] = "bfloat16".into();
    std::fs::write(&config, stated.to_string()).unwrap();

    let saved = scratch.0.join("saved");
    load(&stale, &inference()).save(&saved).unwrap();
    assert_eq!(read(&saved.join("config.json"))["torch_dtype"], "float32");
}
