//! The time of day, for records only: nothing that a stage makes depends on it.

use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};

/// Now, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    text(time())
}

/// The time of day of a past instant.
pub(crate) fn at(past: Instant) -> String {
    text(time() - chrono::Duration::from_std(past.elapsed()).unwrap_or_default())
}

#[expect(
    clippy::disallowed_methods,
    reason = "records say when things happened"
)]
fn time() -> DateTime<Utc> {
    Utc::now()
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
