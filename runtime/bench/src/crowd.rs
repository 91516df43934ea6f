//! The same on a node with many mounts: each pod brings some, its volumes above all, and whoever copies them all for a
//! container pays for them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use crate::Block;

pub(crate) const VERB: &str = "crowded";
/// As on a node of 200 pods with a token, a secret, a scratch volume and an emptyDir in memory each.
pub(crate) const MOUNTS: usize = 1000;

/// A block by this program again, in a mount namespace of its own.
pub(crate) fn run(number: usize) -> Block {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(own).args([VERB, &number.to_string()]);
    let out = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(out.status.success(), "{VERB} failed");
    let text = String::from_utf8_lossy(&out.stdout);
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let times = |words: &str| {
        words.split(' ').map(|ns| Duration::from_nanos(ns.parse().unwrap())).collect()
    };
    lines.map(|(name, words)| (name.to_owned(), times(words))).collect()
}

/// Prints what each round took, in nanoseconds.
pub(crate) fn among_mounts(scratch: &Path, block: impl FnOnce() -> Block) {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let places = (0..MOUNTS).map(|n| scratch.join(format!("mounts/{n}")));
    for place in places.clone() {
        std::fs::create_dir_all(&place).unwrap();
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None).unwrap();
    }
    for (name, times) in block() {
        let times: Vec<_> = times.iter().map(|it| it.as_nanos().to_string()).collect();
        println!("{name}\t{}", times.join(" "));
    }
    // The directory is to go.
    places.for_each(|place| unmount(&place, UnmountFlags::DETACH).unwrap());
}
