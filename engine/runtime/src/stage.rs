//! One stage from its inputs to its outputs, in the process that calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use engine_core::{OperatorConfig, PortType, StageContext};
use engine_store::Store;

use crate::failure::Failure;
use crate::io::{StageListener, StoreIo};
use crate::keys::{Inputs, Outputs};

/// Runs a stage and closes its output ports.
pub(crate) fn run_stage(
    config: &dyn OperatorConfig,
    context: &StageContext<'_>,
    store: &Store,
    inputs: Inputs,
    outputs: &[(String, PortType)],
    listener: &dyn StageListener,
) -> Result<Outputs, Failure> {
    let run = || {
        let mut io = StoreIo::try_new(store, inputs, outputs, listener)?;
        config.run(context, &mut io)?;
        io.finish()
    };
    // Nothing that the closure touches is used after a panic, except the store, which has no state in memory.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Ok(result?),
        Err(payload) => Err(Failure::panic(payload.as_ref())),
    }
}
