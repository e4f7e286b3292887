//! The log on standard error. Progress bars step aside while a line is written.

use std::io::{IsTerminal as _, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use serde_json::{Map, Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::LogForm;

static FORM: OnceLock<LogForm> = OnceLock::new();

/// The progress bars of this process.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Whether standard error is to be read by programs: then every line of it is a JSON object.
pub(crate) fn is_json() -> bool {
    FORM.get() == Some(&LogForm::Json)
}

/// A line for programs, in the form of those of the log.
pub(crate) fn json_line(level: &str, message: &str, fields: Value) {
    let mut line = Map::new();
    line.insert("level".to_owned(), json!(level));
    let mut inner = Map::from_iter([("message".to_owned(), json!(message))]);
    if let Value::Object(fields) = fields {
        inner.extend(fields);
    }
    line.insert("fields".to_owned(), Value::Object(inner));
    line.insert("target".to_owned(), json!("metis_flow"));
    eprintln!("{}", Value::Object(line));
}

/// Starts the log of the engine: warnings and worse, unless `RUST_LOG` says otherwise.
pub(crate) fn start(form: LogForm) {
    // The first call counts; there is one.
    let _ = FORM.set(form);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(AsideBars);
    // A second log in one process is a mistake that costs nothing.
    let _ = match form {
        LogForm::Text => log.with_ansi(use_colour()).try_init(),
        LogForm::Json => log.json().try_init(),
    };
}

/// Starts the log of a worker: plain lines, which the engine keeps for errors and passes on.
pub fn start_worker_log() {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let _ = log.without_time().try_init();
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"))
}

/// Whether standard error shows colours.
#[expect(
    clippy::disallowed_methods,
    reason = "the convention for colours is a variable, and no result depends on it"
)]
pub(crate) fn use_colour() -> bool {
    std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

struct AsideBars;

impl Write for AsideBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        bars().suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AsideBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        Self
    }
}
