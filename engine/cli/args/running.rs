//! Arguments of the commands that read a pipeline file or run one.

use std::path::PathBuf;

use clap::Args;

use super::StoreArgs;
use super::values;

/// A pipeline file with what is laid over it.
#[derive(Clone, Debug, Args)]
pub(crate) struct PipelineArgs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) changes: ChangeArgs,
}

/// What is laid over a pipeline file.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ChangeArgs {
    /// Lay this file over the pipeline: its values replace those of the pipeline file. May be given several times.
    #[arg(long = "overlay", value_name = "FILE")]
    pub(crate) overlays: Vec<PathBuf>,
    /// Set a value, checked like the file, for example `sft.learning-rate=1e-4`. May be given several times.
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

impl ChangeArgs {
    pub(crate) fn is_empty(&self) -> bool {
        self.overlays.is_empty() && self.sets.is_empty()
    }
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Print the problems as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Print the plain pipeline: includes, overlays, parameters, loops and conditions worked out.
    #[arg(long)]
    pub(crate) resolved: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
}

/// Which stages of a pipeline run.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ChoiceArgs {
    /// Run this stage and those that read its outputs, directly or not; all others must be cached.
    #[arg(long, value_name = "STAGE")]
    pub(crate) from: Option<String>,
    /// Run this stage and those that it needs, and no others.
    #[arg(long, value_name = "STAGE")]
    pub(crate) to: Option<String>,
    /// Run only these stages; what they read must be cached.
    #[arg(long, value_name = "STAGE", value_delimiter = ',', conflicts_with_all = ["from", "to"])]
    pub(crate) only: Vec<String>,
    /// Run this stage although it is cached; another result becomes the one that stands.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) force: Vec<String>,
    /// Take the result of this stage from that run, whatever its key, for example `rl=latest~1`.
    #[arg(long, value_name = "STAGE=RUN", value_parser = values::pin)]
    pub(crate) pin: Vec<(String, String)>,
}

/// How stages run; no result depends on it.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExecutionArgs {
    /// Threads to compute with; all cores when left out. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Bytes of rows that map stages hold in memory at once, for example `8GiB`.
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) memory: Option<u64>,
    /// Where models run: `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = values::device)]
    pub(crate) device: String,
    /// Seconds between checkpoints of a training stage; 0 for one after each step.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) checkpoint_seconds: u32,
    /// Seconds after which a worker that says nothing is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..))]
    pub(crate) worker_silence: u32,
    /// How often a stage is started again after its worker was killed by something else.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(crate) worker_retries: u32,
    /// Minutes after which a stage in a worker that makes no progress is stopped; 0 for no limit.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    pub(crate) stall_minutes: u32,
    /// Send traces (run, stages, parts) to this OpenTelemetry collector over HTTP, for example `http://localhost:4318`.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Show no progress, only problems and the closing lines.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The stage, which has a quarantine.
    pub(crate) stage: String,
    /// The pipeline file; the pipeline of the latest run with this stage when left out.
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) changes: ChangeArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
}
