//! `serve`: a model behind the OpenAI protocol. This process reads the command line and finds the model; a worker process has
//! the model and answers, so that only that one loads the model library.

mod answer;
mod body;
mod engine;
mod fault;
mod generation;
mod host;
mod http;
mod prompt;
mod reply;
mod routes;
mod setup;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine_core::Artifact;
use engine_runtime::CancelToken;
use serde_json::json;

pub use host::serve_model;

use super::export;
use crate::VERSION;
use crate::args::{ServeArgs, WeightFormat};
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::signals;
use setup::{FromServer, Limits, ServeSetup};

/// The argument that makes a worker serve a model.
const WORKER_ARGUMENT: &str = "serve";
/// How often this process looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);
/// How long a server may take to end what it has begun.
const LAST_BREATH: Duration = Duration::from_secs(15);
/// The variable with the key.
const KEY_VARIABLE: &str = "METIS_FLOW_API_KEY";

pub(crate) fn serve(arguments: &ServeArgs) -> anyhow::Result<Exit> {
    let api_key = api_key(arguments)?;
    let (folder, name) = find_model(arguments)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let setup = ServeSetup {
        version: VERSION.to_owned(),
        folder,
        name,
        host: arguments.host,
        port: arguments.port,
        api_key,
        limits: Limits {
            concurrent: arguments.max_concurrent as usize,
            waiting: arguments.max_waiting as usize,
            tokens: arguments.max_tokens.map(|tokens| tokens as usize),
            body_mib: arguments.max_body_mib,
        },
        device: arguments.device.clone(),
        threads: arguments.threads.map_or(cores, |threads| threads as usize),
        precision: match arguments.precision {
            WeightFormat::Float32 => engine_core::policy::Precision::Float32,
            WeightFormat::Bfloat16 => engine_core::policy::Precision::Bfloat16,
        },
    };
    let cancel = CancelToken::default();
    signals::listen(&cancel).context("could not listen to signals")?;
    let mut server = Server::start(&setup)?;
    let exit = server.watch(&setup, &cancel, arguments.json);
    server.end();
    exit
}

/// The key that clients must have.
fn api_key(arguments: &ServeArgs) -> anyhow::Result<Option<String>> {
    if arguments.no_auth {
        return Ok(None);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "secrets come from the environment, and no result depends on this one"
    )]
    let variable = std::env::var(KEY_VARIABLE).ok();
    let key = arguments.api_key.clone().or(variable);
    let key = key.filter(|key| !key.is_empty());
    if let Some(key) = &key
        && !key.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(wrong(
            "the key has characters that a header cannot have; use letters, digits and signs",
        ));
    }
    if key.is_none() && !is_loopback(arguments.host) {
        return Err(wrong(format!(
            "with --host {} others than this machine may ask: set {KEY_VARIABLE} to a key, or say --no-auth",
            arguments.host
        )));
    }
    Ok(key)
}

fn is_loopback(host: IpAddr) -> bool {
    host.is_loopback()
}

/// The folder of the model and its name for clients.
fn find_model(arguments: &ServeArgs) -> anyhow::Result<(PathBuf, String)> {
    let what = arguments.model.as_str();
    let path = Path::new(what);
    let named = |name: String| arguments.name.clone().unwrap_or(name);
    if path.join("config.json").is_file() {
        let folder =
            std::fs::canonicalize(path).with_context(|| format!("could not use {what}"))?;
        let name = folder.file_name().map(|name| name.display().to_string());
        return Ok((folder, named(name.unwrap_or_else(|| what.to_owned()))));
    }
    if path.is_dir() {
        return Err(wrong(format!(
            "`{what}` is no model folder: it has no config.json"
        )));
    }
    if what.contains('/') && arguments.store.store.is_none() {
        return Err(wrong(format!("there is no folder `{what}`")));
    }
    let store = find_store(&arguments.store)?;
    match export::artifact_of(&store, what)? {
        Artifact::Model(model) => Ok((store.local_model_folder(&model)?, named(what.to_owned()))),
        Artifact::Dataset(dataset) => Err(wrong(format!(
            "`{what}` is a table of {}, not a model; `metis-flow export` writes it to a file",
            dataset.table
        ))),
    }
}

/// The process with the model.
struct Server {
    child: Child,
    lines: Receiver<String>,
}

impl Server {
    fn start(setup: &ServeSetup) -> anyhow::Result<Self> {
        let program =
            std::env::current_exe().context("could not find the folder of this program")?;
        let program = program.with_file_name("metis-flow-worker");
        let mut child = Command::new(&program)
            .arg(WORKER_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C in the terminal is for this process, which then ends that one in order.
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!(
                    "could not start {}, which is built together with metis-flow",
                    program.display()
                )
            })?;
        let lines = listen(child.stdout.take().expect("standard output is a pipe"));
        let mut line = serde_json::to_vec(setup)?;
        line.push(b'\n');
        let stdin = child.stdin.as_mut().expect("standard input is a pipe");
        // A process that has ended at once is noticed by what it does not say.
        let _ = stdin.write_all(&line).and_then(|()| stdin.flush());
        Ok(Self { child, lines })
    }

    /// Says what the server says until it ends or shall end.
    fn watch(
        &mut self,
        setup: &ServeSetup,
        cancel: &CancelToken,
        is_json: bool,
    ) -> anyhow::Result<Exit> {
        loop {
            if cancel.is_cancelled() {
                eprintln!("ending: answers that have begun are given a few seconds");
                return Ok(Exit::Done);
            }
            let line = match self.lines.recv_timeout(TICK) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!(
                        "the process with the model ended without a word; what it wrote is above"
                    );
                }
            };
            match serde_json::from_str(&line) {
                Ok(FromServer::Bound { address }) => say_bound(setup, &address, is_json)?,
                Ok(FromServer::Ready {
                    backend,
                    max_tokens,
                }) => eprintln!(
                    "`{}` is loaded ({backend}): {} sequences at a time, {max_tokens} tokens each",
                    setup.name, setup.limits.concurrent
                ),
                Ok(FromServer::Failed { message }) => {
                    anyhow::bail!("could not serve `{}`: {message}", setup.name)
                }
                Err(_) => eprintln!("{line}"),
            }
        }
    }

    /// Closes the server's input, which asks it to end, and waits for that.
    fn end(&mut self) {
        self.child.stdin = None;
        let deadline = Instant::now() + LAST_BREATH;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(TICK);
        }
        // It may have ended just now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say_bound(setup: &ServeSetup, address: &str, is_json: bool) -> anyhow::Result<()> {
    let url = format!("http://{address}/v1");
    if is_json {
        let line = json!({ "address": address, "url": url, "model": setup.name });
        println!("{line}");
        std::io::stdout()
            .flush()
            .context("could not write to standard output")?;
    } else {
        let key = match setup.api_key {
            Some(_) => "with a key",
            None => "without a key",
        };
        eprintln!("listening at {url} {key}; loading `{}`", setup.name);
    }
    Ok(())
}

fn listen(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
