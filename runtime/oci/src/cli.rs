//! The command line: runc's commands and flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) const ROOT: &str = "/run/lapstrake-oci";

/// Engines look for the word and take what follows it; `spec` is the newest specification that is understood.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

#[derive(Debug, Parser)]
#[command(
    name = "lapstrake-oci",
    version = VERSION,
    disable_version_flag = true,
    about = "Runs OCI bundles: containers from a config.json and a root file system"
)]
pub(crate) struct Cli {
    /// Directory for the state of containers (should be on tmpfs)
    #[arg(long, default_value = ROOT, global = true)]
    pub(crate) root: PathBuf,
    /// File to append errors to, besides standard error
    #[arg(long, global = true)]
    pub(crate) log: Option<PathBuf>,
    #[arg(long, default_value = "text", global = true)]
    pub(crate) log_format: LogFormat,
    /// Tell in the log what is done
    #[arg(long, global = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub(crate) debug: bool,
    /// Use systemd for control groups
    #[arg(long, global = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for compatibility: rootless containers are not served
    #[arg(long, global = true, hide = true)]
    pub(crate) rootless: Option<String>,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

// Deferred: the flags of the one command that is called are set up, which is most of what parsing takes.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Write a default config.json
    Spec(SpecArgs),
    /// Create a container and leave it waiting for `start`
    Create(CreateArgs),
    /// Let a created container run
    Start { id: String },
    /// Create, start, wait and delete
    Run(RunArgs),
    /// Run another process in a container
    Exec(ExecArgs),
    /// Print the state of a container
    State { id: String },
    /// Send a signal to a container's init process
    Kill(KillArgs),
    /// Remove what a container has left
    Delete(DeleteArgs),
    /// List the containers of this root
    List(ListArgs),
    /// Show the processes of a container
    Ps(PsArgs),
    /// Stop all processes of a container
    Pause { id: String },
    /// Let them go on
    Resume { id: String },
    /// Print statistics and out-of-memory events
    Events(EventsArgs),
    /// Change the limits of a container
    Update(UpdateArgs),
    /// Print what this runtime can do
    Features,
    /// Not implemented. Without help: engines take that for a sign that it is
    #[command(hide = true, disable_help_flag = true)]
    Checkpoint(Unserved),
    /// Not implemented
    #[command(hide = true, disable_help_flag = true)]
    Restore(Unserved),
}

/// Whatever is said to a command that is not served.
#[derive(Debug, Args)]
pub(crate) struct Unserved {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    pub(crate) id: String,
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that receives a pidfd of init
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Give the container so many descriptors beyond 2
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Move the root over `/` instead of pivoting into it: only for hosts that run from a ramdisk, which cannot pivot.
    /// The host's files stay below the container's root, out of sight but not unmounted: who gets all capabilities there
    /// may come to them
    #[arg(long)]
    pub(crate) no_pivot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Return when the container has started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File with an OCI process object
    #[arg(short, long)]
    pub(crate) process: Option<PathBuf>,
    /// [CONTROLLER,..:]PATH of a group below the container's that is there already
    #[arg(long)]
    pub(crate) cgroup: Vec<String>,
    #[arg(long)]
    pub(crate) cwd: Option<String>,
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// UID or UID:GID
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    #[arg(short = 'g', long)]
    pub(crate) additional_gids: Vec<u32>,
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    #[arg(short, long)]
    pub(crate) cap: Vec<String>,
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    pub(crate) id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    pub(crate) id: String,
    #[arg(default_value = "TERM")]
    pub(crate) signal: String,
    /// Signal every process of the container
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    pub(crate) id: String,
    /// Kill it first when it runs; a container that does not exist is fine
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[arg(short, long, default_value = "table")]
    pub(crate) format: Format,
    /// Only the ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[arg(short, long, default_value = "table")]
    pub(crate) format: Format,
    pub(crate) id: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    pub(crate) id: String,
    /// Print the statistics once
    #[arg(long)]
    pub(crate) stats: bool,
    /// Seconds between two prints (`5` or `5s`)
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    pub(crate) id: String,
    /// File with an OCI resources object, `-` for standard input; other options are ignored then
    #[arg(short, long)]
    pub(crate) resources: Option<PathBuf>,
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    #[arg(long)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    #[arg(long)]
    pub(crate) cpu_idle: Option<i64>,
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    #[arg(long, allow_hyphen_values = true, value_parser = bytes)]
    pub(crate) memory: Option<i64>,
    #[arg(long, allow_hyphen_values = true, value_parser = bytes)]
    pub(crate) memory_reservation: Option<i64>,
    #[arg(long, allow_hyphen_values = true, value_parser = bytes)]
    pub(crate) memory_swap: Option<i64>,
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
}

/// `-1`, `1024`, `50M`, `1g`: powers of 1024, as engines write them.
fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_end_matches("ib").trim_end_matches('b');
    let units = [('k', 1i64 << 10), ('m', 1 << 20), ('g', 1 << 30), ('t', 1 << 40)];
    let unit = units.into_iter().find(|(letter, _)| plain.ends_with(*letter));
    let (number, factor) = unit.map_or((plain, 1), |(_, f)| (&plain[..plain.len() - 1], f));
    let bytes = number.parse::<i64>().ok().and_then(|n| n.checked_mul(factor));
    bytes.ok_or_else(|| "it is no number of bytes like 1048576 or 50M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_none() {
        for (text, want) in
            [("-1", -1), ("7", 7), ("50M", 50 << 20), ("1GiB", 1 << 30), ("2kb", 2048)]
        {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for bad in ["", "M", "1x", "1.5M", "9999999999G"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
