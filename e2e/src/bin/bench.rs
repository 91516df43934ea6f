//! Times a pod's life through CRI, ours and containerd's in one run, weighs what stays resident, and asks for the numbers
//! of many pods. An argument, `lapstrake`, `containerd` or `crowd`, limits it to one part.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use e2e::peer::Containerd;
use e2e::{Cri, Node, Options, Pod, container, host, image, pod};
use k8s_cri::v1 as cri;

/// Enough for a steady median; the whole takes well under a minute per runtime.
const ROUNDS: usize = 40;

/// So many of a runtime before it is the other one's turn: the machine is not equally fast all the time.
const BLOCK: usize = 10;

/// Pods at rest while memory is weighed and numbers are asked for.
const RESIDENT_PODS: usize = 60;

/// Containerd's time to list the numbers of those, by ours: at least.
const NUMBERS_BOUND: f64 = 30.0;

/// What the shim of a pod with one container takes for itself, among those.
const SHIM_BOUND_KIB: u64 = 200;

/// In each round.
const EXECS: usize = 5;
/// ExecSync of `true`: our time by containerd's, at most.
const EXEC_BOUND: f64 = 0.1;

/// What a container logs per second, ours by containerd's, at least.
const LOG_BOUND: f64 = 8.0;

/// Of a log that is written as fast as the runtime takes it, in lines of 100 bytes.
const LOG_BYTES: usize = 64 << 20;
const LOG_ROUNDS: usize = 5;

/// Pods of a node that is as full as they get, for which the next two hold.
const CROWD: usize = 300;

/// Milliseconds that the numbers of all of them may take.
const CROWD_BOUND: f64 = 15.0;

/// Per cent of a core that measuring them may take, at the sampler's ordinary pace.
const SAMPLER_BOUND: f64 = 1.0;

/// By then every pod is read at the ordinary pace, which is measured over several turns.
const GROWN_UP: Duration = Duration::from_secs(25);
const SAMPLED: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    println!("{ROUNDS} rounds, {BLOCK} by turns, after one that is not counted; milliseconds\n");
    let wanted = |name: &str| std::env::args().nth(1).is_none_or(|it| it == name);
    let (mut node, mut peer) = (None, None);
    if wanted("lapstrake") {
        node = Some(Node::with_busybox().await);
    }
    if wanted("containerd") {
        peer = Containerd::start().await;
        if peer.is_none() {
            println!("SKIPPED: containerd is not installed");
        }
    }
    let ours = node.as_ref().map(Contender::ours);
    let mut contenders: Vec<_> =
        ours.into_iter().chain(peer.as_ref().map(Contender::theirs)).collect();
    for block in 0..=ROUNDS / BLOCK {
        for it in &mut contenders {
            it.lives(block).await;
        }
    }
    let mut measured = Vec::new();
    for it in contenders {
        measured.push(it.measure().await);
    }
    if let Some(node) = node {
        of_ours_alone(node, measured[0].shim_kib).await;
    }
    if let [ours, theirs] = measured.as_slice() {
        let ratio = theirs.numbers_ms / ours.numbers_ms;
        let holds = verdict(ratio >= NUMBERS_BOUND);
        println!(
            "numbers of {RESIDENT_PODS} containers, containerd's time by ours: {ratio:.1} (bound {NUMBERS_BOUND}: {holds})"
        );
        let ratio = ours.exec_ms / theirs.exec_ms;
        let holds = verdict(ratio <= EXEC_BOUND);
        println!("ExecSync, our time by containerd's: {ratio:.3} (bound {EXEC_BOUND}: {holds})");
        let ratio = ours.log_mib / theirs.log_mib;
        let holds = verdict(ratio >= LOG_BOUND);
        println!("log throughput, ours by containerd's: {ratio:.1} (bound {LOG_BOUND}: {holds})\n");
    }
    drop(peer); // before the next part
    if wanted("crowd") {
        crowd().await;
    }
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSED" }
}

/// What the numbers of a full node cost.
async fn crowd() {
    println!("lapstrake with {CROWD} pods");
    let node = Node::start_with(Options { range_prefix: 22, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    for number in 0..CROWD {
        let pod = node.run_pod(pod(&format!("crowd-{number}"))).await;
        pod.start(&sleeper()).await;
    }
    let mut times = numbers(&node.cri, CROWD).await;
    times.print();
    let slowest = times.at(PODS_STATS, 95);
    let holds = verdict(slowest <= CROWD_BOUND);
    println!("  ListPodSandboxStats p95 {slowest:.2} ms (bound {CROWD_BOUND}: {holds})");
    tokio::time::sleep(GROWN_UP).await;
    let used = || {
        let seconds = node.metric("lapstrake_sampler_cpu_seconds_total").unwrap();
        seconds.parse::<f64>().unwrap()
    };
    let (before, began) = (used(), Instant::now());
    tokio::time::sleep(SAMPLED).await;
    let share = (used() - before) / began.elapsed().as_secs_f64() * 100.0;
    let holds = verdict(share <= SAMPLER_BOUND);
    println!("  measuring them: {share:.2} % of a core (bound {SAMPLER_BOUND}: {holds})");
    println!("  daemon PSS {} KiB", host::pss_kib(node.pid().unwrap()));
    node.finish().await;
}

/// What two runtimes are compared by; medians.
struct Measured {
    numbers_ms: f64,
    exec_ms: f64,
    /// Per second.
    log_mib: f64,
    shim_kib: u64,
}

async fn of_ours_alone(node: Node, shim_kib: u64) {
    stages(&node.metrics());
    node.finish().await;
    let holds = verdict(shim_kib <= SHIM_BOUND_KIB);
    println!("shim PSS {shim_kib} KiB (bound {SHIM_BOUND_KIB}: {holds})");
    for name in ["lapstrake", "lapstrake-shim", "lapstrake-oci", "lapstrake-bridge"] {
        let size = fs::metadata(e2e::node::binary(name)).unwrap().len();
        println!("{name:20} {:8.1} MiB on disk", size as f64 / f64::from(1 << 20));
    }
    println!();
}

/// Where the time of each operation went, as the daemon counted it: means.
fn stages(metrics: &str) {
    let of = |suffix: &str| {
        let name = format!("lapstrake_stage_seconds_{suffix}");
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(&name)?.split_once(' '));
        lines.map(|(labels, value)| (labels, value.parse::<f64>().unwrap())).collect::<Vec<_>>()
    };
    for ((labels, sum), (_, count)) in of("sum").into_iter().zip(of("count")) {
        println!("  {labels:62} {:8.2}", sum / count * 1e3);
    }
    println!();
}

/// A runtime and what is known of it so far.
struct Contender<'a> {
    name: String,
    cri: &'a Cri,
    daemon: i32,
    shims: Box<dyn Fn() -> Vec<i32> + 'a>,
    /// A cgroup for the pods; containerd has numbers only of pods with one.
    parent: &'static str,
    times: Times,
}

impl<'a> Contender<'a> {
    fn ours(node: &'a Node) -> Self {
        let shims = || {
            let pids = node.scope.pids(node.pid()).into_iter();
            pids.filter(|pid| host::comm(*pid).starts_with("lapstrake-shim")).collect()
        };
        let (name, daemon) = ("lapstrake".to_owned(), node.pid().unwrap());
        let times = Times::default();
        Self { name, cri: &node.cri, daemon, shims: Box::new(shims), parent: "", times }
    }

    fn theirs(peer: &'a Containerd) -> Self {
        let (name, daemon) = (format!("containerd {}", peer.version), peer.pid());
        let (shims, times) = (Box::new(|| peer.shims()), Times::default());
        Self { name, cri: &peer.cri, daemon, shims, parent: "/lapstrake-bench", times }
    }

    /// The first one warms up.
    async fn lives(&mut self, block: usize) {
        let rounds = if block == 0 { 1 } else { BLOCK };
        for number in 0..rounds {
            round(self.cri, &format!("round-{block}-{number}"), &mut self.times).await;
        }
        if block == 0 {
            self.times.0.clear();
        }
    }

    async fn measure(mut self) -> Measured {
        println!("{}", self.name);
        self.times.print();
        let exec_ms = self.times.at(EXEC_SYNC, 50);
        let log_mib = log_throughput(self.cri).await;
        println!("  log {log_mib:.0} MiB/s in lines of 100 bytes");
        let (numbers_ms, shim_kib) = self.at_rest().await;
        // As the kubelet does with its own.
        if !self.parent.is_empty() {
            for group in host::cgroup_dirs(self.parent).iter().rev() {
                let _ = fs::remove_dir(group);
            }
        }
        Measured { numbers_ms, exec_ms, log_mib, shim_kib }
    }

    /// With pods that do nothing: how fast their numbers come, and the memory of a shim.
    async fn at_rest(&self) -> (f64, u64) {
        let Self { cri, daemon, shims, parent, .. } = self;
        let (cri, daemon) = (*cri, *daemon);
        let mut resident = Vec::new();
        for number in 0..RESIDENT_PODS {
            let mut spec = pod(&format!("rest-{number}"));
            if !parent.is_empty() {
                spec.linux().cgroup_parent = format!("{parent}/pod-{number}");
            }
            let pod = Pod::run(cri, spec).await.expect("RunPodSandbox");
            pod.start(&sleeper()).await;
            resident.push(pod);
        }
        let mut asked = numbers(cri, RESIDENT_PODS).await;
        asked.print();
        println!("  daemon PSS {} KiB with {RESIDENT_PODS} pods", host::pss_kib(daemon));
        println!("  daemon CPU {:.2} % of a core at rest", cpu_share(daemon).await * 100.0);
        let shims = shims();
        let total: u64 = shims.iter().map(|it| host::pss_kib(*it)).sum();
        let each = total / RESIDENT_PODS as u64;
        println!("  shim PSS   {each} KiB per pod ({} processes)\n", shims.len());
        for pod in resident {
            pod.stop().await;
            pod.remove().await;
        }
        (asked.at(CONTAINERS_STATS, 50), each)
    }
}

/// How fast a container can log: from its start until it has ended, which it is said to have when its log is written.
async fn log_throughput(cri: &Cri) -> f64 {
    // In memory: a disk would be what is measured.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let line = format!("{}\n", "x".repeat(99));
    fs::write(dir.path().join("lines"), line.repeat(LOG_BYTES / line.len())).unwrap();
    let mut spec = pod("log");
    spec.config.log_directory = dir.path().join("logs").display().to_string();
    fs::create_dir(dir.path().join("logs")).unwrap();
    let pod = Pod::run(cri, spec).await.expect("RunPodSandbox");
    let mut speeds = Vec::new();
    for round in 0..LOG_ROUNDS {
        let spec = container(&format!("log-{round}"), image::BUSYBOX)
            .command(&["cat", "/data/lines"])
            .mount(&dir.path().display().to_string(), "/data", true);
        let container = pod.create(&spec).await;
        let began = Instant::now();
        container.start().await;
        while container.state().await != cri::ContainerState::ContainerExited {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed();
        let written = fs::metadata(&container.log).unwrap().len();
        assert!(written > LOG_BYTES as u64, "{written} bytes of log");
        fs::remove_file(&container.log).unwrap();
        speeds.push(LOG_BYTES as f64 / f64::from(1 << 20) / took.as_secs_f64());
    }
    pod.stop().await;
    pod.remove().await;
    speeds.sort_by(f64::total_cmp);
    speeds[LOG_ROUNDS / 2]
}

/// How much of a core a process uses when nobody asks it for anything: half a minute of it.
async fn cpu_share(pid: i32) -> f64 {
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        // utime and stime, in hundredths of a second.
        fields.skip(11).take(2).map(|it| it.parse::<f64>().unwrap() / 100.0).sum::<f64>()
    };
    let (before, began) = (used(), Instant::now());
    tokio::time::sleep(Duration::from_secs(30)).await;
    (used() - before) / began.elapsed().as_secs_f64()
}

const EXEC_SYNC: &str = "4 ExecSync";
const CONTAINERS_STATS: &str = "1 ListContainerStats";
const PODS_STATS: &str = "2 ListPodSandboxStats";

/// Asks for the numbers of all containers and pods at rest.
async fn numbers(cri: &Cri, pods: usize) -> Times {
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let ask = cri::ListContainerStatsRequest { filter: None };
        let mut runtime = cri.runtime.clone();
        let stats = times.of(CONTAINERS_STATS, runtime.list_container_stats(ask)).await;
        assert_eq!(stats.unwrap().into_inner().stats.len(), pods);
        let ask = cri::ListPodSandboxStatsRequest { filter: None };
        let mut runtime = cri.runtime.clone();
        let stats = times.of(PODS_STATS, runtime.list_pod_sandbox_stats(ask)).await;
        assert_eq!(stats.unwrap().into_inner().stats.len(), pods);
    }
    times
}

async fn round(cri: &Cri, name: &str, times: &mut Times) {
    let spec = pod(name);
    let pod = times.of("1 RunPodSandbox", Pod::run(cri, spec)).await.expect("RunPodSandbox");
    let spec = sleeper();
    let container = times.of("2 CreateContainer", pod.create(&spec)).await;
    times.of("3 StartContainer", container.start()).await;
    // As a probe does: again and again.
    for _ in 0..EXECS {
        let done = times.of(EXEC_SYNC, container.try_exec(&["true"], 10)).await;
        assert_eq!(done.unwrap().exit_code, 0);
    }
    let status = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
    times.of("5 ContainerStatus", cri.runtime.clone().container_status(status)).await.unwrap();
    times.of("6 StopContainer", container.stop(0)).await;
    times.of("7 RemoveContainer", container.remove()).await;
    times.of("8 StopPodSandbox", pod.stop()).await;
    times.of("9 RemovePodSandbox", pod.remove()).await;
}

/// Without a log, so that only the runtime is measured.
fn sleeper() -> e2e::ContainerSpec {
    let mut spec = container("main", image::BUSYBOX).command(&["sleep", "1000"]);
    spec.config.log_path.clear();
    spec
}

/// By step; the number in front keeps them in order.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    fn print(&mut self) {
        let steps: Vec<_> = self.0.keys().copied().collect();
        for step in steps {
            let [p50, p95, max] = [50, 95, 100].map(|share| self.at(step, share));
            println!("  {:24} p50 {p50:8.2}  p95 {p95:8.2}  max {max:8.2}", &step[2..]);
        }
    }

    /// Milliseconds that so many of a hundred take at most.
    fn at(&mut self, step: &'static str, share: usize) -> f64 {
        let times = self.0.get_mut(step).unwrap();
        times.sort();
        times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3
    }

    async fn of<T>(&mut self, step: &'static str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = work.await;
        self.0.entry(step).or_default().push(began.elapsed());
        result
    }
}
