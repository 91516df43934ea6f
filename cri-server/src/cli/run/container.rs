//! One container of a Pod manifest, parsed as far as `lapstrake run` can honour it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    fields::Fields,
    manifest::{NameKind, check_name, read_quantity},
};
use crate::quantity;

/// The largest user or group id: the kernel's are 32 bits, and Kubernetes stays below the sign.
pub(super) const ID_MAX: i64 = (1 << 31) - 1;

const PORT_MAX: i64 = 65_535;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) pull: PullPolicy,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) env: Vec<Env>,
    pub(crate) ports: Vec<Port>,
    pub(crate) resources: Resources,
    pub(crate) mounts: Vec<VolumeMount>,
    pub(crate) security: Security,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
}

/// When to ask the registry, from the least eager on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PullPolicy {
    Never,
    IfAbsent,
    Always,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Env {
    pub(crate) name: String,
    pub(crate) value: EnvValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvValue {
    Text(String),
    PodName,
    PodNamespace,
    PodUid,
    PodAddress,
    Label(String),
    Annotation(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) container: i32,
    /// 0: not mapped.
    pub(crate) host: i32,
    pub(crate) host_ip: String,
    pub(crate) protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// CPU in thousandths of a core, memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpu_request_milli: Option<i64>,
    pub(crate) cpu_limit_milli: Option<i64>,
    pub(crate) memory_request_bytes: Option<i64>,
    pub(crate) memory_limit_bytes: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeMount {
    pub(crate) volume: String,
    pub(crate) path: String,
    pub(crate) read_only: bool,
    pub(crate) propagation: Propagation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) privileged: bool,
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) read_only_root: bool,
    pub(crate) capabilities_add: Vec<String>,
    pub(crate) capabilities_drop: Vec<String>,
    pub(crate) no_new_privs: bool,
}

impl Container {
    /// Names of the variables that need the pod's address.
    pub(super) fn env_from_pod_address(&self) -> impl Iterator<Item = &str> {
        let of_address = |env: &&Env| env.value == EnvValue::PodAddress;
        self.env.iter().filter(of_address).map(|env| env.name.as_str())
    }
}

/// Reads one entry of `containers` or `initContainers`.
pub(super) fn read(fields: &mut Fields<'_>) -> Container {
    let name = fields.required("name");
    check_name(fields, "name", &name, NameKind::Label);
    let image = fields.required("image");
    if image.trim() != image {
        fields.fault("image", "must not begin or end with a blank");
    }
    let pull = fields.choice(
        "imagePullPolicy",
        &[
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfAbsent),
            ("Never", PullPolicy::Never),
        ],
    );
    let working_dir = fields.string("workingDir").unwrap_or_default();
    let container = Container {
        name,
        image,
        pull: pull.unwrap_or(PullPolicy::IfAbsent),
        command: fields.strings("command"),
        args: fields.strings("args"),
        working_dir,
        env: fields.objects("env", read_env),
        ports: fields.objects("ports", read_port),
        resources: fields.object("resources", read_resources).unwrap_or_default(),
        mounts: fields.objects("volumeMounts", read_mount),
        security: fields.object("securityContext", read_security).unwrap_or_default(),
        tty: fields.boolean("tty").unwrap_or(false),
        stdin: fields.boolean("stdin").unwrap_or(false),
    };
    check_mounts(fields, &container);
    container
}

/// `runAsUser` and `runAsGroup`, which pods and containers have in common.
pub(super) fn read_user(security: &mut Fields<'_>) -> (Option<i64>, Option<i64>) {
    (security.integer("runAsUser", 0..=ID_MAX), security.integer("runAsGroup", 0..=ID_MAX))
}

fn read_env(env: &mut Fields<'_>) -> Env {
    let name = env.required("name");
    let printable = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    if !name.bytes().all(printable) {
        env.fault("name", "must be printable ASCII without `=`");
    }
    let text = env.string("value");
    let from = env.object("valueFrom", |from| from.object("fieldRef", read_field_ref));
    if text.as_ref().is_some_and(|text| !text.is_empty()) && from.is_some() {
        env.fault("valueFrom", "cannot be combined with a value");
    }
    let value = match from {
        Some(Some(Some(value))) => value,
        _ => EnvValue::Text(text.unwrap_or_default()),
    };
    Env { name, value }
}

/// `None` when the field cannot be referred to.
fn read_field_ref(reference: &mut Fields<'_>) -> Option<EnvValue> {
    reference.choice("apiVersion", &[("v1", ())]);
    let path = reference.required("fieldPath");
    let keyed = |list: &str| {
        let key = path.strip_prefix(list)?.strip_prefix("['")?.strip_suffix("']")?;
        (!key.is_empty()).then(|| key.to_owned())
    };
    let value = match path.as_str() {
        "metadata.name" => Some(EnvValue::PodName),
        "metadata.namespace" => Some(EnvValue::PodNamespace),
        "metadata.uid" => Some(EnvValue::PodUid),
        "status.podIP" => Some(EnvValue::PodAddress),
        _ => keyed("metadata.labels")
            .map(EnvValue::Label)
            .or_else(|| keyed("metadata.annotations").map(EnvValue::Annotation)),
    };
    if value.is_none() && !path.is_empty() {
        reference.fault("fieldPath", format!("{path} is not supported by lapstrake run"));
    }
    value
}

fn read_port(port: &mut Fields<'_>) -> Port {
    // A name only serves Services and probes, which a node without a cluster does not have.
    if let Some(name) = port.string("name") {
        check_name(port, "name", &name, NameKind::Label);
    }
    if !port.has("containerPort") {
        port.fault("containerPort", "is missing");
    }
    let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok());
    let host_ip = port.string("hostIP").unwrap_or_default();
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        port.fault("hostIP", "must be an IP address");
    }
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    Port {
        container: number(port.integer("containerPort", 1..=PORT_MAX)).unwrap_or_default(),
        host: number(port.integer("hostPort", 0..=PORT_MAX)).unwrap_or_default(),
        host_ip,
        protocol: port.choice("protocol", &protocols).unwrap_or(Protocol::Tcp),
    }
}

fn read_resources(resources: &mut Fields<'_>) -> Resources {
    let amounts = |list: &mut Fields<'_>| {
        let cpu = read_quantity(list, "cpu", quantity::milli);
        let memory = read_quantity(list, "memory", quantity::whole);
        (cpu, memory)
    };
    let (cpu_request, memory_request) = resources.object("requests", amounts).unwrap_or_default();
    let (cpu_limit, memory_limit) = resources.object("limits", amounts).unwrap_or_default();
    for (name, request, limit) in
        [("cpu", cpu_request, cpu_limit), ("memory", memory_request, memory_limit)]
    {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            resources.fault(&format!("requests.{name}"), "must not exceed the limit");
        }
    }
    Resources {
        cpu_request_milli: cpu_request,
        cpu_limit_milli: cpu_limit,
        memory_request_bytes: memory_request,
        memory_limit_bytes: memory_limit,
    }
}

fn read_mount(mount: &mut Fields<'_>) -> VolumeMount {
    let path = mount.required("mountPath");
    if !path.is_empty() && (!path.starts_with('/') || path.split('/').any(|part| part == "..")) {
        mount.fault("mountPath", "must be absolute and without `..`");
    }
    let propagations = [
        ("None", Propagation::Private),
        ("HostToContainer", Propagation::HostToContainer),
        ("Bidirectional", Propagation::Bidirectional),
    ];
    VolumeMount {
        volume: mount.required("name"),
        path,
        read_only: mount.boolean("readOnly").unwrap_or(false),
        propagation: mount
            .choice("mountPropagation", &propagations)
            .unwrap_or(Propagation::Private),
    }
}

fn read_security(security: &mut Fields<'_>) -> Security {
    let (run_as_user, run_as_group) = read_user(security);
    let (capabilities_add, capabilities_drop) = security
        .object("capabilities", |list| (list.strings("add"), list.strings("drop")))
        .unwrap_or_default();
    let privileged = security.boolean("privileged").unwrap_or(false);
    let escalation = security.boolean("allowPrivilegeEscalation");
    let is_admin = |name: &String| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN" | "ALL");
    if escalation == Some(false) && (privileged || capabilities_add.iter().any(is_admin)) {
        security.fault(
            "allowPrivilegeEscalation",
            "cannot be false for a container that is privileged or has CAP_SYS_ADMIN",
        );
    }
    Security {
        privileged,
        run_as_user,
        run_as_group,
        read_only_root: security.boolean("readOnlyRootFilesystem").unwrap_or(false),
        capabilities_add,
        capabilities_drop,
        no_new_privs: escalation == Some(false),
    }
}

fn check_mounts(fields: &Fields<'_>, container: &Container) {
    let mut paths = BTreeSet::new();
    for (index, mount) in container.mounts.iter().enumerate() {
        let path = mount.path.trim_end_matches('/');
        if !paths.insert(path) && !path.is_empty() {
            let key = format!("volumeMounts[{index}].mountPath");
            fields.fault(&key, format!("{path} is taken by another mount"));
        }
        if mount.propagation == Propagation::Bidirectional && !container.security.privileged {
            let key = format!("volumeMounts[{index}].mountPropagation");
            fields.fault(&key, "Bidirectional needs a privileged container");
        }
    }
}

/// The environment of a container in the order it was written, references not yet expanded.
pub(super) fn env_text<'a>(
    value: &'a EnvValue,
    pod: &'a super::manifest::Pod,
    uid: &'a str,
    address: &'a str,
) -> &'a str {
    let keyed =
        |map: &'a BTreeMap<String, String>, key: &str| map.get(key).map_or("", String::as_str);
    match value {
        EnvValue::Text(text) => text,
        EnvValue::PodName => &pod.name,
        EnvValue::PodNamespace => &pod.namespace,
        EnvValue::PodUid => uid,
        EnvValue::PodAddress => address,
        EnvValue::Label(key) => keyed(&pod.labels, key),
        EnvValue::Annotation(key) => keyed(&pod.annotations, key),
    }
}
