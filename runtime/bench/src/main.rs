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
use shim::Pod;

/// Rounds of each contender, in blocks by turns, so that a busy moment of the machine hits all of them.
const BLOCKS: usize = 15;
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
    match args.as_slice() {
        [_, verb, number] if verb == crowd::VERB => {
            let number = number.parse().unwrap();
            crowd::among_mounts(dir.path(), || block(number, &mut pod, &bundle, &peers));
        }
        // For a profiler: one of them alone, as often as is said.
        [_, name, rounds] => alone(name, rounds.parse().unwrap(), &mut pod, &bundle),
        _ => side_by_side(&mut pod, &bundle, &peers),
    }
    pod.end();
}

fn alone(name: &str, rounds: usize, pod: &mut Pod<'_>, bundle: &Bundle) {
    let mut times: Vec<_> = match name {
        "floor" => (0..rounds).map(|n| floor::run(bundle, n, Network::Own)).collect(),
        "exec" => {
            let id = pod.sleeper();
            pod.execs(&id, rounds)
        }
        _ => (0..rounds).map(|_| pod.run()).collect(),
    };
    times.sort();
    println!("{name}: p50 {:?}, p25 {:?}", times[rounds / 2], times[rounds / 4]);
}

fn side_by_side(pod: &mut Pod<'_>, bundle: &Bundle, peers: &[Peer]) {
    let (mut few, mut many) = (Table::default(), Table::default());
    // The first block is not counted.
    for number in 0..=BLOCKS {
        let (here, crowded) = (block(number, pod, bundle, peers), crowd::run(number));
        if number > 0 {
            few.add(here);
            many.add(crowded);
        }
    }
    let rounds = BLOCKS * PER_BLOCK;
    println!(
        "one bundle: create, start, wait, delete; {rounds} rounds each, milliseconds; load {}",
        load()
    );
    few.print();
    few.ratios_of_the_command_line(peers);
    few.ratios_of_the_shim(peers);
    println!("the same among {} more mounts", crowd::MOUNTS);
    many.print();
    many.ratios_of_the_shim(peers);
    for name in ["shim", "pod"] {
        let (many, few) = (many.median(name), few.median(name));
        ratio(&format!("{name} among them / without them"), many, few, 1.25);
    }
    pod.exec_and_memory();
}

/// What the contenders of a block took, by name.
type Block = Vec<(String, Vec<Duration>)>;

fn block(number: usize, pod: &mut Pod<'_>, bundle: &Bundle, peers: &[Peer]) -> Block {
    let floor = |network: Network| {
        let number = |n: usize| number * PER_BLOCK + n;
        (0..PER_BLOCK).map(|n| floor::run(bundle, number(n), network)).collect()
    };
    let mut all: Block = vec![
        ("floor".into(), floor(Network::Own)),
        ("floor in a pod".into(), floor(Network::Joined)),
        ("shim".into(), (0..PER_BLOCK).map(|_| pod.run()).collect()),
    ];
    let (came, went) = (0..PER_BLOCK).map(|_| pod.another()).unzip();
    all.extend([("pod".into(), came), ("pod's end".into(), went)]);
    let peer = |it: &Peer| (it.name.clone(), it.run(bundle, &format!("b{number}"), PER_BLOCK));
    all.extend(peers.iter().map(peer));
    all
}

#[derive(Default)]
struct Table(BTreeMap<String, Vec<Duration>>);

impl Table {
    fn add(&mut self, block: Block) {
        for (name, times) in block {
            let all = self.0.entry(name).or_default();
            all.extend(times);
            all.sort();
        }
    }

    /// Milliseconds.
    fn at(&self, name: &str, share: usize) -> Option<f64> {
        let times = self.0.get(name)?;
        Some(times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3)
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.at(name, 50)
    }

    fn print(&self) {
        for name in self.0.keys() {
            let [p50, p95, min] = [50, 95, 0].map(|share| self.at(name, share).unwrap_or_default());
            println!("  {name:24} p50 {p50:8.2}  p95 {p95:8.2}  min {min:8.2}");
        }
    }

    fn of_peer(&self, peers: &[Peer], start: &str) -> Option<f64> {
        peers.iter().find(|it| it.name.starts_with(start)).and_then(|it| self.median(&it.name))
    }

    fn ratios_of_the_command_line(&self, peers: &[Peer]) {
        let ours = self.of_peer(peers, "lapstrake-oci");
        ratio("lapstrake-oci / runc", ours, self.of_peer(peers, "runc"), 1.0 / 8.0);
        ratio("lapstrake-oci / crun", ours, self.of_peer(peers, "crun"), 1.0 / 4.0);
        ratio("lapstrake-oci / floor", ours, self.median("floor"), 4.0);
    }

    fn ratios_of_the_shim(&self, peers: &[Peer]) {
        let ours = self.median("shim");
        ratio("shim's own path / runc", ours, self.of_peer(peers, "runc"), 1.0 / 16.0);
        ratio("shim's own path / crun", ours, self.of_peer(peers, "crun"), 1.0 / 8.0);
        ratio("shim's own path / floor in a pod", ours, self.median("floor in a pod"), 2.0);
    }
}

fn ratio(what: &str, a: Option<f64>, b: Option<f64>, bound: f64) {
    if let (Some(a), Some(b)) = (a, b) {
        let verdict = if a / b <= bound { "holds" } else { "MISSED" };
        println!("  {what:44} {:6.3}  (bound {bound:5.3}: {verdict})", a / b);
    }
}

/// The machine's load average: what stands beside every figure.
pub(crate) fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
