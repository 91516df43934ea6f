//! Five hundred pods on one node, one after the other: whether the last ones start as quickly as the
//! first, how fast they come and go, and that nothing is left. Ends with 1 where the last are too slow.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::{Host, Node, Options, Pod, pod};

const PODS: usize = 500;
/// At either end.
const SHARE: usize = 50;
/// The last ones over the first ones.
const RATIO_MAX: f64 = 1.6;
/// Room for all, and for the bridge.
const PREFIX: u8 = 22;

#[tokio::main]
async fn main() -> ExitCode {
    // A host of its own: so many links would be in everybody's way.
    let host = Host::new();
    let netns = Some(host.name.clone());
    let node =
        Node::start_with(Options { netns, range_prefix: PREFIX, ..Options::default() }).await;
    node.run_pod(pod("warm-up")).await.remove().await;

    let (mut pods, mut times) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for number in 0..PODS {
        let begin = Instant::now();
        pods.push(Pod::run(&node.cri, pod(&format!("pod-{number}"))).await.expect("RunPodSandbox"));
        times.push(begin.elapsed());
    }
    let up = began.elapsed();
    let began = Instant::now();
    for pod in pods {
        pod.stop().await;
        pod.remove().await;
    }
    let down = began.elapsed();
    let rate = |time: Duration| PODS as f64 / time.as_secs_f64();
    println!("{PODS} pods: {:.0} a second come, {:.0} a second go", rate(up), rate(down));
    let (first, last) = (median(&times[..SHARE]), median(&times[PODS - SHARE..]));
    let ratio = last.as_secs_f64() / first.as_secs_f64();
    let verdict = if ratio <= RATIO_MAX { "" } else { "MISSED" };
    println!(
        "the first {SHARE} p50 {first:.1?}, the last {SHARE} p50 {last:.1?}: ×{ratio:.2}, promised ×{RATIO_MAX} {verdict}"
    );
    node.finish().await;
    println!("nothing is left");
    if ratio <= RATIO_MAX { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
