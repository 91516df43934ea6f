//! Device rules in a real v2 group: the kernel verifies the program and a process in the group meets it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use cgroup::resources::DeviceRule;
use cgroup::{Hierarchies, Removal};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// What the kernel says about a device that may be used but has no driver.
const ALLOWED: &str = "No such device or address";
const DENIED: &str = "Operation not permitted";

/// `None`, said loudly, when this machine cannot run the test and is not required to.
fn v2_only() -> Option<Hierarchies> {
    let unified = Hierarchies::detect().ok().and_then(|h| h.unified);
    if unified.is_none() || !rustix::process::geteuid().is_root() {
        let why = "SKIPPED: needs root and a mounted cgroup2 tree";
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("{why}");
        return None;
    }
    Some(Hierarchies { v1: Vec::new(), unified })
}

/// The group of one test, removed at its end.
struct Group<'n> {
    node: &'n Hierarchies,
    path: String,
}

impl<'n> Group<'n> {
    fn new(node: &'n Hierarchies, name: &str) -> Self {
        let path = format!("/lapstrake-test-devices-{}-{name}", std::process::id());
        node.create(&path).expect("create");
        Self { node, path }
    }

    /// Standard error of a shell that was moved into the group before it runs `script`.
    fn run(&self, script: &str) -> String {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        let procs = self.node.unified_dir(&self.path).expect("v2").join("cgroup.procs");
        std::fs::write(procs, shell.id().to_string()).expect("move");
        shell.stdin.take().expect("piped").write_all(b"go\n").expect("go");
        let output = shell.wait_with_output().expect("wait");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let removed = self.node.remove(&self.path);
        if !std::thread::panicking() {
            assert_eq!(removed.expect("remove"), Removal::Gone);
        }
    }
}

fn node_of(dir: &Path, name: &str, major: u32, minor: u32) -> String {
    let path = dir.join(name);
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(major, minor)).expect("mknod");
    path.to_string_lossy().into_owned()
}

fn rule(allow: bool, text: &str) -> DeviceRule {
    let mut parts = text.split([' ', ':']).map(str::to_owned);
    let kind = parts.next();
    let mut number = || parts.next().and_then(|n| n.parse().ok());
    let (major, minor) = (number(), number());
    DeviceRule { allow, kind, major, minor, access: parts.next() }
}

#[test]
fn a_process_opens_what_the_rules_allow_and_nothing_else() {
    let Some(node) = v2_only() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    // Numbers that the kernel keeps for local experiments: no driver answers.
    let listed = node_of(dir.path(), "listed", 240, 77);
    let reads = node_of(dir.path(), "reads", 240, 78);
    let unlisted = node_of(dir.path(), "unlisted", 240, 79);
    let group = Group::new(&node, "opens");
    let rules = [rule(false, "a *:* rwm"), rule(true, "c 240:77 rwm"), rule(true, "c 240:78 r")];
    node.restrict_devices(&group.path, &rules).expect("load and attach");
    let cases = [
        (format!(": < {listed}"), ALLOWED),
        (format!(": >> {listed}"), ALLOWED),
        (format!(": < {reads}"), ALLOWED),
        (format!(": >> {reads}"), DENIED),
        (format!(": <> {reads}"), DENIED),
        (format!(": < {unlisted}"), DENIED),
        (": < /dev/zero; : > /dev/null; : < /dev/urandom".to_owned(), ""),
        (format!("mknod {}/made c 240 80", dir.path().display()), ""),
    ];
    for (script, want) in cases {
        let said = group.run(&script);
        let fits = if want.is_empty() { said.is_empty() } else { said.contains(want) };
        assert!(fits, "{script}: {said:?}, not {want:?}");
    }
}

#[test]
fn a_group_below_cannot_allow_what_the_one_above_denies() {
    let Some(node) = v2_only() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let device = node_of(dir.path(), "device", 240, 77);
    let outer = Group::new(&node, "outer");
    let inner = Group { node: &node, path: format!("{}/inner", outer.path) };
    node.create(&inner.path).expect("create");
    node.restrict_devices(&outer.path, &[rule(false, "a *:* rwm")]).expect("outer");
    let rules = [rule(false, "a *:* rwm"), rule(true, "c 240:77 rwm")];
    node.restrict_devices(&inner.path, &rules).expect("inner");
    assert!(inner.run(&format!(": < {device}")).contains(DENIED));
}

#[test]
fn the_longest_list_of_rules_passes_the_verifier() {
    let Some(node) = v2_only() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let first = node_of(dir.path(), "first", 240, 0);
    let missing = node_of(dir.path(), "missing", 240, 511);
    let group = Group::new(&node, "longest");
    let allowed = (0..511).map(|minor| rule(true, &format!("c 240:{minor} rwm")));
    let rules: Vec<_> = [rule(false, "a *:* rwm")].into_iter().chain(allowed).collect();
    node.restrict_devices(&group.path, &rules).expect("load and attach");
    assert!(group.run(&format!(": < {first}")).contains(ALLOWED));
    assert!(group.run(&format!(": < {missing}")).contains(DENIED));
    let too_many = [rules.as_slice(), &[rule(true, "c 1:1 r")]].concat();
    let error = node.restrict_devices(&group.path, &too_many).expect_err("one more");
    assert!(error.to_string().contains("at most 512"), "{error}");
}
