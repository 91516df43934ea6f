//! What is read when somebody asks: counts of objects, the daemon's own process.

use std::path::Path;
use std::time::Instant;

use prometheus::{Counter, IntGaugeVec};

use super::Metrics;
use crate::app::Ctx;
use crate::container::state::Phase;
use crate::sandbox::state::Phase as SandboxPhase;
use crate::stats::Numbers;
use crate::store::world::Snapshot;

/// Brings every family up to date that is a state and not a count of what happened.
pub(super) fn refresh(ctx: &Ctx) {
    let (world, numbers) = (ctx.world.snapshot(), ctx.stats.numbers());
    objects(&ctx.metrics, &world);
    storage(ctx, &numbers);
    network(ctx, &world);
    calls(&ctx.metrics);
    own_process(&ctx.metrics);
    let families = &ctx.metrics.families;
    let totals = ctx.world.events().totals();
    let to = |counter: prometheus::IntCounter, total: u64| {
        counter.inc_by(total.saturating_sub(counter.get()));
    };
    for (kind, total) in totals.kinds {
        to(families.events.with_label_values(&[kind]), total);
    }
    for (reason, total) in totals.exits {
        to(families.exits.with_label_values(&[super::page::reason(reason)]), total);
    }
    families.event_subscribers.set(count(ctx.world.events().subscribers()));
    families.sampled.set(count(numbers.containers.len() + numbers.pods.len()));
    for (state, shims) in ctx.links.states() {
        families.shims.with_label_values(&[state]).set(count(shims));
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Sets every series of a family that has one label, those without an object to 0.
fn tally(family: &IntGaugeVec, states: &[&'static str], found: impl Iterator<Item = &'static str>) {
    let mut counts: std::collections::HashMap<_, i64> = states.iter().map(|it| (*it, 0)).collect();
    for state in found {
        *counts.entry(state).or_default() += 1;
    }
    for (state, count) in counts {
        family.with_label_values(&[state]).set(count);
    }
}

fn objects(metrics: &Metrics, world: &Snapshot) {
    let families = &metrics.families;
    let sandboxes = world.sandboxes.values().map(|sandbox| match sandbox.phase {
        SandboxPhase::Starting => "starting",
        SandboxPhase::Ready => "ready",
        SandboxPhase::Failed => "failed",
        SandboxPhase::Stopping => "stopping",
        SandboxPhase::NotReady => "notready",
        SandboxPhase::Removing => "removing",
    });
    let states = ["starting", "ready", "failed", "stopping", "notready", "removing"];
    tally(&families.sandboxes, &states, sandboxes);
    let containers = world.containers.values().map(|container| match container.phase {
        Phase::Creating => "creating",
        Phase::Created { .. } => "created",
        Phase::Running { .. } => "running",
        Phase::Exited(_) => "exited",
        Phase::Removing => "removing",
    });
    let states = ["creating", "created", "running", "exited", "removing"];
    tally(&families.containers, &states, containers);
}

fn storage(ctx: &Ctx, numbers: &Numbers) {
    let families = &ctx.metrics.families;
    families.images.set(count(ctx.images.list().len()));
    let info = ctx.images.fs_info();
    families.image_bytes.set(whole(info.used_bytes));
    families.image_inodes.set(whole(info.inodes_used));
    let pulls = ctx.images.pulls();
    let stages = ["resolving", "fetching", "syncing"];
    tally(&families.pulls, &stages, pulls.iter().map(|pull| pull.stage.word()));
    let missing = pulls.iter().map(|pull| pull.bytes.saturating_sub(pull.bytes_here)).sum();
    families.pull_missing_bytes.set(whole(missing));
    raise(&families.pull_received_bytes, ctx.images.received_bytes() as f64);
    let written = numbers.census.values().filter_map(|census| census.written);
    families.writable_bytes.set(whole(written.map(|written| written.bytes).sum()));
    if let Ok(disk) = rustix::fs::statvfs(&ctx.config.root) {
        let set = |state, blocks: u64| {
            let bytes = whole(blocks.saturating_mul(disk.f_frsize));
            families.disk_bytes.with_label_values(&[state]).set(bytes);
        };
        set("total", disk.f_blocks);
        set("free", disk.f_bavail);
    }
}

fn network(ctx: &Ctx, world: &Snapshot) {
    let families = &ctx.metrics.families;
    let held = world.sandboxes.values().map(|sandbox| sandbox.addresses.len()).sum();
    families.addresses.set(count(held));
    let sizes = ctx.config.network.ranges.iter().map(|range| match range.size() {
        ipnetwork::NetworkSize::V4(size) => u64::from(size),
        ipnetwork::NetworkSize::V6(size) => u64::try_from(size).unwrap_or(u64::MAX),
    });
    families.address_pool.set(whole(sizes.fold(0, u64::saturating_add)));
    families.network_ready.set(i64::from(ctx.network.ready().is_ok()));
}

fn calls(metrics: &Metrics) {
    metrics.families.rpc_oldest_seconds.reset();
    for running in metrics.under_way.running().iter().filter(|running| running.stage.is_empty()) {
        let oldest = metrics.families.rpc_oldest_seconds.with_label_values(&[running.operation]);
        oldest.set(oldest.get().max(running.begun.elapsed().as_secs_f64()));
    }
}

/// Raises a counter to what somebody else has counted.
pub(crate) fn raise(counter: &Counter, to: f64) {
    counter.inc_by((to - counter.get()).max(0.0));
}

/// The unit of times in `/proc`: fixed for programs, whatever the kernel runs at.
const TICKS_PER_SECOND: f64 = 100.0;

fn own_process(metrics: &Metrics) {
    let families = &metrics.families;
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    raise(&families.process_cpu, used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    families.process_threads.set(status_field(&status, "Threads:"));
    families.process_memory.set(status_field(&status, "VmRSS:").saturating_mul(1024));
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(ticks) = start_ticks(&stat) {
        families.process_start.set(boot_time() + ticks / TICKS_PER_SECOND);
    }
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    families.process_descriptors.set(count(open));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    families.process_descriptors_max.set(limit.current.map_or(i64::MAX, whole));
}

fn status_field(status: &str, name: &str) -> i64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `/proc/PID/stat`; the name in parentheses may hold anything.
fn start_ticks(stat: &str) -> Option<f64> {
    // The first after the name is the third of proc(5).
    stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// Seconds since 1970.
fn boot_time() -> f64 {
    let text = std::fs::read_to_string(Path::new("/proc/stat")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0.0)
}

/// Counts the time of a scrape when it ends.
pub(super) struct Scrape<'a>(pub(super) &'a Metrics, pub(super) Instant);

impl Drop for Scrape<'_> {
    fn drop(&mut self) {
        self.0.families.scrape_seconds.observe(self.1.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_move_the_fields() {
        let text = "1 (a ) b) S 0 1 1 0 -1 4194560 1 2 3 4 50 60 7 8 20 0 9 0 1234 100000 77 0";
        assert_eq!(start_ticks(text), Some(1234.0));
        assert_eq!(status_field("Name:\tx\nVmRSS:\t    77 kB\nThreads:\t9\n", "VmRSS:"), 77);
    }
}
