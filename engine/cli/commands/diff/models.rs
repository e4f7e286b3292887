//! Two models: which files differ, and by how much which tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, ensure};
use engine_core::ModelFolder;
use engine_store::Store;
use serde::{Deserialize, Serialize};

/// Bytes of a tensor that are read at a time.
const PIECE: usize = 1 << 20;
/// Longest header of a safetensors file, as the format says.
const MAX_HEADER: u64 = 100_000_000;

/// What differs between two models.
#[derive(Debug, Serialize)]
pub(super) struct ModelDiff {
    pub(super) port: String,
    pub(super) digest_a: String,
    pub(super) digest_b: String,
    pub(super) equal: bool,
    /// Files that differ or that one side lacks.
    pub(super) files: Vec<FileDiff>,
    /// Tensors that both have, and how many of them differ.
    pub(super) tensors: usize,
    pub(super) changed_tensors: usize,
    /// The tensors with the largest changes.
    pub(super) largest: Vec<TensorDiff>,
    /// Tensors that one side lacks or has in another shape.
    pub(super) other_tensors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct FileDiff {
    pub(super) name: String,
    pub(super) what: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct TensorDiff {
    pub(super) name: String,
    /// Largest absolute change of a weight.
    pub(super) largest: f64,
    /// Largest absolute weight in A.
    pub(super) scale: f64,
}

pub(super) fn compare(
    store: &Store,
    port: String,
    a: &ModelFolder,
    b: &ModelFolder,
    limit: usize,
) -> anyhow::Result<ModelDiff> {
    let mut diff = ModelDiff {
        port,
        digest_a: a.digest.to_string(),
        digest_b: b.digest.to_string(),
        equal: a.digest == b.digest,
        files: files(a, b),
        tensors: 0,
        changed_tensors: 0,
        largest: Vec::new(),
        other_tensors: Vec::new(),
    };
    let is_weights = |file: &FileDiff| file.name.ends_with(".safetensors");
    if !diff.files.iter().any(is_weights) {
        return Ok(diff);
    }
    let (left, right) = (
        tensors(&store.local_model_folder(a)?, a)?,
        tensors(&store.local_model_folder(b)?, b)?,
    );
    for name in right.keys().filter(|name| !left.contains_key(*name)) {
        diff.other_tensors.push(format!("{name}: only in B"));
    }
    for (name, tensor) in &left {
        match right.get(name) {
            None => diff.other_tensors.push(format!("{name}: only in A")),
            Some(other) if other.shape != tensor.shape => diff.other_tensors.push(format!(
                "{name}: {:?} in A, {:?} in B",
                tensor.shape, other.shape
            )),
            Some(other) => {
                diff.tensors += 1;
                let (largest, scale) = change(tensor, other)
                    .with_context(|| format!("could not compare the tensor `{name}`"))?;
                if largest > 0.0 {
                    diff.changed_tensors += 1;
                    diff.largest.push(TensorDiff {
                        name: name.clone(),
                        largest,
                        scale,
                    });
                }
            }
        }
    }
    diff.largest
        .sort_by(|left, right| right.largest.total_cmp(&left.largest));
    diff.largest.truncate(limit);
    Ok(diff)
}

fn files(a: &ModelFolder, b: &ModelFolder) -> Vec<FileDiff> {
    let find = |model: &ModelFolder, name: &str| {
        let file = model.files.iter().find(|file| file.name == name);
        file.map(|file| file.digest.clone())
    };
    let mut names: Vec<&String> = a
        .files
        .iter()
        .chain(&b.files)
        .map(|file| &file.name)
        .collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| {
            let what = match (find(a, name), find(b, name)) {
                (Some(left), Some(right)) if left == right => return None,
                (Some(_), Some(_)) => "changed",
                (Some(_), None) => "only-a",
                (None, _) => "only-b",
            };
            Some(FileDiff {
                name: name.clone(),
                what,
            })
        })
        .collect()
}

/// A tensor in a safetensors file.
struct Tensor {
    file: std::path::PathBuf,
    /// Where its bytes begin in the file.
    start: u64,
    bytes: u64,
    format: Format,
    shape: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    F64,
    F32,
    F16,
    Bf16,
}

/// An entry of the header of a safetensors file.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Tensors of floats in all weight files of a model.
fn tensors(folder: &Path, model: &ModelFolder) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut found = BTreeMap::new();
    let weights = model
        .files
        .iter()
        .filter(|file| file.name.ends_with(".safetensors"));
    for file in weights {
        let path = folder.join(&file.name);
        header(&path, &mut found)
            .with_context(|| format!("could not read the tensors of {}", path.display()))?;
    }
    Ok(found)
}

/// Eight bytes with the length of a JSON text, the text, and the tensors it tells of.
fn header(path: &Path, found: &mut BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= MAX_HEADER, "its header has {length} bytes");
    let mut text = vec![0; usize::try_from(length)?];
    file.read_exact(&mut text)?;
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)?;
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(entry)?;
        let format = match entry.dtype.as_str() {
            "F64" => Format::F64,
            "F32" => Format::F32,
            "F16" => Format::F16,
            "BF16" => Format::Bf16,
            _ => continue,
        };
        let [start, end] = entry.data_offsets;
        ensure!(start <= end, "the tensor `{name}` ends before it begins");
        found.insert(
            name,
            Tensor {
                file: path.to_owned(),
                start: 8 + length + start,
                bytes: end - start,
                format,
                shape: entry.shape,
            },
        );
    }
    Ok(())
}

/// The largest absolute change, and the largest absolute value in the first.
fn change(a: &Tensor, b: &Tensor) -> anyhow::Result<(f64, f64)> {
    let (mut left, mut right) = (Values::open(a)?, Values::open(b)?);
    let (mut largest, mut scale) = (0.0_f64, 0.0_f64);
    loop {
        let (before, now) = (left.next_piece()?, right.next_piece()?);
        if before.is_empty() {
            return Ok((largest, scale));
        }
        for (before, now) in before.iter().zip(&now) {
            largest = largest.max((now - before).abs());
            scale = scale.max(before.abs());
        }
    }
}

/// Reads a tensor piece by piece: the same number of values each time, whatever their format.
struct Values {
    file: File,
    left: u64,
    format: Format,
}

impl Values {
    fn open(tensor: &Tensor) -> anyhow::Result<Self> {
        let mut file = File::open(&tensor.file)?;
        file.seek(SeekFrom::Start(tensor.start))?;
        Ok(Self {
            file,
            left: tensor.bytes,
            format: tensor.format,
        })
    }

    fn next_piece(&mut self) -> anyhow::Result<Vec<f64>> {
        let width = match self.format {
            Format::F64 => 8,
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
        };
        let size = self.left.min((PIECE / 8 * width) as u64);
        let mut bytes = vec![0; usize::try_from(size)?];
        self.file.read_exact(&mut bytes)?;
        self.left -= size;
        let values = bytes.chunks_exact(width);
        Ok(match self.format {
            Format::F64 => values
                .map(|bytes| f64::from_le_bytes(fixed(bytes)))
                .collect(),
            Format::F32 => values
                .map(|bytes| f64::from(f32::from_le_bytes(fixed(bytes))))
                .collect(),
            Format::F16 => values
                .map(|bytes| half(u16::from_le_bytes(fixed(bytes))))
                .collect(),
            Format::Bf16 => values
                .map(|bytes| {
                    let bits = u32::from(u16::from_le_bytes(fixed(bytes))) << 16;
                    f64::from(f32::from_bits(bits))
                })
                .collect(),
        })
    }
}

/// Bytes of a value; pieces are cut at the width of the format.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

/// The value of a 16-bit float: sign, five bits of exponent, ten of mantissa.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let mantissa = f64::from(bits & 0x3ff) / 1024.0;
    sign * match exponent {
        0 => mantissa * 2.0_f64.powi(-14),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa) * 2.0_f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_floats_are_read() {
        let bits = [0x3c00, 0xc000, 0x7bff, 0x0001, 0x0000, 0x3555];
        let values = bits.map(half);
        assert_eq!(values[..5], [1.0, -2.0, 65504.0, 2.0_f64.powi(-24), 0.0]);
        assert!((values[5] - 1.0 / 3.0).abs() < 1e-4);
        assert!(half(0x7c01).is_nan() && half(0xfc00) == f64::NEG_INFINITY);
    }
}
