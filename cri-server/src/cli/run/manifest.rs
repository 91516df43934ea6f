//! A Kubernetes v1 Pod manifest, parsed as far as `lapstrake run` can honour it; whatever it cannot
//! honour is refused by name, all mistakes at once. Pure: text in, pod out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    container::{self, Container},
    fields::{Fault, Faults, Fields},
};
use crate::quantity;

/// A pod as it is to be run. One that exists is consistent: names are unique and mounts find their
/// volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Absent: one is made for each run.
    pub(crate) uid: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) init_containers: Vec<Container>,
    pub(crate) containers: Vec<Container>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) host_network: bool,
    pub(crate) host_pid: bool,
    pub(crate) host_ipc: bool,
    pub(crate) share_process_namespace: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) dns: Dns,
    /// What the manifest asks for; a run starts every container once whatever it says.
    pub(crate) restart_policy: Option<RestartPolicy>,
    pub(crate) grace_s: u32,
    pub(crate) security: PodSecurity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeSource {
    HostPath { path: String, kind: HostPathKind },
    EmptyDir { medium: Medium, size_limit_bytes: Option<i64> },
}

/// What must be found at a host path, or be made there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostPathKind {
    Unchecked,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    Disk,
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dns {
    /// Whether the node's own resolver configuration comes first. There is no cluster resolver
    /// without a cluster, so this holds for every policy but `None`.
    pub(crate) from_node: bool,
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodSecurity {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) supplemental_groups: Vec<i64>,
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Why a text is not a pod that can be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("not YAML: {0}")]
    Yaml(String),
    #[error("{0} documents; lapstrake run takes exactly one Pod")]
    Documents(usize),
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

/// Parses the one pod in `text`; `name` takes the place of `metadata.name`.
pub(crate) fn parse(text: &str, name: Option<&str>) -> Result<Pod, Error> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| Error::Yaml(error.without_snippet().to_string()))?;
    let documents: Vec<Value> = documents.into_iter().filter(|value| !value.is_null()).collect();
    let [document] = documents.as_slice() else {
        return Err(Error::Documents(documents.len()));
    };
    let faults = Faults::default();
    let pod = Fields::read("", document, &faults, |top| read_top(top, name)).flatten();
    if let Some(pod) = &pod {
        check_references(pod, &faults);
    }
    match (pod, faults.into_vec()) {
        (Some(pod), faults) if faults.is_empty() => Ok(pod),
        (_, faults) => Err(Error::Faults(faults)),
    }
}

/// `None` when the document is another kind of object, whose fields would only be noise.
fn read_top(top: &mut Fields<'_>, name: Option<&str>) -> Option<Pod> {
    let version = top.required("apiVersion");
    let kind = top.required("kind");
    let is_pod = kind == "Pod" && version == "v1";
    if !is_pod {
        if !kind.is_empty() && !version.is_empty() {
            top.fault("kind", format!("must be Pod of apiVersion v1, not {kind} of {version}"));
        }
        for key in ["metadata", "spec", "status", "items", "data"] {
            top.ignore(key);
        }
        return None;
    }
    top.only_empty("status");
    let mut pod = EMPTY_POD;
    if top.object("metadata", |metadata| read_metadata(metadata, name, &mut pod)).is_none() {
        top.needs("metadata");
    }
    if top.object("spec", |spec| read_spec(spec, &mut pod)).is_none() {
        top.needs("spec");
    }
    Some(pod)
}

const EMPTY_POD: Pod = Pod {
    name: String::new(),
    namespace: String::new(),
    uid: None,
    labels: BTreeMap::new(),
    annotations: BTreeMap::new(),
    init_containers: Vec::new(),
    containers: Vec::new(),
    volumes: Vec::new(),
    host_network: false,
    host_pid: false,
    host_ipc: false,
    share_process_namespace: false,
    hostname: None,
    dns: Dns { from_node: true, servers: Vec::new(), searches: Vec::new(), options: Vec::new() },
    restart_policy: None,
    grace_s: GRACE_DEFAULT_S,
    security: PodSecurity {
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        sysctls: BTreeMap::new(),
    },
};

/// Kubernetes' default of `terminationGracePeriodSeconds`.
const GRACE_DEFAULT_S: u32 = 30;

/// A day: a longer wait for a process that was told to end is a mistake in the manifest.
const GRACE_MAX_S: i64 = 86_400;

fn read_metadata(metadata: &mut Fields<'_>, name: Option<&str>, pod: &mut Pod) {
    pod.name = match name {
        Some(name) => {
            metadata.string("name");
            name.to_owned()
        }
        None => metadata.required("name"),
    };
    if !pod.name.is_empty() {
        check_name(metadata, "name", &pod.name, NameKind::Subdomain);
    }
    pod.namespace = metadata.string("namespace").unwrap_or_else(|| "default".to_owned());
    check_name(metadata, "namespace", &pod.namespace, NameKind::Label);
    pod.uid = metadata.string("uid");
    if let Some(uid) = &pod.uid {
        // It becomes the name of a directory and the value of a label.
        check_name(metadata, "uid", uid, NameKind::Label);
    }
    pod.labels = metadata.string_map("labels");
    pod.annotations = metadata.string_map("annotations");
}

fn read_spec(spec: &mut Fields<'_>, pod: &mut Pod) {
    pod.init_containers = spec.objects("initContainers", container::read);
    pod.containers = spec.objects("containers", container::read);
    if !spec.has("containers") {
        spec.fault("containers", "is missing");
    } else if spec.is_empty_list("containers") {
        spec.fault("containers", "must name at least one container");
    }
    pod.volumes = spec.objects("volumes", read_volume);
    pod.host_network = spec.boolean("hostNetwork").unwrap_or(false);
    pod.host_pid = spec.boolean("hostPID").unwrap_or(false);
    pod.host_ipc = spec.boolean("hostIPC").unwrap_or(false);
    pod.share_process_namespace = spec.boolean("shareProcessNamespace").unwrap_or(false);
    if pod.host_pid && pod.share_process_namespace {
        spec.fault("shareProcessNamespace", "cannot be combined with hostPID");
    }
    pod.hostname = spec.string("hostname");
    if let Some(hostname) = &pod.hostname {
        check_name(spec, "hostname", hostname, NameKind::Label);
    }
    pod.dns = read_dns(spec);
    pod.restart_policy = spec.choice(
        "restartPolicy",
        &[
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ],
    );
    if let Some(grace) = spec.integer("terminationGracePeriodSeconds", 0..=GRACE_MAX_S) {
        pod.grace_s = u32::try_from(grace).unwrap_or(GRACE_DEFAULT_S);
    }
    pod.security = spec.object("securityContext", read_security).unwrap_or_default();
}

fn read_security(security: &mut Fields<'_>) -> PodSecurity {
    let (run_as_user, run_as_group) = container::read_user(security);
    let groups = security.integers("supplementalGroups", 0..=container::ID_MAX);
    let sysctls =
        security.objects("sysctls", |sysctl| (sysctl.required("name"), sysctl.required("value")));
    PodSecurity {
        run_as_user,
        run_as_group,
        supplemental_groups: groups,
        sysctls: sysctls.into_iter().collect(),
    }
}

fn read_dns(spec: &mut Fields<'_>) -> Dns {
    let policies = [
        ("ClusterFirst", true),
        ("ClusterFirstWithHostNet", true),
        ("Default", true),
        ("None", false),
    ];
    let from_node = spec.choice("dnsPolicy", &policies).unwrap_or(true);
    let mut dns = Dns { from_node, ..EMPTY_POD.dns };
    spec.object("dnsConfig", |config| {
        dns.servers = config.strings("nameservers");
        for (index, server) in dns.servers.iter().enumerate() {
            if server.parse::<std::net::IpAddr>().is_err() {
                config.fault(&format!("nameservers[{index}]"), "must be an IP address");
            }
        }
        dns.searches = config.strings("searches");
        dns.options = config.objects("options", |option| {
            let name = option.required("name");
            option.string("value").map_or(name.clone(), |value| format!("{name}:{value}"))
        });
    });
    if !from_node && dns.servers.is_empty() {
        spec.fault("dnsConfig", "must name nameservers when dnsPolicy is None");
    }
    dns
}

fn read_volume(volume: &mut Fields<'_>) -> Volume {
    let name = volume.required("name");
    check_name(volume, "name", &name, NameKind::Label);
    let host_path = volume.object("hostPath", read_host_path);
    let empty_dir = volume.object("emptyDir", |empty| {
        let medium = empty.choice("medium", &[("", Medium::Disk), ("Memory", Medium::Memory)]);
        let size_limit_bytes = read_quantity(empty, "sizeLimit", quantity::whole);
        VolumeSource::EmptyDir { medium: medium.unwrap_or(Medium::Disk), size_limit_bytes }
    });
    let source = match (host_path, empty_dir) {
        (Some(source), None) | (None, Some(source)) => source,
        (Some(source), Some(_)) => {
            volume.fault("emptyDir", "cannot be combined with hostPath");
            source
        }
        (None, None) => {
            volume.fault_here("must have a hostPath or an emptyDir");
            VolumeSource::EmptyDir { medium: Medium::Disk, size_limit_bytes: None }
        }
    };
    Volume { name, source }
}

fn read_host_path(host: &mut Fields<'_>) -> VolumeSource {
    let path = host.required("path");
    if !path.is_empty() && (!path.starts_with('/') || path.split('/').any(|part| part == "..")) {
        host.fault("path", "must be absolute and without `..`");
    }
    let kinds = [
        ("", HostPathKind::Unchecked),
        ("DirectoryOrCreate", HostPathKind::DirectoryOrCreate),
        ("Directory", HostPathKind::Directory),
        ("FileOrCreate", HostPathKind::FileOrCreate),
        ("File", HostPathKind::File),
        ("Socket", HostPathKind::Socket),
        ("CharDevice", HostPathKind::CharDevice),
        ("BlockDevice", HostPathKind::BlockDevice),
    ];
    let kind = host.choice("type", &kinds).unwrap_or(HostPathKind::Unchecked);
    VolumeSource::HostPath { path, kind }
}

/// Reads a quantity by one of the functions of `quantity`.
pub(super) fn read_quantity(
    fields: &mut Fields<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<i64, String>,
) -> Option<i64> {
    let text = fields.scalar(key)?;
    parse(&text).map_err(|problem| fields.fault(key, problem)).ok()
}

#[derive(Debug, Clone, Copy)]
pub(super) enum NameKind {
    /// Lower-case letters, digits and inner dashes, 63 at most.
    Label,
    /// Labels joined by dots, 253 at most.
    Subdomain,
}

pub(super) fn check_name(fields: &Fields<'_>, key: &str, name: &str, kind: NameKind) {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let (fine, rule) = match kind {
        NameKind::Label => (name.len() <= 63 && is_label(name), "63"),
        NameKind::Subdomain => (name.len() <= 253 && name.split('.').all(is_label), "253"),
    };
    if !fine && !name.is_empty() {
        let dots = if matches!(kind, NameKind::Subdomain) { ", dots" } else { "" };
        fields.fault(
            key,
            format!(
                "must be lower-case letters, digits{dots} and inner dashes, {rule} at most, not {}",
                cropped(name)
            ),
        );
    }
}

/// What several fields have to agree about.
fn check_references(pod: &Pod, faults: &Faults) {
    let volumes: BTreeSet<&str> = pod.volumes.iter().map(|volume| volume.name.as_str()).collect();
    check_unique(faults, "volumes", pod.volumes.iter().map(|volume| &volume.name));
    let names = pod.init_containers.iter().chain(&pod.containers).map(|c| &c.name);
    check_unique(faults, "containers", names);
    let mut host_ports = BTreeSet::new();
    for (list, containers) in
        [("initContainers", &pod.init_containers), ("containers", &pod.containers)]
    {
        for (index, container) in containers.iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            for (index, mount) in container.mounts.iter().enumerate() {
                if !volumes.contains(mount.volume.as_str()) {
                    let problem = format!("names a volume that is not there: {}", mount.volume);
                    faults.add(format!("{path}.volumeMounts[{index}].name"), problem);
                }
            }
            for (index, port) in container.ports.iter().enumerate().filter(|(_, p)| p.host != 0) {
                let path = format!("{path}.ports[{index}].hostPort");
                if pod.host_network && port.host != port.container {
                    faults.add(&path, "must be the containerPort in a pod with hostNetwork");
                }
                let key = (port.host, port.protocol as i32, port.host_ip.clone());
                if list == "containers" && !host_ports.insert(key) {
                    faults.add(path, format!("{} is taken by another container", port.host));
                }
            }
            if pod.host_network {
                for name in container.env_from_pod_address() {
                    let problem = "cannot come from status.podIP in a pod with hostNetwork";
                    faults.add(format!("{path}.env[{name:?}]"), problem);
                }
            }
        }
    }
}

fn check_unique<'a>(faults: &Faults, kind: &str, names: impl Iterator<Item = &'a String>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) && !name.is_empty() {
            faults.add("spec", format!("has two {kind} with the name {}", cropped(name)));
        }
    }
}

/// A name is quoted in an error, a megabyte is not.
fn cropped(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn list(faults: &[Fault]) -> String {
    match faults {
        [fault] => fault.to_string(),
        faults => {
            let lines: Vec<String> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
            format!("{} mistakes:{}", faults.len(), lines.concat())
        }
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
