//! The metrics of pods and containers: one table, from which the descriptors and samples of CRI,
//! the text of `/metrics/pods` and the page of documentation are made.
//!
//! Names, units and labels are cAdvisor's, so that dashboards and alerts go on to work.

use std::sync::Arc;

use crate::container::Container;
use crate::sandbox::Sandbox;
use crate::stats::census::Census;
use crate::stats::network::{Direction, Traffic};
use crate::stats::{Numbers, Usage};

/// The labels that every sample has; a family's own come after them.
pub(crate) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// A value, exact; CRI has whole numbers only, the text has fractions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    Whole(u64),
    Nanoseconds(u64),
}

impl Amount {
    /// Seconds are rounded down: the wire has no fractions.
    pub(crate) fn whole(self) -> u64 {
        match self {
            Self::Whole(value) => value,
            Self::Nanoseconds(value) => value / 1_000_000_000,
        }
    }

    pub(crate) fn exact(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Nanoseconds(value) => value as f64 / 1e9,
        }
    }
}

/// Takes the values of the family's own labels, and a value.
type Emit<'a> = dyn FnMut(&[&str], Amount) + 'a;

pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    /// Beside [`LABELS`].
    pub(crate) labels: &'static [&'static str],
    sample: fn(&Subject<'_>, &mut Emit<'_>),
}

impl Family {
    pub(crate) fn sample(&self, subject: &Subject<'_>, emit: &mut Emit<'_>) {
        (self.sample)(subject, emit);
    }
}

/// What is measured: a container, or a pod as a whole (with an empty name of the container).
pub(crate) struct Subject<'a> {
    pub(crate) labels: [&'a str; LABELS.len()],
    usage: &'a Usage,
    census: Option<&'a Census>,
    network: Option<&'a Traffic>,
    started_at_ns: i64,
    is_container: bool,
}

/// Calls `each` for the pod and for its containers, the pod first. An ended container is not
/// measured any more.
pub(crate) fn subjects<'a>(
    sandbox: &'a Sandbox,
    members: &'a [Arc<Container>],
    numbers: &'a Numbers,
    mut each: impl FnMut(Option<&'a Container>, &Subject<'a>),
) {
    let pod = &sandbox.spec.metadata;
    if let Some(sample) = numbers.pods.get(&sandbox.id) {
        let labels = ["", &*sandbox.cgroup_parent, "", "", &*pod.namespace, &*pod.name];
        let (usage, network) = (&sample.usage, sample.network.as_ref());
        let started_at_ns = sandbox.created_at_ns;
        let pod =
            Subject { labels, usage, census: None, network, started_at_ns, is_container: false };
        each(None, &pod);
    }
    for container in members {
        let Some(sample) = numbers.containers.get(&container.id) else { continue };
        if sample.is_final || !container.phase.is_shown() {
            continue;
        }
        let labels = [
            &*container.spec.name,
            &*container.cgroups_path,
            &*container.spec.image.image,
            container.id.as_str(),
            &*pod.namespace,
            &*pod.name,
        ];
        let started_at_ns = match container.phase {
            crate::container::state::Phase::Running { started_at_ns, .. } => started_at_ns,
            _ => container.created_at_ns,
        };
        let subject = Subject {
            labels,
            usage: &sample.usage,
            census: numbers.census.get(&container.id).map(|census| &**census),
            network: None,
            started_at_ns,
            is_container: true,
        };
        each(Some(container), &subject);
    }
}

fn whole(emit: &mut Emit<'_>, value: Option<u64>) {
    if let Some(value) = value {
        emit(&[], Amount::Whole(value));
    }
}

fn time(emit: &mut Emit<'_>, value: Option<u64>) {
    if let Some(value) = value {
        emit(&[], Amount::Nanoseconds(value));
    }
}

/// No limit is told as 0, as cAdvisor does.
fn limit(subject: &Subject<'_>, emit: &mut Emit<'_>, value: Option<u64>) {
    if subject.is_container {
        emit(&[], Amount::Whole(value.unwrap_or(0)));
    }
}

fn interfaces(
    subject: &Subject<'_>,
    emit: &mut Emit<'_>,
    value: fn((&Direction, &Direction)) -> u64,
) {
    for interface in subject.network.iter().flat_map(|traffic| &traffic.interfaces) {
        let value = value((&interface.received, &interface.sent));
        emit(&[&interface.name], Amount::Whole(value));
    }
}

fn devices(
    subject: &Subject<'_>,
    emit: &mut Emit<'_>,
    value: fn(&runtime::cgroup::meter::DeviceIo) -> u64,
) {
    for (io, device) in subject.usage.reading.io.iter().zip(&subject.usage.devices) {
        emit(&[device], Amount::Whole(value(io)));
    }
}

fn file_system(
    subject: &Subject<'_>,
    emit: &mut Emit<'_>,
    value: fn(&crate::stats::census::FileSystem, &Census) -> Option<u64>,
) {
    let Some(census) = subject.census else { return };
    let Some(file_system) = &census.file_system else { return };
    if let Some(value) = value(file_system, census) {
        emit(&[&file_system.device], Amount::Whole(value));
    }
}

fn failures(subject: &Subject<'_>, emit: &mut Emit<'_>) {
    let memory = &subject.usage.reading.memory;
    for (kind, scope, value) in [
        ("pgfault", "container", memory.own_page_faults),
        ("pgfault", "hierarchy", memory.page_faults),
        ("pgmajfault", "container", memory.own_major_page_faults),
        ("pgmajfault", "hierarchy", memory.major_page_faults),
    ] {
        if let Some(value) = value {
            emit(&[kind, scope], Amount::Whole(value));
        }
    }
}

fn block_devices(subject: &Subject<'_>, emit: &mut Emit<'_>) {
    for (io, device) in subject.usage.reading.io.iter().zip(&subject.usage.devices) {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            emit(&[device, &major, &minor, operation], Amount::Whole(bytes));
        }
    }
}

fn huge_pages(
    subject: &Subject<'_>,
    emit: &mut Emit<'_>,
    value: fn(&runtime::cgroup::meter::HugePages) -> u64,
) {
    for pages in &subject.usage.reading.huge_pages {
        emit(&[pages.page_size], Amount::Whole(value(pages)));
    }
}

/// A counter of the whole container or pod.
macro_rules! counter {
    ($name:literal, $help:literal, $sample:expr) => {
        counter!($name, $help, &[], $sample)
    };
    ($name:literal, $help:literal, $labels:expr, $sample:expr) => {
        Family { name: $name, help: $help, kind: Kind::Counter, labels: $labels, sample: $sample }
    };
}

/// The present value of something.
macro_rules! gauge {
    ($name:literal, $help:literal, $sample:expr) => {
        gauge!($name, $help, &[], $sample)
    };
    ($name:literal, $help:literal, $labels:expr, $sample:expr) => {
        Family { name: $name, help: $help, kind: Kind::Gauge, labels: $labels, sample: $sample }
    };
}

/// Every metric of pods and containers.
#[rustfmt::skip] // one line each, to be read as a table
pub(crate) const FAMILIES: &[Family] = &[
    counter!("container_blkio_device_usage_total", "Bytes read from and written to a block device.",
        &["device", "major", "minor", "operation"], block_devices),
    counter!("container_cpu_cfs_periods_total", "Enforcement periods of the CPU quota that have passed.",
        |s, e| whole(e, s.usage.reading.cpu.periods)),
    counter!("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.",
        |s, e| whole(e, s.usage.reading.cpu.throttled_periods)),
    counter!("container_cpu_cfs_throttled_seconds_total", "Time that was spent waiting for the next period of the CPU quota.",
        |s, e| time(e, s.usage.reading.cpu.throttled_ns)),
    counter!("container_cpu_system_seconds_total", "CPU time used in the kernel.",
        |s, e| time(e, s.usage.reading.cpu.system_ns)),
    counter!("container_cpu_usage_seconds_total", "CPU time used in all; the label is always `total`.",
        &["cpu"], |s, e| if let Some(value) = s.usage.reading.cpu.total_ns { e(&["total"], Amount::Nanoseconds(value)); }),
    counter!("container_cpu_user_seconds_total", "CPU time used outside the kernel.",
        |s, e| time(e, s.usage.reading.cpu.user_ns)),
    gauge!("container_file_descriptors", "Open file descriptors of all processes.",
        |s, e| whole(e, s.census.map(|census| census.descriptors))),
    gauge!("container_fs_inodes_free", "Free inodes of the file system that the container writes to.",
        &["device"], |s, e| file_system(s, e, |fs, _| Some(fs.inodes_free))),
    gauge!("container_fs_inodes_total", "Inodes of the file system that the container writes to.",
        &["device"], |s, e| file_system(s, e, |fs, _| Some(fs.inodes))),
    gauge!("container_fs_limit_bytes", "Size of the file system that the container writes to.",
        &["device"], |s, e| file_system(s, e, |fs, _| Some(fs.bytes))),
    counter!("container_fs_reads_bytes_total", "Bytes read from a device.",
        &["device"], |s, e| devices(s, e, |io| io.read_bytes)),
    counter!("container_fs_reads_total", "Reads from a device.",
        &["device"], |s, e| devices(s, e, |io| io.reads)),
    gauge!("container_fs_usage_bytes", "What the container has written, without its image.",
        &["device"], |s, e| file_system(s, e, |_, census| census.written.map(|written| written.bytes))),
    counter!("container_fs_writes_bytes_total", "Bytes written to a device.",
        &["device"], |s, e| devices(s, e, |io| io.written_bytes)),
    counter!("container_fs_writes_total", "Writes to a device.",
        &["device"], |s, e| devices(s, e, |io| io.writes)),
    gauge!("container_hugetlb_max_usage_bytes", "Most huge pages that were in use at once; on cgroup v2, which does not keep it, those in use now.",
        &["pagesize"], |s, e| huge_pages(s, e, |pages| pages.peak.unwrap_or(pages.usage))),
    gauge!("container_hugetlb_usage_bytes", "Huge pages in use.",
        &["pagesize"], |s, e| huge_pages(s, e, |pages| pages.usage)),
    gauge!("container_last_seen", "When the container was measured last, in seconds since 1970.",
        |s, e| time(e, u64::try_from(s.usage.at_ns).ok())),
    gauge!("container_memory_cache", "Bytes of cached file pages.",
        |s, e| whole(e, s.usage.reading.memory.cache)),
    counter!("container_memory_failcnt", "How often the memory limit was hit.",
        |s, e| whole(e, s.usage.reading.memory.limit_hits)),
    counter!("container_memory_failures_total", "Page faults, by kind and by whether groups below are counted too.",
        &["failure_type", "scope"], failures),
    gauge!("container_memory_kernel_usage", "Bytes of kernel memory.",
        |s, e| whole(e, s.usage.reading.memory.kernel)),
    gauge!("container_memory_mapped_file", "Bytes of mapped file pages.",
        |s, e| whole(e, s.usage.reading.memory.mapped_file)),
    gauge!("container_memory_max_usage_bytes", "Most memory that was in use at once.",
        |s, e| whole(e, s.usage.reading.memory.peak)),
    gauge!("container_memory_rss", "Bytes of anonymous memory.",
        |s, e| whole(e, s.usage.reading.memory.rss)),
    gauge!("container_memory_swap", "Bytes in swap.",
        |s, e| whole(e, s.usage.reading.memory.swap)),
    gauge!("container_memory_total_active_file_bytes", "Bytes of file pages that were used lately.",
        |s, e| whole(e, s.usage.reading.memory.active_file)),
    gauge!("container_memory_total_inactive_file_bytes", "Bytes of file pages that are reclaimed first.",
        |s, e| whole(e, s.usage.reading.memory.inactive_file)),
    gauge!("container_memory_usage_bytes", "Memory in use, with file pages.",
        |s, e| whole(e, s.usage.reading.memory.usage)),
    gauge!("container_memory_working_set_bytes", "Memory in use without inactive file pages: what eviction looks at.",
        |s, e| whole(e, s.usage.reading.memory.working_set)),
    counter!("container_network_receive_bytes_total", "Bytes received.",
        &["interface"], |s, e| interfaces(s, e, |(received, _)| received.bytes)),
    counter!("container_network_receive_errors_total", "Errors while receiving.",
        &["interface"], |s, e| interfaces(s, e, |(received, _)| received.errors)),
    counter!("container_network_receive_packets_dropped_total", "Received packets that were dropped.",
        &["interface"], |s, e| interfaces(s, e, |(received, _)| received.dropped)),
    counter!("container_network_receive_packets_total", "Packets received.",
        &["interface"], |s, e| interfaces(s, e, |(received, _)| received.packets)),
    counter!("container_network_transmit_bytes_total", "Bytes sent.",
        &["interface"], |s, e| interfaces(s, e, |(_, sent)| sent.bytes)),
    counter!("container_network_transmit_errors_total", "Errors while sending.",
        &["interface"], |s, e| interfaces(s, e, |(_, sent)| sent.errors)),
    counter!("container_network_transmit_packets_dropped_total", "Packets that were dropped while sending.",
        &["interface"], |s, e| interfaces(s, e, |(_, sent)| sent.dropped)),
    counter!("container_network_transmit_packets_total", "Packets sent.",
        &["interface"], |s, e| interfaces(s, e, |(_, sent)| sent.packets)),
    counter!("container_oom_events_total", "Processes killed for want of memory.",
        |s, e| whole(e, s.usage.reading.memory.oom_kills)),
    counter!("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU.",
        |s, e| time(e, s.usage.reading.cpu_pressure.map(|p| p.full.total_ns))),
    counter!("container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU.",
        |s, e| time(e, s.usage.reading.cpu_pressure.map(|p| p.some.total_ns))),
    counter!("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for a device.",
        |s, e| time(e, s.usage.reading.io_pressure.map(|p| p.full.total_ns))),
    counter!("container_pressure_io_waiting_seconds_total", "Time in which some task waited for a device.",
        |s, e| time(e, s.usage.reading.io_pressure.map(|p| p.some.total_ns))),
    counter!("container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory.",
        |s, e| time(e, s.usage.reading.memory_pressure.map(|p| p.full.total_ns))),
    counter!("container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory.",
        |s, e| time(e, s.usage.reading.memory_pressure.map(|p| p.some.total_ns))),
    gauge!("container_processes", "Processes.",
        |s, e| whole(e, s.usage.reading.processes)),
    gauge!("container_sockets", "Open sockets of all processes.",
        |s, e| whole(e, s.census.map(|census| census.sockets))),
    gauge!("container_spec_cpu_period", "Period of the CPU quota in microseconds.",
        |s, e| limit(s, e, s.usage.limits.cpu_period_us)),
    gauge!("container_spec_cpu_quota", "CPU quota in microseconds a period; 0 without one.",
        |s, e| limit(s, e, s.usage.limits.cpu_quota_us)),
    gauge!("container_spec_cpu_shares", "Share of the CPU against others, 1024 being one.",
        |s, e| limit(s, e, s.usage.limits.cpu_shares)),
    gauge!("container_spec_memory_limit_bytes", "Memory limit; 0 without one.",
        |s, e| limit(s, e, s.usage.limits.memory)),
    gauge!("container_spec_memory_reservation_limit_bytes", "Memory that reclaim spares; 0 without such.",
        |s, e| limit(s, e, s.usage.limits.memory_reservation)),
    gauge!("container_spec_memory_swap_limit_bytes", "Swap limit, on cgroup v1 together with that of memory; 0 without one.",
        |s, e| limit(s, e, s.usage.limits.swap_file)),
    gauge!("container_start_time_seconds", "When it was started, in seconds since 1970.",
        |s, e| time(e, u64::try_from(s.started_at_ns).ok())),
    gauge!("container_threads", "Threads.",
        |s, e| whole(e, s.usage.reading.threads)),
    gauge!("container_threads_max", "Most threads it may have; 0 without a limit.",
        |s, e| limit(s, e, s.usage.reading.threads_max)),
    gauge!("container_ulimits_soft", "Soft limits of the first process; one so large that it means none is -1 for cAdvisor and left out here.",
        &["ulimit"], |s, e| if let Some(value) = s.census.and_then(|census| census.open_files_soft).filter(|value| *value < u64::MAX) { e(&["max_open_files"], Amount::Whole(value)); }),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_family_has_a_name_of_its_own_and_says_what_it_is() {
        let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            assert!(
                family.name.starts_with("container_") && family.help.ends_with('.'),
                "{}",
                family.name
            );
            let total = family.name.ends_with("_total") || family.name.ends_with("_failcnt");
            // cAdvisor means «all», not «counted».
            let total = total && family.name != "container_fs_inodes_total";
            assert_eq!(family.kind == Kind::Counter, total, "{}", family.name);
            assert!(family.labels.iter().all(|label| !LABELS.contains(label)), "{}", family.name);
        }
    }

    #[test]
    fn seconds_are_whole_for_cri_and_exact_in_text() {
        let time = Amount::Nanoseconds(2_750_000_000);
        assert_eq!(time.whole(), 2);
        assert!((time.exact() - 2.75).abs() < 1e-12);
    }
}
