//! The shim's own path: containers of a pod that is there already, as the daemon drives them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::{CreateContainer, CreateSandbox, Event, ExecSync, Rootfs, Shim, ShimCgroup, Shims};
use tokio::runtime::{Builder, Runtime};

use crate::bundle::Bundle;

const ID: &str = "bench-pod";
const EXECS: usize = 100;
/// After so many the shim must look as before.
const MANY_EXECS: usize = 500;
/// A page here or there is no leak.
const RSS_SLACK_KIB: u64 = 16;
/// An exec'd process that leaves nothing behind.
const LIMIT: Option<Duration> = Some(Duration::from_secs(20));

pub(crate) struct Pod<'a> {
    tokio: Runtime,
    shims: Shims,
    shim: Shim,
    dir: PathBuf,
    bundle: &'a Bundle,
    group: String,
    pause: i32,
    count: usize,
}

impl<'a> Pod<'a> {
    pub(crate) fn start(scratch: &Path, bundle: &'a Bundle, binary: &Path) -> Self {
        // One thread: with more, each message wakes one that only wakes this one.
        let tokio = Builder::new_current_thread().enable_all().build().unwrap();
        let dir = scratch.join("pod");
        std::fs::create_dir_all(dir.join("shm")).unwrap();
        let group = format!("/lapstrake-bench-{}/pod", std::process::id());
        let own = serde_json::json!({
            "ociVersion": "1.2.0", "hostname": "bench", "process": { "args": ["/pause"], "cwd": "/" },
            "linux": { "cgroupsPath": format!("{group}/{ID}"), "namespaces": [
                { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "pid" }] }
        });
        std::fs::write(dir.join("config.json"), own.to_string()).unwrap();
        let parent = format!("lapstrake-bench-{}/shims", std::process::id());
        let shims = Shims::open(binary, ShimCgroup { parent }).unwrap();
        let (shim, pause) = tokio.block_on(sandbox(&shims, ID, &dir));
        Self { tokio, shims, shim, dir, bundle, group, pause, count: 0 }
    }

    /// How long another pod beside this one, its shim and its sandbox, takes to come and to go.
    pub(crate) fn another(&self) -> (Duration, Duration) {
        const ID: &str = "bench-another";
        let dir = self.dir.with_file_name(ID);
        std::fs::create_dir_all(dir.join("shm")).unwrap();
        let config = std::fs::read_to_string(self.dir.join("config.json")).unwrap();
        std::fs::write(dir.join("config.json"), config.replace(self::ID, ID)).unwrap();
        self.tokio.block_on(async {
            let begun = Instant::now();
            let (shim, _) = sandbox(&self.shims, ID, &dir).await;
            let came = begun.elapsed();
            shim.shutdown().await.unwrap();
            self.shims.forget(ID).await.unwrap();
            (came, begun.elapsed() - came)
        })
    }

    /// One container from creation to deletion. Of its end the daemon hears by an event.
    pub(crate) fn run(&mut self) -> Duration {
        let (ask, id) = self.container(&["/bin/true"]);
        let shim = &self.shim;
        let mut events = shim.events();
        self.tokio.block_on(async {
            let begun = Instant::now();
            shim.create_container(ask).await.unwrap();
            shim.start_container(&id).await.unwrap();
            let Event::Exited { exit, .. } = events.recv().await.unwrap() else {
                panic!("the shim is lost")
            };
            shim.delete_container(&id).await.unwrap();
            let took = begun.elapsed();
            assert_eq!(exit.code, 0);
            took
        })
    }

    fn container(&mut self, args: &[&str]) -> (CreateContainer, String) {
        self.count += 1;
        let id = format!("c{}", self.count);
        let bundle = self.dir.join("containers").join(&id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let config = self.bundle.in_pod(self.pause, &format!("{}/{id}", self.group), args);
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let lowers = vec![self.bundle.dir.join("rootfs")];
        let rootfs = Rootfs { lowers, ..Default::default() };
        let seccomp_bpf = Some(self.bundle.filter_path.clone());
        let ask =
            CreateContainer { id: id.clone(), bundle, rootfs, seccomp_bpf, ..Default::default() };
        (ask, id)
    }

    /// A container to run processes in.
    pub(crate) fn sleeper(&mut self) -> String {
        let (ask, id) = self.container(&["/bin/busybox", "sleep", "1000"]);
        self.tokio.block_on(async {
            self.shim.create_container(ask).await.unwrap();
            self.shim.start_container(&id).await.unwrap();
        });
        id
    }

    /// ExecSync of `/bin/true`, so many after one another.
    pub(crate) fn execs(&self, id: &str, rounds: usize) -> Vec<Duration> {
        let (shim, id) = (&self.shim, id.to_owned());
        self.tokio.block_on(async {
            let mut times = Vec::new();
            for _ in 0..rounds {
                let process_json =
                    br#"{"args":["/bin/true"],"cwd":"/","env":["PATH=/bin"]}"#.to_vec();
                let ask =
                    ExecSync { id: id.clone(), process_json, timeout: LIMIT, output_cap: 1 << 16 };
                let begun = Instant::now();
                assert_eq!(shim.exec_sync(ask).await.unwrap().exit_code, 0);
                times.push(begun.elapsed());
            }
            times
        })
    }

    /// How long an exec takes, and what the shim weighs before and after many of them. Alone on the machine it also pays
    /// for the pages of its program, which all shims of a node share.
    pub(crate) fn exec_and_memory(&mut self) {
        let (pid, id) = (self.shim.pid(), self.sleeper());
        let mut times = self.execs(&id, EXECS);
        times.sort();
        println!(
            "  ExecSync of /bin/true by the shim: p50 {:.2} ms",
            times[EXECS / 2].as_secs_f64() * 1e3
        );
        std::thread::sleep(Duration::from_secs(2)); // it gives memory back when it has been quiet
        let before = weigh(pid);
        self.execs(&id, MANY_EXECS);
        std::thread::sleep(Duration::from_secs(2));
        let after = weigh(pid);
        println!("  shim with one container: {before}");
        println!("  after {MANY_EXECS} execs:         {after}; load {}", crate::load());
        let rss = after.rss_kib.saturating_sub(before.rss_kib);
        let same = (after.descriptors, after.threads) == (before.descriptors, before.threads);
        let holds = if same && rss <= RSS_SLACK_KIB { "holds" } else { "MISSED" };
        println!(
            "  {MANY_EXECS} execs leave the shim as it was (RSS within {RSS_SLACK_KIB} KiB: {holds})"
        );
    }

    pub(crate) fn end(self) {
        let Self { tokio, shims, shim, group, .. } = self;
        tokio.block_on(async {
            shim.shutdown().await.unwrap();
            shims.forget(ID).await.unwrap();
        });
        shims.prune();
        cgroup::Hierarchies::detect().unwrap().prune(&group);
    }
}

async fn sandbox(shims: &Shims, id: &str, dir: &Path) -> (Shim, i32) {
    let shim = shims.spawn(id, dir).await.unwrap();
    let (id, bundle) = (id.into(), dir.to_owned());
    let ask = CreateSandbox { id, bundle, shm_size: 1 << 20, seccomp_bpf: None };
    let made = shim.create_sandbox(ask, None).await.unwrap();
    (shim, made.pause_pid)
}

/// What a process holds.
struct Weight {
    pss_kib: u64,
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pss_kib, rss_kib, descriptors, threads } = self;
        write!(
            f,
            "PSS {pss_kib} KiB, RSS {rss_kib} KiB, {descriptors} descriptors, {threads} threads"
        )
    }
}

fn weigh(pid: i32) -> Weight {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |key: &str| {
        let line = rollup.lines().find(|l| l.starts_with(key)).unwrap_or("");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap()
    };
    let count = |dir: &str| std::fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
    Weight {
        pss_kib: of("Pss:"),
        rss_kib: of("Rss:"),
        descriptors: count("fd"),
        threads: count("task"),
    }
}
