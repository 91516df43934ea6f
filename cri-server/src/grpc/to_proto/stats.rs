//! Numbers of pods and containers on the wire.

use proto::cri::v1 as cri;
use runtime::cgroup::meter::{Pressure, Stall};

use super::{container_metadata, sandbox_metadata};
use crate::container::Container;
use crate::metrics::pods::{self, Family};
use crate::sandbox::Sandbox;
use crate::stats::network::{Interface, Traffic};
use crate::stats::{Numbers, Usage};
use crate::store::world::Members;

/// What an answer is made of.
pub(crate) struct View<'a> {
    pub(crate) members: &'a Members,
    pub(crate) numbers: &'a Numbers,
    /// Where containers write.
    pub(crate) mountpoint: &'a str,
}

fn amount(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

impl View<'_> {
    pub(crate) fn container(&self, container: &Container) -> cri::ContainerStats {
        let sample = self.numbers.containers.get(&container.id);
        let usage = sample.map(|sample| &sample.usage);
        let census = self.numbers.census.get(&container.id);
        let written = census.and_then(|census| Some((census.at_ns, census.written?)));
        // One that has ended uses nothing any more; what it has used of the CPU stays true.
        let present = sample.filter(|sample| !sample.is_final).map(|sample| &sample.usage);
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: container.id.to_string(),
                metadata: Some(container_metadata(container)),
                labels: container.spec.labels.clone().into_iter().collect(),
                annotations: container.spec.annotations.clone().into_iter().collect(),
            }),
            cpu: usage.map(|usage| cpu(usage, present.is_some())),
            memory: present.map(memory),
            writable_layer: written.map(|(timestamp, written)| cri::FilesystemUsage {
                timestamp,
                fs_id: Some(cri::FilesystemIdentifier { mountpoint: self.mountpoint.to_owned() }),
                used_bytes: amount(written.bytes),
                inodes_used: amount(written.inodes),
            }),
            swap: present.and_then(swap),
            io: present.map(io),
        }
    }

    pub(crate) fn sandbox(&self, sandbox: &Sandbox) -> cri::PodSandboxStats {
        let sample = self.numbers.pods.get(&sandbox.id);
        let usage = sample.map(|sample| &sample.usage);
        let running = self.members.of(&sandbox.id).iter().filter(|it| is_listed(it));
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: sandbox.id.to_string(),
                metadata: Some(sandbox_metadata(&sandbox.spec.metadata)),
                labels: sandbox.spec.labels.clone().into_iter().collect(),
                annotations: sandbox.spec.annotations.clone().into_iter().collect(),
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: usage.map(|usage| cpu(usage, true)),
                memory: usage.map(memory),
                network: sample.and_then(|sample| sample.network.as_ref()).map(network),
                process: usage.and_then(|usage| {
                    let process_count = amount(usage.reading.processes?);
                    Some(cri::ProcessUsage { timestamp: usage.at_ns, process_count })
                }),
                containers: running.map(|container| self.container(container)).collect(),
                io: usage.map(io),
            }),
            windows: None,
        }
    }

    /// All samples of a pod, in the terms of [`descriptors`].
    pub(crate) fn metrics(&self, sandbox: &Sandbox) -> cri::PodSandboxMetrics {
        let mut metrics =
            cri::PodSandboxMetrics { pod_sandbox_id: sandbox.id.to_string(), ..Default::default() };
        let members = self.members.of(&sandbox.id);
        pods::subjects(sandbox, members, self.numbers, |container, subject| {
            let samples = pods::FAMILIES.iter().flat_map(|family| samples(family, subject));
            let samples = samples.collect();
            match container {
                None => metrics.metrics = samples,
                Some(container) => metrics.container_metrics.push(cri::ContainerMetrics {
                    container_id: container.id.to_string(),
                    metrics: samples,
                }),
            }
        });
        metrics
    }
}

/// Lists tell what uses something now.
pub(crate) fn is_listed(container: &Container) -> bool {
    use crate::container::state::Phase;
    matches!(container.phase, Phase::Created { .. } | Phase::Running { .. })
}

fn samples(family: &Family, subject: &pods::Subject<'_>) -> Vec<cri::Metric> {
    let mut samples = Vec::new();
    family.sample(subject, &mut |own, amount| {
        samples.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp: 0,
            metric_type: match family.kind {
                pods::Kind::Counter => cri::MetricType::Counter,
                pods::Kind::Gauge => cri::MetricType::Gauge,
            }
            .into(),
            label_values: subject.labels.iter().chain(own).map(|it| (*it).to_owned()).collect(),
            value: Some(cri::UInt64Value { value: amount.whole() }),
        });
    });
    samples
}

pub(crate) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let descriptor = |family: &Family| cri::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: pods::LABELS.iter().chain(family.labels).map(|it| (*it).to_owned()).collect(),
    };
    pods::FAMILIES.iter().map(descriptor).collect()
}

fn cpu(usage: &Usage, is_present: bool) -> cri::CpuUsage {
    let now = |value: u64| if is_present { value } else { 0 };
    cri::CpuUsage {
        timestamp: usage.at_ns,
        usage_core_nano_seconds: usage.reading.cpu.total_ns.and_then(amount),
        usage_nano_cores: usage.nano_cores.map(now).and_then(amount),
        psi: usage.reading.cpu_pressure.as_ref().map(psi),
    }
}

fn memory(usage: &Usage) -> cri::MemoryUsage {
    let memory = &usage.reading.memory;
    let available = usage.limits.memory.zip(memory.working_set);
    cri::MemoryUsage {
        timestamp: usage.at_ns,
        working_set_bytes: memory.working_set.and_then(amount),
        available_bytes: available.and_then(|(limit, used)| amount(limit.saturating_sub(used))),
        usage_bytes: memory.usage.and_then(amount),
        rss_bytes: memory.rss.and_then(amount),
        page_faults: memory.page_faults.and_then(amount),
        major_page_faults: memory.major_page_faults.and_then(amount),
        psi: usage.reading.memory_pressure.as_ref().map(psi),
    }
}

fn swap(usage: &Usage) -> Option<cri::SwapUsage> {
    let used = usage.reading.memory.swap?;
    let limit = usage.limits.swap;
    Some(cri::SwapUsage {
        timestamp: usage.at_ns,
        swap_available_bytes: limit.and_then(|limit| amount(limit.saturating_sub(used))),
        swap_usage_bytes: amount(used),
    })
}

fn io(usage: &Usage) -> cri::IoUsage {
    cri::IoUsage { timestamp: usage.at_ns, psi: usage.reading.io_pressure.as_ref().map(psi) }
}

fn psi(pressure: &Pressure) -> cri::PsiStats {
    let data = |stall: &Stall| cri::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(data(&pressure.full)), some: Some(data(&pressure.some)) }
}

fn network(traffic: &Traffic) -> cri::NetworkUsage {
    let interface = |interface: &Interface| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: amount(interface.received.bytes),
        rx_errors: amount(interface.received.errors),
        tx_bytes: amount(interface.sent.bytes),
        tx_errors: amount(interface.sent.errors),
    };
    let default = traffic.default.and_then(|at| traffic.interfaces.get(at));
    let others = traffic.interfaces.iter().enumerate();
    cri::NetworkUsage {
        timestamp: traffic.at_ns,
        default_interface: default.map(interface),
        interfaces: others
            .filter(|(at, _)| Some(*at) != traffic.default)
            .map(|(_, other)| interface(other))
            .collect(),
    }
}
