//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// List the runs of a store.
    Runs(RunsArgs),
    /// Show a run, a stage of the latest run, or an artifact.
    Show(ShowArgs),
    /// Query the tables of a store.
    Sql(SqlArgs),
    /// Write a dataset or model of the latest run to a file or folder.
    Export(ExportArgs),
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
pub(crate) struct CheckArgs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    /// Print the problems as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Threads to compute with; all cores when left out. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Where models run: `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = device)]
    pub(crate) device: String,
    /// Seconds after which a worker that says nothing is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..))]
    pub(crate) worker_silence: u32,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A run, a stage of the latest run, or the first digits of a stage key or artifact digest; the latest run when left out.
    pub(crate) what: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Show so many rows of each table.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rows: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// The query, for example `select * from pass_rates order by pass_rate limit 10`.
    pub(crate) query: String,
    /// The run whose tables are queried, or `all`; the latest run when left out.
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
    /// A stage of the latest run that has it: `stage` when it has one output, else `stage.port`.
    pub(crate) what: String,
    /// A file that ends in .parquet, .jsonl or .csv for a table; a folder for a model.
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The stage.
    pub(crate) stage: String,
    /// Explain what a run of this pipeline file would do; the latest run when left out.
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LineageArgs {
    /// A stage of the latest run that has it, or the first digits of a stage key or artifact digest.
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
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = age)]
    pub(crate) older_than: Duration,
    /// Keep what is younger than this even if `--older-than` is less.
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = age)]
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
    /// The pipeline file.
    pub(crate) file: PathBuf,
    /// Language of the drawing.
    #[arg(long, value_enum, default_value = "mermaid")]
    pub(crate) format: GraphForm,
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

fn device(text: &str) -> Result<String, String> {
    let is_cuda = text
        .strip_prefix("cuda:")
        .is_some_and(|index| index.parse::<u8>().is_ok());
    if matches!(text, "auto" | "cpu") || is_cuda {
        Ok(text.to_owned())
    } else {
        Err("expected `auto`, `cpu` or `cuda:N`, for example `cuda:0`".to_owned())
    }
}

/// `30s`, `5m`, `12h`, `7d` or `2w`.
fn age(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with s, m, h, d or w, for example `7d`".to_owned();
    let unit = text.chars().next_back().ok_or_else(expected)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(expected()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_age_has_a_number_and_a_unit() {
        assert_eq!(age("0s"), Ok(Duration::ZERO));
        assert_eq!(age("7d"), Ok(Duration::from_hours(168)));
        for wrong in ["", "7", "d", "-1d", "7 d", "7y", "99999999999999999999w"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_are_named_exactly() {
        assert!(
            ["auto", "cpu", "cuda:0", "cuda:7"]
                .iter()
                .all(|text| device(text).is_ok())
        );
        assert!(
            ["cuda", "gpu", "cuda:", "cuda:x", "CPU"]
                .iter()
                .all(|text| device(text).is_err())
        );
    }
}
