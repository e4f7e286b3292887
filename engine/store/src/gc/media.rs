//! Which media are used: digests of media stand in rows, in whatever column a stage put them.

use std::collections::BTreeSet;

use arrow::array::{Array, AsArray as _, LargeListArray, ListArray};
use arrow::datatypes::DataType;
use engine_core::Artifact;
use serde_json::Value;

use super::GarbageObject;
use crate::{DatasetReader, Store, StoreError};

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

impl Store {
    /// Those of the media that no text of a kept manifest or of its datasets names; else why it cannot be known.
    pub(super) fn unused_media(
        &self,
        media: Vec<GarbageObject>,
        manifests: &[Value],
    ) -> Result<Vec<GarbageObject>, String> {
        if media.is_empty() {
            return Ok(media);
        }
        let mut unused = Unused {
            digests: media
                .iter()
                .filter_map(|object| object.path.rsplit('/').next())
                .map(|name| name.as_bytes().to_vec())
                .collect(),
        };
        for manifest in manifests {
            unused.strike(manifest.to_string().as_bytes());
            let Some(outputs) = manifest.get("outputs") else {
                continue;
            };
            let outputs: std::collections::BTreeMap<String, Artifact> =
                serde_json::from_value(outputs.clone()).map_err(|error| {
                    format!("a manifest has outputs of an unknown kind: {error}")
                })?;
            for artifact in outputs.values() {
                if let Artifact::Dataset(dataset) = artifact {
                    for batch in DatasetReader::new(self, [dataset]) {
                        let batch = batch.map_err(|error: StoreError| error.to_string())?;
                        for column in batch.columns() {
                            unused.strike_column(column.as_ref())?;
                        }
                    }
                }
            }
        }
        Ok(media
            .into_iter()
            .filter(|object| {
                let name = object.path.rsplit('/').next().unwrap_or_default();
                unused.digests.contains(name.as_bytes())
            })
            .collect())
    }
}

/// Digests that were named nowhere so far.
struct Unused {
    digests: BTreeSet<Vec<u8>>,
}

impl Unused {
    /// Takes out every digest that stands anywhere in the text.
    fn strike(&mut self, text: &[u8]) {
        let words = text.split(|byte| !byte.is_ascii_hexdigit());
        for word in words.filter(|word| word.len() >= DIGITS) {
            for digits in word.windows(DIGITS) {
                self.digests.remove(digits);
            }
        }
    }

    fn strike_column(&mut self, column: &dyn Array) -> Result<(), String> {
        match column.data_type() {
            DataType::Utf8 => column
                .as_string::<i32>()
                .iter()
                .flatten()
                .for_each(|text| self.strike(text.as_bytes())),
            DataType::LargeUtf8 => column
                .as_string::<i64>()
                .iter()
                .flatten()
                .for_each(|text| self.strike(text.as_bytes())),
            DataType::Utf8View => column
                .as_string_view()
                .iter()
                .flatten()
                .for_each(|text| self.strike(text.as_bytes())),
            DataType::List(_) => {
                let list: &ListArray = column.as_list();
                self.strike_column(list.values().as_ref())?;
            }
            DataType::LargeList(_) => {
                let list: &LargeListArray = column.as_list();
                self.strike_column(list.values().as_ref())?;
            }
            DataType::FixedSizeList(_, _) => {
                self.strike_column(column.as_fixed_size_list().values().as_ref())?;
            }
            DataType::Struct(_) => {
                for field in column.as_struct().columns() {
                    self.strike_column(field.as_ref())?;
                }
            }
            DataType::Map(_, _) => {
                for field in column.as_map().entries().columns() {
                    self.strike_column(field.as_ref())?;
                }
            }
            DataType::Dictionary(_, _) => {
                self.strike_column(column.as_any_dictionary().values().as_ref())?;
            }
            DataType::Null | DataType::Boolean => {}
            other if other.is_primitive() => {}
            other => return Err(format!("a dataset has a column of type {other}")),
        }
        Ok(())
    }
}
