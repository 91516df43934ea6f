//! `lapstrake top`: what pods and containers use, the busiest first.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use proto::cri::v1 as cri;

use super::{Cause, client, console};

/// Between two looks at a terminal; the daemon samples more seldom.
const PAUSE: Duration = Duration::from_secs(2);

/// Cursor to the upper left corner, and everything after it gone (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What puts a pod above another
    #[arg(long, value_enum, default_value_t = Order::Cpu)]
    sort: Order,

    /// Show it once; without a terminal that is so anyway
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    daemon: client::Daemon,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Order {
    Cpu,
    Memory,
}

pub(crate) async fn top(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let once = args.once || !io::stdout().is_terminal();
    loop {
        let table = render(client.list_pod_sandbox_stats().await?, args.sort);
        if once {
            console::out(table).map_err(Cause::Output)?;
            return Ok(ExitCode::SUCCESS);
        }
        console::out(format!("{CLEAR}{table}")).map_err(Cause::Output)?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a row shows; what the daemon does not know is a dash.
#[derive(Debug, Default)]
struct Row {
    name: String,
    id: String,
    cpu: Option<u64>,
    memory: Option<u64>,
    processes: Option<u64>,
    network: Option<(u64, u64)>,
    written: Option<u64>,
}

impl Row {
    fn key(&self, order: Order) -> u64 {
        let value = match order {
            Order::Cpu => self.cpu,
            Order::Memory => self.memory,
        };
        value.unwrap_or(0)
    }

    fn cells(&self) -> [String; 7] {
        let dash = || "-".to_owned();
        let size = |bytes: Option<u64>| bytes.map_or_else(dash, console::size);
        [
            self.name.clone(),
            console::short_id(&self.id).to_owned(),
            self.cpu.map_or_else(dash, |nanos| format!("{}m", nanos.div_ceil(1_000_000))),
            size(self.memory),
            self.processes.map_or_else(dash, |count| count.to_string()),
            self.network.map_or_else(dash, |(received, sent)| {
                format!("{} / {}", console::size(received), console::size(sent))
            }),
            size(self.written),
        ]
    }
}

fn render(pods: Vec<cri::PodSandboxStats>, order: Order) -> String {
    let mut groups: Vec<(Row, Vec<Row>)> = pods.into_iter().map(pod).collect();
    groups.sort_by_key(|(pod, _)| std::cmp::Reverse(pod.key(order)));
    let mut rows = Vec::new();
    for (pod, mut containers) in groups {
        containers.sort_by_key(|container| std::cmp::Reverse(container.key(order)));
        rows.push(pod.cells());
        rows.extend(containers.iter().map(Row::cells));
    }
    let header =
        ["POD / CONTAINER", "ID", "CPU", "MEMORY", "PROCESSES", "RECEIVED / SENT", "WRITTEN"];
    console::table(header, &rows)
}

fn pod(stats: cri::PodSandboxStats) -> (Row, Vec<Row>) {
    let attributes = stats.attributes.unwrap_or_default();
    let metadata = attributes.metadata.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    let network = linux.network.and_then(|network| network.default_interface);
    let bytes = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
    let row = Row {
        name: format!("{}/{}", metadata.namespace, metadata.name),
        id: attributes.id,
        cpu: cpu(linux.cpu),
        memory: memory(linux.memory),
        processes: linux.process.and_then(|process| process.process_count).map(|it| it.value),
        network: network.map(|it| (bytes(it.rx_bytes), bytes(it.tx_bytes))),
        written: None,
    };
    (row, linux.containers.into_iter().map(container).collect())
}

fn container(stats: cri::ContainerStats) -> Row {
    let attributes = stats.attributes.unwrap_or_default();
    Row {
        name: format!("  {}", attributes.metadata.unwrap_or_default().name),
        id: attributes.id,
        cpu: cpu(stats.cpu),
        memory: memory(stats.memory),
        written: stats.writable_layer.and_then(|layer| layer.used_bytes).map(|it| it.value),
        ..Row::default()
    }
}

/// Billionths of a core.
fn cpu(usage: Option<cri::CpuUsage>) -> Option<u64> {
    usage?.usage_nano_cores.map(|it| it.value)
}

/// The working set, which is what a limit is about.
fn memory(usage: Option<cri::MemoryUsage>) -> Option<u64> {
    usage?.working_set_bytes.map(|it| it.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_pod_comes_first_and_what_is_unknown_is_a_dash() {
        let value = |value| Some(cri::UInt64Value { value });
        let used = |cores, bytes| {
            let cpu = cri::CpuUsage { usage_nano_cores: value(cores), ..Default::default() };
            let memory = cri::MemoryUsage { working_set_bytes: value(bytes), ..Default::default() };
            (Some(cpu), Some(memory))
        };
        let pod = |name: &str, cores, bytes| {
            let (cpu, memory) = used(cores, bytes);
            let metadata = cri::PodSandboxMetadata {
                name: name.to_owned(),
                namespace: "default".to_owned(),
                ..Default::default()
            };
            let attributes = cri::PodSandboxAttributes {
                id: name.repeat(12),
                metadata: Some(metadata),
                ..Default::default()
            };
            let linux = cri::LinuxPodSandboxStats { cpu, memory, ..Default::default() };
            cri::PodSandboxStats {
                attributes: Some(attributes),
                linux: Some(linux),
                ..Default::default()
            }
        };
        let mut busy = pod("b", 1_500_000, 2_000_000);
        let metadata = cri::ContainerMetadata { name: "app".to_owned(), attempt: 0 };
        busy.linux.as_mut().unwrap().containers.push(cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: "c".repeat(12),
                metadata: Some(metadata),
                ..Default::default()
            }),
            ..Default::default()
        });
        let pods = vec![pod("a", 0, 9_000_000), busy];
        assert_eq!(
            render(pods.clone(), Order::Cpu),
            "\
POD / CONTAINER  ID            CPU  MEMORY  PROCESSES  RECEIVED / SENT  WRITTEN
default/b        bbbbbbbbbbbb  2m   2.0 MB  -          -                -
  app            cccccccccccc  -    -       -          -                -
default/a        aaaaaaaaaaaa  0m   9.0 MB  -          -                -"
        );
        let by_memory = render(pods, Order::Memory);
        assert!(by_memory.lines().nth(1).is_some_and(|line| line.starts_with("default/a")));
    }
}
