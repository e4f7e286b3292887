//! Memory of the machine, and what key-value caches may take of it: planned before the first token.

use engine_core::error::ModelError;

use crate::decoder::Room;
use crate::model::Model;

/// Hundredths of the free memory that a cache may take.
const CACHE_SHARE: u64 = 90;

/// Sequences that a cache has memory for, of those that there is room for. On a GPU the allocator says what fits.
///
/// # Errors
/// [`ModelError::Input`] when there is not enough for one.
pub(crate) fn sequences_that_fit(model: &Model, room: Room) -> Result<usize, ModelError> {
    let Some(free) = available().filter(|_| !model.device.is_cuda()) else {
        return Ok(room.slots);
    };
    let text = &model.config.text;
    let width = u64::try_from(text.key_heads * text.head_dim).unwrap_or(0);
    let token = 2 * text.layers as u64 * width * model.kind.elt_size_in_bytes() as u64;
    let sequence = token.saturating_mul(room.tokens as u64).max(1);
    let fits = usize::try_from(free / 100 * CACHE_SHARE / sequence).unwrap_or(usize::MAX);
    if fits == 0 {
        return Err(ModelError::Input(format!(
            "the key-value cache of one sequence of {} tokens takes {} MiB, and {} MiB are free",
            room.tokens,
            sequence >> 20,
            free >> 20
        )));
    }
    Ok(fits.min(room.slots))
}

/// Bytes that are there for this process, those that it holds included.
pub(crate) fn on_machine() -> u64 {
    let held = of_process("VmRSS:").unwrap_or(0);
    available().map_or(u64::MAX, |free| free.saturating_add(held))
}

/// The most bytes that this process has held, where the system says so.
pub(crate) fn peak() -> u64 {
    of_process("VmHWM:").unwrap_or(0)
}

/// Bytes that can be taken without swapping, where the system says so.
fn available() -> Option<u64> {
    figure("/proc/meminfo", "MemAvailable:")
}

/// A figure of this process.
pub(crate) fn of_process(name: &str) -> Option<u64> {
    figure("/proc/self/status", name)
}

/// A figure in KiB of a file of the system, in bytes.
fn figure(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}
