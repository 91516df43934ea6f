//! `lapstrake log-level`: more or less in the daemon's log, without a restart.

use std::process::ExitCode;

use super::{Cause, client};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `debug`, or by module: `info,lapstrake::sandbox=debug`
    #[arg(value_name = "FILTER")]
    filter: String,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn log_level(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    client.set_log_level(&args.filter).await?;
    Ok(ExitCode::SUCCESS)
}
