//! Arguments of `serve`.

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use super::StoreArgs;
use super::values;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A model folder; or a model of a run: `stage`, `stage.port`, `stage.port@run` or the first digits of its digest.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Address to listen at. Another one than this machine's own needs a key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen at; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(crate) port: u16,
    /// Name of the model for clients; that of the folder or the stage when left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Key that clients must send as bearer token. Better set METIS_FLOW_API_KEY: command lines can be seen by others.
    #[arg(long, value_name = "KEY", conflicts_with = "no_auth")]
    pub(crate) api_key: Option<String>,
    /// Let everybody in, even where others than this machine can reach the server.
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// Answers written at the same time; memory is set aside for them.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) max_concurrent: u32,
    /// Answers that may wait for these; more are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) max_waiting: u32,
    /// Tokens that a prompt and its answer may have together; what the model has, and 4096 at most, when left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) max_tokens: Option<u32>,
    /// Size of a request, images included; larger ones are refused with status 413.
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_body_mib: u32,
    /// Where the model runs: `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = values::device)]
    pub(crate) device: String,
    /// Number format of the weights.
    #[arg(long, value_enum, default_value = "float32")]
    pub(crate) precision: WeightFormat,
    /// Threads to compute with; all cores when left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Print the address as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Number format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightFormat {
    /// 32-bit floats.
    Float32,
    /// 16-bit brain floats.
    Bfloat16,
}
