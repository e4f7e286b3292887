//! The CPU operators, one file each: reading prompts, verifying, scoring, splitting, choosing and mixing examples.

mod buckets;
mod distill;
mod draw;
mod evaluate;
mod exec;
mod filter_by_pass_rate;
mod fraction;
mod hash;
mod judged;
mod messages;
mod minhash;
mod mix;
mod ngram;
mod prompt_index;
mod score;
mod source;
mod split;
mod sql;
mod verify;

#[cfg(test)]
mod testing;

use engine_core::Registry;

pub use distill::{Caps, Decontaminate, Distill, Keep, NearDuplicates, Scope};
pub use evaluate::{Evaluate, wilson_interval};
pub use exec::{ColumnType, Exec, Output, RowsRule};
pub use filter_by_pass_rate::{Band, FilterByPassRate, Posterior};
pub use fraction::{Fraction, NoFraction};
pub use messages::MessagesBuilder;
pub use mix::Mix;
pub use score::Score;
pub use source::{Columns, Layout, Source};
pub use split::Split;
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
    registry.register::<Split>();
    registry.register::<Sql>();
    registry.register::<Verify>();
}
