//! The pod network as the daemon uses it: `netplugin` behind a few worker threads.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use netplugin::{AttachRequest, PortMapping, Protocol};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox::spec::{self, Spec};

/// The kernel changes links under one lock (rtnl): more workers at once only wait for it, and
/// make the slowest one slower.
const WORKERS: usize = 2;

/// What an attached sandbox has.
pub(crate) struct Attached {
    pub(crate) netns: OwnedFd,
    pub(crate) addresses: Vec<IpAddr>,
}

/// How often the state of the network is looked at; `Status` answers from the last look, and what
/// somebody else flushed or deleted is missed by pods no longer than this.
const CHECK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Network {
    plugin: Arc<netplugin::Network>,
    turns: Semaphore,
    /// The reason why pods cannot have a network, as of the last look.
    trouble: ArcSwapOption<String>,
}

impl Network {
    pub(crate) fn open(config: &Config) -> Result<Self, netplugin::Error> {
        let plugin = netplugin::Network::open(plugin_config(config))?;
        let trouble = ArcSwapOption::from(plugin.ready().err().map(Arc::new));
        Ok(Self { plugin: Arc::new(plugin), turns: Semaphore::new(WORKERS), trouble })
    }

    /// Why pods cannot have a network, if so. Does not look at the kernel.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.trouble.load().as_deref().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    /// Looks at the kernel again and again, and puts back what others took; never returns.
    pub(crate) async fn watch(&self) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            let plugin = self.plugin.clone();
            let look = move || {
                let repaired = plugin.repair();
                let ready = plugin.ready();
                (repaired, ready)
            };
            let trouble = match self.work(look).await {
                Ok((repaired, ready)) => {
                    for done in repaired.iter().flatten() {
                        tracing::warn!("network: {done}");
                    }
                    repaired.err().map(|error| error.to_string()).or(ready.err())
                }
                Err(error) => Some(error.to_string()),
            };
            if trouble.as_ref() != self.trouble.load().as_deref() {
                match &trouble {
                    Some(reason) => tracing::warn!(%reason, "pods cannot have a network"),
                    None => tracing::info!("pods can have a network again"),
                }
            }
            self.trouble.store(trouble.map(Arc::new));
        }
    }

    pub(crate) async fn attach(&self, id: &Id, spec: &Spec) -> Result<Attached, Error> {
        let request = AttachRequest {
            sandbox_id: id.to_string(),
            owner: spec.metadata.pod(),
            port_mappings: spec.port_mappings.iter().map(port_mapping).collect(),
            netns: None,
        };
        let plugin = self.plugin.clone();
        let attachment = self
            .work(move || plugin.attach(&request))
            .await?
            .map_err(|source| Error::Network { pod: spec.metadata.pod(), source })?;
        let addresses = attachment.addresses.iter().map(|network| network.ip()).collect();
        Ok(Attached { netns: attachment.netns, addresses })
    }

    /// Idempotent.
    pub(crate) async fn detach(&self, id: &Id, pod: &str) -> Result<(), Error> {
        let (plugin, id) = (self.plugin.clone(), id.to_string());
        let result = self.work(move || plugin.detach(&id)).await?;
        result.map_err(|mut errors| match errors.len() {
            0 => Error::Panicked { operation: "network detach" },
            _ => Error::Network { pod: pod.to_owned(), source: errors.remove(0) },
        })
    }

    /// Gives back what no sandbox on record uses; returns whose it was.
    pub(crate) async fn collect(&self, live: Vec<String>) -> Result<Vec<String>, Error> {
        let plugin = self.plugin.clone();
        let result = self.work(move || plugin.gc(&live)).await?;
        result.map_err(|source| Error::Network { pod: "(garbage)".into(), source })
    }

    /// The kubelet's pod CIDR.
    pub(crate) async fn set_pod_cidr(&self, cidr: String) -> Result<(), Error> {
        let (plugin, text) = (self.plugin.clone(), cidr.clone());
        let result = self.work(move || plugin.set_pod_cidr(&text)).await?;
        result.map_err(|error| {
            Error::invalid("runtime_config.network_config.pod_cidr", error.to_string())
        })
    }

    async fn work<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.turns.acquire().await;
        let done = tokio::task::spawn_blocking(job).await;
        done.map_err(|_| Error::Panicked { operation: "network" })
    }
}

fn plugin_config(config: &Config) -> netplugin::Config {
    netplugin::Config {
        bridge: config.network.bridge.clone(),
        ranges: config.network.ranges.clone(),
        exclude: config.network.exclude.clone(),
        mtu: config.network.mtu,
        masquerade: config.network.masquerade,
        // Daemons side by side have bridges of their own, and so tables of their own.
        table: format!("lapstrake-{}", config.network.bridge),
        leases_dir: config.root.join("network"),
    }
}

fn port_mapping(mapping: &spec::PortMapping) -> PortMapping {
    PortMapping {
        protocol: match mapping.protocol {
            spec::Protocol::Tcp => Protocol::Tcp,
            spec::Protocol::Udp => Protocol::Udp,
            spec::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: mapping.container_port,
        host_port: mapping.host_port,
        host_ip: mapping.host_ip,
    }
}
