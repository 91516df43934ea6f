//! The built-in pod network: `netplugin` behind a few worker threads.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ipnetwork::IpNetwork;
use netplugin::{AttachRequest, Bandwidth, LinkOptions, PortMapping, Protocol, Rate};
use tokio::sync::Semaphore;

use super::Attached;
use crate::config::Config;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::sandbox::spec;

/// The kernel changes links under one lock (rtnl): more workers at once only wait for it, and
/// make the slowest one slower.
const WORKERS: usize = 2;

#[derive(Debug)]
pub(crate) struct Bridge {
    plugin: Arc<netplugin::Network>,
    turns: Semaphore,
    /// Whether chains of others that drop the pods' packets are opened for them.
    admit_forwarding: bool,
    /// The reason why pods cannot have a network, as of the last look.
    trouble: ArcSwapOption<String>,
}

impl Bridge {
    pub(crate) fn open(config: &Config) -> Result<Self, netplugin::Error> {
        let plugin = netplugin::Network::open(plugin_config(config))?;
        let trouble = ArcSwapOption::from(plugin.ready().err().map(Arc::new));
        Ok(Self {
            plugin: Arc::new(plugin),
            turns: Semaphore::new(WORKERS),
            admit_forwarding: config.network.admit_forwarding,
            trouble,
        })
    }

    /// Why pods cannot have a network, if so. Does not look at the kernel.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.trouble.load().as_deref().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    /// Looks at the kernel, puts back what others took, and says what that was.
    pub(crate) async fn look(&self) -> Vec<String> {
        let (plugin, admit) = (self.plugin.clone(), self.admit_forwarding);
        let look = move || {
            let repaired = plugin.repair();
            let opened = if admit { plugin.admit_forwarding() } else { Ok(Vec::new()) };
            (repaired, opened, plugin.ready())
        };
        let mut done = Vec::new();
        let trouble = match self.work(look).await {
            Ok((repaired, opened, ready)) => {
                let opened = opened.map(|chains| {
                    chains.into_iter().map(|it| format!("{it} dropped pods' packets: opened"))
                });
                let mut trouble = None;
                match repaired {
                    Ok(repaired) => done.extend(repaired),
                    Err(error) => trouble = Some(error.to_string()),
                }
                match opened {
                    Ok(opened) => done.extend(opened),
                    Err(error) => trouble = trouble.or(Some(error.to_string())),
                }
                trouble.or(ready.err())
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
        done
    }

    /// Makes the links again that somebody deleted under pods that live, and says so. `pod` finds a
    /// pod that is ready.
    pub(crate) async fn restore_links(
        &self,
        pod: impl Fn(&str) -> Option<Arc<Sandbox>>,
    ) -> Vec<String> {
        let mut done = Vec::new();
        for sandbox in self.plugin.lost_links().iter().filter_map(|id| pod(id)) {
            // Without its namespace the pod is dying, and its link went with it.
            let Some(netns) = netns_of(&sandbox) else { continue };
            let (plugin, options) = (self.plugin.clone(), link_options(&sandbox.spec));
            let id = sandbox.id.clone();
            let restore = move || plugin.restore_link(id.as_str(), netns.as_fd(), &options);
            match self.work(restore).await {
                Ok(Ok(what)) => done.push(what),
                Ok(Err(error)) => {
                    let pod = sandbox.spec.metadata.pod();
                    tracing::warn!(%pod, %error, "could not make the pod's link again");
                }
                Err(error) => tracing::error!(%error, "could not look after a link"),
            }
        }
        done
    }

    /// Pods that have a network of this bridge.
    pub(crate) fn pods(&self) -> Vec<Id> {
        self.plugin.sandboxes().iter().filter_map(|id| Id::parse(id)).collect()
    }

    pub(crate) async fn attach(
        &self,
        sandbox: &Sandbox,
        netns: Option<OwnedFd>,
    ) -> Result<Attached, Error> {
        let pod = sandbox.spec.metadata.pod();
        let request = AttachRequest {
            sandbox_id: sandbox.id.to_string(),
            owner: pod.clone(),
            port_mappings: sandbox.spec.port_mappings.iter().map(port_mapping).collect(),
            netns,
        };
        let options = link_options(&sandbox.spec);
        let plugin = self.plugin.clone();
        let attachment = self
            .work(move || plugin.attach_with(&request, &options))
            .await?
            .map_err(|source| Error::Network { pod, source })?;
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

    /// The kubelet's pod CIDR, remembered over restarts.
    pub(crate) async fn set_pod_cidr(&self, cidr: String) -> Result<(), Error> {
        let plugin = self.plugin.clone();
        let result = self.work(move || plugin.set_pod_cidr(&cidr)).await?;
        result.map_err(|error| {
            Error::invalid("runtime_config.network_config.pod_cidr", error.to_string())
        })
    }

    pub(crate) fn pod_cidr(&self) -> Vec<IpNetwork> {
        self.plugin.pod_cidr()
    }

    /// A namespace for a pod whose links others make, with its loopback link up: a new one unless
    /// there is one already.
    pub(crate) async fn loopback(
        &self,
        netns: Option<OwnedFd>,
    ) -> Result<OwnedFd, netplugin::Error> {
        let make = || netplugin::Network::loopback_only(netns);
        let made = tokio::task::spawn_blocking(make).await;
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
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

pub(crate) fn plugin_config(config: &Config) -> netplugin::Config {
    netplugin::Config {
        bridge: config.network.bridge.clone(),
        ranges: config.network.ranges.clone(),
        exclude: config.network.exclude.clone(),
        mtu: config.network.mtu,
        masquerade: config.network.masquerade,
        no_masquerade: config.network.no_masquerade.clone(),
        // Daemons side by side have bridges of their own, and so tables of their own.
        table: format!("lapstrake-{}", config.network.bridge),
        leases_dir: config.root.join("network"),
    }
}

fn link_options(spec: &spec::Spec) -> LinkOptions {
    let rate = |bits_per_second| Rate { bits_per_second, burst_bits: None };
    let limits = spec.bandwidth;
    LinkOptions {
        bandwidth: Bandwidth { ingress: limits.ingress.map(rate), egress: limits.egress.map(rate) },
        ..LinkOptions::default()
    }
}

/// The network namespace of a pod's pause process, if that is still the process it was.
fn netns_of(sandbox: &Sandbox) -> Option<OwnedFd> {
    let dir = format!("/proc/{}", sandbox.pause_pid);
    let netns = std::fs::File::open(format!("{dir}/ns/net")).ok()?;
    // Its number may be another process's by now; nobody else is in this cgroup.
    let cgroups = std::fs::read_to_string(format!("{dir}/cgroup")).ok()?;
    let own = sandbox.cgroup_of(&sandbox.id);
    cgroups.lines().any(|line| line.ends_with(&own)).then(|| netns.into())
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
