//! Turns panics of the tensor library's bindings into errors.
//!
//! The plain methods of `tch` panic when libtorch throws. They keep the mathematics legible, so the whole crate uses
//! them, and every entry point of the back end runs inside [`guarded`].

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use engine_core::error::ModelError;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it becomes [`ModelError::Backend`] with the first line of its message.
///
/// # Errors
/// Those of `work`, and [`ModelError::Backend`].
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    static HOOK: Once = Once::new();
    // The default hook would print a backtrace for what becomes an ordinary error.
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                outer(info);
            }
        }));
    });
    let outermost = !GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    if outermost {
        GUARDED.set(false);
    }
    result.unwrap_or_else(|panic| Err(ModelError::Backend(first_line(panic.as_ref()))))
}

/// Runs a caller's code inside [`guarded`] with panics reported as usual.
pub(crate) fn unguarded<T>(work: impl FnOnce() -> T) -> T {
    let before = GUARDED.replace(false);
    let result = work();
    GUARDED.set(before);
    result
}

fn first_line(panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic without a message");
    // Debug output of the bindings' error escapes the line ends of libtorch's message.
    let line = message
        .split("\\n")
        .next()
        .unwrap_or(message)
        .lines()
        .next()
        .unwrap_or(message);
    let line = line
        .split_once("Err` value: Torch(\"")
        .map_or(line, |(_, rest)| rest);
    line.trim_end_matches("\")").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtorch_error_is_one_line() {
        let error = guarded(|| {
            let left = tch::Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
            Ok(left.matmul(&left))
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.starts_with("libtorch: ") && error.contains("2x3") && !error.contains('\n'),
            "{error}"
        );
    }
}
