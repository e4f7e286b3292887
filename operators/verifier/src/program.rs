//! Programs of users: how they are named, started, watched, and ended with all that they started.
//!
//! A process leads a group of its own, which is killed as a whole before the process is reaped: until then no other group can
//! have its number.

mod memory;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use engine_core::operator::missing_externals;
use engine_core::{External, ExternalContent, Fault, OperatorError};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// How long something that a program started may hold its pipes after it has ended itself.
pub const LAST_BREATH: Duration = Duration::from_secs(2);
/// Lines of standard error that are kept for an error.
const LOG_LINES: usize = 20;
/// Bytes of such a line.
const LOG_WIDTH: u64 = 1000;
/// Variables that every program gets, if they are set.
pub const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR"];
/// Python: the same order of sets in every process, and no files beside the ones whose content is in the key.
const SET: [(&str, &str); 2] = [("PYTHONHASHSEED", "0"), ("PYTHONDONTWRITEBYTECODE", "1")];

/// A program that can be started.
#[derive(Clone, Debug)]
pub struct Program {
    command: Vec<String>,
    /// Where it is started; absolute.
    folder: PathBuf,
    /// Everything that its environment has.
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program that is started in the project folder, with little of the environment and these further variables of it.
    ///
    /// # Errors
    /// When a variable is not set.
    pub fn new(command: &[String], root: &Path, env: &[String]) -> Result<Self, OperatorError> {
        Ok(Self {
            command: command.to_vec(),
            folder: folder(root)?,
            environment: environment(env)?,
        })
    }

    /// Starts a process. What it writes to standard error goes to the log.
    ///
    /// # Errors
    /// When it cannot be started; the message names the program.
    ///
    /// # Panics
    /// When the command is empty, which is a fault of the plan.
    pub fn start(&self) -> Result<Started, String> {
        let (name, arguments) = self
            .command
            .split_first()
            .expect("a command without a program is a fault of the plan");
        // A name is looked for in PATH, a path starts at the project folder.
        let program = if name.contains('/') {
            self.folder.join(name)
        } else {
            Path::new(name).to_owned()
        };
        let mut child = Command::new(&program)
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for the engine, which ends its programs in order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                format!(
                    "the program `{}` could not be started: {error}; is `{name}` installed, executable, and in PATH?",
                    self.command.join(" ")
                )
            })?;
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let (sender, log) = channel();
        let span = tracing::Span::current();
        std::thread::spawn(move || span.in_scope(|| keep_log(stderr, &sender)));
        Ok(Started {
            process: Process {
                child,
                log,
                is_over: false,
            },
            input,
            output,
        })
    }

    /// A message about the program: what it did, which goes on from "the program", and the end of its log.
    #[must_use]
    pub fn blame(&self, what: &str, log: &[String]) -> String {
        let mut message = format!("the program `{}` {what}", self.command.join(" "));
        if !log.is_empty() {
            message.push_str("\nits last lines on standard error:");
            for line in log {
                // Writing to a string cannot fail.
                let _ = write!(message, "\n  {line}");
            }
        }
        message
    }
}

/// A process and its pipes.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Process,
    /// Its standard input.
    pub input: ChildStdin,
    /// Its standard output.
    pub output: ChildStdout,
}

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Receiver<Vec<String>>,
    is_over: bool,
}

impl Process {
    /// Whether the process has ended; it is not reaped yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error means that there is no such child: nothing to wait for.
        !matches!(
            waitid(WaitId::Pid(Pid::from_child(&self.child)), options),
            Ok(None)
        )
    }

    /// Complains when it and all that it started use more memory than this.
    ///
    /// # Errors
    /// What it did, which goes on from "the program".
    pub fn check_memory(&self, most_mb: u64) -> Result<(), String> {
        let used = memory::resident_bytes(self.child.id());
        if used > most_mb.saturating_mul(1 << 20) {
            return Err(format!(
                "used {} MB of memory and was killed; `memory-mb` allows {most_mb}",
                used >> 20
            ));
        }
        Ok(())
    }

    /// Kills what is left of the group and reaps the process.
    pub fn end(&mut self) -> Option<ExitStatus> {
        if !self.is_over {
            self.is_over = true;
            // The group is empty when all of it has ended.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        self.child.wait().ok()
    }

    /// The last lines of standard error, once the process is over.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.recv_timeout(LAST_BREATH).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was wrong with the end of a process, if anything; it goes on from "the program".
#[must_use]
pub fn failure(status: ExitStatus) -> Option<String> {
    match (status.signal(), status.code()) {
        (_, Some(0)) => None,
        (_, Some(code)) => Some(format!("ended with exit code {code}")),
        (Some(9), _) => {
            Some("was killed (signal 9; perhaps the machine ran out of memory)".to_owned())
        }
        (Some(signal), _) => Some(format!("was ended by signal {signal}")),
        (None, None) => Some("ended without saying how".to_owned()),
    }
}

/// Passes standard error on to the log and keeps its last lines.
fn keep_log(stderr: impl Read, sender: &Sender<Vec<String>>) {
    let mut lines = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        // A line without an end is taken in pieces, not into memory as a whole.
        match reader.by_ref().take(LOG_WIDTH).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::info!(target: "metis_flow::exec", "{line}");
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    // Nobody listens any more when the process was given up.
    let _ = sender.send(lines.into());
}

/// What a program is made of: the files that are listed. `path` leads to the configuration with `command` and `files`.
#[must_use]
pub fn externals(path: &[String], command: &[String], files: &[PathBuf]) -> Vec<External> {
    let at = path.iter().fold(String::new(), |at, key| at + "/" + key);
    let external = |pointer: String, path: &Path| External {
        pointer,
        path: path.to_owned(),
        content: ExternalContent::Bytes,
    };
    let listed = files.iter().enumerate();
    let listed = listed.map(|(index, path)| external(format!("{at}/files/{index}"), path));
    // A listed file counts by its content in the command too, so that moving it changes nothing.
    let words = command
        .iter()
        .enumerate()
        .filter(|(_, word)| files.iter().any(|file| file == Path::new(word)))
        .map(|(index, word)| external(format!("{at}/command/{index}"), Path::new(word)));
    listed.chain(words).collect()
}

/// Files of a program that are not there or not listed. Paths of the faults start at the configuration with `command` and
/// `files`.
#[must_use]
pub fn inspect(root: &Path, command: &[String], files: &[PathBuf]) -> Vec<Fault> {
    let mut faults = missing_externals(root, &externals(&[], command, files));
    faults.retain(|fault| fault.path.first().is_none_or(|key| key == "files"));
    for (index, word) in command.iter().enumerate() {
        let path = Path::new(word);
        // The program itself is looked for in PATH, or belongs to the machine.
        let is_of_machine = index == 0 && (path.is_absolute() || !word.contains('/'));
        let is_listed = files.iter().any(|file| path.starts_with(file));
        if !is_of_machine && !is_listed && !word.is_empty() && root.join(path).is_file() {
            faults.push(Fault {
                path: vec!["command".to_owned(), index.to_string()],
                message: format!("`{word}` is a file and is not listed in `files`"),
                help: Some(format!(
                    "add it, as in `files: [{word}]`: the stage then runs again when it changes"
                )),
                code: "wrong-value",
            });
        }
    }
    faults
}

/// A command without a program, and names of variables that are none.
#[must_use]
pub fn command_faults(command: &[String], env: &[String]) -> Vec<Fault> {
    let mut faults = Vec::new();
    if command.first().is_none_or(String::is_empty) {
        faults.push(
            Fault::at("wrong-value", "command", "there is no program in it")
                .with_help("write the program and its arguments, as in `[python3, reward.py]`"),
        );
    }
    let is_name = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    if let Some(name) = env.iter().find(|name| !is_name(name)) {
        let message = format!("`{name}` is no name of a variable");
        faults.push(
            Fault::at("wrong-value", "env", message)
                .with_help("write names only; the values are those that metis-flow has"),
        );
    }
    faults
}

/// Numbers that must be at least 1.
#[must_use]
pub fn number_faults(numbers: &[(&str, Option<u64>)]) -> Vec<Fault> {
    let zeros = numbers.iter().filter(|(_, value)| *value == Some(0));
    zeros
        .map(|(key, _)| Fault::at("wrong-value", key, format!("`{key}` must be at least 1")))
        .collect()
}

/// The project folder as a program can be started in it.
fn folder(root: &Path) -> Result<PathBuf, OperatorError> {
    let named = if root.as_os_str().is_empty() {
        Path::new(".")
    } else {
        root
    };
    std::path::absolute(named).map_err(|source| OperatorError::File {
        message: "cannot use the project folder".to_owned(),
        path: root.to_owned(),
        source,
    })
}

/// The variables that the program gets.
#[expect(
    clippy::disallowed_methods,
    reason = "a program needs PATH to be found, and the pipeline names what else it gets; the documentation of `env` says that values do not count"
)]
fn environment(names: &[String]) -> Result<Vec<(OsString, OsString)>, OperatorError> {
    let mut variables: Vec<(OsString, OsString)> = SET
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect();
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            variables.push((name.into(), value));
        }
    }
    for name in names {
        let value = std::env::var_os(name).ok_or_else(|| {
            OperatorError::Data(format!(
                "the environment variable `{name}` is not set, and `env` says that the program needs it; set it and run again"
            ))
        })?;
        variables.push((name.into(), value));
    }
    Ok(variables)
}
