//! Files from which training goes on: the trained weights as the optimizer holds them, its moments and its steps.
//!
//! Each flat buffer of the optimizer is a file of its own, with the weight, its moments and its average (where one is kept) for
//! each trained weight under its published name. Frozen weights never change, so they are not part of it; with adapters
//! these are all that is.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use engine_core::error::ModelError;
use memmap2::Mmap;
use safetensors::tensor::{View, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::optimizer::AdamW;
use crate::parameters::{Parameters, padded};
use crate::weights::{file_error, map_file, tensor_error};

/// The file that says what the others are; written last.
const SUMMARY_FILE: &str = "state.json";
/// Raised when what is written changes. Format 1 has neither adapters, averages nor rounding at random, and is read as it is.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Summary {
    format: u32,
    /// Optimizer steps done.
    steps: i32,
    /// Type of the weights that the model computes with.
    weights: String,
    /// Rank and alpha of the adapters.
    #[serde(default)]
    lora: Option<Shape>,
    files: Vec<String>,
}

/// What the sizes of adapters' weights do not say.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    rank: usize,
    alpha: f64,
}

/// A stretch of an optimizer buffer: the weights or one of the moments of one published weight.
struct Slot {
    name: String,
    shape: Vec<usize>,
    /// A flat view of the buffer.
    tensor: Tensor,
}

impl View for &Slot {
    fn dtype(&self) -> Dtype {
        dtype(&self.tensor)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Copied only now, one tensor at a time, so that memory holds one more tensor and not all of them twice.
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        let tensor = self.tensor.to_device(Device::Cpu).contiguous();
        tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes the state of an optimizer as it is between two steps.
///
/// # Errors
/// [`ModelError::File`] with the file that could not be written.
pub(crate) fn write(
    folder: &Path,
    optimizer: &AdamW,
    weights: &Parameters,
) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
    let mut files = Vec::new();
    for (number, slots) in buffers(optimizer, weights).iter().enumerate() {
        let name = format!("optimizer-{:05}.safetensors", number + 1);
        let path = folder.join(&name);
        let views = slots.iter().map(|slot| (slot.name.as_str(), slot));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(views, Some(metadata), &path)
            .map_err(|error| file_error(&path, &error))?;
        files.push(name);
    }
    let summary = Summary {
        format: FORMAT,
        steps: optimizer.steps,
        weights: kind_name(weights),
        lora: shape(weights),
        files,
    };
    let path = folder.join(SUMMARY_FILE);
    let text = serde_json::to_vec_pretty(&summary).map_err(|error| file_error(&path, &error))?;
    std::fs::write(&path, text).map_err(|error| file_error(&path, &error))
}

/// Takes up the state that [`write`] left. Nothing is changed when it does not fit.
///
/// # Errors
/// [`ModelError::File`] or [`ModelError::Tensor`] with what is missing, extra, misshaped or of another type.
pub(crate) fn read(
    folder: &Path,
    optimizer: &mut AdamW,
    weights: &mut Parameters,
) -> Result<(), ModelError> {
    let summary = summary(folder, weights)?;
    let mut files = Vec::new();
    for name in &summary.files {
        let path = folder.join(name);
        let map = map_file(&path)?;
        files.push((path, map));
    }
    let slots: Vec<Slot> = buffers(optimizer, weights).into_iter().flatten().collect();
    tch::no_grad(|| {
        for (target, source) in matched(folder, &files, &slots)? {
            target.shallow_clone().copy_(&source.tensor());
        }
        optimizer.steps = summary.steps;
        optimizer.write_back(weights);
        Ok(())
    })
}

fn summary(folder: &Path, weights: &Parameters) -> Result<Summary, ModelError> {
    let path = folder.join(SUMMARY_FILE);
    let text = std::fs::read(&path).map_err(|error| file_error(&path, &error))?;
    let summary: Summary =
        serde_json::from_slice(&text).map_err(|error| file_error(&path, &error))?;
    let fault = |message: String| Err(file_error(&path, &message));
    let held = kind_name(weights);
    if !(1..=FORMAT).contains(&summary.format) {
        return fault(format!(
            "it has format {}, and this program reads formats up to {FORMAT}",
            summary.format
        ));
    }
    if summary.weights != held {
        return fault(format!(
            "it belongs to a model of {} weights, and this one has {held} weights",
            summary.weights
        ));
    }
    let adapters = |shape: &Option<Shape>| match shape {
        Some(Shape { rank, alpha }) => format!("adapters of rank {rank} and alpha {alpha}"),
        None => "no adapters".to_owned(),
    };
    if summary.lora != shape(weights) {
        return fault(format!(
            "it belongs to a model with {}, and this one has {}",
            adapters(&summary.lora),
            adapters(&shape(weights))
        ));
    }
    Ok(summary)
}

fn shape(weights: &Parameters) -> Option<Shape> {
    let options = weights.lora.as_ref()?.options();
    Some(Shape {
        rank: options.rank,
        alpha: options.alpha,
    })
}

/// A tensor in a mapped file.
struct Source<'a> {
    bytes: &'a [u8],
    kind: Kind,
}

impl Source<'_> {
    fn tensor(&self) -> Tensor {
        let size = self.kind.elt_size_in_bytes();
        Tensor::from_data_size(self.bytes, &[(self.bytes.len() / size) as i64], self.kind)
    }
}

/// What goes where; every slot has exactly one tensor and there is no other.
fn matched<'a>(
    folder: &Path,
    files: &'a [(PathBuf, Mmap)],
    slots: &'a [Slot],
) -> Result<Vec<(&'a Tensor, Source<'a>)>, ModelError> {
    let mut wanted: BTreeMap<&str, &Slot> = slots
        .iter()
        .map(|slot| (slot.name.as_str(), slot))
        .collect();
    let mut pairs = Vec::with_capacity(slots.len());
    for (path, map) in files {
        let parsed = SafeTensors::deserialize(map).map_err(|error| file_error(path, &error))?;
        for (name, view) in parsed.iter() {
            let fault = |message: String| Err(tensor_error(path, name, message));
            let Some(slot) = wanted.remove(name) else {
                return fault(
                    "is not something that this model trains; the state is of another model, or other parts were frozen, adapted or averaged"
                        .to_owned(),
                );
            };
            if view.shape() != slot.shape {
                return fault(format!(
                    "has shape {:?}, but the model has {:?}",
                    view.shape(),
                    slot.shape
                ));
            }
            if view.dtype() != dtype(&slot.tensor) {
                return fault(format!(
                    "has type {:?}, but the optimizer has {:?}",
                    view.dtype(),
                    dtype(&slot.tensor)
                ));
            }
            let source = Source {
                bytes: view.data(),
                kind: slot.tensor.kind(),
            };
            pairs.push((&slot.tensor, source));
        }
    }
    match wanted.first_key_value() {
        Some((name, slot)) => {
            let message = format!("missing; the model trains it with shape {:?}", slot.shape);
            Err(tensor_error(folder, name, message))
        }
        None => Ok(pairs),
    }
}

/// The stretches of each buffer of the optimizer.
fn buffers(optimizer: &AdamW, weights: &Parameters) -> Vec<Vec<Slot>> {
    let trained = weights.trained_buckets();
    let slots = trained.zip(&optimizer.states).map(|(bucket, state)| {
        let mut buffers = vec![
            ("weight", &state.master),
            ("first-moment", &state.first),
            ("second-moment", &state.second),
        ];
        buffers.extend(state.average.as_ref().map(|average| ("average", average)));
        let mut slots = Vec::new();
        let mut offset = 0;
        for member in &bucket.members {
            let parameter = &weights.list[*member];
            let mut start = offset;
            for part in &parameter.parts {
                slots.extend(buffers.iter().map(|(kind, buffer)| {
                    Slot {
                        name: format!("{kind}/{}", part.name),
                        shape: part
                            .shape
                            .iter()
                            .map(|size| size.unsigned_abs() as usize)
                            .collect(),
                        tensor: buffer.narrow(0, start, part.numel()),
                    }
                }));
                start += part.numel();
            }
            offset += padded(parameter.numel());
        }
        slots
    });
    slots.collect()
}

fn dtype(tensor: &Tensor) -> Dtype {
    match tensor.kind() {
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

fn kind_name(weights: &Parameters) -> String {
    format!("{:?}", weights.kind).to_lowercase()
}
