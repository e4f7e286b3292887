//! Which media are used: digests of media stand in rows, in whatever column a stage put them.

use std::collections::BTreeSet;

use arrow::array::{Array, AsArray as _, LargeListArray, ListArray};
use arrow::datatypes::DataType;
use engine_core::{PartRef, RowsDigest};
use object_store::ObjectMeta;

use super::GarbageObject;
use super::references::References;
use crate::{Store, StoreError};

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

impl Store {
    /// Those of the media that no text of what stays or of its rows names; else why it cannot be known.
    pub(super) fn unused_media(
        &self,
        media: Vec<GarbageObject>,
        live: References,
    ) -> Result<Vec<GarbageObject>, String> {
        if media.is_empty() {
            return Ok(media);
        }
        let parts: Vec<PartRef> = live.parts().map(|path| part_at(path)).collect();
        let mut unused = live.unused;
        for batch in self.read_parts(parts) {
            let batch = batch.map_err(|error: StoreError| error.to_string())?;
            for column in batch.columns() {
                unused.strike_column(column.as_ref())?;
            }
        }
        Ok(media
            .into_iter()
            .filter(|object| unused.digests.contains(name(&object.path)))
            .collect())
    }
}

/// A part of which nothing but the path is known, which is enough to read it.
fn part_at(path: &str) -> PartRef {
    PartRef {
        path: path.to_owned(),
        rows: 0,
        bytes: 0,
        digest: RowsDigest(String::new()),
    }
}

fn name(path: &str) -> &[u8] {
    path.rsplit('/').next().unwrap_or_default().as_bytes()
}

/// Digests that were named nowhere so far.
#[derive(Debug)]
pub(super) struct Unused {
    digests: BTreeSet<Vec<u8>>,
}

impl Unused {
    pub(super) fn new(media: &[ObjectMeta]) -> Self {
        let names = media.iter().map(|meta| name(meta.location.as_ref()));
        Self {
            digests: names.map(<[u8]>::to_vec).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Takes out every digest that stands anywhere in the text.
    pub(super) fn strike(&mut self, text: &[u8]) {
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
