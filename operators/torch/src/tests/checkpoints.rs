//! Checkpoints of all families: shards, copies of tied weights, names of either layout, new models.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use engine_core::policy::{ModelBackend, Policy};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::golden::{MODELS, folder, policy};
use super::persistence::Scratch;
use super::{CPU, inference, training};
use crate::policy::TorchPolicy;
use crate::{DeviceChoice, TorchBackend};

/// A copy of a golden model.
fn copy(scratch: &Scratch, name: &str) -> PathBuf {
    let target = scratch.0.join(name);
    std::fs::create_dir_all(&target).unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
    }
    target
}

/// Writes the weights of a folder of one file again, with one more.
fn with_tensor(folder: &Path, name: &str, alike: &str, alter: impl Fn(&mut [u8])) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let like = parsed.tensor(alike).unwrap();
    let mut data = like.data().to_vec();
    alter(&mut data);
    let mut views: HashMap<String, TensorView> = parsed
        .iter()
        .map(|(name, view)| {
            let view = TensorView::new(view.dtype(), view.shape().to_vec(), view.data());
            (name.to_owned(), view.unwrap())
        })
        .collect();
    let view = TensorView::new(like.dtype(), like.shape().to_vec(), &data).unwrap();
    views.insert(name.to_owned(), view);
    std::fs::remove_file(&path).unwrap();
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

fn error(folder: &Path) -> String {
    TorchPolicy::load(folder, &inference(), CPU)
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_shard_that_is_missing_or_left_out_is_named() {
    let scratch = Scratch::new("shards");
    let model = copy(&scratch, "qwen3/narrow_heads");
    let index = model.join("model.safetensors.index.json");
    let whole = std::fs::read_to_string(&index).unwrap();
    assert!(TorchPolicy::load(&model, &inference(), CPU).is_ok());
    let shard = "model-00002-of-00004.safetensors";
    std::fs::write(
        &index,
        whole.replace(shard, "model-00001-of-00004.safetensors"),
    )
    .unwrap();
    let message = error(&model);
    assert!(
        message.contains("missing; config.json asks for it"),
        "{message}"
    );
    std::fs::write(&index, whole).unwrap();
    std::fs::remove_file(model.join(shard)).unwrap();
    assert!(error(&model).contains(shard));
}

#[test]
fn a_copy_of_the_embedding_as_the_head_must_be_equal() {
    let scratch = Scratch::new("tied");
    let (head, table) = ("lm_head.weight", "model.embed_tokens.weight");
    let model = copy(&scratch, "llama/smol");
    with_tensor(&model, head, table, |_| ());
    with_tensor(
        &model,
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.norm.weight",
        |_| (),
    );
    assert!(TorchPolicy::load(&model, &inference(), CPU).is_ok());
    with_tensor(&model, head, table, |data| data[5] ^= 1);
    let message = error(&model);
    assert!(
        message.contains(head) && message.contains("tie_word_embeddings"),
        "{message}"
    );
}

#[test]
fn a_weight_too_many_is_named() {
    let scratch = Scratch::new("extra");
    let model = copy(&scratch, "qwen3_vl/odd_untied");
    let name = "model.visual.deepstack_merger_list.1.norm.weight";
    with_tensor(
        &model,
        name,
        "model.visual.deepstack_merger_list.0.norm.weight",
        |_| (),
    );
    let message = error(&model);
    assert!(
        message.contains(name) && message.contains("not part of the model"),
        "{message}"
    );
}

#[test]
fn every_family_is_initialised_saved_and_loaded() {
    let scratch = Scratch::new("families");
    let backend = TorchBackend::new(DeviceChoice::Cpu, Some(1)).unwrap();
    for name in MODELS {
        let (fresh, saved) = (scratch.0.join(name), scratch.0.join(name).join("saved"));
        let info = backend.initialise(&folder(name), 3, &fresh).unwrap();
        let model = TorchPolicy::load(&fresh, &inference(), CPU).unwrap();
        assert_eq!(model.info(), &info);
        model.save(&saved).unwrap();
        let read = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(read(&fresh) == read(&saved), "{name}");
    }
}

#[test]
fn the_tower_is_frozen_under_either_name() {
    let frozen = ["visual.", "model.visual."].map(|prefix| {
        let policy = policy("qwen3_vl/grouped_tied", &training(&[prefix]));
        let trained: BTreeMap<String, bool> = (policy.weights.buckets.iter())
            .flat_map(|bucket| {
                bucket
                    .members
                    .iter()
                    .map(|member| (*member, bucket.trained))
            })
            .map(|(member, trained)| (policy.weights.list[member].name.clone(), trained))
            .collect();
        for (name, trained) in &trained {
            assert_eq!(*trained, name.starts_with("model."), "{name}");
        }
        trained
    });
    assert_eq!(frozen[0], frozen[1]);
}
