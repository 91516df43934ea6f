//! `lapstrake run`: a Pod manifest without a kubelet, from its images to the last of its logs.

mod container;
mod expand;
mod fields;
mod follow;
mod manifest;
mod plan;
mod quantity;
mod scratch;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use proto::cri::v1 as cri;
use tokio::io::AsyncReadExt;
use tonic::Code;

use self::{
    container::{Container, PullPolicy},
    follow::Follower,
    manifest::{Medium, Pod, RestartPolicy, VolumeSource},
    plan::{Facts, Image},
    scratch::Scratch,
};
use super::{
    client::{self, Client},
    console, images, input,
    signals::{Interrupted, Signals},
    teardown::{self, Leftovers},
};

pub(crate) use plan::{LABEL_POD_NAME, LABEL_POD_NAMESPACE};
pub(crate) const SCRATCH_PARENT: &str = "/tmp";

/// What an API server accepts at most.
const MANIFEST_BYTES_MAX: u64 = 3 << 20;

/// Between two looks at the containers: the answer comes from the daemon's memory.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the daemon may be away, for a restart or an upgrade, before a run gives up on it. The
/// pod goes on meanwhile.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// How long a terminal that does not take the last lines of a log may keep a run from ending.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);

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
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} {source}", path.display())]
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
    let client = Client::connect(&args.daemon).await?;
    let signals = Signals::listen().map_err(Error::Signals)?;
    let uid = match &pod.uid {
        Some(uid) => uid.clone(),
        None => new_uid()?,
    };
    if let Some(sandbox) = sandboxes_of(&client, &uid).await?.pop() {
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
    let mut run = Run {
        title: format!("pod {}/{}", pod.namespace, pod.name),
        sandbox_config: plan::sandbox(&pod, &facts),
        running: Vec::new(),
        sandbox: None,
        client,
        signals,
        pod,
        facts,
    };
    let end = run.proceed(args).await;
    if args.detach && end.is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    let cleaned = run.take_down().await;
    match (end, cleaned) {
        (Ok(code), Ok(())) => scratch.remove().map(|()| code).map_err(Error::from),
        (Err(Stop::Interrupted(interrupted)), Ok(())) => {
            scratch.remove().map(|()| interrupted.exit_code()).map_err(Error::from)
        }
        (Err(Stop::Failed(error)), Ok(())) => {
            // The reason of the failure is the error to tell.
            let _ = scratch.remove();
            Err(error)
        }
        // A container that may still run keeps its volumes.
        (Err(Stop::Failed(cause)), Err(leftovers)) => {
            Err(Error::Unclean { cause: Box::new(cause), leftovers })
        }
        (_, Err(leftovers)) => Err(Error::Leftovers(leftovers)),
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

/// Why the sequence of a run ended before its last step.
enum Stop {
    Failed(Error),
    Interrupted(Interrupted),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Interrupted> for Stop {
    fn from(interrupted: Interrupted) -> Self {
        Self::Interrupted(interrupted)
    }
}

/// A run on its way.
struct Run {
    title: String,
    client: Client,
    signals: Signals,
    pod: Pod,
    facts: Facts,
    sandbox_config: cri::PodSandboxConfig,
    sandbox: Option<String>,
    running: Vec<Running>,
}

struct Running {
    name: String,
    id: String,
    log: Follower,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ended {
    name: String,
    exit_code: i32,
    finished_at_ns: i64,
    reason: String,
    message: String,
}

impl Run {
    /// Images, sandbox, init containers one after another, then all containers. Ends when they
    /// did, or with `--detach` when they run.
    async fn proceed(&mut self, args: &Args) -> Result<ExitCode, Stop> {
        let images = self.images().await?;
        let sandbox = self.sandbox(&args.handler).await?;
        let status = self.client.pod_sandbox_status(&self.title, &sandbox).await?;
        let address = status.network.unwrap_or_default().ip;
        if !args.detach {
            let address = if address.is_empty() { "of the node" } else { address.as_str() };
            console::out(format!("{}: id {sandbox}, address {address}", self.title))
                .map_err(Error::Output)?;
        }
        for container in self.pod.init_containers.clone() {
            self.start(&container, &images[&container.image], &address).await?;
            let ended = self.wait().await?;
            if let Some(code) = failure(&ended) {
                return Ok(code);
            }
        }
        for container in self.pod.containers.clone() {
            self.start(&container, &images[&container.image], &address).await?;
        }
        if args.detach {
            console::out(self.ids(&sandbox, &address)).map_err(Error::Output)?;
            console::note(format!("`lapstrake rm {}` ends it", console::short_id(&sandbox)));
            return Ok(ExitCode::SUCCESS);
        }
        let ended = self.wait().await?;
        Ok(failure(&ended).unwrap_or(ExitCode::SUCCESS))
    }

    /// Brings what is not there, each image once, by the most eager policy of its containers.
    async fn images(&mut self) -> Result<BTreeMap<String, Image>, Stop> {
        let mut wanted: BTreeMap<&str, (&Container, PullPolicy)> = BTreeMap::new();
        for container in self.pod.init_containers.iter().chain(&self.pod.containers) {
            let entry = wanted.entry(&container.image).or_insert((container, container.pull));
            entry.1 = entry.1.max(container.pull);
        }
        let mut images = BTreeMap::new();
        for (name, (container, policy)) in wanted {
            let work = bring(&self.client, name, &container.name, policy);
            let image = self.signals.or_stop(work).await??;
            let uid = image.uid.map(|uid| uid.value);
            images.insert(name.to_owned(), Image { id: image.id, uid, username: image.username });
        }
        Ok(images)
    }

    async fn sandbox(&mut self, handler: &str) -> Result<String, Stop> {
        let config = self.sandbox_config.clone();
        let call = self.client.run_pod_sandbox(&self.title, config, handler);
        let id = self.signals.see_through(&self.title, call).await??;
        self.sandbox = Some(id.clone());
        self.signals.check()?;
        Ok(id)
    }

    async fn start(
        &mut self,
        container: &Container,
        image: &Image,
        address: &str,
    ) -> Result<(), Stop> {
        let object = format!("container {} in {}", container.name, self.title);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox.clone().unwrap_or_default(),
            config: Some(plan::container(&self.pod, container, &self.facts, image, address)),
            sandbox_config: Some(self.sandbox_config.clone()),
        };
        let call = self.client.create_container(&object, request);
        let id = self.signals.see_through(&object, call).await??;
        self.signals.check()?;
        let path = self.facts.log_directory.join(plan::log_path(&container.name));
        let log = Follower::start(path, container.name.clone());
        self.running.push(Running { name: container.name.clone(), id: id.clone(), log });
        let call = self.client.start_container(&object, &id);
        self.signals.see_through(&object, call).await??;
        self.signals.check()?;
        Ok(())
    }

    /// Waits until everything that was started has ended and its log is printed.
    async fn wait(&mut self) -> Result<Vec<Ended>, Stop> {
        let mut ended = Vec::new();
        let mut absent_since = None;
        while !self.running.is_empty() {
            self.signals.or_stop(tokio::time::sleep(POLL_INTERVAL)).await?;
            let found = match self.signals.or_stop(look(&self.client, &self.running)).await? {
                Ok(found) => found,
                Err(error) => {
                    if absent_since.is_none() {
                        console::note("the daemon is away; the pod goes on, waiting for it");
                    }
                    let since = *absent_since.get_or_insert_with(Instant::now);
                    if !is_absence(&error) || since.elapsed() > ABSENCE_MAX {
                        return Err(error.into());
                    }
                    continue;
                }
            };
            if absent_since.take().is_some() {
                console::note("the daemon is back");
            }
            for (index, end) in found.into_iter().rev() {
                let log = self.running.remove(index).log;
                self.signals.or_stop(log.finish()).await?.map_err(Error::Log)?;
                console::note(describe(&end));
                ended.push(end);
            }
        }
        ended.sort_by_key(|end| end.finished_at_ns);
        Ok(ended)
    }

    fn ids(&self, sandbox: &str, address: &str) -> String {
        let mut text = format!("pod {sandbox}");
        if !address.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(text, " {address}");
        }
        for container in &self.running {
            let _ = write!(text, "\ncontainer {} {}", container.id, container.name);
        }
        text
    }

    /// Stops and removes the pod, then prints what its containers said last.
    async fn take_down(&mut self) -> Result<(), Leftovers> {
        // Without an answer to RunPodSandbox, the label still tells what is ours.
        let sandboxes = match &self.sandbox {
            Some(id) => vec![id.clone()],
            None => sandboxes_of(&self.client, &self.facts.uid)
                .await
                .map_err(|error| Leftovers(vec![error]))?,
        };
        if !self.running.is_empty() {
            console::note(format!("stopping {}", self.title));
        }
        let mut errors = Vec::new();
        for id in sandboxes {
            let grace_s = self.pod.grace_s;
            let gone = teardown::pod(&self.client, &mut self.signals, &id, grace_s).await;
            errors.extend(gone.err().map(|leftovers| leftovers.0).unwrap_or_default());
        }
        for container in self.running.drain(..) {
            let printed = tokio::time::timeout(LAST_WORDS_MAX, container.log.finish()).await;
            if let Ok(Err(error)) = printed {
                console::note(format!("log of container {}: {error}", container.name));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Leftovers(errors)) }
    }
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

async fn sandboxes_of(client: &Client, uid: &str) -> Result<Vec<String>, client::Error> {
    let label_selector = [(plan::LABEL_POD_UID.to_owned(), uid.to_owned())].into();
    let filter = cri::PodSandboxFilter { label_selector, ..Default::default() };
    let sandboxes = client.list_pod_sandboxes(filter).await?;
    Ok(sandboxes.into_iter().map(|sandbox| sandbox.id).collect())
}

async fn bring(
    client: &Client,
    name: &str,
    container: &str,
    policy: PullPolicy,
) -> Result<cri::Image, Error> {
    let present = match policy {
        PullPolicy::Always => None,
        PullPolicy::IfAbsent | PullPolicy::Never => client.image_status(name).await?,
    };
    if let Some(image) = present {
        return Ok(image);
    }
    if policy == PullPolicy::Never {
        let (container, image) = (container.to_owned(), name.to_owned());
        return Err(Error::ImageAbsent { container, image });
    }
    images::pull_with_notes(client, name, None).await?;
    client.image_status(name).await?.ok_or_else(|| Error::ImageLost(name.to_owned()))
}

/// Which of the containers ended, in the order they have in `running`.
async fn look(client: &Client, running: &[Running]) -> Result<Vec<(usize, Ended)>, client::Error> {
    let mut found = Vec::new();
    for (index, container) in running.iter().enumerate() {
        let object = format!("container {}", container.name);
        match client.container_status(&object, &container.id).await {
            Ok(status) if status.state() == cri::ContainerState::ContainerExited => {
                found.push((index, ended(&container.name, status)));
            }
            Ok(_) => {}
            Err(error) if error.code() == Some(Code::NotFound) => {
                let name = container.name.clone();
                let reason = "Removed".to_owned();
                let gone = Ended { name, exit_code: EXIT_UNKNOWN, reason, ..Default::default() };
                found.push((index, gone));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// What stands for an exit code that nobody can tell any more.
const EXIT_UNKNOWN: i32 = 255;

fn ended(name: &str, status: cri::ContainerStatus) -> Ended {
    Ended {
        name: name.to_owned(),
        exit_code: status.exit_code,
        finished_at_ns: status.finished_at,
        reason: status.reason,
        message: status.message,
    }
}

/// Whether the call failed because nobody was there to answer it.
fn is_absence(error: &client::Error) -> bool {
    matches!(error.code(), Some(Code::Unavailable | Code::Unknown | Code::Cancelled))
}

fn describe(end: &Ended) -> impl fmt::Display {
    let mut text = format!("container {} ended with exit code {}", end.name, end.exit_code);
    if !matches!(end.reason.as_str(), "" | "Completed" | "Error") {
        text.push_str(&format!(" ({})", end.reason));
    }
    if !end.message.is_empty() {
        text.push_str(&format!(": {}", end.message));
    }
    text
}

/// The exit code of the first that failed.
fn failure(ended: &[Ended]) -> Option<ExitCode> {
    let failed = ended.iter().find(|end| end.exit_code != 0)?;
    Some(ExitCode::from(u8::try_from(failed.exit_code).unwrap_or(u8::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32) -> Ended {
        Ended { name: "c".to_owned(), exit_code, ..Default::default() }
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_failure() {
        for (codes, expect) in [
            (&[][..], None),
            (&[0, 0], None),
            (&[0, 3, 4], Some(3)),
            (&[137], Some(137)),
            (&[-1], Some(255)),
            (&[256], Some(255)),
        ] {
            let ended: Vec<Ended> = codes.iter().copied().map(end).collect();
            assert_eq!(failure(&ended), expect.map(ExitCode::from), "{codes:?}");
        }
    }

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = new_uid().unwrap();
        let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, new_uid().unwrap());
    }

    #[test]
    fn a_container_that_was_killed_for_memory_says_so() {
        let killed = Ended { reason: "OOMKilled".to_owned(), ..end(137) };
        assert_eq!(
            describe(&killed).to_string(),
            "container c ended with exit code 137 (OOMKilled)"
        );
        let plain = Ended { reason: "Error".to_owned(), ..end(1) };
        assert_eq!(describe(&plain).to_string(), "container c ended with exit code 1");
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
