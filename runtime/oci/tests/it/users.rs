//! User namespaces and id-mapped mounts, looked at from the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::json;

use crate::bundle::{Bundle, text};

const BASE: u32 = 200_000;

/// A user namespace of ids from `BASE` on, and a root file system that belongs to its root.
fn own_users(b: &Bundle) {
    own_tree(&b.dir.path().join("rootfs"));
    let ids = json!([{ "containerID": 0, "hostID": BASE, "size": 65_536 }]);
    b.change(|c| {
        let list = c["linux"]["namespaces"].as_array_mut().expect("list");
        list.retain(|n| n["type"] != "cgroup");
        list.extend([json!({ "type": "user" }), json!({ "type": "cgroup" })]);
        c["linux"]["uidMappings"] = ids.clone();
        c["linux"]["gidMappings"] = ids;
        c["root"]["readonly"] = false.into();
    });
}

fn own_tree(path: &Path) {
    std::os::unix::fs::lchown(path, Some(BASE), Some(BASE)).expect("chown");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("list").for_each(|e| own_tree(&e.expect("entry").path()));
    }
}

fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find(|l| l.starts_with(key)).expect(key);
    line.split_whitespace().nth(1).expect("value").to_owned()
}

fn namespace(pid: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("link");
    link.to_string_lossy().into_owned()
}

fn start(b: &Bundle) -> i32 {
    let (ok, out) = b.oci_to_file(&["run", "-d", &b.id]);
    assert!(ok, "{}", fs::read_to_string(out).expect("out"));
    b.pid()
}

#[test]
fn root_of_a_user_namespace_is_nobody_on_the_host_and_its_namespaces_are_its_own() {
    let script = "id -u; cat /proc/self/uid_map; touch /made; echo x > /dev/null; \
        hostname other && hostname; echo 1 > /proc/sys/kernel/shm_rmid_forced || true; exec sleep 1000";
    let Some(b) = Bundle::new("users", script) else { return };
    own_users(&b);
    b.change(|c| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_SETUID"]);
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set] = all.clone();
        }
        c["process"]["oomScoreAdj"] = 321.into();
        c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });
    let pid = start(&b);
    b.waits_for_sleep(pid);
    let out = fs::read_to_string(b.dir.path().join("out")).expect("out");
    let words: Vec<&str> = out.split_whitespace().take(4).collect();
    assert_eq!(words, ["0", "0", "200000", "65536"], "{out}");
    assert!(out.contains("other"), "{out}");
    assert_eq!(status(pid, "Uid:"), BASE.to_string());
    let made = fs::symlink_metadata(b.dir.path().join("rootfs/made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (BASE, BASE));
    for kind in ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        assert_ne!(namespace("self", kind), namespace(&pid.to_string(), kind), "{kind}");
    }
    let adj = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("oom_score_adj");
    assert_eq!(adj.trim(), "321");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn exec_joins_the_user_namespace_too() {
    let Some(b) = Bundle::new("users-exec", "exec sleep 1000") else { return };
    own_users(&b);
    let pid = start(&b);
    let script =
        "cat /proc/self/uid_map; id -u; id -g; readlink /proc/self/ns/user; cat /proc/self/status";
    let out = text(&b.oci(&["exec", "-u", "5:6", &b.id, "sh", "-c", script]).stdout);
    let words: Vec<&str> = out.split_whitespace().take(6).collect();
    let users = namespace(&pid.to_string(), "user");
    assert_eq!(words, ["0", "200000", "65536", "5", "6", users.as_str()], "{out}");
    assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn a_second_container_joins_the_user_namespace_of_the_first_and_learns_its_ids() {
    let Some(a) = Bundle::new("users-first", "exec sleep 1000") else { return };
    own_users(&a);
    let pid = start(&a);
    let Some(b) = Bundle::new("users-second", "readlink /proc/self/ns/user; id -u") else { return };
    own_tree(&b.dir.path().join("rootfs"));
    b.change(|c| {
        for (kind, name) in [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("pid", "pid")] {
            let list = c["linux"]["namespaces"].as_array_mut().expect("list");
            list.retain(|n| n["type"] != kind);
            list.push(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") }));
        }
    });
    let out = b.oci(&["run", &b.id]);
    let want = format!("{}\n0\n", namespace(&pid.to_string(), "user"));
    assert_eq!(text(&out.stdout), want, "{out:?}");
    assert!(a.oci(&["delete", "-f", &a.id]).status.success());
}

#[test]
fn a_mount_is_shown_with_the_owners_that_its_mappings_say() {
    let Some(b) =
        Bundle::new("idmap", "stat -c %u:%g /own/f /other/f /plain/f /tree/f /tree/sub/f")
    else {
        return;
    };
    own_users(&b);
    let volume = b.dir.path().join("volume");
    fs::create_dir_all(volume.join("sub")).expect("mkdir");
    let file = volume.join("f");
    fs::write(&file, "").expect("write");
    chown(&file, Some(7), Some(8)).expect("chown");
    let ids = json!([{ "containerID": 0, "hostID": BASE + 1000, "size": 65_536 }]);
    b.change(|c| {
        let list = c["mounts"].as_array_mut().expect("mounts");
        let mount = |to: &str, words: &[&str]| json!({ "destination": to, "source": "volume", "options": words });
        list.push(mount("/own", &["bind", "idmap"]));
        let mut other = mount("/other", &["rbind"]);
        (other["uidMappings"], other["gidMappings"]) = (ids.clone(), ids);
        list.push(other);
        list.push(mount("/plain", &["bind"]));
        list.push(mount("/tree", &["rbind", "ridmap"]));
    });
    // A mount of its own below the volume, for the recursive form. Of the same file system: not each can be mapped.
    let elsewhere = b.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("mkdir");
    let sub = crate::bundle::Bound::mount(&elsewhere, &volume.join("sub"));
    fs::write(volume.join("sub/f"), "").expect("write");
    chown(volume.join("sub/f"), Some(1), Some(2)).expect("chown");
    let out = b.oci(&["run", &b.id]);
    drop(sub);
    // 7 on disk is 7 by the container's own map; 1007 by the other; nobody without.
    assert_eq!(text(&out.stdout), "7:8\n1007:1008\n65534:65534\n7:8\n1:2\n", "{out:?}");
    assert_eq!(fs::metadata(&file).expect("stat").uid(), 7, "nothing changes on disk");
}

#[test]
fn what_a_user_namespace_cannot_have_is_refused_by_name() {
    let Some(b) = Bundle::new("users-bad", "true") else { return };
    own_users(&b);
    b.change(|c| {
        c["linux"]["devices"] =
            json!([{ "path": "/dev/none", "type": "c", "major": 1, "minor": 3 }]);
    });
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("device /dev/none"), "{out:?}");
    b.change(|c| {
        c["linux"]["devices"] = json!(null);
        c["linux"]["uidMappings"][0]["containerID"] = 1.into();
    });
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("uid and gid 0 of the container must be mapped"), "{out:?}");
    assert_eq!(b.groups(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_tree_of_the_containers_own_is_id_mapped_by_the_host() {
    let script = "stat -c %u /m/file /copy/file /deep/file";
    let Some(b) = Bundle::new("users-inside", script) else { return };
    own_users(&b);
    let given = b.dir.path().join("given");
    fs::create_dir_all(given.join("below")).expect("mkdir");
    fs::write(given.join("file"), "").expect("write");
    let rootfs = b.dir.path().canonicalize().expect("canonical").join("rootfs");
    b.change(|c| {
        let list = c["mounts"].as_array_mut().expect("mounts");
        let mut bind = |from: &Path, to: &str, options: &[&str]| {
            list.push(json!({ "source": from, "destination": to, "options": options }));
        };
        bind(&given, "/m", &["bind"]);
        bind(&given, "/m/below", &["bind"]);
        bind(&rootfs.join("m"), "/copy", &["rbind", "idmap"]);
        bind(&rootfs.join("m/below"), "/deep", &["bind", "idmap"]);
    });
    let out = b.oci(&["run", &b.id]);
    assert_eq!(text(&out.stdout), "65534\n0\n0\n", "{out:?}");
    b.change(|c| {
        let list = c["mounts"].as_array_mut().expect("mounts");
        list.push(json!({ "source": rootfs.join("copy"), "destination": "/again", "options": ["bind", "idmap"] }));
    });
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("mount /again: map its ids"), "{out:?}");
    assert_eq!(b.groups(), Vec::<std::path::PathBuf>::new());
}
