//! The process with the model: listens at once, loads the model, answers until its input closes.

use std::io::{BufRead as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use engine_core::policy::{LoadOptions, SessionLimits};
use engine_core::{ModelBackend, ModelError};
use operators_model::processor::Processor;
use serde_json::Value;

use super::engine::{Engine, run};
use super::fault::ApiFault;
use super::http::Connection;
use super::routes::{Fresh, Loaded, Service, refuse, serve_connection};
use super::setup::{FromServer, ServeSetup};
use crate::VERSION;

/// Tokens of a prompt and its answer where the command line says nothing, as far as the model has them.
const MAX_TOKENS: usize = 4096;
/// Connections beside those that have a request let in.
const CONNECTIONS: usize = 512;
/// How long answers that have begun may go on when the server ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the model may take to notice that it is to end, and connections to say so.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Serves a model as the other process says on standard input, until that closes.
#[must_use]
pub fn serve_model(
    make_backend: impl FnOnce(&str, usize) -> Result<Box<dyn ModelBackend>, ModelError>,
) -> ExitCode {
    let mut line = String::new();
    if let Err(error) = std::io::stdin().lock().read_line(&mut line) {
        return fail(format!("no set-up came: {error}"));
    }
    let setup: ServeSetup = match serde_json::from_str(&line) {
        Ok(setup) => setup,
        Err(error) => {
            return fail(format!(
                "the first line is no set-up of a server, which `metis-flow serve` sends: {error}"
            ));
        }
    };
    if setup.version != VERSION {
        return fail(format!(
            "the worker is version {VERSION} and the command {}; build both together",
            setup.version
        ));
    }
    let listener = match TcpListener::bind((setup.host, setup.port)) {
        Ok(listener) => listener,
        Err(error) => {
            return fail(format!(
                "could not listen at {}, port {}: {error}; choose another --port, or 0 for a free one",
                setup.host, setup.port
            ));
        }
    };
    let address = match listener.local_addr() {
        Ok(address) => address.to_string(),
        Err(error) => return fail(format!("could not listen: {error}")),
    };
    let limit = setup.limits.concurrent + setup.limits.waiting;
    let (engine, commands) = Engine::new(limit);
    let service = Arc::new(Service {
        name: setup.name.clone(),
        api_key: setup.api_key.clone(),
        body_mib: setup.limits.body_mib,
        engine: Arc::clone(&engine),
        created: seconds_since_1970(),
        fresh: Fresh::new(from_the_system()),
        loaded: OnceLock::new(),
        ending: false.into(),
    });
    accept(listener, &service, CONNECTIONS + limit);
    end_with_input(&service);
    say(&FromServer::Bound { address });
    let outcome = load_and_run(&setup, &service, make_backend, |policy, limits| {
        run(policy, limits, &commands)
    });
    engine.set_over();
    let exit = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.to_string()),
    };
    // Whoever still waits is told.
    wait_until(LAST_STEP, || engine.load() == 0);
    exit
}

fn load_and_run(
    setup: &ServeSetup,
    service: &Service,
    make_backend: impl FnOnce(&str, usize) -> Result<Box<dyn ModelBackend>, ModelError>,
    run: impl FnOnce(&mut dyn engine_core::Policy, SessionLimits) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    engine_runtime::limit_threads(setup.threads);
    let processor = Processor::load(&setup.folder)?;
    let backend = make_backend(&setup.device, setup.threads)?;
    let options = LoadOptions {
        precision: setup.precision,
        training: None,
    };
    let mut policy = backend.load(&setup.folder, &options)?;
    let positions = positions(&setup.folder);
    let max_tokens =
        (setup.limits.tokens).unwrap_or_else(|| MAX_TOKENS.min(positions.unwrap_or(MAX_TOKENS)));
    let limits = SessionLimits {
        max_concurrent: setup.limits.concurrent,
        max_tokens,
    };
    // What the limits ask for is tried before anybody is let in.
    drop(policy.session(limits)?);
    let loaded = Loaded {
        processor,
        max_tokens,
    };
    if service.loaded.set(loaded).is_err() {
        return Err(ModelError::Backend("the model was loaded twice".to_owned()));
    }
    say(&FromServer::Ready {
        backend: backend.describe(),
        max_tokens,
    });
    run(&mut *policy, limits)
}

/// Positions of the model, where its configuration says.
fn positions(folder: &Path) -> Option<usize> {
    let bytes = std::fs::read(folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    let places = [
        "/max_position_embeddings",
        "/text_config/max_position_embeddings",
    ];
    let found = places
        .iter()
        .find_map(|place| config.pointer(place)?.as_u64());
    usize::try_from(found?).ok()
}

fn accept(listener: TcpListener, service: &Arc<Service>, most: usize) {
    let service = Arc::clone(service);
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A connection that broke before it was taken, or no room for more files: there will be others.
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let taken = Open::new(&open);
            if open.load(Ordering::SeqCst) > most {
                turn_away(stream);
                continue;
            }
            let service = Arc::clone(&service);
            let connected = std::thread::Builder::new()
                .name("connection".to_owned())
                .spawn(move || {
                    let _taken = taken;
                    // A connection that breaks concerns nobody else.
                    let _ = Connection::new(stream)
                        .and_then(|mut connection| serve_connection(&mut connection, &service));
                });
            if let Err(error) = connected {
                tracing::warn!("no thread for a connection: {error}");
            }
        }
    });
}

/// Counts an open connection.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn turn_away(stream: TcpStream) {
    let fault = ApiFault::unavailable("too many connections are open");
    let _ =
        Connection::new(stream).and_then(|mut connection| refuse(&mut connection, &fault, false));
}

/// Ends the server when the other process closes our input: lets answers that have begun go on for a while.
fn end_with_input(service: &Arc<Service>) {
    let service = Arc::clone(service);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() {
                break;
            }
        }
        service.ending.store(true, Ordering::SeqCst);
        if service.loaded.get().is_some() {
            wait_until(DRAIN, || service.engine.load() == 0);
            service.engine.stop();
            wait_until(2 * LAST_STEP, || false);
        }
        // No destructors: another thread is inside the model library.
        std::process::abort();
    });
}

fn wait_until(limit: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn fail(message: String) -> ExitCode {
    say(&FromServer::Failed { message });
    ExitCode::FAILURE
}

fn say(message: &FromServer) {
    let mut line = serde_json::to_vec(message).expect("messages are plain data");
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    // A process that does not listen has closed our input too, and that ends this one.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

/// The time that responses carry.
pub(super) fn seconds_since_1970() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the protocol wants the time in a response; nothing is kept"
    )]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A number that the system draws: answers without a seed shall differ from start to start.
fn from_the_system() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}
