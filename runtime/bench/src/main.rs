//! Times the life of one bundle (create, start, wait, delete) by every runtime there is and by the bare kernel, in one
//! run: medians, and what they are to each other.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

mod bundle;
mod crowd;
mod floor;
mod peer;
mod shim;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bundle::Bundle;
use floor::Network;
use peer::Peer;

/// Rounds of each contender, in blocks by turns, so that a busy moment of the machine hits all of them.
const BLOCKS: usize = 6;
const PER_BLOCK: usize = 10;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    // A peer may need a mount namespace of its own for all its rounds: this program again, inside of it.
    if let [_, verb, program, bundle, prefix, rounds] = args.as_slice()
        && verb == "rounds"
    {
        return peer::rounds(program, Path::new(bundle), prefix, rounds.parse().unwrap());
    }
    let own = std::env::current_exe().unwrap();
    let bin = std::env::var_os("LAPSTRAKE_BIN_DIR")
        .map_or_else(|| own.parent().unwrap().to_owned(), Into::into);
    // In memory for everybody, as /run is on a node: what a disk's file system makes of many short-lived files (ext4
    // without a journal searches long for an inode that was not free lately) is not what is measured.
    let dir = tempfile::Builder::new().prefix("lapstrake-bench-").tempdir_in("/dev/shm").unwrap();
    let ours = bin.join("lapstrake-oci").display().to_string();
    let bundle = Bundle::make(dir.path(), Path::new(&ours));
    let mut peers = Vec::new();
    for (name, default, variable) in [
        ("lapstrake-oci", &*ours, "OURS"),
        ("runc", "/usr/sbin/runc", "PEER_RUNC"),
        ("crun", "/usr/bin/crun", "PEER_CRUN"),
    ] {
        let path = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
        match Path::new(&path).exists() {
            true if name == "crun" => peers.push(Peer::crun(Path::new(&path))),
            true => peers.push(Peer::plain(Path::new(&path))),
            false => {
                println!("SKIPPED: {name} is not installed ({path}; {variable} names another)")
            }
        }
    }
    let mut pod = shim::Pod::start(dir.path(), &bundle, &bin.join("lapstrake-shim"));
    if let [_, verb, rounds] = args.as_slice()
        && verb == crowd::VERB
    {
        crowd::rounds(dir.path(), &mut pod, rounds.parse().unwrap());
        return pod.end();
    }
    // For a profiler: one of them alone, as often as is said.
    if let [_, name, rounds] = args.as_slice() {
        let rounds: usize = rounds.parse().unwrap();
        let mut times: Vec<_> = match name.as_str() {
            "floor" => (0..rounds).map(|n| floor::run(&bundle, n, Network::Own)).collect(),
            "exec" => {
                let id = pod.sleeper();
                pod.execs(&id, rounds)
            }
            _ => (0..rounds).map(|_| pod.run()).collect(),
        };
        times.sort();
        println!("{name}: p50 {:?}, p25 {:?}", times[rounds / 2], times[rounds / 4]);
        return pod.end();
    }
    let mut times: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for block in 0..=BLOCKS {
        // The first block is not counted.
        let mut keep = |name: &str, some: Vec<Duration>| {
            if block > 0 {
                times.entry(name.to_owned()).or_default().extend(some);
            }
        };
        let floor = |network: Network| {
            let number = |n: usize| block * PER_BLOCK + n;
            (0..PER_BLOCK).map(|n| floor::run(&bundle, number(n), network)).collect()
        };
        keep("floor", floor(Network::Own));
        keep("floor in a pod", floor(Network::Joined));
        keep("shim", (0..PER_BLOCK).map(|_| pod.run()).collect());
        let (came, went) = (0..PER_BLOCK).map(|_| pod.another()).unzip();
        keep("pod", came);
        keep("pod's end", went);
        for (name, times) in crowd::run(PER_BLOCK) {
            keep(&name, times);
        }
        for peer in &peers {
            keep(&peer.name, peer.run(&bundle, &format!("b{block}"), PER_BLOCK));
        }
    }
    table(&peers, &mut times);
    pod.exec_and_memory();
    pod.end();
}

fn table(peers: &[Peer], times: &mut BTreeMap<String, Vec<Duration>>) {
    let rounds = BLOCKS * PER_BLOCK;
    println!(
        "one bundle: create, start, wait, delete; {rounds} rounds each, milliseconds; load {}",
        load()
    );
    let mut medians = BTreeMap::new();
    for (name, times) in times.iter_mut() {
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
        medians.insert(name.clone(), at(50));
        println!("  {name:24} p50 {:8.2}  p95 {:8.2}  min {:8.2}", at(50), at(95), at(0));
    }
    let ratio = |what: &str, a: &str, b: &str, bound: f64| {
        if let (Some(a), Some(b)) = (medians.get(a), medians.get(b)) {
            let verdict = if a / b <= bound { "holds" } else { "MISSED" };
            println!("  {what:44} {:6.3}  (bound {bound:5.3}: {verdict})", a / b);
        }
    };
    let named = |start: &str| peers.iter().find(|p| p.name.starts_with(start)).map(|p| &*p.name);
    let ours = named("lapstrake-oci").unwrap_or("lapstrake-oci");
    if let Some(runc) = named("runc") {
        ratio("lapstrake-oci / runc", ours, runc, 1.0 / 8.0);
        ratio("shim's own path / runc", "shim", runc, 1.0 / 16.0);
    }
    if let Some(crun) = named("crun") {
        ratio("lapstrake-oci / crun", ours, crun, 1.0 / 4.0);
        ratio("shim's own path / crun", "shim", crun, 1.0 / 8.0);
    }
    ratio("shim's own path / floor in a pod", "shim", "floor in a pod", 2.0);
    ratio("lapstrake-oci / floor", ours, "floor", 4.0);
    for name in ["shim", "pod"] {
        let crowded = crowd::name(name);
        ratio(&format!("{crowded} / without them"), &crowded, name, 1.25);
    }
}

/// The machine's load average: what stands beside every figure.
pub(crate) fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
