//! Data files and models that turn out broken when a stage reads them: the stage fails by name, with exit code 1.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::assert_told;
use super::broken::Broken;

/// A test for each pipeline, named like its file.
macro_rules! run {
    ($($name:ident),* $(,)?) => {
        /// The files that tests here are about.
        pub(super) const RUN: &[&str] = &["data_no_permission", $(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                let told = Broken::new().run(&stringify!($name).replace('_', "-"));
                assert!(told.starts_with("exit code 1\n"), "{told}");
                assert_told(stringify!($name), &told);
            }
        )*
    };
}

run![
    damaged_parquet,
    data_bad_lines,
    data_duplicate_ids,
    data_empty_image,
    data_image_too_large,
    data_invalid_text,
    data_no_answers,
    data_null_problem,
    data_too_few_images,
    data_truncated_image,
    exec_fails,
    exec_is_not_there,
    exec_never_ends,
    exec_writes_words,
    missing_answer,
    rollout_of_no_prompt,
    sql_fails_on_a_row,
    unreadable_image,
];

#[test]
fn data_no_permission() {
    let broken = Broken::new();
    let file = broken.path("data/locked.parquet");
    fs::copy(broken.path("data/prompts.parquet"), &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&file).is_ok() {
        // Nothing is locked for root. A file of the kernel's that nobody may read stands in.
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", &file).unwrap();
        let told = broken.check("data-no-permission");
        assert!(told.starts_with("exit code 2\n"), "{told}");
        assert!(told.contains("data/locked.parquet"), "{told}");
        return;
    }
    assert_told("data_no_permission", &broken.check("data-no-permission"));
}

/// Cases about model folders: what is done to a whole one.
pub(super) const ON_MODELS: &[&str] = &[
    "freeze_nothing",
    "missing_model_file",
    "model_broken_tokenizer",
    "model_config_no_json",
    "model_cut_weights",
    "model_empty_folder",
    "model_is_a_file",
    "model_lacks_a_tensor",
    "model_no_such_folder",
    "model_unknown_architecture",
    "model_without_config",
    "wrong_tensor_shape",
];

fn change_json(path: &Path, change: impl Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn freeze_nothing() {
    let broken = Broken::new();
    broken.copy_model("base");
    assert_told("freeze_nothing", &broken.run("freeze-nothing"));
}

#[test]
fn missing_model_file() {
    let broken = Broken::new();
    let model = broken.copy_model("without-tokenizer");
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    assert_told("missing_model_file", &broken.check("missing-model-file"));
}

#[test]
fn model_broken_tokenizer() {
    let broken = Broken::new();
    let model = broken.copy_model("broken-tokenizer");
    fs::write(model.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    assert_told(
        "model_broken_tokenizer",
        &broken.run("model-broken-tokenizer"),
    );
}

#[test]
fn model_config_no_json() {
    let broken = Broken::new();
    let model = broken.copy_model("config-no-json");
    fs::write(model.join("config.json"), "hidden_size: 128\n").unwrap();
    assert_told("model_config_no_json", &broken.run("model-config-no-json"));
}

#[test]
fn model_cut_weights() {
    let broken = Broken::new();
    let weights = broken.copy_model("cut-weights").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert_told("model_cut_weights", &broken.run("model-cut-weights"));
}

#[test]
fn model_empty_folder() {
    let broken = Broken::new();
    fs::create_dir_all(broken.path("models/empty-folder")).unwrap();
    assert_told("model_empty_folder", &broken.check("model-empty-folder"));
}

#[test]
fn model_is_a_file() {
    let broken = Broken::new();
    fs::create_dir(broken.path("models")).unwrap();
    fs::write(broken.path("models/is-a-file"), "a model").unwrap();
    assert_told("model_is_a_file", &broken.check("model-is-a-file"));
}

#[test]
fn model_lacks_a_tensor() {
    let broken = Broken::new();
    let weights = broken
        .copy_model("lacks-a-tensor")
        .join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The header is JSON; a name of the same length keeps all offsets.
    let name = b"model.norm.weight";
    let place = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    bytes[place..place + name.len()].copy_from_slice(b"model.horn.weight");
    fs::write(&weights, bytes).unwrap();
    assert_told("model_lacks_a_tensor", &broken.run("model-lacks-a-tensor"));
}

#[test]
fn model_no_such_folder() {
    let told = Broken::new().check("model-no-such-folder");
    assert_told("model_no_such_folder", &told);
}

#[test]
fn model_unknown_architecture() {
    let broken = Broken::new();
    let config = broken
        .copy_model("unknown-architecture")
        .join("config.json");
    change_json(&config, |json| {
        json["model_type"] = json!("mamba");
        json["architectures"] = json!(["LlamaForCausalLM"]);
    });
    assert_told(
        "model_unknown_architecture",
        &broken.run("model-unknown-architecture"),
    );
}

#[test]
fn model_without_config() {
    let broken = Broken::new();
    let model = broken.copy_model("without-config");
    fs::remove_file(model.join("config.json")).unwrap();
    assert_told(
        "model_without_config",
        &broken.check("model-without-config"),
    );
}

#[test]
fn wrong_tensor_shape() {
    let broken = Broken::new();
    let config = broken.copy_model("other-shape").join("config.json");
    change_json(&config, |json| {
        for place in ["/intermediate_size", "/text_config/intermediate_size"] {
            if let Some(size) = json.pointer_mut(place) {
                *size = json!(size.as_u64().unwrap() + 8);
            }
        }
    });
    assert_told("wrong_tensor_shape", &broken.run("wrong-tensor-shape"));
}
