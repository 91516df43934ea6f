//! How long the runtime's verbs take through the daemon's API, and what a pod's shim and pause cost in memory.
//! Run as root with a release shim: `LAPSTRAKE_SHIM=… cargo run --release -p runtime --example latency [rounds]`.
#![allow(clippy::print_stdout, clippy::unwrap_used, dead_code)]

#[path = "../tests/node/mod.rs"]
mod node;

use std::time::{Duration, Instant};

use node::{Node, Payload};

#[tokio::main]
async fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(100);
    let begun = Instant::now();
    let Some(node) = Node::start("latency").await else { return };
    println!("shim + sandbox (first)      {:>8.0} us", micros(begun.elapsed()));
    let (mut create, mut start, mut life) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..rounds {
        let t = Instant::now();
        let c = node.create(&format!("c{n}"), Payload::args(&["/bin/true"])).await.unwrap();
        create.push(t.elapsed());
        let u = Instant::now();
        c.start().await.unwrap();
        start.push(u.elapsed());
        c.exit().await;
        node.shim.delete_container(&c.id).await.unwrap();
        life.push(t.elapsed());
    }
    print("create", &mut create);
    print("start", &mut start);
    print("create+start+wait+delete", &mut life);
    let c = node.create("long", Payload::args(&["/bin/sleep", "1000"])).await.unwrap();
    c.start().await.unwrap();
    let mut exec = Vec::new();
    for _ in 0..rounds {
        let t = Instant::now();
        c.exec_args(&["/bin/true"], Some(Duration::from_secs(5))).await.unwrap();
        exec.push(t.elapsed());
    }
    print("exec_sync /bin/true", &mut exec);
    for (name, pid) in [("shim", node.shim.pid()), ("pause", node.sandbox.pause_pid)] {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let of = |key: &str| rollup.lines().find(|l| l.starts_with(key)).unwrap_or("").to_owned();
        println!("{name:<6} {} | {} | {}", of("Rss:"), of("Pss:"), of("Private_Dirty:"));
    }
    let fds = std::fs::read_dir(format!("/proc/{}/fd", node.shim.pid())).unwrap().count();
    println!("shim descriptors {fds}");
    density().await;
    log_throughput(&node).await;
    node.end().await;
}

/// What a pod with one idle container costs when many share the shim's text.
async fn density() {
    const PODS: usize = 30;
    let mut nodes = Vec::new();
    for n in 0..PODS {
        nodes.push(Node::start(&format!("density{n}")).await.unwrap());
    }
    for node in &nodes {
        node.create("c", Payload::args(&["/bin/sleep", "1000"]))
            .await
            .unwrap()
            .start()
            .await
            .unwrap();
    }
    let pss = |pid: i32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|l| l.starts_with("Pss:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let shims: usize = nodes.iter().map(|n| pss(n.shim.pid())).sum();
    let pauses: usize = nodes.iter().map(|n| pss(n.sandbox.pause_pid)).sum();
    println!(
        "PSS of {PODS} pods, mean       shim {} KiB, pause {} KiB",
        shims / PODS,
        pauses / PODS
    );
    for node in nodes {
        node.end().await;
    }
}

async fn log_throughput(node: &Node) {
    const LINES: u64 = 4_000_000;
    let script = format!("yes {} | head -n {LINES}", "x".repeat(99));
    let c = node.create("log", Payload::sh(&script)).await.unwrap();
    let t = Instant::now();
    c.start().await.unwrap();
    node.shim.wait(&c.id, None).await.unwrap();
    let mib = (LINES * 100) as f64 / f64::from(1 << 20);
    println!(
        "log                         {:>8.0} MiB/s of 100-byte lines",
        mib / t.elapsed().as_secs_f64()
    );
}

fn print(name: &str, samples: &mut [Duration]) {
    samples.sort_unstable();
    let at = |q: f64| micros(samples[((samples.len() - 1) as f64 * q) as usize]);
    println!("{name:<27} {:>8.0} us p50 {:>8.0} us p99 {:>8.0} us min", at(0.5), at(0.99), at(0.0));
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}
