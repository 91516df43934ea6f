//! The OCI configuration of a container. Pure: the pod's wishes, the image's defaults and the
//! facts of the node come in, a `config.json` goes out.

use std::path::Path;

use serde_json::{Value, json};

use super::capabilities;
use super::process::Process;
use super::spec::{Mount, Propagation, Resources, Spec};
use super::user::User;
use crate::sandbox::Sandbox;
use crate::sandbox::spec::NamespaceMode;

/// The version of the runtime specification whose fields are used.
pub(crate) const OCI_VERSION: &str = "1.2.0";

/// What programs can hold open before they ask for more; the hard limit is systemd's default.
const NOFILE_SOFT: u64 = 1024;
const NOFILE_HARD: u64 = 524_288;

/// Nodes that every container may use: character devices by (major, minor), −1 for any.
const DEVICE_RULES: [(i64, i64); 9] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (136, -1), // pts
];

/// What is known about the node, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) cgroup_v2: bool,
    /// Whether the kernel counts swap per cgroup, so that a limit on it can be written.
    pub(crate) swap_accounting: bool,
}

/// One device node to make, with the numbers and the owner it has on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) permissions: String,
}

#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) sandbox: &'a Sandbox,
    /// The sandbox's directory, which holds hosts, hostname, resolv.conf and the shm mount point.
    pub(crate) sandbox_dir: &'a Path,
    pub(crate) process: Process,
    pub(crate) user: &'a User,
    pub(crate) cgroups_path: &'a str,
    pub(crate) devices: &'a [DeviceNode],
    /// The process whose pid namespace is joined, for pid mode TARGET.
    pub(crate) target_pid: Option<i32>,
    pub(crate) node: NodeFacts,
}

pub(crate) fn container(input: &Input<'_>) -> Value {
    let security = &input.spec.security;
    json!({
        "ociVersion": OCI_VERSION,
        "process": process(input),
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts(input),
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": input.spec.name,
            "io.kubernetes.cri.sandbox-id": input.sandbox.id,
            "io.kubernetes.cri.sandbox-name": input.sandbox.spec.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": input.sandbox.spec.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": input.sandbox.spec.metadata.uid,
            "io.kubernetes.cri.image-name": input.spec.image.image,
        },
        "linux": {
            "cgroupsPath": input.cgroups_path,
            "resources": resources(&input.spec.resources, &device_rules(input), input.node),
            "namespaces": namespaces(input),
            "devices": input.devices.iter().map(device).collect::<Vec<_>>(),
            "rootfsPropagation": rootfs_propagation(&input.spec.mounts),
            "maskedPaths": if security.privileged { &[] } else { &*security.masked_paths },
            "readonlyPaths": if security.privileged { &[] } else { &*security.readonly_paths },
        },
    })
}

/// The process object; an exec'd process is this one with other arguments.
fn process(input: &Input<'_>) -> Value {
    let security = &input.spec.security;
    let sets = capabilities::resolve(&security.capabilities, security.privileged);
    let names = |set: &[&str]| set.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
    let (effective, ambient) = (names(&sets.effective), names(&sets.ambient));
    json!({
        "terminal": input.spec.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.additional_gids,
        },
        "args": input.process.args,
        "env": input.process.env,
        "cwd": input.process.cwd,
        "capabilities": {
            "bounding": effective,
            "effective": effective,
            "permitted": effective,
            // The kernel lets a capability be ambient only when it is inheritable as well.
            "inheritable": ambient,
            "ambient": ambient,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": NOFILE_SOFT, "hard": NOFILE_HARD }],
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": input.spec.resources.oom_score_adj,
    })
}

fn namespaces(input: &Input<'_>) -> Value {
    let sandbox = input.sandbox;
    let pause = |kind: &str| format!("/proc/{}/ns/{kind}", sandbox.pause_pid);
    let mut list = vec![json!({ "type": "mount" })];
    // On cgroup v1 a cgroup namespace hides nothing that the mounts do not hide already, and
    // tools that look at /proc/self/cgroup expect the host's view.
    if input.node.cgroup_v2 && !input.spec.security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    if sandbox.spec.network == NamespaceMode::Pod {
        list.push(json!({ "type": "network", "path": pause("net") }));
        list.push(json!({ "type": "uts", "path": pause("uts") }));
    }
    if sandbox.spec.ipc == NamespaceMode::Pod {
        list.push(json!({ "type": "ipc", "path": pause("ipc") }));
    }
    match (&input.spec.security.pid, input.target_pid) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod, _) => match sandbox.spec.pid {
            NamespaceMode::Pod => list.push(json!({ "type": "pid", "path": pause("pid") })),
            NamespaceMode::Node => {}
            // Pause has none of its own then, and the node's was not asked for.
            _ => list.push(json!({ "type": "pid" })),
        },
        (NamespaceMode::Target(_), Some(pid)) => {
            list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        }
        (NamespaceMode::Container | NamespaceMode::Target(_), _) => {
            list.push(json!({ "type": "pid" }));
        }
    }
    Value::Array(list)
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let security = &input.spec.security;
    let access = if security.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        (
            destination.to_owned(),
            json!({
                "destination": destination,
                "type": kind,
                "source": source,
                "options": options,
            }),
        )
    };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    let shm = match input.sandbox.spec.ipc {
        NamespaceMode::Node => Path::new("/dev/shm").to_owned(),
        _ => input.sandbox_dir.join("shm"),
    };
    let plain = ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"];
    list.push(mount("/dev/shm", "bind", &shm.to_string_lossy(), &plain));
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    for file in ["hosts", "hostname", "resolv.conf"] {
        let source = input.sandbox_dir.join(file);
        let options = ["rbind", "rprivate", access];
        list.push(mount(&format!("/etc/{file}"), "bind", &source.to_string_lossy(), &options));
    }
    // A volume of the pod takes the place of a default at its path, and of those below it.
    let volumes = &input.spec.mounts;
    list.retain(|(destination, _)| {
        !volumes.iter().any(|volume| Path::new(destination).starts_with(&volume.container_path))
    });
    list.extend(volumes.iter().map(|volume| (volume.container_path.clone(), self::volume(volume))));
    // Parents first, in the order given otherwise.
    list.sort_by_key(|(destination, _)| Path::new(destination).components().count());
    list.into_iter().map(|(_, mount)| mount).collect()
}

fn volume(volume: &Mount) -> Value {
    let mut options = vec![
        "rbind",
        match volume.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        },
        match (volume.readonly, volume.recursive_read_only) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        },
    ];
    options.extend(volume.options.iter().map(String::as_str));
    json!({
        "destination": volume.container_path,
        "type": "bind",
        "source": volume.host_path,
        "options": options,
    })
}

/// Propagation through a volume needs a root that does not cut it off.
fn rootfs_propagation(mounts: &[Mount]) -> &'static str {
    let asks = |propagation| mounts.iter().any(|mount| mount.propagation == propagation);
    match (asks(Propagation::Bidirectional), asks(Propagation::HostToContainer)) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    }
}

fn device(device: &DeviceNode) -> Value {
    json!({
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

fn device_rules(input: &Input<'_>) -> Vec<Value> {
    if input.spec.security.privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let rule = |kind: char, (major, minor): (i64, i64), access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        for (key, number) in [("major", major), ("minor", minor)] {
            if number >= 0 {
                rule[key] = json!(number);
            }
        }
        rule
    };
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    // Making a node is harmless: opening it is what the rules below decide.
    rules.extend(['c', 'b'].map(|kind| rule(kind, (-1, -1), "m")));
    rules.extend(DEVICE_RULES.map(|numbers| rule('c', numbers, "rwm")));
    rules.extend(
        input
            .devices
            .iter()
            .map(|node| rule(node.kind, (node.major, node.minor), &node.permissions)),
    );
    rules
}

/// CRI's values as OCI's; «not given» leaves the field out. Serves updates as well.
pub(crate) fn resources(given: &Resources, device_rules: &[Value], node: NodeFacts) -> Value {
    let mut cpu = json!({});
    for (key, value) in [
        ("shares", given.cpu_shares),
        ("quota", given.cpu_quota_us),
        ("period", given.cpu_period_us),
    ] {
        if value != 0 {
            cpu[key] = json!(value);
        }
    }
    for (key, value) in [("cpus", &given.cpuset_cpus), ("mems", &given.cpuset_mems)] {
        if !value.is_empty() {
            cpu[key] = json!(value);
        }
    }
    let mut memory = json!({});
    if given.memory_limit_bytes != 0 {
        memory["limit"] = json!(given.memory_limit_bytes);
    }
    if node.swap_accounting {
        match (given.memory_swap_limit_bytes, given.memory_limit_bytes) {
            (0, 0) => {}
            // Without a word about swap a limited container gets none.
            (0, limit) => memory["swap"] = json!(limit),
            (swap, _) => memory["swap"] = json!(swap),
        }
    }
    let mut resources = json!({ "cpu": cpu, "memory": memory });
    if !device_rules.is_empty() {
        resources["devices"] = json!(device_rules);
    }
    let pages: Vec<_> = given
        .hugepage_limits
        .iter()
        .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
        .collect();
    if !pages.is_empty() {
        resources["hugepageLimits"] = json!(pages);
    }
    if !given.unified.is_empty() {
        resources["unified"] = json!(given.unified);
    }
    resources
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::container::spec::Device;
    use crate::container::testing;
    use crate::id::Id;
    use crate::sandbox::spec::{self as pod, Metadata};
    use crate::sandbox::state::Phase;

    const V1: NodeFacts = NodeFacts { cgroup_v2: false, swap_accounting: true };

    pub(crate) fn sandbox() -> Sandbox {
        Sandbox {
            id: Id::parse(&"a".repeat(64)).unwrap(),
            spec: pod::Spec {
                metadata: Metadata {
                    name: "web".into(),
                    uid: "u1".into(),
                    namespace: "default".into(),
                    attempt: 0,
                },
                hostname: "web".into(),
                log_directory: None,
                dns: None,
                port_mappings: vec![],
                bandwidth: pod::Bandwidth::default(),
                labels: [].into(),
                annotations: [].into(),
                runtime_handler: String::new(),
                cgroup_parent: String::new(),
                sysctls: [].into(),
                network: NamespaceMode::Pod,
                pid: NamespaceMode::Container,
                ipc: NamespaceMode::Pod,
                privileged: false,
            },
            created_at_ns: 1,
            phase: Phase::Ready,
            cgroup_parent: "/pods/web".into(),
            owns_cgroup_parent: true,
            addresses: vec![],
            pause_pid: 42,
            hostname: "web".into(),
        }
    }

    fn build(spec: &Spec, sandbox: &Sandbox, node: NodeFacts) -> Value {
        let input = Input {
            spec,
            sandbox,
            sandbox_dir: Path::new("/run/pods/a"),
            process: Process { args: vec!["sh".into()], env: vec![], cwd: "/".into() },
            user: &User { uid: 1000, gid: 1000, additional_gids: vec![1000, 50_000] },
            cgroups_path: "/pods/web/c1",
            devices: &[],
            target_pid: None,
            node,
        };
        container(&input)
    }

    fn strings(value: &Value, key: &str) -> Vec<String> {
        let list = value.as_array().unwrap().iter();
        list.map(|entry| entry[key].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[track_caller]
    fn namespaces_of(
        change: impl Fn(&mut Spec, &mut Sandbox),
        node: NodeFacts,
        expect: &[(&str, &str)],
    ) {
        let (mut spec, mut pod) = (testing::spec(), sandbox());
        change(&mut spec, &mut pod);
        let config = build(&spec, &pod, node);
        let list = &config["linux"]["namespaces"];
        let pairs: Vec<_> = strings(list, "type").into_iter().zip(strings(list, "path")).collect();
        let expect: Vec<_> =
            expect.iter().map(|(kind, path)| ((*kind).to_owned(), (*path).to_owned())).collect();
        assert_eq!(pairs, expect);
    }

    #[test]
    fn namespaces_are_shared_as_the_pod_says() {
        let v2 = NodeFacts { cgroup_v2: true, ..V1 };
        let pod = [("network", "/proc/42/ns/net"), ("uts", "/proc/42/ns/uts")];
        let ipc = ("ipc", "/proc/42/ns/ipc");
        namespaces_of(|_, _| {}, V1, &[("mount", ""), pod[0], pod[1], ipc, ("pid", "")]);
        namespaces_of(
            |_, _| {},
            v2,
            &[("mount", ""), ("cgroup", ""), pod[0], pod[1], ipc, ("pid", "")],
        );
        namespaces_of(
            |spec, _| spec.security.pid = NamespaceMode::Pod,
            V1,
            &[("mount", ""), pod[0], pod[1], ipc, ("pid", "")],
        );
        namespaces_of(
            |spec, sandbox| {
                spec.security.pid = NamespaceMode::Pod;
                sandbox.spec.pid = NamespaceMode::Pod;
            },
            V1,
            &[("mount", ""), pod[0], pod[1], ipc, ("pid", "/proc/42/ns/pid")],
        );
        namespaces_of(
            |spec, sandbox| {
                spec.security.pid = NamespaceMode::Node;
                sandbox.spec.network = NamespaceMode::Node;
                sandbox.spec.ipc = NamespaceMode::Node;
            },
            V1,
            &[("mount", "")],
        );
    }

    #[test]
    fn a_volume_takes_the_place_of_a_default_mount_and_of_what_is_below_it() {
        let volume = |path: &str| Mount {
            container_path: path.into(),
            host_path: "/srv".into(),
            readonly: true,
            recursive_read_only: false,
            propagation: Propagation::HostToContainer,
            selinux_relabel: false,
            options: vec!["noexec".into()],
        };
        let mut spec = testing::spec();
        spec.mounts = vec![volume("/etc/hosts"), volume("/dev"), volume("/a/b/c"), volume("/a")];
        let config = build(&spec, &sandbox(), V1);
        let destinations = strings(&config["mounts"], "destination");
        assert_eq!(
            destinations,
            [
                "/proc",
                "/sys",
                "/dev",
                "/a",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/etc/hosts",
                "/sys/fs/cgroup",
                "/a/b/c"
            ]
        );
        let dev = &config["mounts"][2];
        assert_eq!(dev["options"], json!(["rbind", "rslave", "ro", "noexec"]));
        assert_eq!(config["linux"]["rootfsPropagation"], "rslave");
    }

    #[test]
    fn an_ordinary_container_may_use_the_common_devices_only() {
        let config = build(&testing::spec(), &sandbox(), V1);
        let rules = config["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules[0], json!({ "allow": false, "access": "rwm" }));
        assert!(rules.contains(
            &json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" })
        ));
        assert!(!rules.iter().any(|rule| rule["type"] == "b" && rule["access"] != "m"));
    }

    #[test]
    fn a_privileged_container_has_everything() {
        let mut spec = testing::spec();
        spec.security.privileged = true;
        spec.security.masked_paths = vec!["/proc/kcore".into()];
        spec.devices = vec![Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/x".into(),
            permissions: "r".into(),
        }];
        let config = build(&spec, &sandbox(), V1);
        assert_eq!(config["linux"]["maskedPaths"], json!([]));
        let rules = &config["linux"]["resources"]["devices"];
        assert_eq!(*rules, json!([{ "allow": true, "access": "rwm" }]));
        let caps = config["process"]["capabilities"]["effective"].as_array().unwrap().len();
        assert_eq!(caps, capabilities::ALL.len());
    }

    #[test]
    fn only_what_was_given_becomes_a_limit() {
        assert_eq!(resources(&Resources::default(), &[], V1), json!({ "cpu": {}, "memory": {} }));
        let given = Resources {
            cpu_shares: 512,
            cpu_quota_us: 50_000,
            cpu_period_us: 100_000,
            memory_limit_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![("2MB".into(), 0)],
            ..Resources::default()
        };
        assert_eq!(
            resources(&given, &[], V1),
            json!({
                "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0" },
                "memory": { "limit": 1 << 20, "swap": 1 << 20 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            })
        );
        let no_swap = NodeFacts { swap_accounting: false, ..V1 };
        assert_eq!(resources(&given, &[], no_swap)["memory"], json!({ "limit": 1 << 20 }));
    }

    #[test]
    fn the_result_is_a_valid_oci_configuration() {
        let config = build(&testing::spec(), &sandbox(), V1);
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(config).unwrap();
        let user = parsed.process().as_ref().unwrap().user();
        assert_eq!(user.additional_gids().as_deref(), Some([1000, 50_000].as_slice()));
    }
}
