//! Waiting for the object store from any thread.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for requests. They wait for the network; what needs a processor is done by whoever asks.
const THREADS: usize = 2;

/// The runtime that all stores of the process share. Connections live on it, so that they outlast whoever opened them.
pub(crate) fn handle() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("store")
                .enable_all()
                .build()
                .expect("the system gives threads")
        })
        .handle()
}

/// Waits for an operation. Local and in-memory stores complete on the calling thread without a runtime; others need one
/// for sockets and timers. Works on threads of any kind, those of another runtime included.
pub(crate) fn block_on<T>(needs_runtime: bool, future: impl Future<Output = T>) -> T {
    if !needs_runtime {
        return futures::executor::block_on(future);
    }
    let _context = handle().enter();
    futures::executor::block_on(future)
}

/// Sleeps, when there is a runtime with timers; elsewhere the thread sleeps.
pub(crate) async fn sleep(duration: Duration) {
    if Handle::try_current().is_ok() {
        tokio::time::sleep(duration).await;
    } else {
        std::thread::sleep(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_works_on_plain_threads_and_inside_other_runtimes() {
        let wait = || {
            block_on(true, async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                7
            })
        };
        assert_eq!(wait(), 7);
        let current = Builder::new_current_thread().build().unwrap();
        assert_eq!(current.block_on(async { wait() }), 7);
        let other = Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        assert_eq!(
            other.block_on(other.spawn(async move { wait() })).unwrap(),
            7
        );
    }
}
