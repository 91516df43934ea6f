//! The thread that reads the counters of all cgroups: each when it is new, often while it is
//! young, at the ordinary pace afterwards, and once more when its container has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use runtime::cgroup::Hierarchies;
use runtime::cgroup::meter::{Buffer, Limits, Meter};

use super::device::Names;
use super::network::Probe;
use super::{ContainerSample, PodSample, Trail, Usage};
use crate::app::Ctx;
use crate::clock;
use crate::container::Container;
use crate::container::state::Phase;
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::sandbox::spec::NamespaceMode;
use crate::sandbox::state::Phase as SandboxPhase;
use crate::store::world::Snapshot;

/// The pace at which an old cgroup is read; the kubelet's housekeeping has the same.
const PERIOD: Duration = Duration::from_secs(10);

/// The pace of a new one: its numbers must be right a tenth of a second after its start.
const YOUNG: Duration = Duration::from_millis(50);

/// Rates over less say more about the scheduler than about the container.
const SPAN_MIN: Duration = Duration::from_millis(25);

/// Limits change by a call of CRI or by hand: they are read at every so-manieth sample.
const LIMITS_EVERY: u32 = 6;

/// Starts the thread; it lives as long as the daemon.
pub(crate) fn start(ctx: &Arc<Ctx>) -> std::io::Result<()> {
    // One slot: a wake that is already waiting to be heard says as much as two.
    let (wake, woken) = std::sync::mpsc::sync_channel(1);
    spawn_waker(ctx, wake);
    let ctx = ctx.clone();
    std::thread::Builder::new().name("sampler".into()).spawn(move || run(&ctx, &woken))?;
    Ok(())
}

/// Tells the thread when something starts or ends.
pub(super) fn spawn_waker(ctx: &Arc<Ctx>, wake: SyncSender<()>) {
    let mut changes = ctx.world.watch();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let _ = wake.try_send(());
        }
    });
}

fn run(ctx: &Ctx, woken: &Receiver<()>) {
    let mut clock = super::ThreadClock::default();
    let mut meters = Meters {
        node: ctx.cgroups.clone(),
        buffer: Buffer::default(),
        names: Names::default(),
        containers: HashMap::new(),
        pods: HashMap::new(),
    };
    loop {
        let world = ctx.world.snapshot();
        let began = Instant::now();
        let fresh = meters.turn(&world, began);
        if fresh.is_news(&world, &ctx.stats.numbers()) {
            ctx.stats.publish(|numbers| {
                numbers.containers.retain(|id, _| world.containers.contains_key(id));
                numbers.pods.retain(|id, _| world.sandboxes.contains_key(id));
                numbers.containers.extend(fresh.containers);
                numbers.pods.extend(fresh.pods);
            });
        }
        clock.count(&ctx.metrics.families.sampler_seconds);
        let pause = meters.next_due().saturating_duration_since(Instant::now());
        match woken.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What one turn has read.
#[derive(Default)]
struct Fresh {
    containers: Vec<(Id, Arc<ContainerSample>)>,
    pods: Vec<(Id, Arc<PodSample>)>,
}

impl Fresh {
    fn is_news(&self, world: &Snapshot, numbers: &super::Numbers) -> bool {
        !self.containers.is_empty()
            || !self.pods.is_empty()
            || numbers.containers.keys().any(|id| !world.containers.contains_key(id))
            || numbers.pods.keys().any(|id| !world.sandboxes.contains_key(id))
    }
}

struct Meters {
    node: Arc<Hierarchies>,
    buffer: Buffer,
    names: Names,
    /// `None`: it has ended and is read no more.
    containers: HashMap<Id, Option<Metered>>,
    pods: HashMap<Id, MeteredPod>,
}

struct MeteredPod {
    metered: Metered,
    probe: Option<Probe>,
    trail: Trail,
}

impl Meters {
    /// Follows the world, and reads what is due.
    fn turn(&mut self, world: &Snapshot, now: Instant) -> Fresh {
        let mut fresh = Fresh::default();
        self.containers.retain(|id, _| world.containers.contains_key(id));
        self.pods.retain(|id, _| world.sandboxes.get(id).is_some_and(|pod| is_measured(pod)));
        for container in world.containers.values() {
            if let Some(sample) = self.container(container, now) {
                fresh.containers.push((container.id.clone(), Arc::new(sample)));
            }
        }
        for sandbox in world.sandboxes.values().filter(|sandbox| is_measured(sandbox)) {
            if let Some(sample) = self.pod(sandbox, now) {
                fresh.pods.push((sandbox.id.clone(), Arc::new(sample)));
            }
        }
        fresh
    }

    fn container(&mut self, container: &Container, now: Instant) -> Option<ContainerSample> {
        let is_final = match container.phase {
            Phase::Created { .. } | Phase::Running { .. } => false,
            Phase::Exited(_) => true,
            Phase::Creating | Phase::Removing => return None,
        };
        if !self.containers.contains_key(&container.id) {
            let metered = Metered::open(&self.node, &container.cgroups_path, now);
            // A group that is not there yet is looked for again at the next change of the world.
            if metered.is_some() || is_final {
                self.containers.insert(container.id.clone(), metered);
            }
        }
        let slot = self.containers.get_mut(&container.id)?;
        let metered = slot.as_mut()?;
        if !is_final && metered.due > now {
            return None;
        }
        let usage = metered.read(&mut self.buffer, &mut self.names, now);
        if is_final {
            *slot = None;
        }
        Some(ContainerSample { usage, is_final })
    }

    fn pod(&mut self, sandbox: &Sandbox, now: Instant) -> Option<PodSample> {
        if !self.pods.contains_key(&sandbox.id) {
            let metered = Metered::open(&self.node, &sandbox.cgroup_parent, now)?;
            let own_network = sandbox.spec.network != NamespaceMode::Node;
            let address = sandbox.addresses.first().copied();
            let probe = own_network.then(|| Probe::open(sandbox.pause_pid, address)).flatten();
            let pod = MeteredPod { metered, probe, trail: Trail::default() };
            self.pods.insert(sandbox.id.clone(), pod);
        }
        let pod = self.pods.get_mut(&sandbox.id)?;
        if pod.metered.due > now {
            return None;
        }
        let usage = pod.metered.read(&mut self.buffer, &mut self.names, now);
        let network = pod.probe.as_ref().and_then(|probe| probe.read(clock::now_ns()));
        if let Some(nano_cores) = usage.nano_cores {
            pod.trail.push(nano_cores / 1_000_000, usage.reading.memory.working_set.unwrap_or(0));
        }
        Some(PodSample { usage, network, trail: pod.trail.clone() })
    }

    fn next_due(&self) -> Instant {
        let containers = self.containers.values().flatten();
        let all = containers.chain(self.pods.values().map(|pod| &pod.metered));
        let far = Instant::now() + PERIOD;
        all.map(|metered| metered.due).min().unwrap_or(far).min(far)
    }
}

/// A pod has numbers while it is up. One whose parent is the root of the hierarchy has none of its
/// own: they would be the node's.
fn is_measured(sandbox: &Sandbox) -> bool {
    sandbox.phase == SandboxPhase::Ready && !sandbox.cgroup_parent.trim_matches('/').is_empty()
}

/// A cgroup and when it is to be read again.
struct Metered {
    meter: Meter,
    born: Instant,
    due: Instant,
    turns: u32,
    limits: Limits,
    last: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl Metered {
    fn open(node: &Hierarchies, group: &str, now: Instant) -> Option<Self> {
        Some(Self {
            meter: Meter::open(node, group)?,
            born: now,
            due: now,
            turns: 0,
            limits: Limits::default(),
            last: None,
            nano_cores: None,
        })
    }

    fn read(&mut self, buffer: &mut Buffer, names: &mut Names, now: Instant) -> Usage {
        if self.turns.is_multiple_of(LIMITS_EVERY) {
            self.limits = self.meter.limits(buffer);
        }
        self.turns = self.turns.wrapping_add(1);
        let (at, at_ns) = (Instant::now(), clock::now_ns());
        let reading = self.meter.read(buffer);
        if let Some(total) = reading.cpu.total_ns {
            match self.last {
                Some((then, _)) if at - then < SPAN_MIN => {}
                last => {
                    self.nano_cores = last.map(|last| rate(last, (at, total)));
                    self.last = Some((at, total));
                }
            }
        }
        self.due = now + pause_after(now - self.born);
        let devices = reading.io.iter().map(|io| names.of(io.major, io.minor)).collect();
        Usage { at_ns, limits: self.limits, nano_cores: self.nano_cores, devices, reading }
    }
}

/// A cgroup is read again when it is twice as old, and at the ordinary pace in the end.
fn pause_after(age: Duration) -> Duration {
    age.clamp(YOUNG, PERIOD)
}

/// Billionths of a core between two readings of nanoseconds of processor time.
fn rate((then, before): (Instant, u64), (now, after): (Instant, u64)) -> u64 {
    let span = (now - then).as_nanos().max(1);
    let used = u128::from(after.saturating_sub(before));
    u64::try_from(used * 1_000_000_000 / span).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_processor_time_over_time() {
        let then = Instant::now();
        let now = then + Duration::from_millis(500);
        assert_eq!(rate((then, 1_000), (now, 250_001_000)), 500_000_000, "half a core");
        assert_eq!(rate((then, 5), (now, 4)), 0, "a counter that starts anew is no negative rate");
    }

    #[test]
    fn the_young_are_read_often_and_the_old_at_the_ordinary_pace() {
        assert_eq!(pause_after(Duration::ZERO), YOUNG);
        assert_eq!(pause_after(Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(pause_after(Duration::from_secs(100)), PERIOD);
        let mut age = Duration::ZERO;
        let mut reads = 0;
        while age < PERIOD {
            age += pause_after(age);
            reads += 1;
        }
        assert!(reads < 12, "{reads} samples of the first ten seconds");
    }
}
