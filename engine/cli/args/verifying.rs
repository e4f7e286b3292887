//! Arguments of `verify`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The gold answer.
    #[arg(
        long,
        requires = "answer",
        required_unless_present = "jsonl",
        allow_hyphen_values = true
    )]
    pub(crate) gold: Option<String>,
    /// The answer or completion to judge.
    #[arg(
        long,
        requires = "gold",
        conflicts_with = "jsonl",
        allow_hyphen_values = true
    )]
    pub(crate) answer: Option<String>,
    /// The question, for a verifier that is a program or a judge.
    #[arg(long, requires = "answer", allow_hyphen_values = true)]
    pub(crate) question: Option<String>,
    /// Judge the lines of a file, each an object with `gold`, `answer` and, if the verifier reads it, `question`, and print an
    /// object for each, in their order; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "gold")]
    pub(crate) jsonl: Option<PathBuf>,
    /// The verifier as a pipeline writes it, in JSON. Files of programs start at the current folder.
    #[arg(long, value_name = "JSON", default_value = r#"{"math": {}}"#)]
    pub(crate) verifier: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
