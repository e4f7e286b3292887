//! The `metis-flow-worker` binary: the only one that loads the model library. The engine starts it and speaks to it.

use std::process::ExitCode;

use engine_core::{ModelBackend, ModelError};
use engine_runtime::worker::{WorkerSetup, serve};
use operators_torch::{DeviceChoice, TorchBackend};

#[expect(
    clippy::print_stderr,
    reason = "somebody who starts it by hand reads the terminal"
)]
fn main() -> ExitCode {
    metis_flow::start_worker_log();
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return metis_flow::serve_model(|name, threads| {
            Ok(Box::new(TorchBackend::new(device(name)?, Some(threads))?))
        });
    }
    match serve(metis_flow::VERSION, &metis_flow::registry(), backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("metis-flow-worker is started by metis-flow: {message}");
            ExitCode::from(2)
        }
    }
}

fn backend(setup: &WorkerSetup) -> Result<Box<dyn ModelBackend>, ModelError> {
    Ok(Box::new(TorchBackend::new(
        device(&setup.device)?,
        Some(setup.threads),
    )?))
}

/// The command line has checked the text; a worker that is given another says so.
fn device(text: &str) -> Result<DeviceChoice, ModelError> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| ModelError::Backend(format!("there is no device `{text}`"))),
    }
}
