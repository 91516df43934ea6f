//! `lapstrake`: the CRI daemon and its operator verbs.

mod app;
mod cli;
mod clock;
mod config;
mod container;
mod doctor;
mod error;
mod events;
mod grpc;
mod id;
mod kept;
mod locks;
mod log;
mod metrics;
mod network;
mod quantity;
mod sandbox;
mod scope;
mod selinux;
mod share;
mod shims;
mod stats;
mod store;
mod streaming;
mod sys;
mod why;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Kubernetes CRI node runtime.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve CRI to a kubelet.
    Serve(config::Flags),
    /// Show or check configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Say what this kernel and node can and cannot do, and the fix; exit code 1 if pods cannot run.
    Doctor(config::Flags),
    /// What to do about this node's pod network while no daemon runs.
    #[command(subcommand)]
    Network(NetworkVerb),
    /// Serve clients of exec, attach and port-forward; started by `serve`.
    #[command(hide = true)]
    Streaming(streaming::serve::Args),
    #[command(flatten)]
    Client(cli::Command),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the defaults, with comments.
    Default,
    /// Say what is wrong with a configuration; exit code 64 if anything is.
    Check(config::Flags),
}

#[derive(Debug, Subcommand)]
enum NetworkVerb {
    /// Remove bridge, links, firewall table and leases, and leave the networks of plugins.
    Reset(config::Flags),
}

/// Wrong usage or configuration (`EX_USAGE` of sysexits.h).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    sys::limit_heaps();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // --help and --version come this way too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match arguments.verb {
        Verb::Serve(flags) => match config::Config::load(&flags) {
            Ok(config) => serve(config),
            Err(error) => fail(EX_USAGE, &error.to_string()),
        },
        Verb::Config(ConfigVerb::Default) => {
            let written = std::io::stdout().write_all(config::DEFAULT.as_bytes());
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Verb::Config(ConfigVerb::Check(flags)) => match config::Config::load(&flags) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => fail(EX_USAGE, &error.to_string()),
        },
        Verb::Doctor(flags) => match config::Config::load(&flags) {
            Ok(config) => doctor::doctor(&config),
            Err(error) => fail(EX_USAGE, &error.to_string()),
        },
        Verb::Network(NetworkVerb::Reset(flags)) => match config::Config::load(&flags) {
            Ok(config) => reset_network(&config),
            Err(error) => fail(EX_USAGE, &error.to_string()),
        },
        Verb::Streaming(args) => streaming(args),
        Verb::Client(command) => client(command),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

fn streaming(args: streaming::serve::Args) -> ExitCode {
    match streaming::serve::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("lapstrake streaming: {error:#}")),
    }
}

fn serve(config: config::Config) -> ExitCode {
    let filter = std::env::var("LAPSTRAKE_LOG").unwrap_or_else(|_| config.log.level.clone());
    let filter = match log::parse(&filter) {
        Ok(filter) => filter,
        Err(error) => return fail(EX_USAGE, &format!("LAPSTRAKE_LOG: {error}")),
    };
    let served = runtime_threads().and_then(|threads| {
        let inside = threads.enter();
        let log = log::start(filter, config.log.format);
        drop(inside);
        raise_descriptor_limit();
        let levels = log.levels.clone();
        let served = threads.block_on(async { app::App::build(config, levels).await?.run().await });
        // Work that hangs in the kernel must not keep the daemon from ending.
        threads.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("lapstrake serve: {error:#}")),
    }
}

fn reset_network(config: &config::Config) -> ExitCode {
    let done =
        runtime_threads().and_then(|threads| threads.block_on(network::reset::reset(config)));
    match done {
        Ok(lines) => {
            let written = writeln!(std::io::stdout(), "{}", lines.join("\n"));
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => fail(1, &format!("lapstrake network reset: {error:#}")),
    }
}

/// Each pod takes some descriptors, and the soft limit of a login is for programs that use
/// `select`. Containers get limits of their own.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

fn client(command: cli::Command) -> ExitCode {
    let done = runtime_threads().map(|threads| {
        let done = threads.block_on(cli::execute(command));
        // A verb may end while a read of standard input is still waiting for a person.
        threads.shutdown_background();
        done
    });
    match done {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let _ = writeln!(std::io::stderr(), "lapstrake: {error}");
            error.exit_code()
        }
        Err(error) => fail(1, &format!("lapstrake: {error:#}")),
    }
}

fn runtime_threads() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
