//! Runs a stage part by part: rows are read and cut by their content, every part is looked up in the store, the missing ones are
//! computed side by side, and each is committed on its own. The same in the engine's process and in a worker.
//!
//! One thread reads, some lanes look up, encode and commit. In the engine's process operators compute on rayon's threads; in a
//! worker on the thread that called, one part at a time, since a model library keeps threads for each thread that enters
//! it. Rows that are read and not yet committed share a budget of bytes; of finished parts only their names are kept.

mod budget;
mod compute;
mod driver;
mod gather;
mod key;
mod lookup;
mod part;
mod progress;
mod quarantine;
mod reader;
mod side;
#[cfg(test)]
mod tests;
mod view;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use engine_core::{MapOperator, OperatorConfig, OperatorError, StageContext};

use crate::io::StoreIo;
use crate::stage::{StageDone, StageJob};
use driver::Driver;
use key::PartKeys;
use progress::MapProgress;
pub(crate) use quarantine::allowed;
use view::MapView;

/// Runs a map stage and describes what it made. Everything that is finished is committed, however it ends.
pub(crate) fn run_map(
    config: &dyn OperatorConfig,
    operator: &dyn MapOperator,
    context: &StageContext<'_>,
    io: &StoreIo<'_>,
    job: &StageJob,
) -> Result<StageDone, OperatorError> {
    let begun = Instant::now();
    let slices = operator.slices();
    let rows = reader::total_rows(operator, context, io);
    let units: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
    let unit = match (&slices[..], io.ports().first()) {
        ([one], _) if one.len() == 1 => "rows",
        (_, Some((port, _))) => port,
        _ => "rows",
    };
    let is_one_by_one = context.backend.is_some();
    let progress = MapProgress::new(io, rows.map(|rows| rows * units), unit, is_one_by_one);
    progress.begin();
    let keys = PartKeys::read(config, operator, context, io, job)?;
    let view = MapView {
        io,
        progress: &progress,
        is_given_up: AtomicBool::new(false),
    };
    let driver = Driver {
        config,
        operator,
        context,
        io,
        job,
        slices,
        rows,
        keys: &keys,
        base: lookup::ReplayBase::new(&job.replay),
        progress: &progress,
        view: &view,
        begun,
        state: driver::State::new(job.memory_budget),
    };
    driver.run()?;
    driver.finish()
}
