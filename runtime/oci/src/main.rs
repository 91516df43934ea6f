//! `lapstrake-oci`: the runtime layer as a command line that takes runc's words, for engines and for hands.

mod bundle;
mod cli;
mod create;
mod end;
mod error;
mod exec;
mod features;
mod handed;
mod log;
mod scope;
mod sealed;
mod seccomp;
mod shown;
mod spec;
mod state;
mod terminal;
mod update;
mod view;

use std::process::ExitCode;

use clap::Parser;
use container::sys::process::unignore_signals;

use crate::cli::{Cli, Command};
use crate::error::Error;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // nowhere to say more
            return ExitCode::from(if e.use_stderr() { 64 } else { 0 });
        }
    };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::report(&cli, &error);
            // The exit codes of an exec are the program's own; callers know 255 for its runtime's.
            ExitCode::from(if matches!(cli.command, Command::Exec(_)) { 255 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> Result<u8, Error> {
    log::debug(cli, || format!("{:?} under {}", cli.command, cli.root.display()));
    if matches!(cli.command, Command::Create(_) | Command::Run(_) | Command::Exec(_)) {
        sealed::check()?;
        unignore_signals();
    }
    match &cli.command {
        Command::Spec(args) => spec::write(args).map(|()| 0),
        Command::Create(args) => create::create(cli, args).map(|()| 0),
        Command::Run(args) => create::run(cli, args),
        Command::Start { id } => create::start(cli, id).map(|()| 0),
        Command::Exec(args) => exec::exec(cli, args),
        Command::Kill(args) => end::kill(cli, args).map(|()| 0),
        Command::Delete(args) => end::delete(cli, args).map(|()| 0),
        Command::Pause { id } => end::freeze(cli, id, true).map(|()| 0),
        Command::Resume { id } => end::freeze(cli, id, false).map(|()| 0),
        Command::State { id } => view::state(cli, id).map(|()| 0),
        Command::List(args) => view::list(cli, args).map(|()| 0),
        Command::Ps(args) => view::ps(cli, args).map(|()| 0),
        Command::Events(args) => view::events(cli, args).map(|()| 0),
        Command::Update(args) => update::update(cli, args).map(|()| 0),
        Command::Features => features::print().map(|()| 0),
        Command::Checkpoint(_) => Err(Error::Unsupported("checkpoint is not implemented")),
        Command::Restore(_) => Err(Error::Unsupported("restore is not implemented")),
    }
}
