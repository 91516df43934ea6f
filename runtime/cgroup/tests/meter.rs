//! A group read through directories that stay open: in the hierarchies of this node, in its v2 tree alone, and in a
//! tree of plain files that has every controller of v2, which this node may lack.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cgroup::meter::Buffer;
use cgroup::{Hierarchies, Meter};

/// `None`, said loudly, when this machine cannot run the test and is not required to.
fn node() -> Option<Hierarchies> {
    let node = Hierarchies::detect().ok();
    if node.is_none() || !rustix::process::geteuid().is_root() {
        let why = "SKIPPED: needs root and mounted cgroups";
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("{why}");
        return None;
    }
    node
}

/// A process in a group of its own; both go with this value.
struct Busy<'n> {
    node: &'n Hierarchies,
    path: String,
    child: Child,
}

impl<'n> Busy<'n> {
    /// Counts to some number, then sleeps.
    fn start(node: &'n Hierarchies, name: &str, below: &str) -> Self {
        let path = format!("/lapstrake-test-meter-{}-{name}", std::process::id());
        node.create(&format!("{path}{below}")).expect("create");
        let script = "read go; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; exec sleep 1000";
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn");
        for dir in node.dirs(&format!("{path}{below}")) {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).expect("move");
        }
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"go\n").expect("go");
        let mut said = [0; 5];
        let stdout = child.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(stdout, &mut said).expect("done");
        let stat = format!("/proc/{}/stat", child.id());
        while !std::fs::read_to_string(&stat).expect("alive").contains("(sleep) S") {
            std::thread::yield_now();
        }
        Self { node, path, child }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let end = Instant::now() + Duration::from_secs(5);
        while self.node.remove(&self.path).is_ok_and(|it| it == cgroup::Removal::Busy) {
            assert!(Instant::now() < end, "{} can be removed", self.path);
        }
    }
}

#[test]
fn a_reading_is_what_the_files_say() {
    let Some(node) = node() else { return };
    let busy = Busy::start(&node, "whole", "");
    let meter = Meter::open(&node, &busy.path).expect("open");
    let mut buffer = Buffer::default();
    let (v1, v2) = (node.dir("cpuacct", &busy.path), node.unified_dir(&busy.path));
    let kernel = || match (&v1, &v2) {
        (Some(dir), _) => {
            std::fs::read_to_string(dir.join("cpuacct.usage")).ok()?.trim().parse().ok()
        }
        (None, Some(dir)) => {
            let text = std::fs::read_to_string(dir.join("cpu.stat")).ok()?;
            let line = text.lines().find_map(|it| it.strip_prefix("usage_usec "))?;
            Some(line.parse::<u64>().ok()? * 1000)
        }
        (None, None) => None,
    };
    // The process sleeps; after it came to rest its time stands still.
    let end = Instant::now() + Duration::from_secs(10);
    let reading = loop {
        let reading = meter.read(&mut buffer);
        if reading.cpu.total_ns.is_some() && reading.cpu.total_ns == kernel() {
            break reading;
        }
        assert!(Instant::now() < end, "{reading:?} {:?}", kernel());
    };
    assert!(reading.cpu.total_ns > Some(1_000_000), "{reading:?}");
    assert_eq!(reading.processes, Some(1));
    let pid = i32::try_from(busy.child.id()).expect("a pid");
    assert_eq!(Meter::processes(&node, &busy.path, &mut buffer), [pid]);
    // Its memory may have come to rest later than its time.
    let mut refreshed = reading.clone();
    while meter.refresh(&mut buffer, &mut refreshed) {
        assert!(Instant::now() < end, "{refreshed:?}");
    }
    assert_eq!(refreshed.cpu.total_ns, reading.cpu.total_ns, "it still sleeps");
    assert_eq!(
        refreshed.memory.limit_hits, reading.memory.limit_hits,
        "what it does not read stays"
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("kill");
    while !meter.refresh(&mut buffer, &mut refreshed) {
        assert!(Instant::now() < end, "it ran in order to die: {refreshed:?}");
    }
}

#[test]
fn processes_of_groups_below_are_counted() {
    let Some(node) = node() else { return };
    let busy = Busy::start(&node, "below", "/one/two");
    let meter = Meter::open(&node, &busy.path).expect("open");
    let mut buffer = Buffer::default();
    assert_eq!(meter.read(&mut buffer).processes, Some(1));
    assert_eq!(Meter::processes(&node, &busy.path, &mut buffer).len(), 1);
}

#[test]
fn an_open_meter_keeps_no_group_and_reads_nothing_of_a_later_one() {
    let Some(node) = node() else { return };
    let path = format!("/lapstrake-test-meter-{}-again", std::process::id());
    node.create(&path).expect("create");
    let meter = Meter::open(&node, &path).expect("open");
    assert_eq!(node.remove(&path).expect("remove"), cgroup::Removal::Gone);
    node.create(&path).expect("create again");
    let reading = meter.read(&mut Buffer::default());
    assert_eq!((reading.cpu.total_ns, reading.processes), (None, Some(0)), "{reading:?}");
    node.remove(&path).expect("remove");
    assert!(Meter::open(&node, &path).is_none());
}

#[test]
fn the_v2_tree_alone_gives_time_and_pressure() {
    let Some(node) = node() else { return };
    let Some(unified) = node.unified else { return };
    let node = Hierarchies { v1: Vec::new(), unified: Some(unified) };
    let busy = Busy::start(&node, "unified", "");
    let meter = Meter::open(&node, &busy.path).expect("open");
    let reading = meter.read(&mut Buffer::default());
    assert!(reading.cpu.total_ns > Some(1_000_000), "{reading:?}");
    assert_eq!(reading.processes, Some(1));
    if std::path::Path::new("/proc/pressure/cpu").exists() {
        assert!(reading.cpu_pressure.is_some() && reading.io_pressure.is_some(), "{reading:?}");
    }
}

#[test]
fn every_controller_of_v2_is_read() {
    let tree = tempfile::tempdir().expect("a directory");
    let group = tree.path().join("pods/web");
    std::fs::create_dir_all(&group).expect("a group");
    for (file, text) in [
        (
            "cpu.stat",
            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n",
        ),
        ("cpu.max", "20000 100000\n"),
        ("cpu.weight", "39\n"),
        ("memory.current", "1000\n"),
        ("memory.peak", "2000\n"),
        ("memory.max", "4096\n"),
        ("memory.low", "0\n"),
        ("memory.swap.max", "max\n"),
        ("memory.swap.current", "12\n"),
        (
            "memory.stat",
            "anon 400\nfile 500\nkernel 70\nfile_mapped 60\ninactive_file 300\nactive_file 200\npgfault 9\npgmajfault 1\n",
        ),
        ("memory.events", "low 0\nhigh 0\nmax 6\noom 1\noom_kill 1\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("cgroup.procs", "10\n20\n"),
        (
            "memory.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6\n",
        ),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
        ("hugetlb.2MB.current", "2097152\n"),
    ] {
        std::fs::write(group.join(file), text).expect("write");
    }
    let node = Hierarchies { v1: Vec::new(), unified: Some(tree.path().to_owned()) };
    let meter = Meter::open(&node, "/pods/web").expect("open");
    let mut buffer = Buffer::default();
    let reading = meter.read(&mut buffer);
    let (cpu, memory) = (&reading.cpu, &reading.memory);
    assert_eq!((cpu.total_ns, cpu.throttled_ns), (Some(30_000), Some(5_000)));
    assert_eq!((cpu.periods, cpu.throttled_periods), (Some(4), Some(2)));
    assert_eq!((memory.usage, memory.working_set), (Some(1000), Some(700)));
    assert_eq!((memory.rss, memory.kernel, memory.peak), (Some(400), Some(70), Some(2000)));
    assert_eq!((memory.limit_hits, memory.oom_kills, memory.swap), (Some(6), Some(1), Some(12)));
    assert_eq!((reading.threads, reading.threads_max, reading.processes), (Some(3), None, Some(2)));
    assert_eq!(reading.memory_pressure.expect("pressure").full.total_ns, 6_000);
    assert_eq!((reading.io[0].written_bytes, reading.io[0].reads), (2, 3));
    assert_eq!(reading.huge_pages[0].usage, 2 << 20);
    let limits = meter.limits(&mut buffer);
    let write = |file: &str, text: &str| std::fs::write(group.join(file), text).expect("write");
    write("pids.current", "4\n");
    write("io.stat", "8:0 rbytes=1 wbytes=9 rios=3 wios=4 dbytes=0 dios=0\n");
    let mut later = reading.clone();
    assert!(!meter.refresh(&mut buffer, &mut later), "nobody ran");
    assert_eq!(later, reading);
    meter.refresh_waits(&mut buffer, &mut later);
    assert_eq!((later.io[0].written_bytes, later.threads), (9, Some(3)));
    write("cpu.stat", "usage_usec 31\n");
    assert!(meter.refresh(&mut buffer, &mut later), "somebody ran");
    assert_eq!((later.cpu.total_ns, later.threads), (Some(31_000), Some(4)));
    assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (Some(20_000), Some(100_000)));
    assert_eq!((limits.memory, limits.swap, limits.memory_reservation), (Some(4096), None, None));
}

#[test]
fn names_of_systemd_are_understood() {
    let tree = tempfile::tempdir().expect("a directory");
    let scope = "a.slice/a-b.slice/lapstrake-1.scope";
    std::fs::create_dir_all(tree.path().join(scope)).expect("a group");
    std::fs::write(tree.path().join(scope).join("pids.current"), "5\n").expect("write");
    std::fs::write(tree.path().join("a.slice/a-b.slice/pids.current"), "6\n").expect("write");
    let node = Hierarchies { v1: Vec::new(), unified: Some(tree.path().to_owned()) };
    for (name, threads) in [
        ("a-b.slice:lapstrake:1", 5),
        ("a-b.slice", 6),
        ("/a.slice/a-b.slice/lapstrake-1.scope", 5),
    ] {
        let meter = Meter::open(&node, name).expect(name);
        assert_eq!(meter.read(&mut Buffer::default()).threads, Some(threads), "{name}");
    }
}
