//! How long it takes, beside the peers' plugins in the same run. Ignored by default: figures, not a
//! verdict on correctness; `cargo test --release -p netplugin --test kernel -- --ignored --nocapture`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netplugin::{Attachment, Network, PortMapping, Protocol};

use crate::host::{eventually_within, json, link_names, on_a_host, request, request_with};

const PODS: usize = 500;
const PEER_ROUNDS: usize = 20;
/// A ratio inside one run: the speed of machines varies, and with it every absolute figure.
const PEER_RATIO_MIN: f64 = 20.0;

fn port(n: usize) -> PortMapping {
    let host_port = 20_000 + u16::try_from(n).unwrap();
    PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: None }
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() - 1) * percent / 100]
}

#[test]
#[ignore = "a measurement"]
fn five_hundred_pods_come_and_go() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/16"]);
        network.attach(&request("warm-up")).unwrap();
        let mut times = Vec::new();
        let mut pods: Vec<Attachment> = Vec::new();
        let start = Instant::now();
        for n in 0..PODS {
            let request = request_with(&format!("pod{n}"), vec![port(n)]);
            let begin = Instant::now();
            pods.push(network.attach(&request).unwrap());
            times.push(begin.elapsed());
        }
        let total = start.elapsed();
        let (first, last) = (percentile(&times[..50], 50), percentile(&times[PODS - 50..], 50));
        println!(
            "attach with a host port: p50 {:?} p99 {:?}, {:.0}/s; first 50 p50 {first:?}, last 50 p50 {last:?}",
            percentile(&times, 50),
            percentile(&times, 99),
            PODS as f64 / total.as_secs_f64(),
        );
        let start = Instant::now();
        let mut times = Vec::new();
        for (n, pod) in pods.into_iter().enumerate() {
            let begin = Instant::now();
            network.detach(&format!("pod{n}")).unwrap();
            drop(pod);
            times.push(begin.elapsed());
        }
        println!("detach: p50 {:?} p99 {:?}", percentile(&times, 50), percentile(&times, 99));
        network.detach("warm-up").unwrap();
        eventually_within(Duration::from_secs(20), "the end of all links", || {
            link_names().len() == 2
        });
        println!("{PODS} pods gone {:?} after the first detach began", start.elapsed());
        let left = json("nft -j list map inet test ports4")["nftables"][1]["map"]["elem"].clone();
        assert!(left.is_null(), "{left}");
    });
}

#[test]
#[ignore = "a measurement"]
fn eight_at_a_time_are_not_slower_in_total() {
    on_a_host(|host| {
        let mut rates = Vec::new();
        let network = host.network(&["10.9.0.0/16"]);
        for threads in [1, 2, 8] {
            let start = Instant::now();
            let times: Vec<Duration> = thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|worker| {
                        let network = &network;
                        scope.spawn(move || worker_loop(network, worker, 200 / threads))
                    })
                    .collect();
                workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
            });
            let rate = 200.0 / start.elapsed().as_secs_f64();
            println!(
                "{threads} at a time: {rate:.0}/s, p50 {:?} p99 {:?}",
                percentile(&times, 50),
                percentile(&times, 99)
            );
            rates.push(rate);
            network.gc(&[]).unwrap();
            thread::sleep(Duration::from_secs(1));
        }
    });
}

fn worker_loop(network: &Network, worker: usize, pods: usize) -> Vec<Duration> {
    (0..pods)
        .map(|n| {
            let request = request(&format!("w{worker}-{n}"));
            let begin = Instant::now();
            network.attach(&request).unwrap();
            begin.elapsed()
        })
        .collect()
}

#[test]
#[ignore = "a measurement"]
fn a_pod_costs_a_twentieth_of_the_plugins_bridge_and_portmap() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/16"]);
        network.attach(&request("warm-up")).unwrap();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for n in 0..PEER_ROUNDS {
            let begin = Instant::now();
            let pod = network.attach(&request_with(&format!("pod{n}"), vec![port(n)])).unwrap();
            ours.push(begin.elapsed());
            drop(pod);
            network.detach(&format!("pod{n}")).unwrap();

            let netns = Network::loopback_only().unwrap();
            let path = crate::host::path_of(&netns);
            let data = host.dir.path().join("cni");
            let begin = Instant::now();
            let result = cni(
                "bridge",
                &path,
                n,
                &format!(
                    r#"{{"cniVersion":"1.0.0","name":"peer","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
                   "ipam":{{"type":"host-local","dataDir":{:?},"ranges":[[{{"subnet":"10.77.0.0/16"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#,
                    data.to_str().unwrap()
                ),
            );
            cni(
                "portmap",
                &path,
                n,
                &format!(
                    r#"{{"cniVersion":"1.0.0","name":"peer","type":"portmap","runtimeConfig":{{"portMappings":[{{"hostPort":{},"containerPort":80,"protocol":"tcp"}}]}},"prevResult":{result}}}"#,
                    30_000 + n
                ),
            );
            theirs.push(begin.elapsed());
        }
        let (ours, theirs) = (percentile(&ours, 50), percentile(&theirs, 50));
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        println!("ours p50 {ours:?}, bridge + portmap p50 {theirs:?}, ratio {ratio:.1}");
        assert!(ratio >= PEER_RATIO_MIN, "only {ratio:.1} times faster");
    });
}

fn cni(plugin: &str, netns: &str, n: usize, config: &str) -> String {
    let mut child = Command::new(format!("/usr/lib/cni/{plugin}"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", format!("peer{n}"))
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{plugin}: {text}");
    text
}
