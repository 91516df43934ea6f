//! What the manifest becomes on the wire: a sandbox and container configurations such as the kubelet
//! would send. Pure: pod and facts in, CRI messages out.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use proto::cri::v1 as cri;

use super::{
    container::{Container, Port, Propagation, Protocol, Resources, env_text},
    expand::expand,
    manifest::Pod,
};

/// Labels by which every CRI client finds the objects of a pod.
pub(crate) const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The weight of one core, as docker defined it and the kubelet kept it.
const SHARES_PER_CPU: i64 = 1_024;

/// The kernel's least weight.
const SHARES_MIN: i64 = 2;

/// The kubelet's period for CPU limits, in microseconds.
const CPU_PERIOD_US: i64 = 100_000;

/// The kernel's least quota, in microseconds.
const CPU_QUOTA_MIN_US: i64 = 1_000;

/// Host names end at 63 bytes, pod names at 253.
const HOSTNAME_BYTES_MAX: usize = 63;

/// What the kubelet hides from an unprivileged container: files that tell about the host.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What it may read but not write: switches of the host.
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a plan depends on beside the manifest.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) uid: String,
    pub(crate) log_directory: PathBuf,
    /// Where each volume is on the host.
    pub(crate) volumes: BTreeMap<String, PathBuf>,
    /// The node's resolver configuration, empty when it has none.
    pub(crate) resolv_conf: String,
}

/// What the daemon says about an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) id: String,
    /// The user its configuration names, by number or by name.
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
}

pub(crate) fn sandbox(pod: &Pod, facts: &Facts) -> cri::PodSandboxConfig {
    let privileged = all_containers(pod).any(|container| container.security.privileged);
    // Group alone is refused by the CRI: it has no meaning without a user.
    let run_as_group = pod.security.run_as_user.and(pod.security.run_as_group);
    let security_context = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: pod.security.run_as_user.map(int64),
        run_as_group: run_as_group.map(int64),
        supplemental_groups: pod.security.supplemental_groups.clone(),
        privileged,
        seccomp: Some(seccomp(cri::security_profile::ProfileType::RuntimeDefault)),
        ..Default::default()
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: facts.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt: 0,
        }),
        hostname: if pod.host_network { String::new() } else { hostname(pod) },
        log_directory: text(&facts.log_directory),
        dns_config: dns(pod, &facts.resolv_conf),
        port_mappings: port_mappings(pod),
        labels: labels(pod, &facts.uid),
        annotations: pod.annotations.clone().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(security_context),
            sysctls: pod.security.sysctls.clone().into_iter().collect(),
            ..Default::default()
        }),
        windows: None,
    }
}

/// `address` is the pod's, for variables that ask for it.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    image: &Image,
    address: &str,
) -> cri::ContainerConfig {
    let envs = environment(pod, container, &facts.uid, address);
    let lookup = |name: &str| {
        envs.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    };
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, lookup)).collect();
    let mut labels = own_labels(pod, &facts.uid);
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), container.name.clone());
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: 0 }),
        image: Some(cri::ImageSpec {
            image: image.id.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts: mounts(container, facts),
        labels,
        log_path: text(&log_path(&container.name)),
        stdin: container.stdin,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&container.resources)),
            security_context: Some(security(pod, container, image)),
        }),
        envs: envs
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() })
            .collect(),
        ..Default::default()
    }
}

/// Where a container logs, below the pod's log directory; the kubelet's own layout.
pub(crate) fn log_path(container: &str) -> PathBuf {
    Path::new(container).join("0.log")
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().chain(&pod.containers)
}

fn labels(pod: &Pod, uid: &str) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod.labels.clone().into_iter().collect();
    labels.extend(own_labels(pod, uid));
    labels
}

fn own_labels(pod: &Pod, uid: &str) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_POD_NAME.to_owned(), pod.name.clone()),
        (LABEL_POD_NAMESPACE.to_owned(), pod.namespace.clone()),
        (LABEL_POD_UID.to_owned(), uid.to_owned()),
    ])
}

/// The pod's name unless it says otherwise, cut where host names end.
fn hostname(pod: &Pod) -> String {
    let name = pod.hostname.as_deref().unwrap_or(&pod.name);
    let cut = name.get(..HOSTNAME_BYTES_MAX).unwrap_or(name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let pid = match (pod.host_pid, pod.share_process_namespace) {
        (true, _) => Node,
        (false, true) => Pod,
        (false, false) => Container,
    };
    let shared = |host: bool| if host { Node } else { Pod };
    cri::NamespaceOption {
        network: shared(pod.host_network).into(),
        pid: pid.into(),
        ipc: shared(pod.host_ipc).into(),
        ..Default::default()
    }
}

/// Absent means: as the node has it.
fn dns(pod: &Pod, resolv_conf: &str) -> Option<cri::DnsConfig> {
    let own = &pod.dns;
    let mut dns = if own.from_node {
        if own.servers.is_empty() && own.searches.is_empty() && own.options.is_empty() {
            return None;
        }
        parse_resolv_conf(resolv_conf)
    } else {
        cri::DnsConfig::default()
    };
    append_new(&mut dns.servers, &own.servers);
    append_new(&mut dns.searches, &own.searches);
    let named = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    let overridden: Vec<String> = own.options.iter().map(|option| named(option)).collect();
    dns.options.retain(|option| !overridden.contains(&named(option)));
    append_new(&mut dns.options, &own.options);
    Some(dns)
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The three directives of resolv.conf(5) that the CRI can say; the last `search` counts.
fn parse_resolv_conf(text: &str) -> cri::DnsConfig {
    let mut dns = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let directive = words.next();
        let values = words.map(str::to_owned);
        match directive {
            Some("nameserver") => dns.servers.extend(values.take(1)),
            Some("search") => dns.searches = values.collect(),
            Some("options") => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

/// Nothing to map when the pod is in the host's network.
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if pod.host_network {
        return Vec::new();
    }
    let mapping = |port: &Port| cri::PortMapping {
        protocol: match port.protocol {
            Protocol::Tcp => cri::Protocol::Tcp,
            Protocol::Udp => cri::Protocol::Udp,
            Protocol::Sctp => cri::Protocol::Sctp,
        }
        .into(),
        container_port: port.container,
        host_port: port.host,
        host_ip: port.host_ip.clone(),
    };
    pod.containers.iter().flat_map(|container| &container.ports).map(mapping).collect()
}

/// Each value may refer to the variables above it.
fn environment(
    pod: &Pod,
    container: &Container,
    uid: &str,
    address: &str,
) -> Vec<(String, String)> {
    let mut envs: Vec<(String, String)> = Vec::with_capacity(container.env.len());
    for env in &container.env {
        let text = env_text(&env.value, pod, uid, address);
        let value = expand(text, |name| {
            envs.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        });
        envs.push((env.name.clone(), value));
    }
    envs
}

fn mounts(container: &Container, facts: &Facts) -> Vec<cri::Mount> {
    let propagation = |propagation| match propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    let mount = |mount: &super::container::VolumeMount| {
        let host_path = facts.volumes.get(&mount.volume)?;
        Some(cri::Mount {
            container_path: mount.path.clone(),
            host_path: text(host_path),
            readonly: mount.read_only,
            propagation: propagation(mount.propagation).into(),
            ..Default::default()
        })
    };
    container.mounts.iter().filter_map(mount).collect()
}

/// As the kubelet computes them, but that a container which asks for no CPU keeps the default
/// weight: below the kubelet the least weight is meant against pods that did ask, and without one
/// it would only starve the container.
fn resources(resources: &Resources) -> cri::LinuxContainerResources {
    let shares = resources.cpu_request_milli.or(resources.cpu_limit_milli);
    let shares = shares.map(|milli| (milli.saturating_mul(SHARES_PER_CPU) / 1_000).max(SHARES_MIN));
    let limit = resources.cpu_limit_milli.filter(|milli| *milli > 0);
    let quota =
        limit.map(|milli| (milli.saturating_mul(CPU_PERIOD_US) / 1_000).max(CPU_QUOTA_MIN_US));
    cri::LinuxContainerResources {
        cpu_shares: shares.unwrap_or_default(),
        cpu_period: if quota.is_some() { CPU_PERIOD_US } else { 0 },
        cpu_quota: quota.unwrap_or_default(),
        memory_limit_in_bytes: resources.memory_limit_bytes.unwrap_or_default(),
        ..Default::default()
    }
}

fn security(pod: &Pod, container: &Container, image: &Image) -> cri::LinuxContainerSecurityContext {
    let own = &container.security;
    let user = own.run_as_user.or(pod.security.run_as_user);
    let group = own.run_as_group.or(pod.security.run_as_group);
    // A group needs a user beside it; the image's is as good as the manifest's.
    let user = user.or(image.uid.filter(|_| group.is_some()));
    let by_name = user.is_none() && group.is_some();
    let paths = |paths: &[&str]| {
        let hidden = if own.privileged { &[][..] } else { paths };
        hidden.iter().map(|path| (*path).to_owned()).collect()
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: own.capabilities_add.clone(),
            drop_capabilities: own.capabilities_drop.clone(),
            ..Default::default()
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(int64),
        run_as_username: if by_name { image.username.clone() } else { String::new() },
        run_as_group: group.map(int64),
        readonly_rootfs: own.read_only_root,
        supplemental_groups: pod.security.supplemental_groups.clone(),
        no_new_privs: own.no_new_privs,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        // What Kubernetes does when a manifest does not speak of seccomp.
        seccomp: Some(seccomp(cri::security_profile::ProfileType::Unconfined)),
        ..Default::default()
    }
}

fn seccomp(kind: cri::security_profile::ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() }
}

fn int64(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

/// Paths of a manifest are text, and so are those made from the names in it.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
