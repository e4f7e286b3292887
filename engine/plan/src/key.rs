//! The stage key: what can change a stage's output, and nothing else.

use std::collections::BTreeMap;

use engine_core::Digest;
use serde_json::{Value, json};

use crate::plan::Stage;

/// Identity of a stage's work. Two stages with one key have the same outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct StageKey {
    /// blake3 digest of the material's JSON.
    pub digest: Digest,
    /// What the key covers. Manifests keep it, so that a missed cache can be explained.
    pub material: Value,
}

/// The key of a stage. Names of stages and pipeline, paths, order and comments of the file are not in it.
///
/// `externals` has the digest of the content of every external path by its pointer; `inputs` the digests of the
/// artifacts on every connected port.
///
/// # Panics
/// When `externals` lacks one of the stage's externals: the path would enter the key in place of the content.
#[must_use]
pub fn stage_key(
    stage: &Stage,
    externals: &BTreeMap<String, Digest>,
    inputs: &BTreeMap<String, Vec<Digest>>,
) -> StageKey {
    let mut config = stage.key_config.clone();
    let mut elsewhere = BTreeMap::new();
    for external in &stage.externals {
        let digest = externals
            .get(&external.pointer)
            .expect("every external path was digested before the key is made");
        match config.pointer_mut(&external.pointer) {
            Some(place) => *place = Value::String(digest.to_string()),
            None => {
                elsewhere.insert(external.pointer.as_str(), digest);
            }
        }
    }
    let mut material = json!({
        "config": config,
        "inputs": inputs,
        "kind": stage.kind,
        "version": stage.version,
    });
    if !elsewhere.is_empty() {
        material["externals"] = json!(elsewhere);
    }
    if stage.uses_seed {
        material["seed"] = json!(stage.seed);
    }
    let material = engine_core::registry::canonical(&material);
    StageKey {
        digest: Digest::of(material.to_string().as_bytes()),
        material,
    }
}

/// The first field in which two key materials differ, as a dotted path such as `config.learning-rate`; none when they
/// are equal.
#[must_use]
pub fn first_difference(a: &Value, b: &Value) -> Option<String> {
    let mut path = Vec::new();
    difference(a, b, &mut path).then(|| path.join("."))
}

fn difference(a: &Value, b: &Value, path: &mut Vec<String>) -> bool {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> =
                left.keys().chain(right.keys()).collect();
            keys.into_iter()
                .any(|key| step(left.get(key), right.get(key), key, path))
        }
        (Value::Array(left), Value::Array(right)) => (0..left.len().max(right.len()))
            .any(|index| step(left.get(index), right.get(index), &index.to_string(), path)),
        _ => a != b,
    }
}

fn step(a: Option<&Value>, b: Option<&Value>, name: &str, path: &mut Vec<String>) -> bool {
    path.push(name.to_owned());
    let differs = match (a, b) {
        (Some(a), Some(b)) => difference(a, b, path),
        _ => true,
    };
    if !differs {
        path.pop();
    }
    differs
}
