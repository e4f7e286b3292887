//! Prompts that come twice.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use arrow::array::{Array, AsArray, LargeListArray, LargeStringArray, RecordBatch};
use engine_core::OperatorError;

use super::rows::{ANSWER, FAULT, Files, ID, IMAGES, MESSAGES, PROBLEM, RawRows, SOLUTION};
use super::{Source, filled};

/// Rows that come twice of which the first place is looked up.
const LOOKED_UP: u32 = 16;

/// What makes a prompt that prompt: its id, or else everything in it.
type Identity = [u8; 32];

/// Rows of which no two have one identity: one that comes again is marked as wrong.
pub(super) struct UniqueRows {
    files: Files,
    rows: RawRows,
    /// First digits of the identities: enough to say that a row is new. What looks old is compared in full.
    seen: HashSet<u64, BuildHasherDefault<Digits>>,
    row: u64,
    looked_up: u32,
}

impl UniqueRows {
    pub(super) fn new(files: Files, rows: RawRows) -> Self {
        let total = usize::try_from(files.total().unwrap_or(0)).unwrap_or(0);
        Self {
            seen: HashSet::with_capacity_and_hasher(total, BuildHasherDefault::default()),
            files,
            rows,
            row: 0,
            looked_up: 0,
        }
    }

    fn check(&mut self, batch: RecordBatch) -> Result<RecordBatch, OperatorError> {
        let mut faults: Vec<(usize, String)> = Vec::new();
        for (row, identity) in identities(&batch, self.files.config())
            .into_iter()
            .enumerate()
        {
            let Some(identity) = identity else { continue };
            let digits = u64::from_le_bytes(identity[..8].try_into().expect("eight bytes"));
            if !self.seen.insert(digits)
                && let Some(fault) = self.twice(self.row + row as u64, &identity, &batch, row)?
            {
                faults.push((row, fault));
            }
        }
        self.row += batch.num_rows() as u64;
        if faults.is_empty() {
            return Ok(batch);
        }
        let (index, _) = (batch.schema_ref().column_with_name(FAULT))
            .ok_or_else(|| OperatorError::Internal("rows lack the column of faults".to_owned()))?;
        let known = batch.column(index).as_string::<i64>();
        let mut texts: Vec<Option<&str>> = known.iter().collect();
        for (row, fault) in &faults {
            texts[*row] = Some(fault);
        }
        let mut columns = batch.columns().to_vec();
        columns[index] = Arc::new(LargeStringArray::from(texts));
        Ok(RecordBatch::try_new(batch.schema(), columns)?)
    }

    /// Says that a row comes again, if it really does: the first of them are looked for among the rows before.
    fn twice(
        &mut self,
        row: u64,
        identity: &Identity,
        batch: &RecordBatch,
        index: usize,
    ) -> Result<Option<String>, OperatorError> {
        let what = match batch.column_by_name(ID) {
            Some(ids) => format!("the id `{}`", ids.as_string::<i64>().value(index)),
            None => "the same prompt".to_owned(),
        };
        let advice = if batch.column_by_name(ID).is_some() {
            "ids must be unique"
        } else {
            "remove one, or name an id column with `columns: { id: ... }`"
        };
        if self.looked_up >= LOOKED_UP {
            return Ok(Some(format!("{what} is also in a row before; {advice}")));
        }
        self.looked_up += 1;
        let found = self.look_back(row, identity)?;
        Ok(found.map(|earlier| {
            let there = self
                .files
                .place(earlier)
                .unwrap_or_else(|| format!("row {earlier}"));
            format!("{what} is also in {there}; {advice}")
        }))
    }

    /// Reads the rows before this one again; the one with the same identity, if there is one.
    fn look_back(&self, row: u64, identity: &Identity) -> Result<Option<u64>, OperatorError> {
        let mut first = 0;
        for earlier in RawRows::new(self.files.clone()) {
            let earlier = earlier?;
            let found = identities(&earlier, self.files.config())
                .iter()
                .position(|other| other.as_ref() == Some(identity))
                .map(|found| first + found as u64);
            if let Some(found) = found.filter(|found| *found < row) {
                return Ok(Some(found));
            }
            first += earlier.num_rows() as u64;
            if first >= row {
                break;
            }
        }
        Ok(None)
    }
}

impl Iterator for UniqueRows {
    type Item = Result<RecordBatch, OperatorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.rows.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        Some(self.check(batch))
    }
}

/// The identity of every row; none for a row that cannot become a prompt.
fn identities(batch: &RecordBatch, config: &Source) -> Vec<Option<Identity>> {
    let text = |name: &str| batch.column_by_name(name).map(AsArray::as_string::<i64>);
    let (ids, problems, answers) = (text(ID), text(PROBLEM), text(ANSWER));
    let solutions = text(SOLUTION).filter(|_| config.examples);
    let faults = text(FAULT);
    let list = |name: &str| batch.column_by_name(name).map(AsArray::as_list::<i64>);
    let (images, messages): (Option<&LargeListArray>, Option<&LargeListArray>) =
        (list(IMAGES), list(MESSAGES));
    (0..batch.num_rows())
        .map(|row| {
            if faults.is_some_and(|faults| faults.is_valid(row)) {
                return None;
            }
            let mut hasher = blake3::Hasher::new();
            let mut add = |bytes: &[u8]| {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            };
            if let Some(ids) = ids {
                add(filled(ids, row)?.as_bytes());
                return Some(*hasher.finalize().as_bytes());
            }
            match (messages, problems) {
                (Some(messages), _) => {
                    for word in super::prompts::words(messages, row) {
                        add(word.as_bytes());
                    }
                }
                (None, problems) => add(filled(problems?, row)?.as_bytes()),
            }
            let answer = filled(answers?, row);
            if answer.is_none() && config.requires_answers() {
                return None;
            }
            add(answer.unwrap_or_default().as_bytes());
            if let Some(solutions) = solutions {
                add(filled(solutions, row).unwrap_or_default().as_bytes());
            }
            if let Some(images) = images.filter(|images| images.is_valid(row)) {
                let items = images.value(row);
                let items = items.as_binary::<i64>();
                for item in items {
                    add(item.unwrap_or_default());
                }
            }
            Some(*hasher.finalize().as_bytes())
        })
        .collect()
}

/// Passes digits of a digest on: they are as good as hashed.
#[derive(Default)]
struct Digits(u64);

impl Hasher for Digits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, digits: u64) {
        self.0 = digits;
    }
}
