//! Numbers for prompt ids, in the order in which they first come.
//!
//! What operators know of a prompt stands in plain vectors by these numbers. A prompt takes the bytes of its id and some 20 more.

use arrow::array::{Array, AsArray, LargeStringArray, RecordBatch};
use engine_core::OperatorError;

use crate::hash::hash;

/// Places in the smallest table.
const LEAST_PLACES: usize = 1024;

/// Prompt ids with their numbers.
#[derive(Debug)]
pub(crate) struct PromptIndex {
    text: String,
    /// Where in `text` each id ends.
    ends: Vec<usize>,
    /// Open addressing: the upper half of the hash above the number plus 1, and 0 where nothing is.
    table: Vec<u64>,
}

impl Default for PromptIndex {
    fn default() -> Self {
        Self {
            text: String::new(),
            ends: Vec::new(),
            table: vec![0; LEAST_PLACES],
        }
    }
}

impl PromptIndex {
    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The id of a number.
    pub(crate) fn id(&self, number: u32) -> &str {
        let number = number as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[number]]
    }

    /// The number of an id, if it has one.
    pub(crate) fn get(&self, id: &str) -> Option<u32> {
        self.find(id, hash(id.as_bytes())).ok()
    }

    /// The number of an id, which gets the next one if it has none, and whether it is new.
    pub(crate) fn insert(&mut self, id: &str) -> (u32, bool) {
        let hash = hash(id.as_bytes());
        let place = match self.find(id, hash) {
            Ok(number) => return (number, false),
            Err(place) => place,
        };
        let number = u32::try_from(self.ends.len())
            .ok()
            .filter(|number| *number < u32::MAX)
            .expect("four billion prompts have no room in memory");
        self.text.push_str(id);
        self.ends.push(self.text.len());
        self.table[place] = entry(hash, number);
        if self.ends.len() * 2 > self.table.len() {
            self.grow();
        }
        (number, true)
    }

    /// The number of an id, or the place where it belongs.
    fn find(&self, id: &str, hash: u64) -> Result<u32, usize> {
        let mask = self.table.len() - 1;
        let mut place = hash as usize & mask;
        loop {
            let found = self.table[place];
            if found == 0 {
                return Err(place);
            }
            let number = (found as u32).wrapping_sub(1);
            if found >> 32 == hash >> 32 && self.id(number) == id {
                return Ok(number);
            }
            place = (place + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let mut table = vec![0; self.table.len() * 2];
        let mask = table.len() - 1;
        for number in 0..self.ends.len() as u32 {
            let hash = hash(self.id(number).as_bytes());
            let mut place = hash as usize & mask;
            while table[place] != 0 {
                place = (place + 1) & mask;
            }
            table[place] = entry(hash, number);
        }
        self.table = table;
    }
}

fn entry(hash: u64, number: u32) -> u64 {
    (hash >> 32 << 32) | u64::from(number + 1)
}

/// Looks ids up row after row. The rows of a prompt mostly follow each other, so that the last id is tried first.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    last: Option<u32>,
}

impl Lookup {
    /// The number of an id, if it has one.
    pub(crate) fn get(&mut self, index: &PromptIndex, id: &str) -> Option<u32> {
        if let Some(last) = self.last
            && index.id(last) == id
        {
            return Some(last);
        }
        let found = index.get(id);
        self.last = found.or(self.last);
        found
    }

    /// The number of an id, which gets one if it has none.
    pub(crate) fn insert(&mut self, index: &mut PromptIndex, id: &str) -> u32 {
        if let Some(last) = self.last
            && index.id(last) == id
        {
            return last;
        }
        let (number, _) = index.insert(id);
        self.last = Some(number);
        number
    }
}

/// A text column without nulls.
///
/// # Errors
/// When a row of the port has none.
pub(crate) fn texts<'a>(
    batch: &'a RecordBatch,
    column: &str,
    port: &str,
) -> Result<&'a LargeStringArray, OperatorError> {
    let array = batch
        .column_by_name(column)
        .ok_or_else(|| OperatorError::Internal(format!("`{port}` has no column `{column}`")))?;
    if array.null_count() > 0 {
        return Err(OperatorError::Data(format!(
            "`{port}` has a row whose `{column}` is null; leave such rows out with a `sql` stage"
        )));
    }
    Ok(array.as_string::<i64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_by_first_appearance_and_are_found_again() {
        let mut index = PromptIndex::default();
        let ids: Vec<String> = (0..5000).map(|number| format!("p{number}")).collect();
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(index.insert(id), (number as u32, true));
        }
        assert_eq!(index.insert(""), (5000, true));
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(index.get(id), Some(number as u32));
            assert_eq!(index.id(number as u32), id);
        }
        assert_eq!((index.get(""), index.get("p5000")), (Some(5000), None));
        assert_eq!((index.insert("p7"), index.len()), ((7, false), 5001));
    }

    #[test]
    fn a_lookup_remembers_no_wrong_id() {
        let mut index = PromptIndex::default();
        let mut lookup = Lookup::default();
        assert_eq!(lookup.insert(&mut index, "a"), 0);
        assert_eq!(lookup.insert(&mut index, "b"), 1);
        assert_eq!(lookup.get(&index, "c"), None);
        assert_eq!(lookup.get(&index, "b"), Some(1));
        assert_eq!(lookup.get(&index, "a"), Some(0));
    }
}
