//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod running;
mod serving;
mod values;
mod verifying;

pub(crate) use running::{
    ChangeArgs, CheckArgs, ChoiceArgs, ExecutionArgs, PipelineArgs, PlanArgs, ReplayArgs, RunArgs,
};
pub(crate) use serving::{ServeArgs, WeightFormat};
pub(crate) use verifying::VerifyArgs;

/// A dataflow engine for post-training language and vision-language models.
#[derive(Debug, Parser)]
#[command(
    name = "metis-flow",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    /// Form of the log on standard error; what is logged is set by `RUST_LOG`.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(crate) log: LogForm,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a pipeline file, its columns and its files; run nothing.
    Check(CheckArgs),
    /// Say for each stage whether it is cached, and if not, why.
    Plan(PlanArgs),
    /// Run a pipeline; finished stages are kept and found again.
    Run(RunArgs),
    /// Try the quarantined rows of a stage again, and no others.
    Replay(ReplayArgs),
    /// List the runs of a store.
    Runs(RunsArgs),
    /// Show a run, a stage of a run, or an artifact.
    Show(ShowArgs),
    /// Compare two runs, or one stage of two runs, down to rows.
    Diff(DiffArgs),
    /// Query the tables of a store.
    Sql(SqlArgs),
    /// Write a dataset or model to a file or folder.
    Export(ExportArgs),
    /// Serve a model, of a folder or of a run, behind the OpenAI protocol.
    Serve(ServeArgs),
    /// Judge answers against gold answers, one pair or a file of them, and say why.
    Verify(VerifyArgs),
    /// Say why a stage was cached or ran, or would be.
    Why(WhyArgs),
    /// Show what an artifact was made from.
    Lineage(LineageArgs),
    /// Remove from a store what nothing refers to.
    Gc(GcArgs),
    /// Draw a pipeline as a graph.
    Graph(GraphArgs),
    /// Print a shell's completions of this command line.
    Completions(CompletionsArgs),
    /// Print what is generated from the sources of this program.
    #[command(hide = true, subcommand)]
    Dev(DevCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// The JSON schema of pipeline files.
    Schema,
}

/// Where results are kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// Folder or URL of the store; `.metis` in the project folder when left out.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// List only the N latest runs.
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A run (its name, its first digits, `latest`, `latest~1`), a stage of the latest run that has it, `STAGE@RUN`, or
    /// the first digits of a stage key or artifact digest; the latest run when left out.
    pub(crate) what: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Show so many rows of each table.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rows: usize,
    /// Print the plain pipeline that the run worked out.
    #[arg(long, conflicts_with_all = ["json", "trace"])]
    pub(crate) pipeline: bool,
    /// Write what ran when to a file in Chrome's trace format, which ui.perfetto.dev and chrome://tracing show.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A run (its name, its first digits, `latest`, `latest~1`), a stage of the latest run, or `STAGE@RUN`.
    pub(crate) a: String,
    /// The same kind of thing, to compare with.
    pub(crate) b: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Show so many rows that differ, of each table.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) rows: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// The query, for example `select * from pass_rates order by pass_rate limit 10`.
    pub(crate) query: String,
    /// The run whose tables are queried (its name, its first digits, `latest~1`), or `all`; the latest run when left out.
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A stage of the latest run that has it: `stage` when it has one output, else `stage.port`; `stage.port@run` for
    /// another run.
    pub(crate) what: String,
    /// A file that ends in .parquet, .jsonl or .csv for a table; a folder for a model or a Hugging Face dataset.
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// Form of a table; told by the end of the file's name when left out.
    #[arg(long, value_enum)]
    pub(crate) format: Option<ExportForm>,
    /// Name of the split in a Hugging Face dataset.
    #[arg(long, value_name = "NAME", default_value = "train", value_parser = values::split)]
    pub(crate) split: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Form of an exported table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportForm {
    /// One Parquet file.
    Parquet,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values.
    Csv,
    /// A folder that `datasets.load_dataset` of Hugging Face reads, images included.
    Hf,
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The stage; `STAGE@RUN` for another run than the latest.
    pub(crate) stage: String,
    /// Explain what a run of this pipeline file would do; the latest run when left out.
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) changes: ChangeArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LineageArgs {
    /// A stage of the latest run that has it, `STAGE@RUN`, or the first digits of a stage key or artifact digest.
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Say what would be removed; remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Keep what is younger, for example `12h` or `7d`; more than the longest stage of a run takes.
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = values::age)]
    pub(crate) older_than: Duration,
    /// Keep what is younger than this even if `--older-than` is less.
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = values::age)]
    pub(crate) grace: Duration,
    /// Also remove the results that none of the N latest runs used; all results stay when left out.
    #[arg(long, value_name = "N")]
    pub(crate) keep_runs: Option<usize>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Language of the drawing.
    #[arg(long, value_enum, default_value = "mermaid")]
    pub(crate) format: GraphForm,
    /// Print the graph as JSON.
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
}

/// Language of a drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphForm {
    /// Mermaid, which Markdown pages show.
    Mermaid,
    /// DOT of Graphviz.
    Dot,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
