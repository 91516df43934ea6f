//! Times a pod's life through CRI, ours and containerd's in one run, and weighs what stays resident.
//! An argument, `lapstrake` or `containerd`, limits it to one of them.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use e2e::peer::Containerd;
use e2e::{Cri, Node, Pod, container, host, image, pod};
use k8s_cri::v1 as cri;

/// Enough for a steady median; the whole takes well under a minute per runtime.
const ROUNDS: usize = 40;

/// Pods at rest while memory is weighed and numbers are asked for. `BENCH_PODS` says otherwise.
const RESIDENT_PODS: usize = 60;

fn resident_pods() -> usize {
    let wanted = std::env::var("BENCH_PODS").ok();
    wanted.and_then(|it| it.parse().ok()).unwrap_or(RESIDENT_PODS)
}

#[tokio::main]
async fn main() {
    println!("{ROUNDS} rounds, one after the other, after one that is not counted; milliseconds\n");
    let wanted = |name: &str| std::env::args().nth(1).is_none_or(|it| it == name);
    if wanted("lapstrake") {
        measure_ours().await;
    }
    if wanted("containerd") {
        match Containerd::start().await {
            Some(peer) => {
                let name = format!("containerd {}", peer.version);
                measure(&name, &peer.cri, peer.pid(), &|| peer.shims()).await;
            }
            None => println!("SKIPPED: containerd is not installed"),
        }
    }
}

async fn measure_ours() {
    let ours = Node::with_busybox().await;
    let shims = || {
        let pids = ours.scope.pids(ours.pid()).into_iter();
        pids.filter(|pid| host::comm(*pid).starts_with("lapstrake-shim")).collect()
    };
    measure("lapstrake", &ours.cri, ours.pid().unwrap(), &shims).await;
    ours.finish().await;

    for name in ["lapstrake", "lapstrake-shim", "lapstrake-oci", "lapstrake-bridge"] {
        let size = fs::metadata(e2e::node::binary(name)).unwrap().len();
        println!("{name:20} {:8.1} MiB on disk", size as f64 / f64::from(1 << 20));
    }
}

async fn measure(name: &str, cri: &Cri, daemon: i32, shims: &dyn Fn() -> Vec<i32>) {
    let mut times = Times::default();
    round(cri, "warm-up", &mut times).await;
    times.0.clear();
    for number in 0..ROUNDS {
        round(cri, &format!("round-{number}"), &mut times).await;
    }
    println!("{name}");
    times.print();

    let mut resident = Vec::new();
    for number in 0..resident_pods() {
        let pod = Pod::run(cri, pod(&format!("rest-{number}"))).await.expect("RunPodSandbox");
        pod.start(&sleeper()).await;
        resident.push(pod);
    }
    numbers(cri).await;
    let shims = shims();
    let total: u64 = shims.iter().map(|it| host::pss_kib(*it)).sum();
    let pods = resident_pods();
    println!("  daemon PSS {} KiB with {pods} pods", host::pss_kib(daemon));
    println!("  daemon CPU {:.2} % of a core at rest", cpu_share(daemon).await * 100.0);
    println!("  shim PSS   {} KiB per pod ({} processes)\n", total / pods as u64, shims.len());
    for pod in resident {
        pod.stop().await;
        pod.remove().await;
    }
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

/// Asks for the numbers of all containers and pods at rest.
async fn numbers(cri: &Cri) {
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let ask = cri::ListContainerStatsRequest { filter: None };
        let mut runtime = cri.runtime.clone();
        let stats = times.of("1 ListContainerStats", runtime.list_container_stats(ask)).await;
        assert_eq!(stats.unwrap().into_inner().stats.len(), resident_pods());
        let ask = cri::ListPodSandboxStatsRequest { filter: None };
        let mut runtime = cri.runtime.clone();
        let stats = times.of("2 ListPodSandboxStats", runtime.list_pod_sandbox_stats(ask)).await;
        assert_eq!(stats.unwrap().into_inner().stats.len(), resident_pods());
    }
    times.print();
}

async fn round(cri: &Cri, name: &str, times: &mut Times) {
    let spec = pod(name);
    let pod = times.of("1 RunPodSandbox", Pod::run(cri, spec)).await.expect("RunPodSandbox");
    let spec = sleeper();
    let container = times.of("2 CreateContainer", pod.create(&spec)).await;
    times.of("3 StartContainer", container.start()).await;
    let done = times.of("4 ExecSync", container.try_exec(&["true"], 10)).await;
    assert_eq!(done.unwrap().exit_code, 0);
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
        for (step, times) in &mut self.0 {
            times.sort();
            let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
            let (name, p50, p95, max) = (&step[2..], at(50), at(95), at(100));
            println!("  {name:24} p50 {p50:8.2}  p95 {p95:8.2}  max {max:8.2}");
        }
    }

    async fn of<T>(&mut self, step: &'static str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = work.await;
        self.0.entry(step).or_default().push(began.elapsed());
        result
    }
}
