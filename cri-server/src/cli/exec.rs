//! `lapstrake exec`: a command in a running container, to be read when it has ended, or with the user's input and
//! terminal.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use proto::cri::v1 as cri;

use super::signals::Signals;
use super::terminal::Raw;
use super::{Cause, client, console, find, session};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container by name, pod/name, namespace/pod/name, id or the beginning of an id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    container: String,

    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,

    /// Hand standard input on to the command
    #[arg(short = 'i', long)]
    stdin: bool,

    /// Give the command a terminal, this one
    #[arg(short, long)]
    tty: bool,

    /// Kill the command after this many seconds; 0 waits for ever
    #[arg(
        long, value_name = "SECONDS", default_value_t = 0, conflicts_with_all = ["stdin", "tty"]
    )]
    timeout: u32,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn exec(args: Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let running = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: cri::ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    };
    let containers = client.list_containers(running).await?;
    let candidates: Vec<find::Candidate> = containers.iter().map(candidate).collect();
    let found = find::one("running container", &args.container, &candidates)?;
    let object = format!("container {}", args.container);
    if args.stdin || args.tty {
        return attended(&client, &object, found.id.clone(), args).await;
    }
    let request = cri::ExecSyncRequest {
        container_id: found.id.clone(),
        cmd: args.command,
        timeout: i64::from(args.timeout),
    };
    let answer = client.exec_sync(&object, request).await?;
    console::out_bytes(&answer.stdout).map_err(Cause::Output)?;
    console::err_bytes(&answer.stderr).map_err(Cause::Output)?;
    Ok(exit_code(answer.exit_code))
}

/// The kernel's exit codes are bytes; anything else is a failure all the same.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// With the user before it. A client that goes takes its command along.
async fn attended(
    client: &client::Client,
    object: &str,
    container_id: String,
    args: Args,
) -> Result<ExitCode, Cause> {
    let Args { stdin, tty, .. } = args;
    let raw = if tty { Raw::enter().map_err(Cause::Terminal)? } else { None };
    if tty && raw.is_none() {
        return Err(Cause::NoTerminal);
    }
    let mut signals = Signals::listen().map_err(Cause::Signals)?;
    let cmd = args.command;
    let request = cri::ExecRequest { container_id, cmd, tty, stdin, stdout: true, stderr: !tty };
    let session = async {
        let url = client.exec(object, request).await?;
        let ended = session::run(&url, session::Ends { stdin, tty }).await;
        let what = || format!("exec in {object}");
        Ok(exit_code(ended.map_err(|source| Cause::Session { what: what(), source })?))
    };
    let ended = signals.or_stop(session).await;
    // Before anything is said.
    drop(raw);
    ended.unwrap_or_else(|interrupted| Ok(interrupted.exit_code()))
}

fn candidate(container: &cri::Container) -> find::Candidate {
    let label = |key| container.labels.get(key).map_or("", String::as_str);
    let (namespace, pod) =
        (label(super::run::LABEL_POD_NAMESPACE), label(super::run::LABEL_POD_NAME));
    let name = container.metadata.clone().unwrap_or_default().name;
    let names = vec![name.clone(), format!("{pod}/{name}"), format!("{namespace}/{pod}/{name}")];
    find::Candidate { id: container.id.clone(), names }
}
