//! The control group, which is made while the root is built: who looks at it early finds it, and a root that is there
//! first does not outlive it.

use std::fs;

use serde_json::json;

use crate::bundle::{Bundle, text};

/// The file that lists processes of the container's own group, as the container sees it.
fn list_of_processes() -> String {
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    match node.v1.first() {
        Some(hierarchy) => format!("/sys/fs/cgroup/{}/cgroup.procs", hierarchy.label()),
        None => "/sys/fs/cgroup/cgroup.procs".to_owned(),
    }
}

#[test]
fn what_is_masked_of_the_groups_is_masked() {
    let file = list_of_processes();
    let script = format!("cat {file}; echo end");
    let Some(b) = Bundle::new("masked-group", &script) else { return };
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stdout).starts_with("1\n"), "not there to be masked: {out:?}");
    b.change(|c| c["linux"]["maskedPaths"] = json!([file]));
    let out = b.oci(&["run", &b.id]);
    assert_eq!(text(&out.stdout), "end\n", "{out:?}");
}

#[test]
fn hooks_find_the_process_in_its_group() {
    let Some(b) = Bundle::new("hook-group", "true") else { return };
    let told = b.dir.path().join("told");
    let record = |what: &str| {
        let script = format!("cat {what} >> {}", told.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    let pid = "/proc/$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')/cgroup"; // that of the state on stdin
    // In a namespace of its own it would see itself at the root.
    b.change(|c| {
        let list = c["linux"]["namespaces"].as_array_mut().expect("list");
        list.retain(|n| n["type"] != "cgroup");
    });
    for (hook, what) in [("createRuntime", pid), ("createContainer", "/proc/self/cgroup")] {
        b.change(|c| c["hooks"] = json!({ hook: record(what) }));
        let out = b.oci(&["run", &b.id]);
        assert!(out.status.success(), "{out:?}");
        let groups = fs::read_to_string(&told).expect("told");
        assert!(!groups.is_empty(), "{hook} has said nothing");
        fs::remove_file(&told).expect("remove");
        let node = cgroup::Hierarchies::detect().expect("cgroups");
        let hierarchies = node.v1.len() + usize::from(node.unified.is_some());
        let inside = groups.lines().filter(|line| line.ends_with(&b.id)).count();
        assert_eq!(inside, hierarchies, "{hook}: {groups}");
    }
}

#[test]
fn a_limit_that_cannot_be_set_is_the_reason_told_and_nothing_is_left() {
    let Some(b) = Bundle::new("no-limit", "true") else { return };
    b.change(|c| c["linux"]["resources"]["cpu"] = json!({ "cpus": "9999" }));
    for verb in ["run", "create"] {
        let (ok, said) = b.oci_to_file(&[verb, &b.id]);
        let said = fs::read_to_string(said).expect("read");
        assert!(!ok && said.contains("create the cgroup") && said.contains("9999"), "{said}");
        assert!(b.groups().is_empty(), "{:?}", b.groups());
        assert!(!b.oci(&["state", &b.id]).status.success());
    }
}

#[test]
fn a_filter_that_forbids_waiting_does_not_forbid_the_start() {
    let Some(b) = Bundle::new("no-recv", "echo runs") else { return };
    for no_new_privileges in [true, false] {
        b.change(|c| {
            c["process"]["noNewPrivileges"] = no_new_privileges.into();
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["recvfrom"], "action": "SCMP_ACT_KILL_PROCESS" }] });
        });
        let out = b.oci(&["run", &b.id]);
        assert_eq!(text(&out.stdout), "runs\n", "{out:?}");
        assert!(b.oci_to_file(&["create", &b.id]).0);
        assert!(b.oci(&["start", &b.id]).status.success());
        b.ends();
        assert!(b.oci(&["delete", &b.id]).status.success());
    }
}
