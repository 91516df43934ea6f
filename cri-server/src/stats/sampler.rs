//! The thread that reads the counters of all cgroups: each when it is new, often while it is
//! young, at the ordinary pace afterwards, and once more when its container has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use runtime::cgroup::Hierarchies;
use runtime::cgroup::meter::{Buffer, Limits, Meter, Reading};

use super::device::Names;
use super::network::Probe;
use super::{ContainerSample, PodSample, Trail, Usage};
use crate::app::Ctx;
use crate::clock;
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

/// What changes seldom, or costs a file each, is read at every so-manieth sample of an old cgroup:
/// pressure, devices, huge pages, counts of the memory limit.
const WHOLE_EVERY: u32 = 3;

/// And what is only changed by order.
const LIMITS_EVERY: u32 = 2 * WHOLE_EVERY;

/// Old cgroups are read together, at most so often: each turn looks at all of them and publishes.
const TURN: Duration = Duration::from_secs(1);

/// Changes that follow each other faster than this are told together: each turn looks at the whole world.
const GATHER: Duration = Duration::from_millis(10);

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
            tokio::time::sleep(GATHER).await;
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
    let mut known: Option<Arc<Snapshot>> = None;
    loop {
        let world = ctx.world.snapshot();
        let changed = known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &world));
        if changed {
            meters.follow(&world, Instant::now());
        }
        let fresh = meters.sample(Instant::now());
        if changed || !fresh.containers.is_empty() || !fresh.pods.is_empty() {
            ctx.stats.publish(|numbers| {
                if changed {
                    numbers.containers.retain(|id, _| world.containers.contains_key(id));
                    numbers.pods.retain(|id, _| world.sandboxes.contains_key(id));
                }
                numbers.containers.extend(fresh.containers);
                numbers.pods.extend(fresh.pods);
            });
        }
        known = Some(world);
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

struct Meters {
    node: Arc<Hierarchies>,
    buffer: Buffer,
    names: Names,
    containers: HashMap<Id, MeteredContainer>,
    pods: HashMap<Id, MeteredPod>,
}

struct MeteredContainer {
    /// `None`: it has ended and is read no more.
    metered: Option<Metered>,
    has_ended: bool,
}

struct MeteredPod {
    metered: Metered,
    probe: Option<Probe>,
    trail: Trail,
}

impl Meters {
    /// Opens what is new in the world and lets go of what is gone.
    fn follow(&mut self, world: &Snapshot, now: Instant) {
        self.containers.retain(|id, _| world.containers.contains_key(id));
        self.pods.retain(|id, _| world.sandboxes.get(id).is_some_and(|pod| is_measured(pod)));
        for container in world.containers.values() {
            let has_ended = match container.phase {
                Phase::Created { .. } | Phase::Running { .. } => false,
                Phase::Exited(_) => true,
                Phase::Creating | Phase::Removing => continue,
            };
            match self.containers.get_mut(&container.id) {
                Some(known) => known.has_ended = has_ended,
                // A group that is not there yet is looked for again at the next change.
                None => {
                    let metered = Metered::open(&self.node, &container.cgroups_path, now);
                    if metered.is_some() || has_ended {
                        let new = MeteredContainer { metered, has_ended };
                        self.containers.insert(container.id.clone(), new);
                    }
                }
            }
        }
        for sandbox in world.sandboxes.values().filter(|sandbox| is_measured(sandbox)) {
            if !self.pods.contains_key(&sandbox.id)
                && let Some(new) = open_pod(&self.node, sandbox, now)
            {
                self.pods.insert(sandbox.id.clone(), new);
            }
        }
    }

    /// Reads what is due.
    fn sample(&mut self, now: Instant) -> Fresh {
        let mut fresh = Fresh::default();
        let (buffer, names) = (&mut self.buffer, &mut self.names);
        for (id, container) in &mut self.containers {
            let is_final = container.has_ended;
            let Some(metered) = &mut container.metered else { continue };
            if !is_final && metered.due > now {
                continue;
            }
            let usage = metered.read(buffer, names, now, is_final);
            if is_final {
                container.metered = None;
            }
            fresh.containers.push((id.clone(), Arc::new(ContainerSample { usage, is_final })));
        }
        for (id, pod) in self.pods.iter_mut().filter(|(_, pod)| pod.metered.due <= now) {
            let usage = pod.metered.read(buffer, names, now, false);
            let network = pod.probe.as_ref().and_then(|probe| probe.read(clock::now_ns()));
            if let Some(nano_cores) = usage.nano_cores {
                let working_set = usage.reading.memory.working_set.unwrap_or(0);
                pod.trail.push(nano_cores / 1_000_000, working_set);
            }
            let sample = PodSample { usage, network, trail: pod.trail.clone() };
            fresh.pods.push((id.clone(), Arc::new(sample)));
        }
        fresh
    }

    fn next_due(&self) -> Instant {
        let containers = self.containers.values().filter_map(|it| it.metered.as_ref());
        let all = containers.chain(self.pods.values().map(|pod| &pod.metered));
        let far = Instant::now() + PERIOD;
        all.map(|metered| metered.due).min().unwrap_or(far).min(far)
    }
}

fn open_pod(node: &Hierarchies, sandbox: &Sandbox, now: Instant) -> Option<MeteredPod> {
    let metered = Metered::open(node, &sandbox.cgroup_parent, now)?;
    let own_network = sandbox.spec.network != NamespaceMode::Node;
    let address = sandbox.addresses.first().copied();
    let probe = own_network.then(|| Probe::open(sandbox.pause_pid, address)).flatten();
    Some(MeteredPod { metered, probe, trail: Trail::default() })
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
    /// Its tasks have run since it was read as a whole.
    has_run: bool,
    limits: Limits,
    reading: Reading,
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
            has_run: false,
            limits: Limits::default(),
            reading: Reading::default(),
            last: None,
            nano_cores: None,
        })
    }

    fn read(
        &mut self,
        buffer: &mut Buffer,
        names: &mut Names,
        now: Instant,
        is_final: bool,
    ) -> Usage {
        let age = now - self.born;
        let at_once = is_final || age < PERIOD;
        let turn = self.turns;
        self.turns = turn.wrapping_add(1);
        let (at, at_ns) = (Instant::now(), clock::now_ns());
        self.has_run |= at_once || self.meter.refresh(buffer, &mut self.reading);
        if at_once || turn.is_multiple_of(WHOLE_EVERY) {
            if std::mem::take(&mut self.has_run) {
                self.reading = self.meter.read(buffer);
            } else {
                self.meter.refresh_waits(buffer, &mut self.reading);
            }
        }
        if at_once || turn.is_multiple_of(LIMITS_EVERY) {
            self.limits = self.meter.limits(buffer);
        }
        if let Some(total) = self.reading.cpu.total_ns {
            match self.last {
                Some((then, _)) if at - then < SPAN_MIN => {}
                last => {
                    self.nano_cores = last.map(|last| rate(last, (at, total)));
                    self.last = Some((at, total));
                }
            }
        }
        self.due = due_after(now, age);
        let reading = self.reading.clone();
        let devices = reading.io.iter().map(|io| names.of(io.major, io.minor)).collect();
        Usage { at_ns, limits: self.limits, nano_cores: self.nano_cores, devices, reading }
    }
}

/// The old are put on common turns, each at a second of its own that it had by chance.
fn due_after(now: Instant, age: Duration) -> Instant {
    let pause = pause_after(age);
    if pause < PERIOD {
        return now + pause;
    }
    // The clock of a turn is that of the machine, so all agree on it.
    let second = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec;
    let into_turn = Duration::from_nanos(u64::try_from(second).unwrap_or(0));
    now + pause - into_turn.min(TURN)
}

/// A cgroup is read again when it is four times as old, and at the ordinary pace in the end.
fn pause_after(age: Duration) -> Duration {
    (3 * age).clamp(YOUNG, PERIOD)
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
        assert_eq!(pause_after(Duration::from_secs(1)), Duration::from_secs(3));
        assert_eq!(pause_after(Duration::from_secs(100)), PERIOD);
        let mut age = Duration::ZERO;
        let mut reads = 0;
        while age < PERIOD {
            age += pause_after(age);
            reads += 1;
        }
        assert!(reads < 7, "{reads} samples of the first ten seconds");
    }
}
