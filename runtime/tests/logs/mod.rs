//! The log of a container under pressure: limits, a file that blocks, numbers.

use std::time::{Duration, Instant};

use runtime::{ContainerState, LogLimits};

use crate::node::{Node, Payload, Running};

const LONG: Duration = Duration::from_secs(20);

async fn state(node: &Node) -> ContainerState {
    node.shim.inventory().await.expect("inventory").containers.remove(0)
}

async fn start<'n>(node: &'n Node, script: &str, limits: LogLimits) -> Running<'n> {
    let payload = Payload { limits, ..Payload::sh(script) };
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    c
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_counted() {
    let Some(node) = Node::start("log-count").await else { return };
    let c = start(&node, "seq 1 1000; printf end", LogLimits::default()).await;
    c.exit().await;
    let state = state(&node).await;
    let log = c.log();
    assert!(log.ends_with(" stdout P end\n"), "{log}");
    assert_eq!((state.log_lines, state.log_bytes), (1001, log.len() as u64));
    assert_eq!((state.log_dropped_bytes, state.log_limited_bytes), (0, 0));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_size_a_log_takes_nothing_until_it_is_rotated() {
    let Some(node) = Node::start("log-size").await else { return };
    let limits = LogLimits { size: 20_000, ..Default::default() };
    let script = "seq 1 30000; while [ ! -e /go ]; do sleep 0.01; done; echo after";
    let c = start(&node, script, limits).await;
    let begun = Instant::now();
    let all: usize = (1..=30_000).map(|n| n.to_string().len() + 1).sum();
    while state(&node).await.log_limited_bytes as usize + c.text().len() < all {
        assert!(begun.elapsed() < LONG, "{:?}", state(&node).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One read is decided by what the file holds before it; the format comes on top.
    assert!(c.log().len() < 20_000 + 64 * 1024 * 8, "{}", c.log().len());
    assert!(c.log().ends_with('\n') && c.log().contains(" stdout F 1\n"));
    std::fs::rename(node.log_path("c1"), node.log_path("old")).expect("rotate");
    node.shim.reopen_log(&c.id).await.expect("reopen");
    c.exec("touch /go", None).await.expect("exec");
    c.exit().await;
    assert!(c.log().ends_with(" stdout F after\n"), "{}", c.log());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_blocks_at_its_rate_loses_nothing_and_takes_its_time() {
    let Some(node) = Node::start("log-rate").await else { return };
    let limits = LogLimits { rate: 400_000, block: true, ..Default::default() };
    let begun = Instant::now();
    // 588,895 bytes: a burst of one second's worth, and the rest at its rate.
    let c = start(&node, "seq 1 100000", limits).await;
    c.exit().await;
    assert!(begun.elapsed() > Duration::from_millis(150), "{:?}", begun.elapsed());
    assert!(c.text() == (1..=100_000).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(state(&node).await.log_limited_bytes, 0);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_blocks_holds_up_neither_the_shim_nor_the_news_of_an_exit() {
    let Some(node) = Node::start("log-frozen").await else { return };
    let script = "while [ ! -e /go ]; do sleep 0.01; done; seq 1 100000 & sleep 0.1; exit 5";
    let c = start(&node, script, LogLimits::default()).await;
    // A pipe nobody reads in place of the file: the log thread sleeps in open(2), as in a frozen file system.
    std::fs::rename(node.log_path("c1"), node.log_path("old")).expect("rotate");
    let fifo = node.log_path("c1");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("fifo");
    let (shim, id) = (node.shim.clone(), c.id.clone());
    let blocked = tokio::spawn(async move { shim.reopen_log(&id).await });
    c.exec("touch /go", Some(LONG)).await.expect("the control loop answers");
    assert_eq!(c.exit().await.code, 5);
    assert!(!blocked.is_finished());
    // Somebody reads it again: the file system is thawed.
    let thawed = std::thread::spawn(move || std::fs::read(fifo).expect("read"));
    blocked.await.expect("task").expect("reopened at last");
    node.shim.delete_container(&c.id).await.expect("delete");
    assert!(!thawed.join().expect("read").is_empty());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_all_together_or_not_at_all_and_can_be_lifted() {
    let Some(node) = Node::start("update-all").await else { return };
    let mut payload = Payload::sh("exec sleep 1000");
    payload.resources =
        r#"{"memory":{"limit":33554432,"swap":33554432},"pids":{"limit":7},"cpu":{"shares":102}}"#
            .to_owned();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    let shares = || {
        let dir = node.hierarchies().dir("cpu", &node.group("c1"));
        dir.map(|d| std::fs::read_to_string(d.join("cpu.shares")).expect("shares"))
    };
    let stats = || {
        let stats = node.hierarchies().stats(&node.group("c1"));
        (stats.memory_limit, stats.pids_limit)
    };
    let before = (stats(), shares());
    let impossible =
        br#"{"memory":{"limit":20971520},"cpu":{"shares":500,"cpus":"4000"},"pids":{"limit":9}}"#;
    let error = node.shim.update_container(&c.id, impossible).await.expect_err("no such CPU");
    assert!(error.message.contains("cpuset.cpus"), "{error}");
    assert_eq!((stats(), shares()), before);
    // Raised together, although each alone would be refused.
    let raised = br#"{"memory":{"limit":67108864,"swap":67108864},"pids":{"limit":9}}"#;
    node.shim.update_container(&c.id, raised).await.expect("raise");
    assert_eq!(stats(), (Some(67_108_864), Some(9)));
    let lifted = br#"{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1},"cpu":{"quota":-1}}"#;
    node.shim.update_container(&c.id, lifted).await.expect("lift");
    assert_eq!(stats(), (None, None));
    node.end().await;
}
