//! The pod network made by the cluster's own plugins: record, namespace, plugins; and back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use ipnetwork::IpNetwork;
use tokio::sync::Semaphore;

use super::attachment::{Attachment, Book, Debt, Link};
use super::configuration::Configuration;
use super::{Attached, pin, told};
use crate::clock;
use crate::config;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox::Sandbox;

/// Chains of plugins that run at once. Each is some processes, and what they do in the kernel takes
/// turns there anyway. Those on the way up and those on the way down do not wait for each other.
const CHAINS: u32 = 8;

/// Debts that are paid at once: they must not take the machine from those who live.
const DEBTS_AT_ONCE: usize = 4;

#[derive(Debug)]
pub(crate) struct Plugins {
    runner: cni::Plugins,
    cache: cni::Cache,
    configuration: Configuration,
    book: Book,
    netns_dir: PathBuf,
    conf_dir: PathBuf,
    /// Configuration directories of handlers that have one of their own.
    handler_dirs: BTreeMap<String, PathBuf>,
    /// How long a pod waits for a configuration.
    wait: Duration,
    up: Semaphore,
    down: Semaphore,
    /// Why the plugins could not attach a pod, as of the last look.
    trouble: ArcSwapOption<String>,
    /// The networks whose plugins all speak their version.
    fluent: ArcSwapOption<Vec<cni::Network>>,
    /// Whether garbage was collected and the living were checked since the start.
    tidied: AtomicBool,
}

impl Plugins {
    pub(crate) fn open(root: &Path, config: &config::Network) -> Result<Self, Error> {
        let conf_dir = config.cni.conf_dir.clone();
        let handler_dirs = config.cni.handler_dirs.clone();
        let dirs = handler_dirs.values().cloned().chain([conf_dir.clone()]);
        let plugins = Self {
            runner: cni::Plugins { dirs: config.cni.bin_dirs.clone(), limit: config.cni.limit },
            cache: cni::Cache::at(&config.cni.cache_dir),
            configuration: Configuration::open(dirs, config.cni.networks_max),
            book: Book::open(&root.join("cni"))?,
            netns_dir: config.cni.netns_dir.clone(),
            conf_dir,
            handler_dirs,
            wait: config.cni.wait,
            up: Semaphore::new(CHAINS as usize),
            down: Semaphore::new(CHAINS as usize),
            trouble: ArcSwapOption::empty(),
            fluent: ArcSwapOption::empty(),
            tidied: AtomicBool::new(false),
        };
        Ok(plugins)
    }

    /// Whether there is something to make networks with.
    pub(crate) fn is_configured(&self) -> bool {
        !self.configuration.of(&self.conf_dir).networks.is_empty()
    }

    /// Pods that have a network of plugins and live.
    pub(crate) fn pods(&self) -> Vec<Id> {
        let live = self.book.all().into_iter().filter(|record| record.debt.is_none());
        live.map(|record| record.sandbox_id).collect()
    }

    pub(crate) fn debts(&self) -> Vec<Attachment> {
        self.book.debts()
    }

    /// Why pods cannot have a network, if so, as of the last look.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let found = self.configuration.of(&self.conf_dir);
        match (found.networks.is_empty(), found.trouble, self.trouble.load_full()) {
            (true, trouble, _) => Err(trouble.unwrap_or_default()),
            (false, _, Some(trouble)) => Err(trouble.as_ref().clone()),
            (false, _, None) => Ok(()),
        }
    }

    /// Makes a pod's network. After an error some of it may be there, and on record: [`detach`]
    /// takes it away.
    ///
    /// [`detach`]: Plugins::detach
    pub(crate) async fn attach(
        &self,
        sandbox: &Sandbox,
        netns: OwnedFd,
        pod_cidr: &[IpNetwork],
    ) -> Result<Attached, Error> {
        let pod = sandbox.spec.metadata.pod();
        let dir = self.handler_dirs.get(&sandbox.spec.runtime_handler).unwrap_or(&self.conf_dir);
        let networks = self
            .configuration
            .wait(dir, self.wait)
            .await
            .map_err(|reason| Error::NoNetwork { pod: pod.clone(), reason })?;
        let mut record = self.plan(sandbox, networks, pod_cidr);
        // Before anything exists.
        self.book.put(record.clone())?;
        pin::set(&record.netns, netns.as_fd())?;
        let _turn = self.up.acquire().await;
        let failed = |source| Error::Cni { pod: pod.clone(), source: Box::new(source) };
        for at in 0..record.links.len() {
            let Link { network, attachment, .. } = &record.links[at];
            if !sandbox.spec.port_mappings.is_empty() && !network.takes("portMappings") {
                let network = network.name();
                tracing::warn!(%pod, network, "no plugin of the network takes host ports");
            }
            let answer = self.runner.add(network, attachment).await.map_err(failed)?;
            if let Err(error) = self.cache.put(network, attachment, &answer) {
                tracing::warn!(%pod, %error, "could not write the result where others look for it");
            }
            record.links[at].answer = Some(answer);
            self.book.put(record.clone())?;
        }
        let first = record.links.first().ok_or(Error::Panicked { operation: "network attach" })?;
        let addresses = first.answer.as_ref().map(cni::Answer::addresses).unwrap_or_default();
        if addresses.is_empty() {
            let network = first.network.name().to_owned();
            return Err(failed(cni::Error::NoAddress { network }));
        }
        Ok(Attached { netns, addresses })
    }

    fn plan(
        &self,
        sandbox: &Sandbox,
        networks: Vec<cni::Network>,
        pod_cidr: &[IpNetwork],
    ) -> Attachment {
        let netns = self.netns_dir.join(format!("lapstrake-{}", sandbox.id));
        let link = |(number, network)| Link {
            network,
            attachment: cni::Attachment {
                container_id: sandbox.id.to_string(),
                netns: Some(netns.clone()),
                ifname: format!("eth{number}"),
                args: told::arguments(sandbox),
                capabilities: told::capabilities(sandbox, pod_cidr),
            },
            answer: None,
        };
        Attachment {
            sandbox_id: sandbox.id.clone(),
            pod: sandbox.spec.metadata.pod(),
            links: networks.into_iter().enumerate().map(link).collect(),
            netns,
            debt: None,
        }
    }

    /// Gives back what a pod has. What the plugins do not take back now becomes a debt: it never
    /// keeps the pod.
    pub(crate) async fn detach(&self, id: &Id) -> Result<(), Error> {
        let Some(record) = self.book.get(id).filter(|record| record.debt.is_none()) else {
            return Ok(());
        };
        let _turn = self.down.acquire().await;
        let Err(error) = self.give_back(&record).await else { return Ok(()) };
        let now = clock::now_ns();
        tracing::warn!(pod = %record.pod, sandbox = %id, %error, "the pod goes, and its network is owed");
        let debt = Some(Debt::new(now, String::new()).grown(now, error.to_string()));
        self.book.put(Attachment { debt, ..record })
    }

    async fn give_back(&self, record: &Attachment) -> Result<(), Error> {
        let failed = |source| Error::Cni { pod: record.pod.clone(), source: Box::new(source) };
        let netns = Some(record.netns.clone()).filter(|path| pin::is_set(path));
        for Link { network, attachment, answer } in record.links.iter().rev() {
            // The machine may have been started anew since.
            let attachment = cni::Attachment { netns: netns.clone(), ..attachment.clone() };
            self.runner.del(network, &attachment, answer.as_ref()).await.map_err(failed)?;
            if let Err(error) = self.cache.remove(network, &attachment) {
                tracing::warn!(pod = %record.pod, %error, "could not remove the cached result");
            }
        }
        pin::remove(&record.netns)?;
        self.book.remove(&record.sandbox_id)
    }

    /// Gives everything back, whoever has it; adds what was done to `done` and returns what failed.
    pub(crate) async fn give_all_back(&self, done: &mut Vec<String>) -> Vec<String> {
        let mut failed = Vec::new();
        for record in self.book.all() {
            match self.give_back(&record).await {
                Ok(()) => done.push(format!("pod {} left its networks", record.pod)),
                Err(error) => failed.push(error.to_string()),
            }
        }
        failed
    }

    /// What belongs to no pod on record becomes a debt, to be paid in the background.
    pub(crate) fn collect(&self, live: &[String]) -> Result<usize, Error> {
        let mut count = 0;
        for record in self.book.all() {
            let is_live = live.iter().any(|id| id == record.sandbox_id.as_str());
            if record.debt.is_none() && !is_live {
                let debt = Some(Debt::new(clock::now_ns(), "its pod was lost".into()));
                self.book.put(Attachment { debt, ..record })?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Tries the debts whose time has come.
    pub(crate) async fn pay_debts(&self) {
        let now = clock::now_ns();
        let due = self.book.debts().into_iter().filter_map(|record| {
            let debt = record.debt.clone().filter(|debt| debt.is_due(now))?;
            Some((record, debt))
        });
        futures::stream::iter(due)
            .for_each_concurrent(DEBTS_AT_ONCE, |(record, debt)| async move {
                let (pod, sandbox) = (record.pod.clone(), record.sandbox_id.clone());
                match self.give_back(&record).await {
                    Ok(()) => tracing::info!(%pod, %sandbox, "the owed network is given back"),
                    Err(error) => {
                        let grown = debt.grown(clock::now_ns(), error.to_string());
                        tracing::warn!(%pod, %sandbox, attempts = grown.attempts, %error, "the network is still owed");
                        if let Err(error) = self.book.put(Attachment { debt: Some(grown), ..record }) {
                            tracing::error!(%pod, %error, "could not record a debt");
                        }
                    }
                }
            })
            .await;
    }

    /// Returns when the directories may have changed; never when they cannot be watched.
    pub(crate) async fn changes(&self, watch: &mut Option<cni::Watch>) {
        let Some(open) = watch else { return std::future::pending().await };
        if let Err(error) = open.changed().await {
            tracing::warn!(%error, "network configurations are not watched any more, only looked at now and then");
            *watch = None;
        }
    }

    /// Returns when another configuration was read, or after this time.
    pub(crate) async fn changed(&self, limit: Duration) {
        self.configuration.changed(limit).await;
    }

    pub(crate) fn watch(&self) -> Option<cni::Watch> {
        cni::Watch::open(self.configuration.dirs())
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot watch the network configurations, only look at them now and then");
            })
            .ok()
    }

    /// Reads the directories again.
    pub(crate) fn look(&self) {
        self.configuration.look();
    }

    /// Asks the plugins how they are.
    pub(crate) async fn ask_status(&self) {
        let networks = self.configuration.of(&self.conf_dir).networks;
        // Which versions they speak does not change from one look to the next.
        let known = self.fluent.load_full().is_some_and(|fluent| *fluent == networks);
        let mut trouble = None;
        for network in &networks {
            let asked = async {
                self.runner.status(network).await?;
                if known { Ok(()) } else { self.runner.speak(network).await }
            };
            trouble = trouble.or(asked.await.err().map(|error| error.to_string()));
        }
        self.fluent.store(trouble.is_none().then(|| Arc::new(networks)));
        let before = self.trouble.load_full();
        if before.as_deref() != trouble.as_ref() {
            match &trouble {
                Some(reason) => tracing::warn!(%reason, "the network plugins cannot attach pods"),
                None => tracing::info!("the network plugins can attach pods"),
            }
        }
        self.trouble.store(trouble.map(Arc::new));
    }

    /// Once after the start, when the plugins are well: lets them collect what belongs to nobody, and
    /// tells of pods whose network is not as it was made.
    pub(crate) async fn tidy_once(&self) {
        if self.ready().is_err() || self.tidied.swap(true, Ordering::Relaxed) {
            return;
        }
        // A pod that comes up meanwhile would look like garbage.
        let everyone = self.up.acquire_many(CHAINS).await;
        let live: Vec<_> =
            self.book.all().into_iter().filter(|record| record.debt.is_none()).collect();
        for network in self.configuration.of(&self.conf_dir).networks {
            let links = live.iter().flat_map(|record| &record.links);
            let valid: Vec<_> = links
                .filter(|link| link.network.name() == network.name())
                .map(|link| (link.attachment.container_id.clone(), link.attachment.ifname.clone()))
                .collect();
            if let Err(error) = self.runner.gc(&network, &valid).await {
                tracing::warn!(%error, "could not collect the garbage of a network");
            }
        }
        drop(everyone);
        for record in live {
            for Link { network, attachment, answer } in &record.links {
                let Some(answer) = answer else { continue };
                if let Err(error) = self.runner.check(network, attachment, answer).await {
                    tracing::warn!(pod = %record.pod, %error, "the pod's network is not as it was made");
                }
            }
        }
    }

    /// Where the template of a configuration goes; `None` when an add-on brought one of its own.
    pub(crate) fn dir_for_template(&self) -> Option<&Path> {
        let foreign =
            std::fs::read_dir(&self.conf_dir).into_iter().flatten().flatten().any(|file| {
                let name = file.file_name();
                let name = name.to_string_lossy();
                name != super::template::FILE
                    && [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
            });
        (!foreign).then_some(&self.conf_dir)
    }
}
