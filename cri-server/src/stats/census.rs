//! What takes a walk to find out: files that a container has written, and descriptors that its
//! processes hold. A thread of its own does it, and spends at most a hundredth of its time on each.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use runtime::cgroup::meter::{Buffer, Meter};

use super::device::Names;
use crate::app::Ctx;
use crate::clock;
use crate::container::Container;
use crate::container::state::Phase;
use crate::id::Id;
use crate::store::world::Snapshot;

/// What was counted of one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    /// Nanoseconds since 1970.
    pub(crate) at_ns: i64,
    /// `None` when the files could not be read.
    pub(crate) written: Option<image::Usage>,
    pub(crate) file_system: Option<FileSystem>,
    /// Of all processes of the container.
    pub(crate) descriptors: u64,
    pub(crate) sockets: u64,
    /// Soft limit of open files of the first process; `None` after its end.
    pub(crate) open_files_soft: Option<u64>,
}

/// The file system that a container writes to.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSystem {
    pub(crate) device: String,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// The ordinary pace: twice that of cAdvisor, which walks the files once a minute. How full the file system is, which
/// evicts pods, is asked of it directly.
const PERIOD: Duration = Duration::from_secs(30);

/// The pace while a container is young.
const YOUNG: Duration = Duration::from_secs(1);

/// A walk that takes long is made rarely: a hundredth of the time is spent on it.
const REST: u32 = 100;

/// Containers are counted together, at most so often.
const TURN: Duration = Duration::from_secs(1);

/// Descriptors of one process that are looked at to tell sockets; the rest counts as files.
const DESCRIPTORS_MAX: usize = 4096;

pub(crate) fn start(ctx: &Arc<Ctx>) -> std::io::Result<()> {
    let (wake, woken) = std::sync::mpsc::sync_channel(1);
    super::sampler::spawn_waker(ctx, wake);
    let ctx = ctx.clone();
    std::thread::Builder::new().name("census".into()).spawn(move || run(&ctx, &woken))?;
    Ok(())
}

struct Turn {
    born: Instant,
    /// `None`: it has ended and nothing changes any more.
    due: Option<Instant>,
    has_ended: bool,
}

fn run(ctx: &Ctx, woken: &Receiver<()>) {
    let mut turns: HashMap<Id, Turn> = HashMap::new();
    let mut clock = super::ThreadClock::default();
    let mut counter = Counter { buffer: Buffer::default(), names: Names::default() };
    let mut known: Option<Arc<Snapshot>> = None;
    loop {
        let world = ctx.world.snapshot();
        let changed = known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &world));
        if changed {
            follow(&mut turns, &world);
        }
        let mut fresh = Vec::new();
        let now = Instant::now();
        for (id, turn) in turns.iter_mut().filter(|(_, turn)| turn.due.is_some_and(|it| it <= now))
        {
            let Some(container) = world.containers.get(id) else { continue };
            let began = Instant::now();
            fresh.push((id.clone(), Arc::new(counter.count(ctx, container))));
            // Who may write only so much is looked at more often.
            let most = if container.writable_limit.is_some() { YOUNG } else { PERIOD };
            let pace = (began - turn.born).clamp(YOUNG, most);
            // Together with others: a turn costs a look at all and a publication.
            let due = (began + pace.max(began.elapsed() * REST)).max(now + TURN);
            turn.due = (!turn.has_ended).then_some(due);
        }
        if changed || !fresh.is_empty() {
            ctx.stats.publish(|numbers| {
                if changed {
                    numbers.census.retain(|id, _| world.containers.contains_key(id));
                }
                numbers.census.extend(fresh);
            });
        }
        known = Some(world);
        clock.count(&ctx.metrics.families.sampler_seconds);
        let next = turns.values().filter_map(|turn| turn.due).min();
        let next = next.map_or(PERIOD, |due| due.saturating_duration_since(Instant::now()));
        // What is new is counted at once, the rest not more often than it pays.
        match woken.recv_timeout(next.clamp(TURN, PERIOD)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What is new is due at once, and what has ended once more.
fn follow(turns: &mut HashMap<Id, Turn>, world: &Snapshot) {
    turns.retain(|id, _| world.containers.contains_key(id));
    let now = Instant::now();
    for container in world.containers.values().filter(|it| it.phase.is_shown()) {
        let has_ended = matches!(container.phase, Phase::Exited(_));
        let new = || Turn { born: now, due: Some(now), has_ended };
        let turn = turns.entry(container.id.clone()).or_insert_with(new);
        if has_ended && !turn.has_ended {
            (turn.has_ended, turn.due) = (true, Some(now));
        }
    }
}

struct Counter {
    buffer: Buffer,
    names: Names,
}

impl Counter {
    fn count(&mut self, ctx: &Ctx, container: &Container) -> Census {
        let id = container.id.as_str();
        let mut census = Census {
            at_ns: clock::now_ns(),
            written: ctx.images.weigh(id).ok(),
            file_system: self.file_system(&ctx.images.writable(id)),
            ..Census::default()
        };
        if let Phase::Created { pid } | Phase::Running { pid, .. } = container.phase {
            census.open_files_soft = open_files_soft(pid);
            let group = &container.cgroups_path;
            for pid in Meter::processes(&ctx.cgroups, group, &mut self.buffer) {
                let (descriptors, sockets) = descriptors(pid);
                census.descriptors += descriptors;
                census.sockets += sockets;
            }
        }
        census
    }

    fn file_system(&mut self, directory: &Path) -> Option<FileSystem> {
        let device = fs::metadata(directory).ok()?.dev();
        let stat = rustix::fs::statvfs(directory).ok()?;
        Some(FileSystem {
            device: self.names.of(rustix::fs::major(device), rustix::fs::minor(device)),
            bytes: stat.f_blocks * stat.f_frsize,
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

/// Descriptors of a process, and how many of them are sockets.
fn descriptors(pid: i32) -> (u64, u64) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return (0, 0) };
    let (mut all, mut sockets) = (0, 0);
    for entry in entries.flatten() {
        all += 1;
        let looked_at = all as usize <= DESCRIPTORS_MAX;
        let target = looked_at.then(|| fs::read_link(entry.path()).ok()).flatten();
        sockets += u64::from(target.is_some_and(|it| it.to_string_lossy().starts_with("socket:")));
    }
    (all, sockets)
}

fn open_files_soft(pid: i32) -> Option<u64> {
    soft_limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `unlimited` is the largest number there is.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a child with this standard input holds, and what the test's own parents left to it.
    fn of_child(input: std::process::Stdio) -> (u64, u64) {
        // It holds still once it has spoken: before that, the loader opens files of its own.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo; kill -STOP $$"])
            .stdin(input)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let counted = descriptors(i32::try_from(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        counted
    }

    #[test]
    fn sockets_are_told_from_files() {
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let without = of_child(std::process::Stdio::null());
        let with = of_child(std::os::fd::OwnedFd::from(theirs).into());
        assert!(without.0 >= 3, "standard input, output and error: {without:?}");
        assert_eq!(with, (without.0, without.1 + 1));
    }

    #[test]
    fn the_soft_limit_is_the_first_number_of_its_line() {
        let text = "Limit  Soft Limit  Hard Limit Units\nMax processes 5 6 processes\nMax open files            1024                 20000                files     \n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(soft_limit("Max open files  unlimited unlimited files\n"), Some(u64::MAX));
    }
}
