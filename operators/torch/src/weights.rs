//! Reads safetensors of a model folder: one file, or several with an index. Files are mapped, not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use engine_core::error::ModelError;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::layout::{Parameter, Part, canonical};

/// The single weights file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// Says which file has which weight, when there are several.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The output head.
const HEAD: &str = "lm_head.weight";
/// The embedding table.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// End of the names of what some checkpoints carry though it follows from the configuration.
const DERIVED: &str = ".rotary_emb.inv_freq";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The mapped weight files of a folder.
pub(crate) struct WeightFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// By the name in memory.
    tensors: BTreeMap<String, Stored>,
}

/// Where a tensor lies.
struct Stored {
    file: usize,
    /// The name in the file.
    name: String,
    dtype: Dtype,
    shape: Vec<i64>,
    /// Bytes of the file.
    bytes: Range<usize>,
}

impl WeightFiles {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// [`ModelError::File`] when a file is missing or damaged.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut opened = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for name in file_names(folder)? {
            opened.add(folder.join(name))?;
        }
        Ok(opened)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let map = map_file(&path)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| file_error(&path, &error))?;
        // The data begin behind the header and the eight bytes that give its length. That they fill the file was checked.
        let base = header + size_of::<u64>();
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("the name is from the header");
            let (start, end) = info.data_offsets;
            let bytes = base + start..base + end;
            let stored = Stored {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.iter().map(|size| *size as i64).collect(),
                bytes,
                name: name.clone(),
            };
            if self
                .tensors
                .insert(canonical(&name).into_owned(), stored)
                .is_some()
            {
                let message = "is there twice, under this or another name".to_owned();
                return Err(tensor_error(&path, &name, message));
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Compares names and shapes with what the configuration asks for.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] with the first weight that is missing, misshaped or extra.
    pub(crate) fn check(&self, list: &[Parameter]) -> Result<(), ModelError> {
        let mut expected = BTreeSet::new();
        for part in list.iter().flat_map(|parameter| &parameter.parts) {
            let stored = self.find(part)?;
            if stored.shape != part.shape {
                let message = format!(
                    "has shape {:?}, but config.json asks for {:?}",
                    stored.shape, part.shape
                );
                return Err(self.fault(stored, message));
            }
            expected.insert(canonical(&part.name));
        }
        for (name, stored) in &self.tensors {
            if expected.contains(name.as_str()) || name.ends_with(DERIVED) {
                continue;
            }
            if name == HEAD {
                self.check_copy(stored)?;
            } else {
                let message = "is not part of the model that config.json describes".to_owned();
                return Err(self.fault(stored, message));
            }
        }
        Ok(())
    }

    /// Checkpoints with a tied head sometimes carry a copy of the embedding table under its name.
    fn check_copy(&self, head: &Stored) -> Result<(), ModelError> {
        let table = self.tensors.get(EMBEDDING);
        let equal = table.is_some_and(|table| {
            (table.dtype, &table.shape) == (head.dtype, &head.shape)
                && self.bytes(table) == self.bytes(head)
        });
        if equal {
            return Ok(());
        }
        let message = format!(
            "differs from {EMBEDDING}, but config.json says that they are one (tie_word_embeddings)"
        );
        Err(self.fault(head, message))
    }

    /// Copies one weight into a vector of as many values, in the vector's type.
    ///
    /// # Errors
    /// When it is missing or of a type other than 16 and 32-bit (or 64-bit) floats.
    pub(crate) fn copy(&self, part: &Part, target: &mut Tensor) -> Result<(), ModelError> {
        let stored = self.find(part)?;
        let kind = match stored.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F64 => Kind::Double,
            other => {
                let message = format!("has type {other:?}; save it as F32 or BF16");
                return Err(self.fault(stored, message));
            }
        };
        copy_bytes(self.bytes(stored), kind, target);
        Ok(())
    }

    fn find(&self, part: &Part) -> Result<&Stored, ModelError> {
        let name = canonical(&part.name);
        self.tensors.get(name.as_ref()).ok_or_else(|| {
            let message = format!(
                "missing; config.json asks for it with shape {:?}",
                part.shape
            );
            tensor_error(&self.folder, &part.name, message)
        })
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file].1[stored.bytes.clone()]
    }

    fn fault(&self, stored: &Stored, message: String) -> ModelError {
        tensor_error(&self.files[stored.file].0, &stored.name, message)
    }
}

/// Copies values of this type, as they lie in a file, into a vector.
#[expect(unsafe_code, reason = "a tensor over mapped memory")]
fn copy_bytes(bytes: &[u8], kind: Kind, target: &mut Tensor) {
    let size = kind.elt_size_in_bytes();
    let shape = [(bytes.len() / size) as i64];
    if !bytes.as_ptr().addr().is_multiple_of(size) {
        target.copy_(&Tensor::from_data_size(bytes, &shape, kind));
        return;
    }
    // SAFETY: the bytes are as many as the shape says, aligned, and mapped while this function runs; the tensor is only
    // read, and gone when it ends.
    let mapped = unsafe { Tensor::from_blob(bytes.as_ptr(), &shape, &[1], kind, Device::Cpu) };
    target.copy_(&mapped);
}

/// Names of the weight files of a folder.
fn file_names(folder: &Path) -> Result<BTreeSet<String>, ModelError> {
    let index = folder.join(INDEX_FILE);
    if !index.exists() {
        return Ok(BTreeSet::from([WEIGHTS_FILE.to_owned()]));
    }
    let text = std::fs::read(&index).map_err(|error| file_error(&index, &error))?;
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|error| file_error(&index, &error))?;
    Ok(parsed.weight_map.into_values().collect())
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
