//! `cast-model`: the same model with its weights in another number format.
//!
//! Use it before a model is published: training keeps 32-bit weights, readers expect 16 bits. Rounds; keeps everything
//! else of the folder.

use std::borrow::Cow;
use std::path::Path;

use engine_core::operator::Family;
use engine_core::policy::Precision;
use engine_core::{
    Fault, InputPort, InputType, ModelError, OperatorConfig, OperatorError, OperatorKind,
    Placement, PortType, PortTypes, Ports, Registry, StageContext, StageIo,
};
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Writes a model with its weights in another number format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CastModel {
    /// Number format of the weights that are written.
    pub precision: Precision,
}

impl OperatorKind for CastModel {
    const KIND: &'static str = "cast-model";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "writes a model with its weights in another number format";
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<CastModel>();
}

impl OperatorConfig for CastModel {
    fn ports(&self) -> Ports {
        Ports::new(vec![InputPort::new("model", InputType::Model)], &["model"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "model".to_owned(),
            vec![PortType::Model],
        )]))
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let to = io.scratch().join("model");
        cast_folder(&io.model_folder("model")?, &to, self.precision)?;
        io.write_model("model", &to)
    }
}

/// Copies a model folder with everything below it, weights and configuration in the new format.
fn cast_folder(from: &Path, to: &Path, precision: Precision) -> Result<(), OperatorError> {
    std::fs::create_dir(to).map_err(|error| file_error("could not be made", to, error))?;
    let entries =
        std::fs::read_dir(from).map_err(|error| file_error("could not be listed", from, error))?;
    for entry in entries {
        let path = entry
            .map_err(|error| file_error("could not be listed", from, error))?
            .path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            cast_folder(&path, &target, precision)?;
            continue;
        }
        let bytes =
            std::fs::read(&path).map_err(|error| file_error("could not be read", &path, error))?;
        let bytes = match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.ends_with(".safetensors") => cast_weights(&path, &bytes, precision)?,
            Some("config.json") => cast_config(&path, &bytes, precision)?,
            _ => bytes,
        };
        std::fs::write(&target, bytes)
            .map_err(|error| file_error("could not be written", &target, error))?;
    }
    Ok(())
}

/// A tensor on its way to a file.
struct Cast<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl View for Cast<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn cast_weights(path: &Path, bytes: &[u8], precision: Precision) -> Result<Vec<u8>, ModelError> {
    let unreadable = |error: safetensors::SafeTensorError| ModelError::File {
        path: path.to_owned(),
        message: format!("not a readable safetensors file: {error}"),
    };
    let weights = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let mut cast = Vec::new();
    for (name, tensor) in weights.iter() {
        let converted = cast_tensor(tensor.dtype(), tensor.data(), precision);
        let (dtype, bytes) = converted.ok_or_else(|| ModelError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            message: format!(
                "{:?} weights cannot be cast; 32-bit and 16-bit brain floats can",
                tensor.dtype()
            ),
        })?;
        let shape = tensor.shape().to_vec();
        cast.push((
            name.to_owned(),
            Cast {
                dtype,
                shape,
                bytes,
            },
        ));
    }
    cast.sort_by(|left, right| left.0.cmp(&right.0));
    safetensors::serialize(cast, None).map_err(unreadable)
}

/// Nearest values in the other format; `None` for a format that is not known.
fn cast_tensor(from: Dtype, data: &[u8], to: Precision) -> Option<(Dtype, Cow<'_, [u8]>)> {
    match (from, to) {
        (Dtype::F32, Precision::Float32) | (Dtype::BF16, Precision::Bfloat16) => {
            Some((from, Cow::Borrowed(data)))
        }
        (Dtype::F32, Precision::Bfloat16) => {
            let values = data
                .chunks_exact(4)
                .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]));
            let bytes = values
                .flat_map(|value| bf16::from_f32(value).to_le_bytes())
                .collect();
            Some((Dtype::BF16, Cow::Owned(bytes)))
        }
        (Dtype::BF16, Precision::Float32) => {
            let values = data
                .chunks_exact(2)
                .map(|value| bf16::from_le_bytes([value[0], value[1]]).to_f32());
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            Some((Dtype::F32, Cow::Owned(bytes)))
        }
        _ => None,
    }
}

/// The configuration with the new format under whichever of the two names it has.
fn cast_config(path: &Path, bytes: &[u8], precision: Precision) -> Result<Vec<u8>, ModelError> {
    let unreadable = |error: serde_json::Error| ModelError::File {
        path: path.to_owned(),
        message: format!("not readable as JSON: {error}"),
    };
    let mut config: serde_json::Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    let name = match precision {
        Precision::Float32 => "float32",
        Precision::Bfloat16 => "bfloat16",
    };
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = name.into();
        }
    }
    let mut text = serde_json::to_vec_pretty(&config).map_err(unreadable)?;
    text.push(b'\n');
    Ok(text)
}

fn file_error(what: &str, path: &Path, source: std::io::Error) -> OperatorError {
    OperatorError::File {
        message: format!("file or folder {what}"),
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: &[f32]) -> Vec<u8> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = Cast {
            dtype: Dtype::F32,
            shape: vec![values.len()],
            bytes: Cow::Owned(bytes),
        };
        safetensors::serialize([("w", tensor)], None).unwrap()
    }

    #[test]
    fn values_are_rounded_to_nearest_and_come_back() {
        // 1 + 2^-8 lies half way between two 16-bit values and goes to the even one; 1 + 3 * 2^-8 likewise.
        let values = [1.0, -2.5, 1.0 + 0.003_906_25, 1.0 + 3.0 * 0.003_906_25];
        let path = Path::new("model.safetensors");
        let narrow = cast_weights(path, &file(&values), Precision::Bfloat16).unwrap();
        let wide = cast_weights(path, &narrow, Precision::Float32).unwrap();
        assert_eq!(wide, file(&[1.0, -2.5, 1.0, 1.015_625]));
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error =
            cast_weights(Path::new("a.safetensors"), b"no", Precision::Bfloat16).unwrap_err();
        assert!(error.to_string().contains("a.safetensors"), "{error}");
    }

    #[test]
    fn the_configuration_says_the_new_format() {
        let config = br#"{"torch_dtype": "float32", "hidden_size": 8}"#;
        let cast = cast_config(Path::new("config.json"), config, Precision::Bfloat16).unwrap();
        assert!(
            String::from_utf8(cast)
                .unwrap()
                .contains("\"torch_dtype\": \"bfloat16\"")
        );
    }

    #[test]
    fn folders_below_the_model_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::create_dir_all(from.join("adapters")).unwrap();
        for name in ["model.safetensors", "adapters/one.safetensors"] {
            std::fs::write(from.join(name), file(&[1.0])).unwrap();
        }
        std::fs::write(from.join("adapters/notes.txt"), "notes").unwrap();
        cast_folder(&from, &to, Precision::Bfloat16).unwrap();
        let read = |name: &str| std::fs::read(to.join(name)).unwrap();
        assert_eq!(read("adapters/notes.txt"), b"notes");
        let path = Path::new("model.safetensors");
        let narrow = cast_weights(path, &file(&[1.0]), Precision::Bfloat16).unwrap();
        assert_eq!(read("model.safetensors"), narrow);
        assert_eq!(read("adapters/one.safetensors"), narrow);
    }
}
