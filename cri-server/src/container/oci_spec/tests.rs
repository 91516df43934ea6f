//! Configurations as they come out, for the ways in which pods differ.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::container::spec::{Device, ImageRef, ImageVolume, Mount, Propagation, Resources};
use crate::container::testing::{self, sandbox};
use crate::sandbox::spec::IdMap;

const V1: NodeFacts = NodeFacts { cgroup_v2: false, swap_accounting: true, user_namespaces: true };

fn build(spec: &Spec, sandbox: &Sandbox, node: NodeFacts) -> Value {
    let input = Input {
        spec,
        sandbox,
        sandbox_dir: Path::new("/run/pods/a"),
        process: Process { args: vec!["sh".into()], env: vec![], cwd: "/".into() },
        user: &User { uid: 1000, gid: 1000, additional_gids: vec![1000, 50_000] },
        cgroups_path: "/pods/web/c1",
        rlimits: &[],
        apparmor: None,
        labels: None,
        rdt_class: None,
        devices: &[],
        block_io: None,
        image_defined: &["/a/state".into(), "b//c".into(), "/../x".into(), "/".into()],
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
        image: None,
        readonly: true,
        recursive_read_only: false,
        propagation: Propagation::HostToContainer,
        selinux_relabel: false,
        options: vec!["noexec".into()],
        uid_mappings: vec![],
        gid_mappings: vec![],
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
            "/b/c",
            "/sys/fs/cgroup",
            "/a/b/c"
        ]
    );
    let dev = &config["mounts"][2];
    assert_eq!(dev["options"], json!(["rbind", "rslave", "ro", "noexec"]));
    assert_eq!(config["linux"]["rootfsPropagation"], "rslave");
}

#[test]
fn what_the_image_declares_a_volume_is_one_unless_the_pod_has_a_say() {
    let config = build(&testing::spec(), &sandbox(), V1);
    let mounts = config["mounts"].as_array().unwrap().iter();
    let volumes: Vec<_> = mounts.filter(|mount| mount["type"] == "volume").collect();
    assert_eq!(volumes.len(), 2);
    assert_eq!(volumes[0]["destination"], "/a/state");
}

#[test]
fn an_ordinary_container_may_use_the_common_devices_only() {
    let config = build(&testing::spec(), &sandbox(), V1);
    let rules = config["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules[0], json!({ "allow": false, "access": "rwm" }));
    assert!(
        rules.contains(
            &json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" })
        )
    );
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
    assert_eq!(caps, capabilities::all().count());
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

#[test]
fn an_image_volume_is_a_bind_whose_ids_are_the_pods_already() {
    let image = ImageRef {
        image: "models".into(),
        user_specified_image: String::new(),
        annotations: [].into(),
        runtime_handler: String::new(),
        image_ref: String::new(),
    };
    let mut spec = testing::spec();
    let ids = vec![IdMap { inside: 0, outside: 65_536, count: 10 }];
    spec.mounts = vec![Mount {
        container_path: "/model".into(),
        host_path: "".into(),
        image: Some(ImageVolume { image, sub_path: "".into() }),
        readonly: true,
        recursive_read_only: false,
        propagation: Propagation::Private,
        selinux_relabel: false,
        options: vec![],
        uid_mappings: ids.clone(),
        gid_mappings: ids,
    }];
    let config = build(&spec, &sandbox(), V1);
    let mounts = config["mounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["destination"] == "/model").unwrap();
    assert_eq!((&mount["source"], &mount["type"]), (&json!("models"), &json!("bind")));
    assert_eq!(mount["uidMappings"], Value::Null);
}
