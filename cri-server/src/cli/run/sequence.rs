//! The sequence of a run: images, sandbox, init containers, containers, their end, the way down.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use proto::cri::v1 as cri;

use super::{
    Args, Error,
    container::{Container, PullPolicy},
    follow::Follower,
    manifest::Pod,
    plan::{self, Facts, Image},
    watch::{self, Running, failure},
};
use crate::cli::{
    client::{self, Client},
    console, images,
    signals::{Interrupted, Signals},
    teardown::{self, Leftovers},
};

/// How long a terminal that does not take the last lines of a log may keep a run from ending.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);

/// How a run ended that nothing stopped.
pub(super) enum Outcome {
    /// With the exit code of the pod.
    Ended(ExitCode),
    /// The pod is left running.
    Detached,
}

/// Why the sequence of a run ended before its last step.
pub(super) enum Stop {
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
pub(super) struct Run {
    title: String,
    client: Client,
    signals: Signals,
    pod: Pod,
    facts: Facts,
    sandbox_config: cri::PodSandboxConfig,
    sandbox: Sandbox,
    running: Vec<Running>,
}

enum Sandbox {
    NotAsked,
    /// There was no answer, or a bad one: the sandbox may be there or not.
    Asked,
    Made(String),
}

/// The sandbox that holds the pod.
struct Place {
    id: String,
    /// Empty in the network of the node.
    address: String,
}

impl Place {
    fn shown_address(&self) -> &str {
        if self.address.is_empty() { "of the node" } else { &self.address }
    }
}

impl Run {
    pub(super) fn new(client: Client, signals: Signals, pod: Pod, facts: Facts) -> Self {
        Self {
            title: format!("pod {}/{}", pod.namespace, pod.name),
            sandbox_config: plan::sandbox(&pod, &facts),
            sandbox: Sandbox::NotAsked,
            running: Vec::new(),
            client,
            signals,
            pod,
            facts,
        }
    }

    /// Images, sandbox, init containers one after another, then all containers. Ends when they
    /// did, or with `--detach` when they run.
    pub(super) async fn proceed(&mut self, args: &Args) -> Result<Outcome, Stop> {
        // One for each image that a container names.
        let images = self.images().await?;
        let id = self.sandbox(&args.handler).await?;
        let status = self.client.pod_sandbox_status(&self.title, &id).await?;
        let sandbox = Place { id, address: status.network.unwrap_or_default().ip };
        if !args.detach {
            let (id, address) = (&sandbox.id, sandbox.shown_address());
            console::out(format!("{}: id {id}, address {address}", self.title))
                .map_err(Error::Output)?;
        }
        for container in self.pod.init_containers.clone() {
            let log = Some(self.follow(&container));
            self.start(&container, &images[&container.image], &sandbox, log).await?;
            if let Some(code) = failure(&self.wait().await?) {
                return Ok(Outcome::Ended(code));
            }
        }
        for container in self.pod.containers.clone() {
            let log = (!args.detach).then(|| self.follow(&container));
            self.start(&container, &images[&container.image], &sandbox, log).await?;
        }
        if args.detach {
            console::out(self.ids(&sandbox)).map_err(Error::Output)?;
            console::note(format!("`lapstrake rm {}` ends it", console::short_id(&sandbox.id)));
            return Ok(Outcome::Detached);
        }
        let code = failure(&self.wait().await?);
        Ok(Outcome::Ended(code.unwrap_or(ExitCode::SUCCESS)))
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
        self.sandbox = Sandbox::Asked;
        let call = self.client.run_pod_sandbox(&self.title, config, handler);
        let id = self.signals.see_through(&self.title, call).await??;
        self.sandbox = Sandbox::Made(id.clone());
        self.signals.check()?;
        Ok(id)
    }

    async fn start(
        &mut self,
        container: &Container,
        image: &Image,
        sandbox: &Place,
        log: Option<Follower>,
    ) -> Result<(), Stop> {
        let object = format!("container {} in {}", container.name, self.title);
        let config = plan::container(&self.pod, container, &self.facts, image, &sandbox.address);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config.clone()),
        };
        let call = self.client.create_container(&object, request);
        let id = self.signals.see_through(&object, call).await??;
        self.signals.check()?;
        self.running.push(Running { name: container.name.clone(), id: id.clone(), log });
        let call = self.client.start_container(&object, &id);
        self.signals.see_through(&object, call).await??;
        self.signals.check()?;
        Ok(())
    }

    fn follow(&self, container: &Container) -> Follower {
        let path = self.facts.log_directory.join(plan::log_path(&container.name));
        Follower::start(path, container.name.clone())
    }

    async fn wait(&mut self) -> Result<Vec<watch::Ended>, Stop> {
        watch::until_all_ended(&self.client, &mut self.signals, &mut self.running).await
    }

    /// One object a line: its kind, its id, and what else tells it.
    fn ids(&self, sandbox: &Place) -> String {
        let mut lines = vec![format!("pod {} {}", sandbox.id, sandbox.shown_address())];
        let containers = self.running.iter();
        lines.extend(containers.map(|each| format!("container {} {}", each.id, each.name)));
        lines.join("\n")
    }

    /// Stops and removes the pod, then prints what its containers said last.
    pub(super) async fn take_down(&mut self) -> Result<(), Leftovers> {
        let sandboxes = match &self.sandbox {
            Sandbox::NotAsked => Vec::new(),
            // The label tells what is ours.
            Sandbox::Asked => sandboxes_of(&self.client, &self.facts.uid)
                .await
                .map_err(|error| Leftovers { pod: self.pod.name.clone(), errors: vec![error] })?,
            Sandbox::Made(id) => vec![id.clone()],
        };
        if !self.running.is_empty() {
            console::note(format!("stopping {}", self.title));
        }
        let mut cleaned = Ok(());
        for id in sandboxes {
            let grace_s = self.pod.grace_s;
            let gone = teardown::pod(&self.client, &mut self.signals, &id, grace_s).await;
            cleaned = cleaned.and(gone);
        }
        for container in self.running.drain(..) {
            let Some(log) = container.log else { continue };
            let printed = tokio::time::timeout(LAST_WORDS_MAX, log.finish()).await;
            if let Ok(Err(error)) = printed {
                console::note(format!("log of container {}: {error}", container.name));
            }
        }
        cleaned
    }
}

/// The sandboxes with that pod uid, by their labels.
pub(super) async fn sandboxes_of(client: &Client, uid: &str) -> Result<Vec<String>, client::Error> {
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
    images::pull_with_notes(client, name, None)
        .await
        .map_err(|source| Error::Pull { container: container.to_owned(), source })?;
    client.image_status(name).await?.ok_or_else(|| Error::ImageLost(name.to_owned()))
}
