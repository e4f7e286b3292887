//! Reads safetensors of a model folder: one file, or several with an index. Files are mapped, not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use engine_core::error::ModelError;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::layout::{Parameter, Part};

/// The single weights file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// Says which file has which weight, when there are several.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The mapped weight files of a folder.
pub(crate) struct WeightFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// File and canonical name of each tensor.
    tensors: BTreeMap<String, (usize, String)>,
}

impl WeightFiles {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// [`ModelError::File`] when a file is missing or damaged.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let index = folder.join(INDEX_FILE);
        let names: BTreeSet<String> = if index.exists() {
            let text = std::fs::read(&index).map_err(|error| file_error(&index, &error))?;
            let parsed: Index =
                serde_json::from_slice(&text).map_err(|error| file_error(&index, &error))?;
            parsed.weight_map.into_values().collect()
        } else {
            BTreeSet::from([WEIGHTS_FILE.to_owned()])
        };
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let path = folder.join(name);
            let map = map_file(&path)?;
            let parsed =
                SafeTensors::deserialize(&map).map_err(|error| file_error(&path, &error))?;
            for name in parsed.names() {
                let weight = (number, name.to_owned());
                if tensors.insert(canonical(name), weight).is_some() {
                    let message = "is there twice, under this or another name".to_owned();
                    return Err(tensor_error(&path, name, message));
                }
            }
            files.push((path, map));
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            tensors,
        })
    }

    /// Compares names and shapes with what the configuration asks for.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] with the first weight that is missing, misshaped or extra.
    pub(crate) fn check(&self, list: &[Parameter]) -> Result<(), ModelError> {
        let mut expected = BTreeSet::new();
        for part in list.iter().flat_map(|parameter| &parameter.parts) {
            let Some((file, name)) = self.tensors.get(&part.name) else {
                let message = format!(
                    "missing; config.json asks for it with shape {:?}",
                    part.shape
                );
                return Err(tensor_error(&self.folder, &part.name, message));
            };
            let (path, map) = &self.files[*file];
            let parsed = SafeTensors::deserialize(map).map_err(|error| file_error(path, &error))?;
            let view = parsed
                .tensor(name)
                .map_err(|error| file_error(path, &error))?;
            let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
            if shape != part.shape {
                let message = format!(
                    "has shape {shape:?}, but config.json asks for {:?}",
                    part.shape
                );
                return Err(tensor_error(path, name, message));
            }
            expected.insert(part.name.as_str());
        }
        // Tied checkpoints sometimes carry a copy of the embedding table as the head.
        expected.insert("lm_head.weight");
        match self
            .tensors
            .iter()
            .find(|(name, _)| !expected.contains(name.as_str()))
        {
            Some((_, (file, name))) => {
                let message = "is not part of the model that config.json describes".to_owned();
                Err(tensor_error(&self.files[*file].0, name, message))
            }
            None => Ok(()),
        }
    }

    /// One weight as a CPU tensor of the type on disk.
    ///
    /// # Errors
    /// When it is missing or of a type other than 16 and 32-bit (or 64-bit) floats.
    pub(crate) fn read(&self, part: &Part) -> Result<Tensor, ModelError> {
        let Some((file, name)) = self.tensors.get(&part.name) else {
            return Err(tensor_error(&self.folder, &part.name, "missing".to_owned()));
        };
        let (path, map) = &self.files[*file];
        let parsed = SafeTensors::deserialize(map).map_err(|error| file_error(path, &error))?;
        let view = parsed
            .tensor(name)
            .map_err(|error| file_error(path, &error))?;
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F64 => Kind::Double,
            other => {
                let message = format!("has type {other:?}; save it as F32 or BF16");
                return Err(tensor_error(path, name, message));
            }
        };
        Ok(Tensor::from_data_size(view.data(), &part.shape, kind))
    }
}

/// The published name of a weight: newer files put the tower and the language model below `model.`.
fn canonical(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.visual.") {
        format!("visual.{rest}")
    } else if let Some(rest) = name.strip_prefix("model.language_model.") {
        format!("model.{rest}")
    } else {
        name.to_owned()
    }
}

#[expect(unsafe_code, reason = "memory mapping")]
pub(crate) fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(|error| file_error(path, &error))?;
    // SAFETY: model files are immutable once written; a file that is cut short while it is read would end the process,
    // like any other damage to the store.
    unsafe { Mmap::map(&file) }.map_err(|error| file_error(path, &error))
}

pub(crate) fn tensor_error(path: &Path, name: &str, message: String) -> ModelError {
    ModelError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        message,
    }
}

pub(crate) fn file_error(path: &Path, error: &dyn std::fmt::Display) -> ModelError {
    ModelError::File {
        path: path.to_owned(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_names_are_read_as_the_published_ones() {
        assert_eq!(
            canonical("model.visual.merger.ln_q.weight"),
            "visual.merger.ln_q.weight"
        );
        assert_eq!(
            canonical("model.language_model.norm.weight"),
            "model.norm.weight"
        );
        assert_eq!(canonical("lm_head.weight"), "lm_head.weight");
    }
}
