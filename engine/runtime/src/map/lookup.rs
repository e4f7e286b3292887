//! Which parts are there already: under their own keys, or for a replay under those of an earlier result.

use std::collections::HashMap;
use std::ops::Range;

use engine_core::{Digest, OperatorError, RowsDigest};
use engine_store::{MapPartManifest, MapPartRef};
use serde_json::json;

use super::driver::Driver;

/// Parts of an earlier result of the same stage, by the rows that went in.
#[derive(Debug)]
pub(super) struct ReplayBase<'a>(HashMap<&'a RowsDigest, Vec<&'a Digest>>);

impl<'a> ReplayBase<'a> {
    pub(super) fn new(parts: &'a [MapPartRef]) -> Self {
        let mut base: HashMap<_, Vec<_>> = HashMap::new();
        for part in parts {
            base.entry(&part.rows_digest).or_default().push(&part.key);
        }
        Self(base)
    }
}

/// What the manifest of a part says of its key.
pub(super) fn material(rows: &RowsDigest, slice: &Range<u32>) -> serde_json::Value {
    json!({ "rows": rows, "slice": [slice.start, slice.end] })
}

impl Driver<'_> {
    /// The slices of some rows that are there.
    pub(super) fn look_up(
        &self,
        digest: &RowsDigest,
        keys: &[Digest],
        slices: &[Range<u32>],
    ) -> Result<Vec<Option<MapPartManifest>>, OperatorError> {
        if self.job.is_forced {
            return Ok(vec![None; keys.len()]);
        }
        let mut found = self.store().lookup_map_parts(keys)?;
        let earlier = self.base.0.get(digest).map_or(&[][..], Vec::as_slice);
        if earlier.is_empty() {
            return Ok(found);
        }
        for (place, slice) in found.iter_mut().zip(slices) {
            if place.is_none() {
                *place = self.take_over(earlier, &material(digest, slice))?;
            }
        }
        Ok(found)
    }

    fn take_over(
        &self,
        keys: &[&Digest],
        material: &serde_json::Value,
    ) -> Result<Option<MapPartManifest>, OperatorError> {
        for key in keys {
            let part = self.store().lookup_map_part(key)?;
            if let Some(part) = part.filter(|part| part.material == *material) {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }
}
