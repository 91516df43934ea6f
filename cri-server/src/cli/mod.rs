//! The operator's verbs: each is a client of the running daemon and knows only what CRI and the
//! admin service say.
//!
//! Invariant: nothing here reads the daemon's directories or touches the kernel objects of a pod.

mod client;
mod console;
mod events;
mod exec;
mod explain;
mod find;
mod images;
mod input;
mod log_level;
mod ps;
mod rm;
mod run;
mod session;
mod signals;
mod teardown;
mod terminal;
mod top;
mod why;

use std::{io, process::ExitCode};

/// Exit code for a wrong command line or manifest, as in sysexits(3).
const EX_USAGE: u8 = 64;

/// The verbs, to be flattened into the command line of the binary.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run a Kubernetes Pod manifest: pull, start, follow its logs, clean up
    Run(run::Args),
    /// List, pull, import, export, pin, verify and remove images
    Images(images::Args),
    /// Say where an image would come from, and try every place
    Explain(explain::Args),
    /// Show pods and their containers
    Ps(ps::Args),
    /// Show what pods and containers use, the busiest first
    Top(top::Args),
    /// Say what a pod or container is doing or waiting for
    Why(why::Args),
    /// Run a command in a container and print what it says
    Exec(exec::Args),
    /// Stop and remove pods
    Rm(rm::Args),
    /// Follow what happens to pods and containers
    Events(events::Args),
    /// Change what the running daemon logs
    LogLevel(log_level::Args),
}

/// Why a verb failed, ready to be shown to the user.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Error(#[from] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Images(#[from] images::Error),
    #[error(transparent)]
    Login(#[from] images::LoginError),
    #[error(transparent)]
    Find(#[from] find::Error),
    #[error(transparent)]
    Teardown(#[from] teardown::Leftovers),
    #[error("{what}: {source}")]
    Session { what: String, source: session::Error },
    #[error("standard input is no terminal: leave out --tty")]
    NoTerminal,
    #[error("set the terminal up: {0}")]
    Terminal(io::Error),
    #[error("listen for signals: {0}")]
    Signals(io::Error),
    #[error("write to standard output: {0}")]
    Output(io::Error),
}

impl Error {
    /// 64 when the user has to correct what was asked, else 1.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let usage = match &self.0 {
            Cause::Client(error) => error.is_usage(),
            Cause::Run(error) => error.is_usage(),
            Cause::Images(error) => error.is_usage(),
            Cause::Login(error) => error.is_usage(),
            Cause::NoTerminal => true,
            Cause::Find(_)
            | Cause::Teardown(_)
            | Cause::Session { .. }
            | Cause::Terminal(_)
            | Cause::Signals(_)
            | Cause::Output(_) => false,
        };
        if usage { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE }
    }
}

/// Does what the verb says. The exit code is the workload's where the verb runs one.
pub(crate) async fn execute(command: Command) -> Result<ExitCode, Error> {
    let done = match command {
        Command::Run(args) => run::run(&args).await.map_err(Cause::from),
        Command::Explain(args) => explain::explain(&args).await,
        Command::Images(args) => images::images(args).await.map_err(Cause::from),
        Command::Ps(args) => ps::ps(&args).await,
        Command::Top(args) => top::top(&args).await,
        Command::Why(args) => why::why(&args).await,
        Command::Exec(args) => exec::exec(args).await,
        Command::Rm(args) => rm::rm(&args).await,
        Command::Events(args) => events::events(&args).await,
        Command::LogLevel(args) => log_level::log_level(&args).await,
    };
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use clap::Subcommand as _;
    use clap::error::ErrorKind;

    /// A variable of a script that is not set: it means nothing, so nothing may be done for it.
    #[test]
    fn an_empty_word_is_refused_by_the_arguments_name() {
        let verbs = super::Command::augment_subcommands(clap::Command::new("lapstrake"));
        for (line, argument) in [
            (&["why", ""][..], "<ID>"),
            (&["exec", "", "--", "true"], "<CONTAINER>"),
            (&["rm", "web", ""], "<POD>"),
            (&["explain", ""], "<REF>"),
            (&["images", "pull", ""], "<REF>"),
            (&["images", "export", "", "-o", "f"], "<REF>"),
            (&["images", "import", "f", "--name", ""], "<REF>"),
            (&["images", "pin", ""], "<REF>"),
            (&["images", "verify", ""], "[REF]"),
            (&["images", "rm", ""], "<REF>"),
        ] {
            let words = ["lapstrake"].iter().chain(line);
            let error = verbs.clone().try_get_matches_from(words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{line:?}: {error}");
            assert!(error.to_string().contains(argument), "{line:?}: {error}");
        }
    }
}
