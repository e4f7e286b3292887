//! Saved folders: what `tests/golden/check_saved.py` loaded into transformers, byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine_core::policy::{LoadOptions, Policy, Precision};

use super::golden::{MODELS, folder, policy};
use super::persistence::Scratch;

const PRECISIONS: [(&str, Precision); 2] = [
    ("float32", Precision::Float32),
    ("bfloat16", Precision::Bfloat16),
];

/// Saves every golden model below a folder, as `FAMILY/NAME/PRECISION`.
fn save_all(out: &Path) -> BTreeMap<String, PathBuf> {
    let mut saved = BTreeMap::new();
    for name in MODELS {
        for (suffix, precision) in PRECISIONS {
            let options = LoadOptions {
                precision,
                training: None,
            };
            let path = out.join(name).join(suffix);
            policy(name, &options).save(&path).unwrap();
            saved.insert(format!("{name}/{suffix}"), path);
        }
    }
    saved
}

/// FNV-1a in 64 bits.
pub(super) fn digest(bytes: &[u8]) -> String {
    let value = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{value:016x}")
}

#[test]
fn saved_folders_are_those_that_transformers_loaded() {
    let scratch = Scratch::new("saved");
    let golden = std::fs::read(folder("saved.json")).unwrap();
    let golden: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&golden).unwrap();
    for (name, path) in save_all(&scratch.0) {
        let weights = std::fs::read(path.join("model.safetensors")).unwrap();
        assert_eq!(golden[&name]["weights"], digest(&weights), "{name}");
        let config = std::fs::read(path.join("config.json")).unwrap();
        assert_eq!(golden[&name]["config"], digest(&config), "{name}");
    }
}

#[test]
#[ignore = "writes the folders that tests/golden/check_saved.py reads"]
fn write_saved_folders() {
    save_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/saved"));
}
