//! `lapstrake rm`: the end of a pod that `lapstrake run --detach` left running, or of any other.

use std::{path::PathBuf, process::ExitCode};

use clap::builder::NonEmptyStringValueParser;
use proto::cri::v1 as cri;

use super::{Cause, client, console, find, run, signals::Signals, teardown};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pods by name, namespace/name, id or the beginning of an id
    #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
    pods: Vec<String>,

    /// Seconds between the stop signal and the kill
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,

    /// Where `lapstrake run` keeps volumes and logs
    #[arg(long, value_name = "DIR", default_value = run::SCRATCH_PARENT)]
    scratch: PathBuf,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn rm(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let mut signals = Signals::listen().map_err(Cause::Signals)?;
    let pods = client.list_pod_sandboxes(cri::PodSandboxFilter::default()).await?;
    let candidates: Vec<find::Candidate> = pods.iter().map(candidate).collect();
    // Everything is found before anything is removed: a slip in the last name costs nothing.
    let found: Result<Vec<&find::Candidate>, find::Error> =
        args.pods.iter().map(|word| find::one("pod", word, &candidates)).collect();
    for candidate in found? {
        teardown::pod(&client, &mut signals, &candidate.id, args.grace).await?;
        let uid = pods
            .iter()
            .find(|pod| pod.id == candidate.id)
            .and_then(|pod| pod.metadata.as_ref())
            .map_or("", |metadata| metadata.uid.as_str());
        run::remove_scratch(&args.scratch, uid).map_err(Cause::Run)?;
        console::out(&candidate.id).map_err(Cause::Output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn candidate(pod: &cri::PodSandbox) -> find::Candidate {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let full = format!("{}/{}", metadata.namespace, metadata.name);
    find::Candidate { id: pod.id.clone(), names: vec![metadata.name, full] }
}
