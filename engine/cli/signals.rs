//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process.

use engine_runtime::CancelToken;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Exit;

/// Listens from now on.
///
/// # Errors
/// When the system does not let us listen.
pub(crate) fn listen(cancel: &CancelToken) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if cancel.is_cancelled() {
                    // Workers end when their input closes, which it does now.
                    #[expect(
                        clippy::exit,
                        reason = "a second signal asks not to wait for anything"
                    )]
                    std::process::exit(i32::from(Exit::Interrupted.code()));
                }
                cancel.cancel();
            }
        });
    });
    Ok(())
}
