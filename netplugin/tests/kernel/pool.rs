//! What a pool of prebuilt namespaces would save, and what it would cost. Ignored: figures for the
//! decision in `netplugin/src/netns.rs`, not a verdict.

use std::fs;
use std::time::{Duration, Instant};

use netplugin::{AttachRequest, Network};

use crate::floor::{self, Floor};
use crate::host::{eventually_within, json, link_names, on_a_host, request};
use crate::measure::percentile;

const ROUNDS: usize = 100;
const KEPT: u32 = 200;

#[test]
#[ignore = "a measurement"]
fn what_a_pool_of_namespaces_would_save_and_cost() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/16"]);
        network.attach(&request("warm-up")).unwrap();
        let bridge = json("ip -j link show br-test")[0]["ifindex"].as_u64().unwrap();
        let floor = Floor::on(u32::try_from(bridge).unwrap());
        let gone = || {
            eventually_within(Duration::from_secs(20), "the end of all links", || {
                link_names().len() == 2
            });
        };
        network.detach("warm-up").unwrap();
        gone();

        // A namespace from the pool is entered, one made on demand is made: nothing else differs. All
        // of them stay, as in a burst of starts: the end of others would be measured with them.
        let [mut made, mut taken] = [Vec::new(), Vec::new()];
        let mut pods = Vec::new();
        for n in 0..ROUNDS {
            for (name, times) in [("made", &mut made), ("taken", &mut taken)] {
                let id = format!("{name}{n}");
                let netns = (name == "taken").then(|| Network::loopback_only(None).unwrap());
                let request = AttachRequest { netns, ..request(&id) };
                let begin = Instant::now();
                pods.push(network.attach(&request).unwrap());
                times.push(begin.elapsed());
            }
        }
        drop(pods);
        network.gc(&[]).unwrap();
        gone();
        println!(
            "attach: namespace made on demand {}, taken from a pool {}",
            told(&made),
            told(&taken)
        );

        // The bare objects by step: the most that anything prebuilt can save.
        let mut steps = [Vec::new(), Vec::new(), Vec::new()];
        let mut pods = Vec::new();
        for n in 0..u32::try_from(ROUNDS).unwrap() {
            let begin = Instant::now();
            let pod = floor::namespace();
            steps[0].push(begin.elapsed());
            let begin = Instant::now();
            floor.link(n, &pod);
            steps[1].push(begin.elapsed());
            let begin = Instant::now();
            floor::configure(n, &pod);
            steps[2].push(begin.elapsed());
            pods.push(pod);
        }
        drop(pods);
        gone();
        let [namespace, link, configure] = steps.each_ref().map(|times| told(times));
        println!("bare: namespace {namespace}, veth pair {link}, configuration {configure}");

        let before = kernel_kib();
        let pool: Vec<_> = (0..KEPT).map(|_| floor::namespace()).collect();
        let namespaces = kernel_kib();
        for (n, pod) in (0..).zip(&pool) {
            floor.link(n, pod);
        }
        let links = kernel_kib();
        let each = |from: i64, to: i64| (to - from) / i64::from(KEPT);
        println!(
            "kernel memory each: namespace {} KiB, and a veth pair {} KiB more",
            each(before, namespaces),
            each(namespaces, links),
        );
        drop(pool);
        gone();
    });
}

/// The fastest tenth is what a busy machine lets one see of an idle one.
fn told(times: &[Duration]) -> String {
    format!("p10 {:?} p50 {:?}", percentile(times, 10), percentile(times, 50))
}

/// Memory of the kernel's own: objects, those of each processor, page tables of its stacks.
fn kernel_kib() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let fields = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let counts = ["SUnreclaim", "SReclaimable", "Percpu", "VmallocUsed"].contains(&name);
        counts.then(|| value.trim().trim_end_matches(" kB").parse::<i64>().unwrap())
    });
    fields.sum()
}
