//! Writes Hugging Face folders: weights under their published names, and the small files of the folder of origin.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use engine_core::error::ModelError;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use tch::{Device, Kind, Tensor};

use crate::layout::{Parameter, Part};
use crate::weights::{INDEX_FILE, WEIGHTS_FILE};

/// Endings of files that hold weights.
const WEIGHT_EXTENSIONS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "gguf"];

/// Bytes of one weight on disk.
pub(crate) struct RawWeight {
    part: Part,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl RawWeight {
    /// 32-bit values.
    pub(crate) fn from_floats(part: &Part, values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self {
            part: part.clone(),
            dtype: Dtype::F32,
            bytes,
        }
    }

    /// The parts of a weight in memory, 16-bit or 32-bit as it is held.
    pub(crate) fn from_tensor(parameter: &Parameter, tensor: &Tensor) -> Vec<Self> {
        let tensor = tensor.detach().to_device(Device::Cpu);
        let (dtype, kind, size) = match tensor.kind() {
            Kind::BFloat16 => (Dtype::BF16, Kind::BFloat16, 2),
            _ => (Dtype::F32, Kind::Float, 4),
        };
        let flat = tensor.to_kind(kind).contiguous().flatten(0, -1);
        let mut start = 0;
        let mut list = Vec::new();
        for part in &parameter.parts {
            let count = usize::try_from(part.numel()).expect("sizes are positive");
            let mut bytes = vec![0; count * size];
            flat.narrow(0, start, part.numel())
                .copy_data_u8(&mut bytes, count);
            start += part.numel();
            list.push(Self {
                part: part.clone(),
                dtype,
                bytes,
            });
        }
        list
    }
}

/// Everything of a model folder but its weights: configuration, tokenizer, processor, chat template, licence.
///
/// Held in memory, so that a model can be saved after the folder that it came from is gone.
#[derive(Debug)]
pub(crate) struct SmallFiles {
    files: Vec<(OsString, Vec<u8>)>,
}

impl SmallFiles {
    /// Reads the files of a model folder.
    ///
    /// # Errors
    /// [`ModelError::File`] with the file that could not be read.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|error| file_error(folder, &error))? {
            let path = entry.map_err(|error| file_error(folder, &error))?.path();
            let weights = path
                .extension()
                .is_some_and(|extension| WEIGHT_EXTENSIONS.iter().any(|known| extension == *known));
            let Some(name) = path
                .file_name()
                .filter(|name| path.is_file() && !weights && *name != INDEX_FILE)
            else {
                continue;
            };
            files.push((
                name.to_owned(),
                std::fs::read(&path).map_err(|error| file_error(&path, &error))?,
            ));
        }
        files.sort_unstable();
        Ok(Self { files })
    }

    /// Writes the files beside `model.safetensors` with these weights.
    ///
    /// # Errors
    /// [`ModelError::File`] with the file that could not be written.
    pub(crate) fn write(&self, weights: &[RawWeight], folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            let stated = match (name.to_str(), weights.first()) {
                (Some("config.json"), Some(weight)) => state_dtype(bytes, weight.dtype),
                _ => None,
            };
            std::fs::write(&path, stated.as_ref().unwrap_or(bytes))
                .map_err(|error| file_error(&path, &error))?;
        }
        let path = folder.join(WEIGHTS_FILE);
        let views = weights
            .iter()
            .map(|weight| {
                let shape = weight
                    .part
                    .shape
                    .iter()
                    .map(|size| size.unsigned_abs() as usize)
                    .collect();
                let view = TensorView::new(weight.dtype, shape, &weight.bytes)
                    .map_err(|error| file_error(&path, &error))?;
                Ok((weight.part.name.clone(), view))
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        // Other readers refuse weights that do not say which framework's layout they have.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(views, Some(metadata), &path).map_err(|error| file_error(&path, &error))
    }
}

/// The configuration with the format that the weights really have, wherever and under whichever of its two names it is
/// stated: a reader that trusts a stale one would round them. `None` when nothing is to be changed.
fn state_dtype(config: &[u8], dtype: Dtype) -> Option<Vec<u8>> {
    let mut json: serde_json::Value = serde_json::from_slice(config).ok()?;
    let real = match dtype {
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    let mut changed = false;
    for section in ["", "/text_config", "/vision_config"] {
        for key in ["torch_dtype", "dtype"] {
            let stated = json.pointer_mut(&format!("{section}/{key}"));
            if let Some(stated) = stated.filter(|stated| !stated.is_null() && **stated != real) {
                *stated = real.into();
                changed = true;
            }
        }
    }
    let mut text = changed.then(|| serde_json::to_vec_pretty(&json).ok())??;
    text.push(b'\n');
    Some(text)
}

fn file_error(path: &Path, error: &dyn std::fmt::Display) -> ModelError {
    ModelError::File {
        path: path.to_owned(),
        message: error.to_string(),
    }
}
