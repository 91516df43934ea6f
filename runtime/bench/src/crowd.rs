//! The same on a node with many mounts: each pod brings some, its volumes above all, and whoever copies them all for a
//! container pays for them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::shim::Pod;

pub(crate) const VERB: &str = "crowded";
/// As on a node of 200 pods with a token, a secret, a scratch volume and an emptyDir in memory each.
const MOUNTS: usize = 1000;

pub(crate) fn name(contender: &str) -> String {
    format!("{contender} among {MOUNTS} mounts")
}

/// This program again, in a mount namespace of its own. Without a word from it, there was no round.
pub(crate) fn run(rounds: usize) -> Vec<(String, Vec<Duration>)> {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(own).args([VERB, &rounds.to_string()]);
    let out = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(out.status.success(), "{VERB} failed");
    let text = String::from_utf8_lossy(&out.stdout);
    let lines = text.lines().map(|line| {
        let mut words = line.split(' ');
        let contender = name(words.next().unwrap());
        (contender, words.map(|ns| Duration::from_nanos(ns.parse().unwrap())).collect())
    });
    lines.collect()
}

/// Prints what each round took, in nanoseconds.
pub(crate) fn rounds(scratch: &Path, pod: &mut Pod<'_>, rounds: usize) {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    for n in 0..MOUNTS {
        let place = scratch.join(format!("mounts/{n}"));
        std::fs::create_dir_all(&place).unwrap();
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None).unwrap();
    }
    let line = |name: &str, times: Vec<Duration>| {
        let times: Vec<_> = times.iter().map(|t| t.as_nanos().to_string()).collect();
        println!("{name} {}", times.join(" "));
    };
    pod.run();
    line("shim", (0..rounds).map(|_| pod.run()).collect());
    line("pod", (0..rounds).map(|_| pod.another().0).collect());
    // The rest of the program's clean-up wants its directory back.
    for n in 0..MOUNTS {
        let place = scratch.join(format!("mounts/{n}"));
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
