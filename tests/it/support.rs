//! A project in a temporary folder, and the program run in it.
//!
//! A test that uses a store is a function of the [`Place`] of that store; `on_every_store!` makes a
//! test of it for each place: `local::name` and `s3::name`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::s3::{self, Prefix};

/// A limit on waits that normally take moments.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the store of a project is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The folder `.metis` of the project, which nobody has to name.
    Local,
    /// A prefix in a bucket of the S3 server of the tests, named with `--store`.
    S3,
}

/// Makes of each function of a [`Place`] two tests: `local::name` and `s3::name`.
macro_rules! on_every_store {
    ($($name:ident),* $(,)?) => {
        mod local {
            $(#[test] fn $name() { super::$name($crate::support::Place::Local); })*
        }
        mod s3 {
            $(#[test] fn $name() { super::$name($crate::support::Place::S3); })*
        }
    };
}

/// A folder with pipelines, and a store.
pub(crate) struct Project {
    folder: tempfile::TempDir,
    store: Store,
}

/// The objects of a project's store, for tests that look at them or do them harm.
#[derive(Clone, Debug)]
enum Store {
    Local(PathBuf),
    S3(Prefix),
}

/// The commands that take `--store`.
const COMMANDS_WITH_A_STORE: [&str; 12] = [
    "plan", "run", "replay", "runs", "show", "diff", "sql", "export", "why", "lineage", "gc",
    "serve",
];

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
    /// A project whose store is on local disk: for tests of what has nothing to do with stores.
    pub(crate) fn new() -> Self {
        Self::at(Place::Local)
    }

    pub(crate) fn at(place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = match place {
            Place::Local => Store::Local(folder.path().join(".metis")),
            Place::S3 => Store::S3(Prefix::new()),
        };
        Self { folder, store }
    }

    /// The address of the store.
    pub(crate) fn store_url(&self) -> String {
        match &self.store {
            Store::Local(folder) => folder.to_str().unwrap().to_owned(),
            Store::S3(prefix) => prefix.url(),
        }
    }

    /// The bytes of an object of the store, such as `v1/stages/....json`.
    pub(crate) fn object(&self, name: &str) -> Option<Vec<u8>> {
        match &self.store {
            Store::Local(folder) => std::fs::read(folder.join(name)).ok(),
            Store::S3(prefix) => prefix.read(name),
        }
    }

    /// A JSON object of the store.
    pub(crate) fn json_object(&self, name: &str) -> Value {
        let bytes = self
            .object(name)
            .unwrap_or_else(|| panic!("no object {name}"));
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Puts an object into the store behind the program's back.
    pub(crate) fn write_object(&self, name: &str, bytes: &[u8]) {
        match &self.store {
            Store::Local(folder) => {
                let path = folder.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
            Store::S3(prefix) => prefix.write(name, bytes),
        }
    }

    /// Takes an object away behind the program's back.
    pub(crate) fn remove_object(&self, name: &str) {
        match &self.store {
            Store::Local(folder) => std::fs::remove_file(folder.join(name)).unwrap(),
            Store::S3(prefix) => prefix.remove(name),
        }
    }

    /// Names of the objects whose name starts so, sorted.
    pub(crate) fn objects(&self, start: &str) -> Vec<String> {
        let mut names = match &self.store {
            Store::Local(folder) => files(folder),
            Store::S3(prefix) => prefix.list(),
        };
        names.retain(|name| name.starts_with(start));
        names.sort();
        names
    }

    /// Forgets the store: the next run starts in an empty one.
    pub(crate) fn clear_store(&mut self) {
        match &mut self.store {
            Store::Local(folder) => std::fs::remove_dir_all(folder).unwrap(),
            Store::S3(prefix) => *prefix = Prefix::new(),
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

    /// The program with these arguments, in the project's folder and with its store.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metis-flow"));
        command.args(arguments).current_dir(self.folder.path());
        plain_environment(&mut command);
        // Digests of files outside are remembered in a folder of the user, which is none of the tests'.
        command.env("XDG_CACHE_HOME", self.path(".cache"));
        if let Store::S3(prefix) = &self.store {
            s3::prepare(&mut command);
            let takes_store = arguments
                .first()
                .is_some_and(|name| COMMANDS_WITH_A_STORE.contains(name));
            if takes_store && !arguments.contains(&"--store") {
                command.args(["--store", &prefix.url()]);
            }
        }
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
        start(self.command(arguments))
    }
}

/// Takes away what the environment of the tests might tell the program.
pub(crate) fn plain_environment(command: &mut Command) {
    #[expect(
        clippy::disallowed_methods,
        reason = "only names of variables are read, to take them away"
    )]
    let variables = std::env::vars_os();
    for (name, _) in variables {
        let name = name.to_string_lossy();
        let foreign = ["AWS_", "GOOGLE_", "AZURE_", "OTEL_", "RUST_"];
        if foreign.iter().any(|start| name.starts_with(start)) {
            command.env_remove(&*name);
        }
    }
    command.env("NO_COLOR", "1");
}

/// A variable of the environment that says where test tools are.
#[expect(
    clippy::disallowed_methods,
    reason = "`cargo xtask` tells the tests where their tools are"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A Python that has the packages of `tests/requirements.txt`.
pub(crate) fn python() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/python/bin/python");
    let python = PathBuf::from(variable("METIS_TEST_PYTHON").unwrap_or(default.to_owned()));
    assert!(
        python.is_file(),
        "no Python for tests at {}: `cargo xtask test` installs one",
        python.display()
    );
    python
}

/// Names of all files below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// Starts a command and listens to what it says.
pub(crate) fn start(mut command: Command) -> Running {
    let mut child = command
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
    /// Waits until the command says that a stage has started.
    pub(crate) fn wait_for_start(&mut self, stage: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!(
                    "`{stage}` never started; it said:\n{}",
                    self.said.join("\n")
                );
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_this = words.windows(2).any(|pair| pair == [stage, "started"]);
            self.said.push(line);
            if is_this {
                return;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Process numbers of the workers that this command has started.
    pub(crate) fn workers(&self) -> Vec<u32> {
        // A program of an `exec` stage is a child as well, but none of ours.
        children(self.child.id())
            .into_iter()
            .filter(|process| name(*process).is_some_and(|name| name.starts_with("metis-flow")))
            .collect()
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
    assert!(
        try_signal(process, signal),
        "process {process} takes no {signal}"
    );
}

/// Sends a signal to a process that may have ended; whether it was there.
pub(crate) fn try_signal(process: u32, signal: &str) -> bool {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &process.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success()
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

/// The first letters of a process's program.
fn name(process: u32) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("comm")).ok()
}

/// Parent and state of a process.
fn state(process: u32) -> Option<(u32, char)> {
    let text =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, state))
}
