//! Probes by the hundred: what they leave behind costs the node nothing, and their output has a bound.

use std::fs;
use std::time::{Duration, Instant};

use e2e::pod::SOON;
use e2e::{Container, Node, container, image, pod, wait};

/// As many as a full node's probes of one second, at the same time.
const PARALLEL: usize = 10;
const ROUNDS: usize = 20;

/// Open descriptors and threads of the daemon and of the pod's shim.
fn weigh(pids: &[i32]) -> Vec<[usize; 2]> {
    let count =
        |pid: &i32, what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    pids.iter().map(|pid| [count(pid, "fd"), count(pid, "task")]).collect()
}

async fn sleeping() -> (Node, Container, Vec<i32>) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("probed")).await;
    let spec = container("main", image::BUSYBOX).command(&["sleep", "1000"]);
    let container = pod.start(&spec).await;
    let pids = vec![node.pid().unwrap(), node.shim_of(&pod)];
    (node, container, pids)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_leaves_a_child_behind_returns_at_once_and_leaks_nothing() {
    let (node, container, pids) = sleeping().await;
    let command = ["sh", "-c", "sleep 300 & exit 0"];
    container.try_exec(&command, 5).await.unwrap();
    let before = weigh(&pids);
    for _ in 0..ROUNDS {
        let one = || async {
            let begun = Instant::now();
            let done = container.try_exec(&command, 60).await.unwrap();
            assert_eq!(done.exit_code, 0);
            begun.elapsed()
        };
        let all = futures::future::join_all((0..PARALLEL).map(|_| one())).await;
        // The child lives for five minutes; the machine may be busy.
        assert!(all.iter().max().unwrap() < &Duration::from_secs(20), "{all:?}");
    }
    wait::until_async("descriptors and threads are as before", Duration::from_secs(20), || async {
        let more =
            |(now, then): (&[usize; 2], &[usize; 2])| now[0] > then[0] + 5 || now[1] > then[1] + 2;
        (!weigh(&pids).iter().zip(&before).any(more)).then_some(())
    })
    .await;
    let late = container.try_exec(&["sh", "-c", "sleep 301 & sleep 302"], 1).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    wait::until_async("the whole tree of a late probe is gone", SOON, async || {
        let left = container.shell("ps | grep -c '[s]leep 30[12]' || true").await;
        (left == "0").then_some(())
    })
    .await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_output_of_many_execs_at_once_is_bounded_in_the_daemon() {
    let (node, container, pids) = sleeping().await;
    let whole = container.try_exec(&["sh", "-c", "yes | head -c 12000000"], 60).await.unwrap();
    assert_eq!(whole.stdout.len(), 12_000_000, "one alone is not cut");
    drop(whole);
    let peak = |reset: bool| {
        if reset {
            fs::write(format!("/proc/{}/clear_refs", pids[0]), "5").unwrap();
        }
        let status = fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
        let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = peak(true);
    let limit = i64::try_from(wait::scaled(Duration::from_secs(60)).as_secs()).unwrap();
    let one = || container.try_exec(&["sh", "-c", "yes | head -c 20000000; exit 4"], limit);
    let all = futures::future::join_all((0..16).map(|_| one())).await;
    for done in all {
        let done = done.unwrap();
        assert_eq!(done.exit_code, 4, "the writer was not blocked");
        assert!(done.stdout.len() <= 16 << 20 && done.stdout.len() >= 100_000);
    }
    let grown = peak(false).saturating_sub(before) / 1024;
    assert!(grown <= 96, "the daemon grew by {grown} MiB");
    node.finish().await;
}
