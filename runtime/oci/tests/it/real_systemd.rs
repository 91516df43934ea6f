//! `--systemd-cgroup` under the real systemd, where it is the first process: in the vm ring.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::bundle::{Bundle, text};

const LIMIT: u64 = 64 << 20;
const CHANGED: u64 = 96 << 20;

fn oci(b: &Bundle, args: &[&str]) -> String {
    let (code, said) = b.oci_by_systemd(None, args);
    assert_eq!(code, 0, "{args:?}: {said}");
    said
}

fn systemctl(args: &[&str]) -> String {
    let out = Command::new("systemctl").args(args).output().expect("systemctl");
    assert!(out.status.success(), "systemctl {args:?}: {}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

#[test]
fn a_scope_has_the_limits_in_systemd_and_in_the_kernel_whatever_systemd_reloads() {
    if !Path::new("/run/systemd/system").exists() {
        eprintln!("SKIPPED: systemd is not the first process here, `make test-vm` has it");
        return;
    }
    let Some(b) = Bundle::new("real-scope", "exec sleep 1000") else { return };
    let scope = format!("lapstrake-{}.scope", b.id);
    b.change(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("ocitest-pod1.slice:lapstrake:{}", b.id));
        // The node is made, and may not be opened for want of a rule.
        c["linux"]["devices"] =
            json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 }]);
        c["linux"]["resources"] = json!({
            "memory": { "limit": LIMIT },
            "cpu": { "quota": 50_000, "period": 100_000 },
            "pids": { "limit": 50 },
            "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            ],
        });
    });
    oci(&b, &["create", &b.id]);
    oci(&b, &["start", &b.id]);
    let state: serde_json::Value =
        serde_json::from_str(&oci(&b, &["state", &b.id])).expect("state");
    let pid = state["pid"].as_i64().expect("pid");
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert_eq!(group, format!("0::/ocitest.slice/ocitest-pod1.slice/{scope}\n"));
    let dir = Path::new("/sys/fs/cgroup/ocitest.slice/ocitest-pod1.slice").join(&scope);
    let read = |file: &str| fs::read_to_string(dir.join(file)).expect("read").trim().to_owned();
    let limits = || (read("memory.max"), read("cpu.max"), read("pids.max"));
    let shown = || systemctl(&["show", "--value", "--property=MemoryMax", &scope]);
    let wanted = |memory: u64| (memory.to_string(), "50000 100000".to_owned(), "50".to_owned());
    assert_eq!((limits(), shown()), (wanted(LIMIT), LIMIT.to_string()));

    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), wanted(LIMIT), "what systemd does not know it resets");
    oci(&b, &["update", "--memory", &CHANGED.to_string(), &b.id]);
    assert_eq!((limits(), shown()), (wanted(CHANGED), CHANGED.to_string()));
    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), wanted(CHANGED));

    // Devices: null may be opened, kmsg may not, and systemd's own program has not replaced ours.
    let may = |device: &str| {
        let command = format!(": < /dev/{device}");
        b.oci_by_systemd(None, &["exec", &b.id, "/bin/sh", "-c", &command]).0 == 0
    };
    assert_eq!((may("null"), may("kmsg")), (true, false));

    oci(&b, &["delete", "--force", &b.id]);
    assert!(!dir.exists(), "{} is left", dir.display());
    assert_eq!(systemctl(&["show", "--value", "--property=LoadState", &scope]), "not-found");
    systemctl(&["stop", "ocitest.slice"]);
}
