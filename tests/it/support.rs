//! A project in a temporary folder, and the program run in it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A limit on waits that normally take moments.
const PATIENCE: Duration = Duration::from_mins(2);

/// A folder with pipelines and a store.
pub(crate) struct Project {
    folder: tempfile::TempDir,
}

/// What a finished command left.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr))
    }

    /// Panics with all that the command said unless it ended with this code.
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

impl Project {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Writes a pipeline file; `$repo` in it is the root of this repository.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace("$repo", env!("CARGO_MANIFEST_DIR"))).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metis-flow"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1");
        command
    }

    /// Runs a command to its end.
    pub(crate) fn call(&self, arguments: &[&str]) -> Finished {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a pipeline that succeeds and returns its outcome.
    pub(crate) fn run(&self, file: &str) -> Outcome {
        Outcome(
            self.call(&["run", file, "--json", "--device", "cpu"])
                .expect(0)
                .json(),
        )
    }

    /// Starts a command and listens to what it says.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running {
            child,
            lines,
            said: Vec::new(),
        }
    }
}

/// The outcome of a run as `--json` prints it.
pub(crate) struct Outcome(pub(crate) Value);

impl Outcome {
    fn stages(&self) -> &Vec<Value> {
        self.0["stages"].as_array().unwrap()
    }

    /// How each stage ended.
    pub(crate) fn statuses(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.stages()
            .iter()
            .map(|stage| (text(&stage["stage"]), text(&stage["status"])))
            .collect()
    }

    /// Names of the stages that ran.
    pub(crate) fn ran(&self) -> Vec<String> {
        self.statuses()
            .into_iter()
            .filter(|(_, status)| status == "done")
            .map(|(name, _)| name)
            .collect()
    }

    /// Digest of every artifact by `stage.port`.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let ports = self.stages().iter().flat_map(|stage| {
            let name = stage["stage"].as_str().unwrap();
            let outputs = stage["outputs"].as_object().unwrap();
            outputs.iter().map(move |(port, artifact)| {
                (
                    format!("{name}.{port}"),
                    artifact["digest"].as_str().unwrap().to_owned(),
                )
            })
        });
        ports.collect()
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Running {
    /// Waits until the command says this.
    pub(crate) fn wait_for(&mut self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!(
                    "it never said `{words}`; it said:\n{}",
                    self.said.join("\n")
                );
            };
            let is_it = line.contains(words);
            self.said.push(line);
            if is_it {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Process numbers of the workers that this command has started.
    pub(crate) fn workers(&self) -> Vec<u32> {
        children(self.child.id())
    }

    /// Waits for a worker other than these and returns its process number.
    pub(crate) fn wait_for_worker(&self, but: &[u32]) -> u32 {
        wait_until("a worker starts", || {
            self.workers()
                .into_iter()
                .find(|worker| !but.contains(worker))
        })
    }

    /// Waits for the end and collects what was said.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let status = wait_until("the command ends", || self.child.try_wait().unwrap());
        self.said.extend(self.lines.iter());
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        (status, self.said.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn send_signal(process: u32, signal: &str) {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &process.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "process {process} takes no {signal}");
}

/// Waits until the condition gives a value; a generous limit keeps a broken program from hanging the tests.
pub(crate) fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "it took too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn is_running(process: u32) -> bool {
    state(process).is_some_and(|(_, state)| state != 'Z')
}

fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|process| {
            state(*process).is_some_and(|(its_parent, state)| its_parent == parent && state != 'Z')
        })
        .collect()
}

/// Parent and state of a process.
fn state(process: u32) -> Option<(u32, char)> {
    let text =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, state))
}
