//! `lapstrake exec`: a command in a running container, without a terminal.

use std::process::ExitCode;

use proto::cri::v1 as cri;

use super::{Cause, client, console, find};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container by name, pod/name, namespace/pod/name, id or the beginning of an id
    container: String,

    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,

    /// Kill the command after this many seconds; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
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
    let request = cri::ExecSyncRequest {
        container_id: found.id.clone(),
        cmd: args.command,
        timeout: i64::from(args.timeout),
    };
    let object = format!("container {}", args.container);
    let answer = client.exec_sync(&object, request).await?;
    console::out_bytes(&answer.stdout).map_err(Cause::Output)?;
    console::err_bytes(&answer.stderr).map_err(Cause::Output)?;
    // The kernel's exit codes are bytes; anything else is a failure all the same.
    Ok(ExitCode::from(u8::try_from(answer.exit_code).unwrap_or(u8::MAX)))
}

fn candidate(container: &cri::Container) -> find::Candidate {
    let label = |key| container.labels.get(key).map_or("", String::as_str);
    let (namespace, pod) =
        (label(super::run::LABEL_POD_NAMESPACE), label(super::run::LABEL_POD_NAME));
    let name = container.metadata.clone().unwrap_or_default().name;
    let names = vec![name.clone(), format!("{pod}/{name}"), format!("{namespace}/{pod}/{name}")];
    find::Candidate { id: container.id.clone(), names }
}
