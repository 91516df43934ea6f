//! What pods and containers use: measured by threads of its own, answered from memory. No answer
//! touches a file, and a number carries the time at which it was true.

pub(crate) mod census;
pub(crate) mod device;
pub(crate) mod network;
pub(crate) mod sampler;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use runtime::cgroup::meter::{Limits, Reading};
use tokio::sync::watch;

use crate::clock;
use crate::container::state::Phase;
use crate::id::Id;
use crate::store::world::Snapshot;

/// A sampled cgroup.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// Nanoseconds since 1970.
    pub(crate) at_ns: i64,
    pub(crate) reading: Reading,
    pub(crate) limits: Limits,
    /// Present rate in billionths of a core; `None` before there are two samples.
    pub(crate) nano_cores: Option<u64>,
    /// The devices of `reading.io`, in its order, as `/dev/sda`.
    pub(crate) devices: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ContainerSample {
    pub(crate) usage: Usage,
    /// The last one: the container has ended, and the numbers are what it used in all.
    pub(crate) is_final: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PodSample {
    pub(crate) usage: Usage,
    /// `None` with the host's network.
    pub(crate) network: Option<network::Traffic>,
    pub(crate) trail: Trail,
}

/// Points of the curves on the node's page: ten minutes at the ordinary pace.
pub(crate) const TRAIL: usize = 60;

/// The last samples of a pod, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail {
    /// Thousandths of a core, and KiB of working set.
    pub(crate) points: std::collections::VecDeque<(u32, u32)>,
}

impl Trail {
    pub(crate) fn push(&mut self, milli_cores: u64, working_set: u64) {
        if self.points.len() == TRAIL {
            self.points.pop_front();
        }
        let fit = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        self.points.push_back((fit(milli_cores), fit(working_set >> 10)));
    }
}

/// All numbers as of one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    pub(crate) containers: HashMap<Id, Arc<ContainerSample>>,
    pub(crate) pods: HashMap<Id, Arc<PodSample>>,
    /// What takes longer to find out, by container.
    pub(crate) census: HashMap<Id, Arc<census::Census>>,
}

impl Numbers {
    /// Whether everything that has just been started has been measured at least once. What runs
    /// longer and has no numbers will have none so soon, and nobody waits for it. Everything is new
    /// to a daemon that has just been started itself, at `born_ns`.
    fn covers(&self, world: &Snapshot, now_ns: i64, born_ns: i64) -> bool {
        world.containers.values().all(|container| match container.phase {
            Phase::Running { started_at_ns, .. } => {
                now_ns - started_at_ns.max(born_ns) > NEW_NS
                    || self.containers.contains_key(&container.id)
                        && self.census.contains_key(&container.id)
            }
            _ => true,
        })
    }
}

/// The processor time of the calling thread, as it is added to a counter.
#[derive(Debug, Default)]
struct ThreadClock {
    counted: f64,
}

impl ThreadClock {
    fn count(&mut self, counter: &prometheus::Counter) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let used = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        counter.inc_by((used - self.counted).max(0.0));
        self.counted = used;
    }
}

/// How long an answer waits for the first sample of a container that has just been started. The
/// sampler needs a millisecond; on a node where it gets no time the answer goes without.
const FIRST_SAMPLE: Duration = Duration::from_millis(500);

/// How long a container counts as just started.
const NEW_NS: i64 = 1_000_000_000;

/// The numbers, and who publishes them.
#[derive(Debug)]
pub(crate) struct Stats {
    numbers: ArcSwap<Numbers>,
    /// Publishers take turns: each changes its own part.
    turn: Mutex<()>,
    published: watch::Sender<()>,
    born_ns: i64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            numbers: ArcSwap::default(),
            turn: Mutex::default(),
            published: watch::Sender::new(()),
            born_ns: clock::now_ns(),
        }
    }
}

impl Stats {
    pub(crate) fn numbers(&self) -> Arc<Numbers> {
        self.numbers.load_full()
    }

    /// The numbers, once they cover what runs in `world`, or as they are after a short while.
    pub(crate) async fn covering(&self, world: &Snapshot) -> Arc<Numbers> {
        let mut published = self.published.subscribe();
        let covered = async {
            loop {
                published.mark_unchanged();
                let numbers = self.numbers();
                if numbers.covers(world, clock::now_ns(), self.born_ns)
                    || published.changed().await.is_err()
                {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(FIRST_SAMPLE, covered).await;
        self.numbers()
    }

    /// Wakes after each publication.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }

    fn publish(&self, change: impl FnOnce(&mut Numbers)) {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Numbers::clone(&self.numbers.load());
        change(&mut next);
        self.numbers.store(Arc::new(next));
        drop(turn);
        self.published.send_replace(());
    }
}
