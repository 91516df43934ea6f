//! How long it takes, beside the peers' plugins in the same run. Ignored by default: figures, not a
//! verdict on correctness; `cargo test --release -p netplugin --test kernel -- --ignored --nocapture`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netplugin::{Attachment, Network, PortMapping, Protocol};

use crate::floor::Floor;
use crate::host::{eventually_within, json, link_names, on_a_host, request, request_with};

const PODS: usize = 500;
const PEER_ROUNDS: usize = 20;
/// A ratio inside one run: the speed of machines varies, and with it every absolute figure.
const PEER_RATIO_MIN: f64 = 20.0;
const FLOOR_RATIO_MAX: f64 = 2.0;
/// How much slower the last fifty of five hundred pods may be than the first fifty, over how much
/// slower the bare kernel objects become beside as many: much of what the kernel does for a link it
/// does for every port of the bridge.
const GROWTH_RATIO_MAX: f64 = 1.3;
/// A thousand host ports over one: the same, up to what two medians of one machine differ by.
const PORTS_RATIO_MAX: f64 = 1.3;
/// Eight at a time over one at a time, in pods a second; likewise.
const PARALLEL_RATIO_MIN: f64 = 0.9;

fn port(n: usize) -> PortMapping {
    let host_port = 20_000 + u16::try_from(n).unwrap();
    PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: None }
}

pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
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
        let bridge = json("ip -j link show br-test")[0]["ifindex"].as_u64().unwrap();
        let floor = Floor::on(u32::try_from(bridge).unwrap());
        let bare = |from: u32| {
            let pods = (from..from + 50).map(|n| {
                let begin = Instant::now();
                let pod = floor.pod(n);
                (begin.elapsed(), pod)
            });
            let (times, pods): (Vec<_>, Vec<_>) = pods.unzip();
            drop(pods);
            eventually_within(Duration::from_secs(20), "the end of the bare links", || {
                !link_names().iter().any(|name| name.starts_with("floor"))
            });
            percentile(&times, 50)
        };
        let first_bare = bare(0);
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
        let last_bare = bare(50);
        let growth = last.as_secs_f64() / first.as_secs_f64();
        let growth_bare = last_bare.as_secs_f64() / first_bare.as_secs_f64();
        println!(
            "grown ×{growth:.2}; bare kernel objects p50 {first_bare:?}, beside {PODS} pods {last_bare:?}, grown ×{growth_bare:.2}"
        );
        let ratio = growth / growth_bare;
        assert!(ratio <= GROWTH_RATIO_MAX, "grown {ratio:.2} times as much as the kernel's part");
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
fn a_pod_costs_at_most_twice_the_bare_kernel_objects() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/16"]);
        network.attach(&request("warm-up")).unwrap();
        let bridge = json("ip -j link show br-test")[0]["ifindex"].as_u64().unwrap();
        let floor = Floor::on(u32::try_from(bridge).unwrap());
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        // Turn by turn: the machine is not equally fast all the time.
        for n in 0..100 {
            let begin = Instant::now();
            let pod = floor.pod(u32::try_from(n).unwrap());
            bare.push(begin.elapsed());
            drop(pod);
            let begin = Instant::now();
            let pod = network.attach(&request_with(&format!("pod{n}"), vec![port(n)])).unwrap();
            ours.push(begin.elapsed());
            drop(pod);
            network.detach(&format!("pod{n}")).unwrap();
        }
        let (ours, bare) = (percentile(&ours, 50), percentile(&bare, 50));
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        println!("ours p50 {ours:?}, bare kernel objects p50 {bare:?}, ratio {ratio:.2}");
        assert!(ratio <= FLOOR_RATIO_MAX, "{ratio:.2} times the bare objects");
    });
}

#[test]
#[ignore = "a measurement"]
fn the_thousandth_host_port_costs_what_the_first_one_does() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/16"]);
        network.attach(&request("warm-up")).unwrap();
        let cost = |name: &str, from: usize| {
            let times: Vec<Duration> = (0..50)
                .map(|n| {
                    let id = format!("{name}{n}");
                    let request = request_with(&id, vec![port(from + n)]);
                    let begin = Instant::now();
                    let pod = network.attach(&request).unwrap();
                    let time = begin.elapsed();
                    drop(pod);
                    network.detach(&id).unwrap();
                    time
                })
                .collect();
            percentile(&times, 50)
        };
        let first = cost("first", 0);
        // A thousand ports on ten pods: ports, not pods, are what is asked about.
        let pods: Vec<_> = (0..10)
            .map(|pod| {
                let ports = (0..100).map(|n| port(1000 + pod * 100 + n)).collect();
                network.attach(&request_with(&format!("many{pod}"), ports)).unwrap()
            })
            .collect();
        let last = cost("last", 500);
        let ratio = last.as_secs_f64() / first.as_secs_f64();
        let count = pods.len() * 100;
        println!(
            "a host port beside no others p50 {first:?}, beside {count} {last:?}, ratio {ratio:.2}"
        );
        assert!(ratio <= PORTS_RATIO_MAX, "{ratio:.2} times as slow");
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
            eventually_within(Duration::from_secs(20), "the end of all links", || {
                link_names().len() == 2
            });
        }
        assert!(rates[2] >= PARALLEL_RATIO_MIN * rates[0], "slower in parallel: {rates:?}");
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

            let netns = Network::loopback_only(None).unwrap();
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
