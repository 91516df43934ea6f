//! `lapstrake run`: a Pod manifest without a kubelet, from its images to the last of its logs.

mod container;
mod expand;
mod fields;
mod follow;
mod manifest;
mod plan;
mod scratch;
mod sequence;
mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use tokio::io::AsyncReadExt;

use self::{
    manifest::{Medium, Pod, RestartPolicy, VolumeSource},
    plan::Facts,
    scratch::Scratch,
    sequence::{Outcome, Run, Stop},
};
use super::{client, console, input, signals::Signals, teardown::Leftovers};

pub(crate) use plan::{LABEL_POD_NAME, LABEL_POD_NAMESPACE};
pub(crate) const SCRATCH_PARENT: &str = "/tmp";

/// What an API server accepts at most.
const MANIFEST_BYTES_MAX: u64 = 3 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The manifest of one v1 Pod; - reads standard input
    #[arg(value_name = "POD.yaml")]
    manifest: PathBuf,

    /// Run the pod under this name
    #[arg(long)]
    name: Option<String>,

    /// Leave the pod running and print its ids
    #[arg(long, short)]
    detach: bool,

    /// Keep the containers' logs in this directory
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,

    /// Where to make a directory for emptyDir volumes and logs
    #[arg(long, value_name = "DIR", default_value = SCRATCH_PARENT)]
    scratch: PathBuf,

    /// Runtime handler, as a RuntimeClass would name it
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    handler: String,

    #[command(flatten)]
    daemon: client::Daemon,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {}: {source}", input::name(path))]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", input::name(path))]
    Manifest { path: PathBuf, source: manifest::Error },
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Scratch(#[from] scratch::Error),
    #[error("listen for signals: {0}")]
    Signals(io::Error),
    #[error("make a uid for the pod: {0}")]
    Uid(getrandom::Error),
    #[error(
        "a pod with the uid {uid} is there already: {}; remove it or leave metadata.uid out",
        console::short_id(id)
    )]
    Exists { uid: String, id: String },
    #[error(
        "container {container}: image {image} is not there and imagePullPolicy is Never; \
         `lapstrake images import` or `lapstrake images pull` brings it"
    )]
    ImageAbsent { container: String, image: String },
    #[error(
        "container {container}: {source}; `lapstrake images import` brings an image without a \
         registry"
    )]
    Pull { container: String, source: client::Error },
    #[error("image {0} was pulled, but the daemon does not find it under this name")]
    ImageLost(String),
    #[error("write to standard output: {0}")]
    Output(io::Error),
    #[error("print the log of a container: {0}")]
    Log(io::Error),
    #[error("{0}")]
    Leftovers(Leftovers),
    #[error("{cause}\n{leftovers}")]
    Unclean { cause: Box<Error>, leftovers: Leftovers },
}

impl Error {
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Manifest { .. } => true,
            Self::Client(error) => error.is_usage(),
            Self::Unclean { cause, .. } => cause.is_usage(),
            _ => false,
        }
    }
}

/// Runs the pod to its end and answers with its exit code: that of the first container that failed,
/// or 128 and the number of the signal that ended the run.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, Error> {
    let pod = read(args).await?;
    for notice in notices(&pod) {
        console::note(notice);
    }
    let client = client::Client::connect(&args.daemon).await?;
    let signals = Signals::listen().map_err(Error::Signals)?;
    let uid = match &pod.uid {
        Some(uid) => uid.clone(),
        None => new_uid()?,
    };
    if let Some(sandbox) = sequence::sandboxes_of(&client, &uid).await?.pop() {
        return Err(Error::Exists { uid, id: sandbox });
    }
    let log_dir = match &args.log_dir {
        Some(path) => Some(absolute(path)?),
        None => None,
    };
    let scratch = Scratch::make(&pod, &uid, &absolute(&args.scratch)?, log_dir.as_deref())?;
    let facts = Facts {
        uid,
        log_directory: scratch.log_directory.clone(),
        volumes: scratch.volumes.clone(),
        // A node without one has no resolver to inherit.
        resolv_conf: fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let mut run = Run::new(client, signals, pod, facts);
    let end = match run.proceed(args).await {
        Ok(Outcome::Detached) => return Ok(ExitCode::SUCCESS),
        Ok(Outcome::Ended(code)) => Ok(code),
        Err(Stop::Interrupted(interrupted)) => Ok(interrupted.exit_code()),
        Err(Stop::Failed(error)) => Err(error),
    };
    match (end, run.take_down().await) {
        (Ok(code), Ok(())) => Ok(scratch.remove().map(|()| code)?),
        (Err(error), Ok(())) => {
            // The reason of the failure is the error to tell.
            let _ = scratch.remove();
            Err(error)
        }
        // A container that may still run keeps its volumes.
        (Ok(_), Err(leftovers)) => Err(Error::Leftovers(leftovers)),
        (Err(cause), Err(leftovers)) => Err(Error::Unclean { cause: Box::new(cause), leftovers }),
    }
}

/// Removes what a detached run of the pod with this uid kept on the host.
pub(crate) fn remove_scratch(parent: &Path, uid: &str) -> Result<(), Error> {
    // The uid of a pod that others made may be anything, and it is part of a path here.
    if uid.is_empty() || uid.contains('/') {
        return Ok(());
    }
    Ok(scratch::remove_of_pod(&absolute(parent)?, uid)?)
}

async fn read(args: &Args) -> Result<Pod, Error> {
    let path = &args.manifest;
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut text = String::new();
    let file = input::open(path).await.map_err(failed)?;
    file.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text).await.map_err(failed)?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(failed(io::Error::other("larger than the 3 MiB a manifest may have")));
    }
    manifest::parse(&text, args.name.as_deref())
        .map_err(|source| Error::Manifest { path: path.clone(), source })
}

/// What the manifest says and this run does otherwise.
fn notices(pod: &Pod) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(policy @ (RestartPolicy::Always | RestartPolicy::OnFailure)) = pod.restart_policy {
        notices.push(format!("restartPolicy is {policy:?}, but a run starts each container once"));
    }
    for volume in &pod.volumes {
        if let VolumeSource::EmptyDir { medium, size_limit_bytes: Some(_) } = volume.source {
            let whose = match medium {
                Medium::Disk => "nothing",
                Medium::Memory => "nothing but the containers' memory limits",
            };
            notices.push(format!("volume {}: {whose} enforces the sizeLimit here", volume.name));
        }
    }
    notices
}

/// A random (version 4) UUID.
fn new_uid() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(Error::Uid)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = new_uid().unwrap();
        let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, new_uid().unwrap());
    }

    #[test]
    fn what_a_run_does_otherwise_is_said() {
        let pod = |spec: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n\
                 spec: {{containers: [{{name: c, image: i}}], {spec}}}\n"
            );
            notices(&manifest::parse(&text, None).unwrap())
        };
        assert_eq!(pod("restartPolicy: Never"), [""; 0]);
        assert_eq!(pod("restartPolicy: Always").len(), 1);
        assert_eq!(pod("volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]").len(), 1);
    }
}
