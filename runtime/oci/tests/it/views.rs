//! Which mounts a container sees, and which of its own others see: in a namespace of its own, in one that is joined,
//! in the caller's, and without a pivot.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::bundle::{Bundle, program, text};

/// Of the bundle, as the caller sees them.
fn shown(b: &Bundle, to: &str) -> usize {
    let rootfs = b.dir.path().join("rootfs");
    let mounts = fs::read_to_string(format!("/proc/{to}/mountinfo")).expect("mountinfo");
    mounts.lines().filter(|line| line.contains(&*rootfs.to_string_lossy())).count()
}

fn mount_namespace(c: &mut Value, entry: Option<Value>) {
    let list = c["linux"]["namespaces"].as_array_mut().expect("list");
    list.retain(|n| n["type"] != "mount");
    list.extend(entry);
}

/// A process in a mount namespace of its own, which ends with the value.
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn new(script: &str) -> Self {
        let script = format!("{script}; echo ready; exec sleep 1000");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare (package util-linux)");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("read");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/mnt", self.0.id())
    }

    /// The command line among its mounts. Answers the exit code and all that was said.
    pub(crate) fn oci(&self, b: &Bundle, args: &[&str]) -> (i32, String) {
        let printed = b.dir.path().join("printed");
        let file = fs::File::create(&printed).expect("create");
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.pid()]).arg(program()).arg("--root");
        command.arg(b.dir.path().join("root")).args(args).stdin(Stdio::null());
        command.stdout(file.try_clone().expect("dup")).stderr(file);
        let status = command.status().expect("nsenter (package util-linux)");
        (status.code().expect("exited"), text(&fs::read(printed).expect("printed")))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

#[test]
fn without_a_mount_namespace_the_root_shows_among_the_callers_mounts_until_the_end() {
    let Some(b) = Bundle::new("shared-mounts", "ls /; exec sleep 1000") else { return };
    fs::write(b.dir.path().join("rootfs/mine"), "mine").expect("write");
    let (caller, bundle) = (Holder::new("true"), b.dir.path().to_string_lossy().into_owned());
    for path in [None, Some(caller.namespace())] {
        b.change(|c| mount_namespace(c, path.map(|p| json!({ "type": "mount", "path": p }))));
        let (code, said) = caller.oci(&b, &["run", "-d", "--bundle", &bundle, &b.id]);
        assert_eq!(code, 0, "{said}");
        b.waits_for_sleep(b.pid());
        let said = fs::read_to_string(b.dir.path().join("printed")).expect("printed");
        assert!(said.contains("mine") && !said.contains("usr"), "{said}");
        let its = fs::read_link(format!("/proc/{}/ns/mnt", b.pid())).expect("link");
        assert_eq!(its, fs::read_link(caller.namespace()).expect("link"));
        assert!(shown(&b, &caller.pid()) > 3);
        // Another process of it has its root, not that of the namespace.
        let (_, said) = caller.oci(&b, &["exec", &b.id, "sh", "-c", "cat /mine; ls /; pwd"]);
        assert!(said.starts_with("mine") && !said.contains("usr"), "{said}");
        assert!(said.ends_with("/\n"), "{said}");
        assert_eq!(caller.oci(&b, &["delete", "-f", &b.id]).0, 0);
        assert_eq!(shown(&b, &caller.pid()), 0);
    }
}

#[test]
fn a_creation_that_fails_among_the_callers_mounts_takes_its_own_away() {
    let Some(b) = Bundle::new("shared-fails", "true") else { return };
    b.change(|c| {
        mount_namespace(c, None);
        let list = c["mounts"].as_array_mut().expect("mounts");
        list.push(json!({ "destination": "/x", "type": "no-such-type", "source": "x" }));
    });
    let (caller, bundle) = (Holder::new("true"), b.dir.path().to_string_lossy().into_owned());
    let (code, said) = caller.oci(&b, &["run", "--bundle", &bundle, &b.id]);
    assert!(code == 1 && said.contains("no-such-type"), "{said}");
    assert_eq!(shown(&b, &caller.pid()), 0);
    assert!(!b.oci(&["state", &b.id]).status.success());
}

#[test]
fn a_mount_namespace_that_is_joined_gets_the_containers_root_for_its_own() {
    let script = "readlink /proc/self/ns/mnt; cat /mine; ls /";
    let Some(b) = Bundle::new("joined-mounts", script) else { return };
    fs::write(b.dir.path().join("rootfs/mine"), "its\n").expect("write");
    // Nothing there leads astray, not even a bundle that cannot be seen.
    let covered = b.dir.path().to_string_lossy().into_owned();
    let holder = Holder::new(&format!("mount -t tmpfs none {covered}; mount -t tmpfs none /proc"));
    b.change(|c| mount_namespace(c, Some(json!({ "type": "mount", "path": holder.namespace() }))));
    let out = b.oci(&["run", &b.id]);
    let its = fs::read_link(holder.namespace()).expect("link");
    let want = format!("{}\nits\n", its.display());
    let printed = text(&out.stdout);
    assert!(printed.starts_with(&want) && !printed.contains("usr"), "{out:?}");
    assert_eq!(shown(&b, "self"), 0);
    let root = fs::read_dir(format!("/proc/{}/root/", holder.0.id())).expect("list");
    let names: Vec<_> = root.map(|e| e.expect("entry").file_name()).collect();
    assert!(names.iter().any(|n| n == "mine"), "{names:?}");
}

#[test]
fn without_a_pivot_there_is_no_bare_proc_of_the_host_left() {
    let script = "ls /; busybox unshare -mrpf sh -c 'mount -t proc none /proc && echo mounted'; exec sleep 1000";
    let Some(b) = Bundle::new("no-pivot", script) else { return };
    fs::write(b.dir.path().join("rootfs/mine"), "mine").expect("write");
    b.change(|c| {
        c["process"]["noNewPrivileges"] = false.into();
        for set in ["bounding", "permitted", "effective"] {
            let list = c["process"]["capabilities"][set].as_array_mut().expect("set");
            list.push("CAP_SETFCAP".into());
        }
    });
    let (ok, out) = b.oci_to_file(&["run", "-d", "--no-pivot", &b.id]);
    let said = || fs::read_to_string(&out).expect("out");
    assert!(ok, "{}", said());
    b.waits_for_sleep(b.pid());
    assert!(said().contains("mine") && !said().contains("usr"), "{}", said());
    assert!(said().contains("mount: permission denied"), "{}", said());
    assert_eq!(shown(&b, "self"), 0);
    let out = text(&b.oci(&["exec", &b.id, "ls", "/"]).stdout);
    assert!(out.contains("mine") && !out.contains("usr"), "{out}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
    // Where the mounts are not the container's, it cannot be.
    b.change(|c| mount_namespace(c, None));
    let out = b.oci(&["run", "--no-pivot", &b.id]);
    assert!(text(&out.stderr).contains("mount namespace of its own"), "{out:?}");
    assert_eq!(shown(&b, "self"), 0);
}

#[test]
fn a_bind_mount_of_the_containers_own_tree_shows_what_is_mounted_there_by_then() {
    let script = "cat /copy/file /copy/deep/file /host/name";
    let Some(b) = Bundle::new("inside", script) else { return };
    let rootfs = b.dir.path().canonicalize().expect("canonical").join("rootfs");
    let make = |name: &str, text: &str| {
        let dir = b.dir.path().join(name);
        fs::create_dir_all(&dir).expect("mkdir");
        fs::write(dir.join("file"), text).expect("write");
        dir
    };
    let (outer, inner) = (make("outer", "outer\n"), make("inner", "inner\n"));
    fs::create_dir(outer.join("deep")).expect("mkdir");
    // The image's own link means a place in the image: the host's directory of that name is another.
    let name = make("canary", "host\n");
    fs::write(name.join("name"), "host\n").expect("write");
    let in_root = |path: &Path| rootfs.join(path.strip_prefix("/").expect("absolute"));
    fs::create_dir_all(in_root(&name)).expect("mkdir");
    fs::write(in_root(&name).join("name"), "image\n").expect("write");
    std::os::unix::fs::symlink(&name, rootfs.join("link")).expect("link");
    let bind =
        |from: &Path, to: &Path| json!({ "source": from, "destination": to, "options": ["rbind"] });
    b.change(|c| {
        let list = c["mounts"].as_array_mut().expect("mounts");
        list.push(bind(&outer, Path::new("/m")));
        list.push(bind(&inner, Path::new("/m/deep")));
        list.push(bind(&rootfs.join("m"), &rootfs.join("copy")));
        list.push(bind(&rootfs.join("link"), Path::new("/host")));
    });
    let out = b.oci(&["run", &b.id]);
    assert_eq!(text(&out.stdout), "outer\ninner\nimage\n", "{out:?}");
}
