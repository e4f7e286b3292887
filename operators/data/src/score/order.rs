//! In which order rows come, and that no row comes twice.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, RecordBatch};
use engine_core::{OperatorError, StageIo};
use engine_query::{Order, QuerySession};

use super::names;
use crate::judged::is_judged;

/// Prompts whose places are remembered; of more, the rows are sorted, which needs no memory.
const MOST_PROMPTS: usize = 4_000_000;

/// Whether the judged verdicts of each prompt come one after the other, as `verify` leaves them.
pub(super) fn stand_together(io: &dyn StageIo) -> Result<bool, OperatorError> {
    let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
    session.register_port(io, "verdicts")?;
    let frame = session.sql(&format!(
        "SELECT v.prompt_id FROM verdicts v WHERE {}",
        is_judged("v")
    ))?;
    let mut together = Together::default();
    for batch in session.stream(frame) {
        if io.is_cancelled() {
            return Err(OperatorError::Interrupted);
        }
        if !together.holds(&batch?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Watches whether the rows of each prompt come one after the other.
#[derive(Default)]
pub(super) struct Together {
    last: String,
    seen: HashSet<u128>,
}

impl Together {
    /// Whether it is so up to the end of this batch, whose first column has the prompts.
    pub(super) fn holds(&mut self, batch: &RecordBatch) -> bool {
        let ids = batch.column(0).as_string::<i64>();
        for row in 0..ids.len() {
            let id = ids.value(row);
            if id == self.last && !self.seen.is_empty() {
                continue;
            }
            if !self.seen.insert(short_digest(id)) || self.seen.len() > MOST_PROMPTS {
                return false;
            }
            self.last.replace_range(.., id);
        }
        true
    }
}

/// Two texts have the same one only if somebody looks for such texts for longer than there is time.
pub(super) fn short_digest(text: &str) -> u128 {
    let digest = blake3::hash(text.as_bytes());
    let half = digest.as_bytes()[..16].try_into();
    u128::from_le_bytes(half.expect("a digest has 32 bytes"))
}

/// Watches that no sample of a prompt comes twice, where the rows of a prompt stand together.
#[derive(Default)]
pub(super) struct Names {
    prompt: String,
    /// Samples of the prompt so far, sorted.
    samples: Vec<u32>,
}

impl Names {
    pub(super) fn check(&mut self, batch: &RecordBatch) -> Result<(), OperatorError> {
        let (ids, samples) = names(batch);
        for row in 0..ids.len() {
            let (id, sample) = (ids.value(row), samples.value(row));
            if id != self.prompt {
                self.prompt.replace_range(.., id);
                self.samples.clear();
            }
            // Nearly always the next one.
            let place = if self.samples.last().is_none_or(|last| *last < sample) {
                self.samples.len()
            } else {
                let place = self.samples.binary_search(&sample);
                place.err().ok_or_else(|| twice(id, sample))?
            };
            self.samples.insert(place, sample);
        }
        Ok(())
    }
}

fn twice(id: &str, sample: u32) -> OperatorError {
    OperatorError::Data(format!(
        "sample {sample} of prompt `{id}` has more than one verdict, rollout or prompt; connect a `rollout` stage and its \
         verdicts, or choose one training step with a `sql` stage"
    ))
}
