//! The leak oracle is itself held to account: whatever is left on purpose must be noticed, and
//! swept away.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::process::{Child, Command};

use e2e::host::Scope;
use e2e::slot::Slot;

#[test]
fn everything_left_behind_is_noticed_and_swept() {
    let slot = Slot::take();
    let scope = Scope::of(&slot, None);
    scope.sweep();
    let daemon = i32::try_from(std::process::id()).unwrap();
    let before = scope.snapshot(Some(daemon));
    scope.assert_same(&before, Some(daemon));

    let state = slot.run_dir().join("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("record"), "").unwrap();
    let bridge = slot.bridge();
    for line in [
        format!("ip link add {bridge} type bridge"),
        format!("ip link add {bridge}v type veth peer name {bridge}w"),
        format!("ip link set {bridge}v master {bridge}"),
        format!("nft add table inet lapstrake-{bridge}"),
        format!("nft add set inet lapstrake-{bridge} ports {{ type inet_service; }}"),
        format!("nft add element inet lapstrake-{bridge} ports {{ 80 }}"),
        format!("mount -t tmpfs none {}", state.display()),
    ] {
        run(&line);
    }
    let parents = [("/sys/fs/cgroup/memory"), ("/sys/fs/cgroup")];
    let parent = parents.into_iter().find(|it| fs::exists(format!("{it}/cgroup.procs")).unwrap());
    fs::create_dir(format!("{}{}", parent.expect("a cgroup hierarchy"), slot.cgroup())).unwrap();
    let mut leaked = Leaked::sleeping_in(&slot);
    let descriptor = fs::File::open("/proc/self/ns/net").unwrap();

    let difference = before.difference(&scope.snapshot(Some(daemon)));
    for kind in [
        "descriptor",
        "mount",
        "cgroup",
        "link",
        "nft object",
        "process",
        "file",
        "network namespace",
    ] {
        let noticed = difference.iter().any(|it| it.starts_with(&format!("+ {kind}: ")));
        assert!(noticed, "{kind} is not in {difference:#?}");
    }
    assert!(difference.iter().any(|it| it.contains("\"elem\":[80]")), "{difference:#?}");

    drop(descriptor);
    scope.sweep();
    leaked.0.wait().unwrap();
    scope.assert_same(&before, Some(daemon));
}

struct Leaked(Child);

impl Leaked {
    /// A process that stands in the node's directory, in a network namespace of its own.
    fn sleeping_in(slot: &Slot) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "1000"]).current_dir(slot.run_dir());
        let child = command.spawn().unwrap();
        let host = fs::read_link("/proc/self/ns/net").unwrap();
        e2e::wait::until("unshare", std::time::Duration::from_secs(10), || {
            let own = fs::read_link(format!("/proc/{}/ns/net", child.id())).unwrap();
            (own != host).then_some(())
        });
        Self(child)
    }
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
