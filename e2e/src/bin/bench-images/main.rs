//! Pulls a large image from a registry on loopback, ours and containerd's by turns in one run, and
//! says how the figures compare with what is promised. Ends with 1 where one is missed.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

mod process;
mod sample;
mod wire;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::peer::Containerd;
use e2e::{Cri, Node, Registry, RegistryAuth, http};
use k8s_cri::v1 as cri;
use tonic::Status;

use process::Process;
use sample::{InRegistry, Sample};
use wire::Wire;

/// Pulls of each, by turns, after one that is not counted. `BENCH_PULLS` says otherwise.
const ROUNDS: usize = 5;
/// Asked for again, unchanged.
const AGAIN: usize = 20;
/// At once, each under a tag of its own.
const AT_ONCE: usize = 20;
/// Where the connection is cut, of all bytes.
const CUT: f64 = 0.9;
const MIB: f64 = 1024.0 * 1024.0;

/// Who pulls.
struct Contender<'a> {
    name: String,
    cri: &'a Cri,
    process: Process,
}

/// What one of them needs.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    /// The part of it that was spent in the kernel.
    kernel: f64,
    /// Resident at the peak, above what it was before the first pull.
    resident: f64,
}

/// Everything measured of one of them, in the order of the table.
struct Figures {
    wall_s: f64,
    cpu_s: f64,
    resident_mib: f64,
    at_once: f64,
    after_cut: f64,
    shared: f64,
    again_ms: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let registry = Registry::start(RegistryAuth::Anonymous);
    let sample = Sample::collect();
    println!("{sample}\n");
    let node = Node::start().await;
    let peer = Containerd::start().await;
    let mut contenders = vec![Contender {
        name: "lapstrake".into(),
        cri: &node.cri,
        process: Process::new(node.pid().unwrap()),
    }];
    match &peer {
        Some(peer) => contenders.push(Contender {
            name: format!("containerd {}", peer.version),
            cri: &peer.cri,
            process: Process::new(peer.pid()),
        }),
        None => println!("SKIPPED: containerd is not installed"),
    }
    let costs = by_turns(&contenders, &registry, &sample).await;
    let tags: Vec<String> = (0..AT_ONCE).map(|it| format!("t{it}")).collect();
    let image = sample.push(&registry, "last", &tags);
    let other = image.push_other(&registry, "other");
    drop(sample);
    let mut figures = Vec::new();
    for (contender, cost) in contenders.iter().zip(costs) {
        figures.push(measure(contender, cost, &registry, (&image, &other)).await);
    }
    let head = head_ms(&registry);
    println!("\na HEAD of the manifest takes the registry {head:.2} ms\n");
    let kept = table(&contenders, &figures);
    drop(contenders);
    drop(peer);
    node.finish().await;
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A whole image, from nothing, one after the other; medians. None is removed before the end: a file
/// system that has just lost many files takes longer to make new ones.
async fn by_turns(contenders: &[Contender<'_>], registry: &Registry, sample: &Sample) -> Vec<Cost> {
    let wanted = std::env::var("BENCH_PULLS").ok().and_then(|it| it.parse().ok());
    let rounds = wanted.unwrap_or(ROUNDS);
    let idle: Vec<f64> = contenders.iter().map(|it| it.process.resident_mib()).collect();
    let mut all = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        let tag = format!("round-{round}");
        sample.push(registry, &tag, std::slice::from_ref(&tag));
        let name = format!("{}/bench:{tag}", registry.address);
        for (at, contender) in contenders.iter().enumerate() {
            // What the one before left to be written is not this one's work.
            rustix::fs::sync();
            contender.process.forget_peak();
            let (began, cpu) = (Instant::now(), contender.process.cpu_s());
            pull(contender, &name).await.expect("PullImage");
            let wall = began.elapsed().as_secs_f64();
            let after = contender.process.cpu_s();
            let [user, kernel] = [after[0] - cpu[0], after[1] - cpu[1]];
            let cost = Cost {
                wall,
                cpu: user + kernel,
                kernel,
                resident: contender.process.peak_mib() - idle[at],
            };
            println!("{:20} round {round}: {cost:.2?}", contender.name);
            if round > 0 {
                all[at].push(cost);
            }
        }
    }
    let median = |costs: &[Cost], of: fn(&Cost) -> f64| middle(costs.iter().map(of).collect());
    all.iter()
        .map(|costs| Cost {
            wall: median(costs, |it| it.wall),
            cpu: median(costs, |it| it.cpu),
            kernel: median(costs, |it| it.kernel),
            resident: costs.iter().map(|it| it.resident).fold(0.0, f64::max),
        })
        .collect()
}

async fn measure(
    contender: &Contender<'_>,
    cost: Cost,
    registry: &Registry,
    (image, with_shared): (&InRegistry, &InRegistry),
) -> Figures {
    let wire = Wire::start(registry.address.clone()).await;
    let share = |bytes: u64| bytes as f64 / image.bytes() as f64;
    let at = |tag: &str| format!("{}/bench:{tag}", wire.address);

    let names: Vec<String> = (0..AT_ONCE).map(|it| at(&format!("t{it}"))).collect();
    let pulls = names.iter().map(|name| pull(contender, name));
    let mut id = String::new();
    for pulled in futures::future::join_all(pulls).await {
        id = pulled.expect("PullImage");
    }
    let at_once = share(wire.take());

    let other = pull(contender, &at("other")).await.expect("PullImage");
    let shared = wire.take() as f64 / with_shared.own_bytes() as f64;
    remove(contender, &other).await;

    let mut again = Vec::new();
    for _ in 0..AGAIN {
        let began = Instant::now();
        pull(contender, &at("t0")).await.expect("PullImage");
        again.push(began.elapsed().as_secs_f64() * 1e3);
    }
    remove(contender, &id).await;
    wire.take();

    wire.cut_after((image.bytes() as f64 * CUT) as u64);
    let cut = pull(contender, &at("t0")).await;
    assert!(cut.is_err(), "{} pulls from a registry that is gone", contender.name);
    wire.take();
    wire.mend();
    let id = pull(contender, &at("t0")).await.expect("PullImage");
    let after_cut = share(wire.take());
    remove(contender, &id).await;
    let again_ms = middle(again);
    let Cost { wall: wall_s, cpu: cpu_s, resident: resident_mib, .. } = cost;
    Figures { wall_s, cpu_s, resident_mib, at_once, after_cut, shared, again_ms }
}

/// Whether all that is promised holds.
fn table(contenders: &[Contender<'_>], figures: &[Figures]) -> bool {
    let (ours, theirs) = (&figures[0], figures.get(1));
    let peer = contenders.get(1).map_or("-", |it| &it.name);
    println!("{:44} {:>10} {peer:>20} {:>7} {:>8}", "", "lapstrake", "ratio", "promised");
    let mut kept = true;
    let mut line = |what: &str, of: fn(&Figures) -> f64, promise: Promise| {
        let (mine, other) = (of(ours), theirs.map(of));
        let ratio = other.map(|other| mine / other);
        let (judged, promised) = match promise {
            Promise::Ratio(most) => (ratio, format!("×{most}")),
            Promise::Value(most) => (Some(mine), format!("{most}")),
        };
        let most = match promise {
            Promise::Ratio(most) | Promise::Value(most) => most,
        };
        let holds = judged.is_none_or(|it| it <= most);
        kept &= holds;
        let other = other.map_or("-".into(), |it| format!("{it:.2}"));
        let ratio = ratio.map_or("-".into(), |it| format!("{it:.2}"));
        let verdict = if holds { "" } else { "MISSED" };
        println!("{what:44} {mine:10.2} {other:>20} {ratio:>7} {promised:>8} {verdict}");
    };
    line("pull and unpack, s", |it| it.wall_s, Promise::Ratio(0.6));
    line("processor time of the daemon, s", |it| it.cpu_s, Promise::Ratio(0.8));
    line("resident above idle at the peak, MiB", |it| it.resident_mib, Promise::Value(64.0));
    line("bytes of 20 pulls at once, of one", |it| it.at_once, Promise::Value(1.02));
    line("bytes after a cut at 90 %, of all", |it| it.after_cut, Promise::Value(0.12));
    line("bytes of an image with 12 layers here, of its 2", |it| it.shared, Promise::Value(1.02));
    line("an unchanged tag again, ms", |it| it.again_ms, Promise::Value(10.0));
    kept
}

/// What a figure of ours must not exceed.
#[derive(Clone, Copy)]
enum Promise {
    /// Of the peer's.
    Ratio(f64),
    Value(f64),
}

async fn pull(contender: &Contender<'_>, name: &str) -> Result<String, Status> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::PullImageRequest { image, auth: None, sandbox_config: None };
    Ok(contender.cri.images.clone().pull_image(request).await?.into_inner().image_ref)
}

async fn remove(contender: &Contender<'_>, id: &str) {
    let image = Some(cri::ImageSpec { image: id.to_owned(), ..Default::default() });
    let request = cri::RemoveImageRequest { image };
    contender.cri.images.clone().remove_image(request).await.expect("RemoveImage");
}

/// What of an unchanged pull is the registry's own.
fn head_ms(registry: &Registry) -> f64 {
    let times = (0..AGAIN).map(|_| {
        let began = Instant::now();
        http::request("HEAD", &registry.address, "/v2/bench/manifests/t0", &[], &[]);
        began.elapsed()
    });
    middle(times.map(|it: Duration| it.as_secs_f64() * 1e3).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
