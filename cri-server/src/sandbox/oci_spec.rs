//! The OCI configuration of a sandbox's pause process. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Sandbox;
use super::spec::{NamespaceMode, UserNamespace};
use crate::container::oci_spec::{OCI_VERSION, id_maps};
use crate::selinux::Labels;

/// The least share of the CPU: pause only waits.
const CPU_SHARES: u64 = 2;

/// Pause holds the pod's namespaces: it should be the last to be chosen by the OOM killer.
const OOM_SCORE_ADJ: i32 = -998;

/// Nobody, unless the pod says who: pause owns nothing and needs nothing.
const PAUSE_ID: u32 = 65_535;

/// The range of groups that may ping; groups outside a user namespace cannot be written there.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// What the node's configuration adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults<'a> {
    pub(crate) sysctls: &'a BTreeMap<String, String>,
    pub(crate) apparmor: Option<&'a str>,
    pub(crate) labels: Option<&'a Labels>,
}

/// Which network namespace it is comes by descriptor; the path here only says that it is the pod's.
/// The root is empty and always read-only.
pub(crate) fn pause(sandbox: &Sandbox, defaults: Defaults<'_>) -> Value {
    let spec = &sandbox.spec;
    let mut namespaces = vec![json!({ "type": "mount" })];
    if spec.network == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "uts" }));
        namespaces.push(match spec.user_namespace {
            None => json!({ "type": "network", "path": "/proc/self/ns/net" }),
            // Made with pause, so that it belongs to the pod's user namespace.
            Some(_) => json!({ "type": "network" }),
        });
    }
    if spec.ipc == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "ipc" }));
    }
    // Only a shared pid namespace needs pause as its pid 1.
    if spec.pid == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "pid" }));
    }
    if spec.user_namespace.is_some() {
        namespaces.push(json!({ "type": "user" }));
    }
    let confinement = &spec.confinement;
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": {
                "uid": confinement.run_as_user.unwrap_or(PAUSE_ID),
                "gid": confinement.run_as_group.unwrap_or(PAUSE_ID),
                "additionalGids": confinement.supplemental_groups,
            },
            "args": ["/pause"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE_ADJ,
        },
        "root": { "path": "rootfs", "readonly": true },
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": sandbox.id,
            "io.kubernetes.cri.sandbox-name": spec.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": spec.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": spec.metadata.uid,
        },
        "linux": {
            "cgroupsPath": sandbox.cgroup_of(&sandbox.id),
            "resources": { "cpu": { "shares": CPU_SHARES } },
            "namespaces": namespaces,
            "sysctl": sysctls(sandbox, defaults.sysctls),
        },
    });
    if let Some(UserNamespace { uids, gids }) = spec.user_namespace {
        config["linux"]["uidMappings"] = id_maps(&[uids]);
        config["linux"]["gidMappings"] = id_maps(&[gids]);
    }
    if let Some(profile) = defaults.apparmor {
        config["process"]["apparmorProfile"] = json!(profile);
    }
    if let Some(labels) = defaults.labels {
        config["process"]["selinuxLabel"] = json!(labels.process);
        config["linux"]["mountLabel"] = json!(labels.mount);
    }
    if spec.network == NamespaceMode::Pod {
        config["hostname"] = json!(sandbox.hostname);
    }
    config
}

/// The pod's own over the node's defaults, which are of its network.
fn sysctls(sandbox: &Sandbox, defaults: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let spec = &sandbox.spec;
    let fits = |key: &str| spec.user_namespace.is_none() || key != PING_GROUPS;
    let mut all = match spec.network {
        NamespaceMode::Node => BTreeMap::new(),
        _ => defaults.iter().filter(|(key, _)| fits(key)).map(own).collect(),
    };
    // `net/ipv4/x` and `net.ipv4.x` are the same.
    all.retain(|key: &String, _| !spec.sysctls.keys().any(|own| own.replace('/', ".") == *key));
    all.extend(spec.sysctls.iter().map(own));
    all
}

fn own((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;
    use crate::sandbox::spec::IdMap;

    #[track_caller]
    fn check(change: impl Fn(&mut Sandbox), expect: &[(&str, &str)]) {
        let defaults = [(PING_GROUPS, "0 1"), ("net.x", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let mut sandbox = testing::sandbox();
        change(&mut sandbox);
        let config = pause(&sandbox, Defaults { sysctls: &defaults, apparmor: None, labels: None });
        let expect: BTreeMap<_, _> = expect.iter().copied().collect();
        assert_eq!(config["linux"]["sysctl"], json!(expect));
    }

    #[test]
    fn the_pods_own_sysctls_win_over_the_nodes_defaults() {
        check(|_| {}, &[(PING_GROUPS, "0 1"), ("net.x", "1")]);
        check(|sandbox| sandbox.spec.network = NamespaceMode::Node, &[]);
        let set = |sandbox: &mut Sandbox| {
            sandbox.spec.sysctls = [("net/x".to_owned(), "2".to_owned())].into();
        };
        check(set, &[(PING_GROUPS, "0 1"), ("net/x", "2")]);
    }

    #[test]
    fn in_a_user_namespace_pause_makes_the_network_namespace_by_itself() {
        let (defaults, mut sandbox) = (BTreeMap::new(), testing::sandbox());
        let map = |outside| IdMap { inside: 0, outside, count: 65_536 };
        sandbox.spec.user_namespace = Some(UserNamespace { uids: map(1), gids: map(2) });
        let config = pause(&sandbox, Defaults { sysctls: &defaults, apparmor: None, labels: None });
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!({ "type": "network" })), "{namespaces:?}");
        assert!(namespaces.contains(&json!({ "type": "user" })), "{namespaces:?}");
        let gids = json!([{ "containerID": 0, "hostID": 2, "size": 65_536 }]);
        assert_eq!(config["linux"]["gidMappings"], gids);
    }

    #[test]
    fn pause_is_nobody_unless_the_pod_says_who() {
        let defaults = BTreeMap::new();
        let defaults = Defaults { sysctls: &defaults, apparmor: Some("p"), labels: None };
        let mut sandbox = testing::sandbox();
        let process = pause(&sandbox, defaults)["process"].take();
        assert_eq!(
            (&process["user"]["uid"], &process["apparmorProfile"]),
            (&json!(65_535), &json!("p"))
        );
        sandbox.spec.confinement.run_as_user = Some(7);
        sandbox.spec.confinement.supplemental_groups = vec![8];
        let user = pause(&sandbox, defaults)["process"]["user"].take();
        assert_eq!(user, json!({ "uid": 7, "gid": 65_535, "additionalGids": [8] }));
    }
}
