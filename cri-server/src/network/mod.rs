//! The pod network as the daemon uses it: built in, or made by the cluster's own plugins.
//!
//! A pod leaves the network by what is on record of it, whatever the configuration says by then.

mod attachment;
mod bridge;
mod configuration;
pub(crate) mod mode;
mod pin;
mod plugins;
pub(crate) mod reset;
mod template;
mod told;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};

use crate::config::Config;
use crate::error::Error;
use crate::id::Id;
use crate::metrics::families::Families;
use crate::sandbox::Sandbox;
use crate::sandbox::state::Phase;
use crate::store::world::World;
use bridge::Bridge;
use mode::{Maker, Mode};
use plugins::Plugins;

/// How often the state of the built-in network is looked at; `Status` answers from the last look,
/// and what somebody else flushed or deleted is missed by pods no longer than this.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// How often plugins are asked how they are, and their configuration is looked at where the kernel
/// told of no change.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Files come in bursts: an editor's, an add-on's.
const SETTLE: Duration = Duration::from_millis(50);

/// How often is looked for debts whose time has come.
const DEBTS_EVERY: Duration = Duration::from_secs(1);

/// What an attached sandbox has.
pub(crate) struct Attached {
    pub(crate) netns: OwnedFd,
    pub(crate) addresses: Vec<IpAddr>,
}

/// A network that plugins have not taken back of a pod that is gone.
#[derive(Debug)]
pub(crate) struct Owed {
    /// `namespace/name`
    pub(crate) pod: String,
    pub(crate) sandbox_id: Id,
    pub(crate) attempts: u32,
    pub(crate) last_error: String,
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, sandbox_id, attempts, last_error } = self;
        write!(f, "{pod} ({sandbox_id}), {attempts} attempts: {last_error}")
    }
}

/// What is wrong with the settings of the built-in network, one sentence each.
pub(crate) fn mistakes(config: &Config) -> Vec<String> {
    let mistakes = bridge::plugin_config(config).mistakes().into_iter();
    mistakes.map(|mistake| format!("network: {mistake}")).collect()
}

/// What the built-in network would find on this node. Changes nothing, and works beside a daemon.
pub(crate) fn survey(config: &Config) -> Result<netplugin::Survey, netplugin::Error> {
    netplugin::Network::survey(&bridge::plugin_config(config))
}

#[derive(Debug)]
pub(crate) struct Network {
    mode: Mode,
    bridge: Bridge,
    plugins: Plugins,
    template: Option<PathBuf>,
    /// Who made the network of each pod.
    makers: Mutex<BTreeMap<Id, Maker>>,
    repairs: IntCounter,
    debts: IntGauge,
}

impl Network {
    pub(crate) fn open(config: &Config, families: &Families) -> anyhow::Result<Self> {
        let bridge = Bridge::open(config)?;
        let plugins = Plugins::open(&config.root, &config.network)?;
        let of_bridge = bridge.pods().into_iter().map(|id| (id, Maker::Bridge));
        let of_plugins = plugins.pods().into_iter().map(|id| (id, Maker::Plugins));
        Ok(Self {
            mode: config.network.mode,
            makers: Mutex::new(of_bridge.chain(of_plugins).collect()),
            bridge,
            plugins,
            template: config.network.cni.conf_template.clone(),
            repairs: families.network_repairs.clone(),
            debts: families.network_debt.clone(),
        })
    }

    /// Why pods cannot have a network, if so. Does not look at the kernel.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.maker() {
            Maker::Bridge => self.bridge.ready(),
            Maker::Plugins => self.plugins.ready(),
        }
    }

    /// What is still to be given back of pods that are gone.
    pub(crate) fn owed(&self) -> Vec<Owed> {
        let owed = |record: attachment::Attachment| {
            let attachment::Debt { attempts, last_error, .. } = record.debt?;
            Some(Owed { pod: record.pod, sandbox_id: record.sandbox_id, attempts, last_error })
        };
        self.plugins.debts().into_iter().filter_map(owed).collect()
    }

    /// Watches over the network of these pods as long as the daemon lives.
    pub(crate) async fn watch(&self, world: &World) {
        let ready = |id: &str| {
            let sandbox = world.snapshot().sandbox(id).cloned();
            sandbox.filter(|sandbox| sandbox.phase == Phase::Ready)
        };
        let bridge = async {
            loop {
                tokio::time::sleep(CHECK_EVERY).await;
                if self.maker() == Maker::Plugins && !self.has_pods_of(Maker::Bridge) {
                    continue;
                }
                let repaired = self.bridge.look().await;
                let restored = self.bridge.restore_links(ready).await;
                for done in repaired.into_iter().chain(restored) {
                    tracing::warn!("network: {done}");
                    self.repairs.inc();
                    world.events().repaired(done);
                }
            }
        };
        let configuration = async {
            let mut watch = self.plugins.watch();
            loop {
                self.plugins.look();
                tokio::select! {
                    () = self.plugins.changes(&mut watch) => tokio::time::sleep(SETTLE).await,
                    () = tokio::time::sleep(STATUS_EVERY) => {}
                }
            }
        };
        // Apart from it: a plugin that hangs must not keep a configuration from being read.
        let status = async {
            loop {
                if self.maker() == Maker::Plugins {
                    self.plugins.ask_status().await;
                    self.plugins.tidy_once().await;
                }
                self.plugins.changed(STATUS_EVERY).await;
            }
        };
        let debts = async {
            loop {
                self.count_debts();
                tokio::time::sleep(DEBTS_EVERY).await;
                self.plugins.pay_debts().await;
            }
        };
        tokio::join!(bridge, configuration, status, debts);
    }

    /// Gives a sandbox its network. `netns` is a namespace that exists already, for pods whose
    /// namespace must belong to their user namespace.
    pub(crate) async fn attach(
        &self,
        sandbox: &Sandbox,
        netns: Option<OwnedFd>,
    ) -> Result<Attached, Error> {
        match self.choose(&sandbox.id) {
            Maker::Bridge => self.bridge.attach(sandbox, netns).await,
            Maker::Plugins => {
                let pod = || sandbox.spec.metadata.pod();
                let netns = self.bridge.loopback(netns).await;
                let netns = netns.map_err(|source| Error::Network { pod: pod(), source })?;
                self.plugins.attach(sandbox, netns, &self.bridge.pod_cidr()).await
            }
        }
    }

    /// Idempotent; by whatever is on record of the sandbox.
    pub(crate) async fn detach(&self, id: &Id, pod: &str) -> Result<(), Error> {
        self.plugins.detach(id).await?;
        self.count_debts();
        self.bridge.detach(id, pod).await?;
        self.makers().remove(id);
        Ok(())
    }

    /// Gives back what no sandbox on record uses; returns how many there were. Plugins are called
    /// in the background.
    pub(crate) async fn collect(&self, live: Vec<String>) -> Result<usize, Error> {
        let owed = self.plugins.collect(&live)?;
        self.makers().retain(|id, _| live.iter().any(|it| it == id.as_str()));
        Ok(owed + self.bridge.collect(live).await?.len())
    }

    /// The kubelet's pod CIDR.
    pub(crate) async fn set_pod_cidr(&self, cidr: String) -> Result<(), Error> {
        self.bridge.set_pod_cidr(cidr).await?;
        let Some(template) = &self.template else { return Ok(()) };
        match self.plugins.dir_for_template() {
            Some(dir) => {
                template::write(template, dir, &self.bridge.pod_cidr())?;
                self.plugins.look();
            }
            None => {
                tracing::info!("an add-on brought a network configuration; ours is not written")
            }
        }
        Ok(())
    }

    fn count_debts(&self) {
        self.debts.set(i64::try_from(self.plugins.debts().len()).unwrap_or(i64::MAX));
    }

    /// Who would make the next pod's network.
    fn maker(&self) -> Maker {
        let of_the_others = self.makers().values().next().copied();
        mode::decide(self.mode, of_the_others, self.plugins.is_configured())
    }

    /// Decides for a pod, in one step with those that come at the same time.
    fn choose(&self, id: &Id) -> Maker {
        let configured = self.plugins.is_configured();
        let mut makers = self.makers();
        let maker = mode::decide(self.mode, makers.values().next().copied(), configured);
        makers.insert(id.clone(), maker);
        maker
    }

    fn has_pods_of(&self, maker: Maker) -> bool {
        self.makers().values().any(|it| *it == maker)
    }

    fn makers(&self) -> MutexGuard<'_, BTreeMap<Id, Maker>> {
        self.makers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
