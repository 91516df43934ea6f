//! `--systemd-cgroup` against a double of systemd. (The real one is asked in the vm ring.)

#[path = "../../../systemd/tests/double/mod.rs"]
mod double;

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::bundle::{Bundle, text};
use double::Double;

fn oci(double: &Double, b: &Bundle, args: &[&str]) -> (i32, String) {
    b.oci_by_systemd(Some(double.address()), args)
}

fn gone(path: &Path) {
    for _ in 0..500 {
        if !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} is left", path.display());
}

#[test]
fn a_container_is_a_scope_made_by_one_call_with_its_limits_and_ends_with_it() {
    // The double makes groups, but hands no controllers down to them as the real one does.
    if cgroup::Hierarchies::detect().expect("cgroups").is_v2() {
        eprintln!("SKIPPED: on pure cgroup v2 it is the real systemd that is asked");
        return;
    }
    let Some(b) = Bundle::new("scope", "exec sleep 1000") else { return };
    let double = Double::start();
    let slice = format!("lapstraketest-a{}.slice", std::process::id());
    b.change(|c| {
        c["linux"]["cgroupsPath"] = format!("{slice}:oci:{}", b.id).into();
        c["linux"]["resources"]["pids"] = json!({ "limit": 44 });
        c["linux"]["resources"]["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
    });
    let (code, said) = oci(&double, &b, &["run", "-d", &b.id]);
    assert_eq!(code, 0, "{said}");
    let scope = format!("oci-{}.scope", b.id);
    let path = format!("/lapstraketest.slice/{slice}/{scope}");
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let pid = b.pid();
    assert_eq!(node.pids(&path).expect("pids"), [pid], "the holder is gone, the container is in");
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert!(groups.lines().all(|l| l.ends_with(&path)), "in every hierarchy: {groups}");
    let calls = double.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].starts_with(&format!("start {scope} replace ")), "{calls:?}");
    for want in ["Delegate", "TasksMax", "44", "CPUQuotaPerSecUSec", "500000", &slice] {
        assert!(calls[0].contains(want), "{want}: {calls:?}");
    }

    assert_eq!(oci(&double, &b, &["update", "--pids-limit", "55", &b.id]).0, 0);
    assert!(
        double.calls()[1].starts_with(&format!("set {scope} true TasksMax=")),
        "{:?}",
        double.calls()
    );
    assert_eq!(oci(&double, &b, &["delete", "-f", &b.id]).0, 0);
    assert_eq!(double.calls()[2], format!("stop {scope}"));
    for dir in node.dirs(&path) {
        gone(&dir);
    }
    node.prune(&format!("/lapstraketest.slice/{slice}"));
}

#[test]
fn systemds_refusal_is_told_in_its_words_and_leaves_nothing() {
    let Some(b) = Bundle::new("scope-no", "true") else { return };
    let double = Double::start();
    let slice = format!("lapstraketest-b{}.slice", std::process::id());
    for (prefix, want) in [("refused", "it is masked"), ("fails", "\"failed\"")] {
        b.change(|c| c["linux"]["cgroupsPath"] = format!("{slice}:{prefix}:{}", b.id).into());
        let (code, said) = oci(&double, &b, &["run", &b.id]);
        assert_eq!(code, 1);
        assert!(said.contains("make the scope") && said.contains(want), "{said}");
        assert!(!b.dir.path().join("root").join(&b.id).exists());
    }
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    node.prune(&format!("/lapstraketest.slice/{slice}"));
    assert!(!node.exists(&format!("/lapstraketest.slice/{slice}")));
}

#[test]
fn a_unit_without_the_flag_and_a_path_with_it_are_refused() {
    let Some(b) = Bundle::new("scope-form", "true") else { return };
    b.change(|c| c["linux"]["cgroupsPath"] = "a.slice:b:c".into());
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("--systemd-cgroup is needed"), "{out:?}");
    b.change(|c| c["linux"]["cgroupsPath"] = "/a/b".into());
    let out = b.oci(&["--systemd-cgroup", "run", &b.id]);
    assert!(text(&out.stderr).contains("slice:prefix:name"), "{out:?}");
}
