//! The CPU operators, one file each: reading prompts, verifying, scoring, splitting, choosing and mixing examples.

mod distill;
mod draw;
mod evaluate;
mod exec;
mod filter_by_pass_rate;
mod judged;
mod messages;
mod mix;
mod score;
mod source;
mod sql;
mod verify;

#[cfg(test)]
mod testing;

use engine_core::Registry;

pub use distill::{Distill, Keep};
pub use evaluate::{Evaluate, wilson_interval};
pub use exec::{ColumnType, Exec, Output, RowsRule};
pub use filter_by_pass_rate::FilterByPassRate;
pub use messages::MessagesBuilder;
pub use mix::Mix;
pub use score::Score;
pub use source::{Columns, Source};
pub use sql::Sql;
pub use verify::Verify;

/// Adds every operator of this crate.
pub fn register(registry: &mut Registry) {
    registry.register::<Distill>();
    registry.register::<Evaluate>();
    registry.register::<Exec>();
    registry.register::<FilterByPassRate>();
    registry.register::<Mix>();
    registry.register::<Score>();
    registry.register::<Source>();
    registry.register::<Sql>();
    registry.register::<Verify>();
}
