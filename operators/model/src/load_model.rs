//! `load-model`: brings a Hugging Face model folder into the pipeline.
//!
//! Use it where a pipeline starts from a published or earlier model. The files are copied as they are.

use std::path::{Path, PathBuf};

use engine_core::operator::Family;
use engine_core::{
    External, Fault, OperatorConfig, OperatorError, OperatorKind, Placement, PortType, PortTypes,
    Ports, Registry, StageContext, StageIo,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes a model from a folder with config.json, tokenizer.json and safetensors weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LoadModel {
    /// The model folder; a relative path starts at the project folder.
    pub path: PathBuf,
}

impl OperatorKind for LoadModel {
    const KIND: &'static str = "load-model";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "takes a model from a Hugging Face folder";
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<LoadModel>();
}

impl OperatorConfig for LoadModel {
    fn ports(&self) -> Ports {
        Ports::new(Vec::new(), &["model"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "model".to_owned(),
            vec![PortType::Model],
        )]))
    }

    fn externals(&self) -> Vec<External> {
        vec![External {
            pointer: "/path".to_owned(),
            path: self.path.clone(),
            content: engine_core::ExternalContent::Bytes,
        }]
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        let missing = engine_core::operator::missing_externals(root, &self.externals());
        if !missing.is_empty() {
            return missing;
        }
        let folder = root.join(&self.path);
        let mut faults: Vec<Fault> = ["config.json", "tokenizer.json"]
            .iter()
            .filter(|name| !folder.join(name).is_file())
            .map(|name| missing_file("path", &self.path, name))
            .collect();
        faults.extend(missing_weights(&folder).map(|name| missing_file("path", &self.path, &name)));
        faults
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        io.write_model("model", &context.root.join(&self.path))
    }
}

/// The fault of a model folder that lacks a file.
pub(crate) fn missing_file(key: &str, folder: &Path, name: &str) -> Fault {
    Fault::at("missing-model-file", key, format!("`{}` has no file {name}", folder.display()))
        .with_help("a model folder has config.json, tokenizer.json and model.safetensors (or its shards with an index)")
}

/// The first weights file that is not there: the only one, the index or a shard that the index names.
fn missing_weights(folder: &Path) -> Option<String> {
    if folder.join("model.safetensors").is_file() {
        return None;
    }
    let index = folder.join("model.safetensors.index.json");
    let Ok(bytes) = std::fs::read(index) else {
        return Some("model.safetensors".to_owned());
    };
    let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let shards = index
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
        .into_iter()
        .flat_map(|map| map.values());
    let mut names: Vec<&str> = shards.filter_map(serde_json::Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Some("model.safetensors.index.json with a `weight_map`".to_owned());
    }
    names
        .into_iter()
        .find(|name| !folder.join(name).is_file())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("base");
        std::fs::create_dir(&folder).unwrap();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let faults = LoadModel {
            path: "base".into(),
        }
        .inspect(root.path());
        faults.into_iter().map(|fault| fault.message).collect()
    }

    #[test]
    fn every_missing_file_is_named() {
        assert_eq!(
            faults(&[("tokenizer.json", "{}")]),
            [
                "`base` has no file config.json",
                "`base` has no file model.safetensors"
            ]
        );
    }

    #[test]
    fn a_missing_shard_is_named() {
        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        let files = [
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            ("model.safetensors.index.json", index),
            ("one.safetensors", ""),
        ];
        assert_eq!(faults(&files), ["`base` has no file two.safetensors"]);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_one_fault() {
        let faults = LoadModel {
            path: "nothing/here".into(),
        }
        .inspect("/".as_ref());
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, ["path"]);
    }
}
