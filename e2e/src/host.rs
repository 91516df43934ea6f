//! The leak oracle: all that one node has on this machine, before and after.
//!
//! Witnesses are the kernel's own files and the tools `ip` and `nft`, never the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::slot::Slot;
use crate::wait::scaled;

/// The kernel takes namespaces and their links apart in the background.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// By what the things of one node are known.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Everything in files, and the working directory of every shim, is below one of these.
    pub dirs: [PathBuf; 2],
    pub cgroup: String,
    pub bridge: String,
    /// The named network namespace that is the node's host, if it is not the machine's own.
    pub netns: Option<String>,
}

/// Things by kind; what there may be several of carries a count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

impl Scope {
    pub fn of(slot: &Slot, netns: Option<String>) -> Self {
        Self {
            dirs: [slot.run_dir(), slot.var_dir()],
            cgroup: slot.cgroup(),
            bridge: slot.bridge(),
            netns,
        }
    }

    /// A program that sees the network of the node's host, and all else of this machine's.
    pub fn command(&self, program: &Path) -> Command {
        match &self.netns {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("/usr/bin/nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg(program);
                command
            }
        }
    }

    /// What is there now. `daemon`: whose descriptors count.
    pub fn snapshot(&self, daemon: Option<i32>) -> Snapshot {
        let pids = self.pids(daemon);
        let mut kinds = BTreeMap::new();
        kinds.insert("descriptor", daemon.map(descriptors).unwrap_or_default());
        kinds.insert("mount", self.mounts());
        kinds.insert("cgroup", self.cgroups().iter().map(|it| it.display().to_string()).collect());
        kinds.insert("network namespace", namespaces(&pids));
        kinds.insert("link", self.links());
        kinds.insert("nft object", self.nft());
        kinds.insert("process", pids.iter().map(|it| describe(*it)).collect());
        kinds.insert("file", self.files());
        Snapshot(kinds)
    }

    /// Waits, within bounds, until everything is as it was `before`; panics with the difference.
    #[track_caller]
    pub fn assert_same(&self, before: &Snapshot, daemon: Option<i32>) {
        let end = Instant::now() + scaled(SETTLE_LIMIT);
        loop {
            let difference = before.difference(&self.snapshot(daemon));
            if difference.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "left behind (+) or lost (-):\n{}",
                difference.join("\n")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits, within bounds, until nothing of the node's is left but its files; panics with what is.
    #[track_caller]
    pub fn assert_gone(&self) {
        let mut nothing = self.snapshot(None);
        for (_, things) in nothing.0.iter_mut().filter(|(kind, _)| **kind != "file") {
            things.clear();
        }
        self.assert_same(&nothing, None);
    }

    /// Takes everything away, whatever a failed test left; the daemon is dead by now.
    pub fn sweep(&self) {
        let end = Instant::now() + scaled(SETTLE_LIMIT);
        while !self.pids(None).is_empty() && Instant::now() < end {
            for pid in self.pids(None) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for mount in self.mounts() {
            run("umount", &["-l", &mount]);
        }
        self.sweep_network();
        for cgroup in self.cgroups().iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        for dir in &self.dirs {
            let _ = fs::remove_dir_all(dir);
        }
    }

    fn sweep_network(&self) {
        // A host that is gone took all of it along.
        let gone = |name: &String| !Path::new("/run/netns").join(name).exists();
        if self.netns.as_ref().is_some_and(gone) {
            return;
        }
        for link in self.links().iter().filter(|it| **it != self.bridge) {
            let _ = self.command(Path::new("ip")).args(["link", "delete", link]).output();
        }
        let _ = self.command(Path::new("ip")).args(["link", "delete", &self.bridge]).output();
        for table in self.nft_tables() {
            let mut delete = self.command(Path::new("nft"));
            let _ = delete.args(["delete", "table", &table.0, &table.1]).output();
        }
    }

    /// Processes of the node: in its cgroups, started from or standing in its directories.
    pub fn pids(&self, daemon: Option<i32>) -> BTreeSet<i32> {
        let mut pids: BTreeSet<_> = numbers("/proc").filter(|pid| self.owns(*pid)).collect();
        if let Some(daemon) = daemon {
            pids.extend(children(daemon)); // zombies have neither cgroup nor command line
            pids.remove(&daemon);
        }
        pids
    }

    fn owns(&self, pid: i32) -> bool {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let cgroup = format!(":{}", self.cgroup);
        // Dead, and only for init to wait for: some take a second over it.
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        if status.contains("\nState:\tZ") && status.contains("\nPPid:\t1\n") {
            return false;
        }
        let in_cgroup = String::from_utf8_lossy(&read("cgroup"))
            .lines()
            .filter_map(|line| line.split_once(&cgroup))
            .any(|(_, rest)| rest.is_empty() || rest.starts_with('/'));
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        in_cgroup
            || self
                .dirs
                .iter()
                .any(|dir| cwd.starts_with(dir) || command.contains(&format!("{}/", dir.display())))
    }

    /// Mount points in the host's table that lie in the node's directories or come from them.
    fn mounts(&self) -> BTreeSet<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |line: &&str| {
            self.dirs.iter().any(|dir| {
                let dir = dir.display().to_string();
                line.contains(&format!("{dir}/")) || line.contains(&format!("{dir} "))
            })
        };
        table
            .lines()
            .filter(ours)
            .filter_map(|it| it.split(' ').nth(4))
            .map(str::to_owned)
            .collect()
    }

    /// Parents before children.
    fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_dirs(&self.cgroup)
    }

    /// Whether nothing hangs on the bridge.
    pub fn has_no_pod_links(&self) -> bool {
        self.links().iter().all(|it| *it == self.bridge)
    }

    /// The bridge, and what hangs on it.
    fn links(&self) -> BTreeSet<String> {
        let links = json(self.command(Path::new("ip")).args(["-j", "link", "show"]));
        links
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| it["ifname"] == *self.bridge || it["master"] == *self.bridge)
            .map(|it| it["ifname"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Tables, chains, rules, sets and their elements of our tables, without counters.
    fn nft(&self) -> BTreeSet<String> {
        let objects = self.nft_objects();
        objects.iter().map(|it| stable(it).to_string()).collect()
    }

    fn nft_tables(&self) -> Vec<(String, String)> {
        let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
        let objects = self.nft_objects();
        let tables = objects.iter().filter_map(|it| it.get("table"));
        tables.map(|it| (text(&it["family"]), text(&it["name"]))).collect()
    }

    fn nft_objects(&self) -> Vec<Value> {
        if !has_nf_tables() {
            return Vec::new();
        }
        let ruleset = json(self.command(Path::new("nft")).args(["-j", "list", "ruleset"]));
        let mine = |object: &&Value| {
            let body = object.as_object().and_then(|it| it.values().next());
            let table = body.and_then(|it| it.get("table").or_else(|| it.get("name")));
            table.and_then(Value::as_str).is_some_and(|name| {
                name.rsplit(|it: char| !it.is_alphanumeric()).any(|word| word == self.bridge)
            })
        };
        ruleset["nftables"].as_array().unwrap().iter().filter(mine).cloned().collect()
    }

    /// Records, bundles, sockets, upper directories, leases: all but images and logs.
    fn files(&self) -> BTreeSet<String> {
        let mut found = Vec::new();
        walk(&self.dirs[0].join("state"), false, &mut found);
        walk(&self.dirs[1].join("root/containers"), false, &mut found);
        walk(&self.dirs[1].join("root/network"), false, &mut found);
        walk(&self.dirs[1].join("root/cni"), false, &mut found);
        walk(&self.dirs[0].join("plugins"), false, &mut found);
        found.iter().map(|it| it.display().to_string()).collect()
    }
}

/// Whether this kernel was booted to have nf_tables, and so can have objects of theirs.
pub fn has_nf_tables() -> bool {
    let options = fs::read_to_string("/proc/cmdline").unwrap();
    let mut refused =
        options.split_whitespace().filter_map(|it| it.strip_prefix("module_blacklist="));
    !refused.any(|modules| modules.split(',').any(|it| it == "nf_tables"))
}

impl Snapshot {
    /// Lines that begin with `+` (only later) or `-` (only before).
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, after) in &later.0 {
            let before = self.0.get(kind).cloned().unwrap_or_default();
            lines.extend(after.difference(&before).map(|it| format!("+ {kind}: {it}")));
            lines.extend(before.difference(after).map(|it| format!("- {kind}: {it}")));
        }
        lines
    }

    /// The things of one kind.
    pub fn of(&self, kind: &str) -> BTreeSet<String> {
        self.0.get(kind).cloned().unwrap_or_else(|| panic!("no kind {kind:?}"))
    }
}

/// The directories of a cgroup and its children in every mounted hierarchy, parents first.
pub fn cgroup_dirs(cgroup: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found = Vec::new();
    for line in table.lines().filter(|it| it.contains(" - cgroup")) {
        let mount = line.split(' ').nth(4).unwrap();
        walk(Path::new(&format!("{mount}{cgroup}")), true, &mut found);
    }
    found
}

/// What a cgroup of `pid` says in `v2_file` where the controller is on the unified hierarchy, in
/// `v1_file` where it is on one of its own.
pub fn cgroup_value(pid: i32, controller: &str, v1_file: &str, v2_file: &str) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = |wanted: &dyn Fn(&str, &str) -> bool| {
        table.lines().find_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut back = back.split(' ');
            let (kind, options) = (back.next()?, back.nth(1)?);
            wanted(kind, options).then(|| front.split(' ').nth(4).map(str::to_owned))?
        })
    };
    let has = |options: &str| options.split(',').any(|it| it == controller);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &dyn Fn(&str) -> bool| {
        cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            wanted(parts.next()?).then(|| parts.next().map(str::to_owned))?
        })
    };
    let (mount, path, file) = match mount(&|kind, options| kind == "cgroup" && has(options)) {
        Some(mount) => (mount, path(&has), v1_file),
        None => (mount(&|kind, _| kind == "cgroup2").unwrap(), path(&str::is_empty), v2_file),
    };
    let file = format!("{mount}{}/{file}", path.expect("the process is in a cgroup"));
    fs::read_to_string(&file).unwrap_or_else(|it| panic!("{file}: {it}")).trim().to_owned()
}

/// The first two numbers of this kernel's release.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|it| it.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// TCP ports a process listens on.
pub fn listening_ports(pid: i32) -> BTreeSet<u16> {
    let sockets: BTreeSet<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|it| fs::read_link(it.path()).ok())
        .filter_map(|it| {
            Some(it.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let columns = table.lines().skip(1).map(|it| it.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|it| it[3] == "0A" && sockets.contains(it[9])) // LISTEN, inode
        .map(|it| u16::from_str_radix(it[1].rsplit(':').next().unwrap(), 16).unwrap())
        .collect()
}

/// Processes whose parent is `pid`, the dead ones that nobody has waited for included.
pub fn children(pid: i32) -> BTreeSet<i32> {
    let of = |task: i32| {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{task}/children"));
        list.unwrap_or_default()
            .split_whitespace()
            .map(|it| it.parse().unwrap())
            .collect::<Vec<_>>()
    };
    numbers(&format!("/proc/{pid}/task")).flat_map(of).collect()
}

/// Processes whose command line, words joined by spaces, is `wanted`.
pub fn processes(wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let command = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
    numbers("/proc").filter(|pid| wanted(&text(command(pid)))).collect()
}

/// The short name of a process, as `ps` shows it.
pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Memory of a process in KiB, shared pages counted by share.
pub fn pss_kib(pid: i32) -> u64 {
    memory_kib(pid, "Pss:")
}

/// Memory of a process that is nobody else's and in no file, in KiB: others that run the same
/// program come and go without changing it.
pub fn anonymous_kib(pid: i32) -> u64 {
    memory_kib(pid, "Anonymous:")
}

fn memory_kib(pid: i32, key: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|it| it.strip_prefix(key)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

/// Open descriptors by what they are, with their number. Connections over TCP are left out: the
/// registry client may keep a few idle ones.
fn descriptors(pid: i32) -> BTreeSet<String> {
    let tcp = ["tcp", "tcp6"].map(|it| fs::read_to_string(format!("/proc/{pid}/net/{it}")));
    let tcp: Vec<_> = tcp.into_iter().flatten().collect();
    let mut counts = BTreeMap::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(fd.path()) else { continue };
        let target = target.display().to_string();
        let inode = target.strip_prefix("socket:[").map(|it| it.trim_end_matches(']'));
        if inode.is_some_and(|inode| tcp.iter().any(|it| it.contains(&format!(" {inode} ")))) {
            continue;
        }
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind).to_owned();
        *counts.entry(kind).or_insert(0) += 1;
    }
    counts.into_iter().map(|(kind, count)| format!("{count} × {kind}")).collect()
}

/// Network namespaces some process of the node is in, other than the host's. One that a
/// descriptor or a mount holds shows as that.
fn namespaces(pids: &BTreeSet<i32>) -> BTreeSet<String> {
    let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let host = link(1);
    let found = pids.iter().filter_map(|pid| link(*pid)).filter(|it| Some(it) != host.as_ref());
    found.map(|it| it.display().to_string()).collect()
}

fn describe(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("{pid} {} [{}]", comm(pid), command.trim())
}

fn numbers(dir: &str) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().to_str()?.parse().ok())
}

fn walk(path: &Path, dirs_only: bool, found: &mut Vec<PathBuf>) {
    let Ok(kind) = path.symlink_metadata() else { return };
    if kind.is_dir() || !dirs_only {
        found.push(path.to_owned());
    }
    if kind.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), dirs_only, found);
        }
    }
}

/// Without handles and counters, which change by themselves.
fn stable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields
                .iter()
                .filter(|(key, _)| !matches!(&***key, "handle" | "packets" | "bytes" | "expires"));
            kept.map(|(key, value)| (key.clone(), stable(value))).collect()
        }
        Value::Array(items) => items.iter().map(stable).collect(),
        other => other.clone(),
    }
}

fn json(command: &mut Command) -> Value {
    let output = command.output().unwrap_or_else(|it| panic!("{command:?}: {it}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// For cleaning up: what is gone already is fine.
fn run(program: &str, arguments: &[&str]) {
    let _ = Command::new(program).args(arguments).output();
}
