//! The daemon's own families: the one table of them.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts,
};

use crate::events::Kind;

/// From a list call (well below a millisecond) to a slow pull.
const BUCKETS: [f64; 14] =
    [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Makes one struct with a field for each family, its constructor, and the list of all.
macro_rules! families {
    ($($field:ident: $kind:ident = $name:literal [$($label:literal),*] $help:literal;)*) => {
        #[derive(Debug)]
        pub(crate) struct Families {
            $(pub(crate) $field: $kind,)*
        }

        impl Families {
            pub(super) fn new() -> prometheus::Result<Self> {
                let families = Self {
                    $($field: <$kind as Make>::make($name, $help, &[$($label),*])?,)*
                };
                families.start();
                Ok(families)
            }

            /// Every family, and its type as Prometheus calls it.
            pub(super) fn all(&self) -> Vec<(Box<dyn Collector>, &'static str)> {
                vec![$((Box::new(self.$field.clone()), <$kind as Make>::WORD)),*]
            }
        }
    };
}

families! {
    build: IntGaugeVec = "lapstrake_build_info" ["version"]
        "Always 1; the version is in the label.";
    rpc: IntCounterVec = "lapstrake_rpc_total" ["method", "code"]
        "Calls answered, by method and gRPC code.";
    rpc_seconds: HistogramVec = "lapstrake_rpc_seconds" ["method"]
        "Time to answer a call; of a stream, to its first message.";
    rpc_in_flight: IntGaugeVec = "lapstrake_rpc_in_flight" ["method"]
        "Calls being answered.";
    rpc_oldest_seconds: GaugeVec = "lapstrake_rpc_oldest_seconds" ["method"]
        "Age of the oldest call that is being answered: a call that hangs shows here, not in the times of those that ended.";
    stage_seconds: HistogramVec = "lapstrake_stage_seconds" ["operation", "stage"]
        "Time in a stage of an operation.";
    slow: IntCounterVec = "lapstrake_slow_operations_total" ["operation"]
        "Operations and calls that took longer than the configured time; the log says where.";
    sandboxes: IntGaugeVec = "lapstrake_sandboxes" ["state"]
        "Pod sandboxes on record.";
    containers: IntGaugeVec = "lapstrake_containers" ["state"]
        "Containers on record.";
    exits: IntCounterVec = "lapstrake_container_exits_total" ["reason"]
        "Containers that have ended, by the reason that Kubernetes shows.";
    images: IntGauge = "lapstrake_images" []
        "Images on disk.";
    image_bytes: IntGauge = "lapstrake_image_bytes" []
        "Disk space of all image layers.";
    image_inodes: IntGauge = "lapstrake_image_inodes" []
        "Inodes of all image layers.";
    pulls: IntGaugeVec = "lapstrake_pulls" ["stage"]
        "Pulls and imports under way, by what they are at.";
    pull_missing_bytes: IntGauge = "lapstrake_pull_missing_bytes" []
        "Compressed bytes of layers that pulls under way still wait for.";
    pull_received_bytes: Counter = "lapstrake_pull_received_bytes_total" []
        "Compressed bytes of layers received from registries.";
    writable_bytes: IntGauge = "lapstrake_writable_bytes" []
        "Disk space of what containers have written, without their images.";
    disk_bytes: IntGaugeVec = "lapstrake_disk_bytes" ["state"]
        "Size of the file system under the root directory, and what is free of it.";
    addresses: IntGauge = "lapstrake_network_leases" []
        "Addresses that pods hold.";
    address_pool: IntGauge = "lapstrake_network_pool_addresses" []
        "Addresses that the configured ranges have in all.";
    network_ready: IntGauge = "lapstrake_network_ready" []
        "Whether pods can have a network.";
    network_repairs: IntCounter = "lapstrake_network_repairs_total" []
        "Bridges, firewall tables and elements that others had removed and that were put back.";
    network_debt: IntGauge = "lapstrake_network_debt" []
        "Removed pods whose network the plugins did not take back yet.";
    execs: IntCounterVec = "lapstrake_exec_total" ["result"]
        "Commands run by ExecSync.";
    sessions: IntGauge = "lapstrake_streaming_sessions" []
        "Open sessions of exec, attach and port-forward; without those that an earlier daemon began.";
    events: IntCounterVec = "lapstrake_events_total" ["kind"]
        "Container events sent.";
    events_dropped: IntCounter = "lapstrake_events_dropped_total" []
        "Events that a subscriber was too slow for; its stream was ended with an error.";
    event_subscribers: IntGauge = "lapstrake_event_subscribers" []
        "Subscribers of container events.";
    shims: IntGaugeVec = "lapstrake_shims" ["state"]
        "Shims by whether they can be spoken to.";
    log_bytes: IntCounter = "lapstrake_log_bytes_total" []
        "Bytes written to logs of containers, as their shims tell.";
    log_lines: IntCounter = "lapstrake_log_lines_total" []
        "Lines written to logs of containers, as their shims tell.";
    log_dropped: IntCounterVec = "lapstrake_log_dropped_bytes_total" ["why"]
        "Output of containers that is not in their logs: writing failed, or their limits kept it out.";
    recovered: IntGaugeVec = "lapstrake_recovered" ["kind"]
        "Objects that this daemon found on record when it started.";
    quarantined: IntGauge = "lapstrake_records_quarantined" []
        "Records that could not be read and wait for somebody to look at them.";
    leaked: IntCounterVec = "lapstrake_leaked_total" ["kind"]
        "Things that no pod stood for any more and that were collected.";
    sampler_seconds: Counter = "lapstrake_sampler_cpu_seconds_total" []
        "CPU time of the threads that measure pods and containers.";
    sampled: IntGauge = "lapstrake_sampled" []
        "Pods and containers that are being measured.";
    scrape_seconds: Histogram = "lapstrake_scrape_seconds" []
        "Time to answer a scrape of /metrics.";
    process_cpu: Counter = "process_cpu_seconds_total" []
        "CPU time of the daemon.";
    process_memory: IntGauge = "process_resident_memory_bytes" []
        "Memory of the daemon, with what it shares with others.";
    process_threads: IntGauge = "process_threads" []
        "Threads of the daemon.";
    process_descriptors: IntGauge = "process_open_fds" []
        "Open file descriptors of the daemon.";
    process_descriptors_max: IntGauge = "process_max_fds" []
        "Most file descriptors that the daemon may have open.";
    process_start: Gauge = "process_start_time_seconds" []
        "When the daemon was started, in seconds since 1970.";
}

impl Families {
    /// Series that are there from the start, so that a rate over them has a beginning.
    fn start(&self) {
        self.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for kind in Kind::ALL {
            self.events.with_label_values(&[kind.word()]);
        }
        let lost = ["WritableLimitExceeded", "ShimLost"];
        for reason in ["Completed", "Error", "OOMKilled", "StartError"].into_iter().chain(lost) {
            self.exits.with_label_values(&[reason]);
        }
        for why in ["failed", "limited"] {
            self.log_dropped.with_label_values(&[why]);
        }
        for kind in ["sandbox", "container"] {
            self.recovered.with_label_values(&[kind]);
        }
        for kind in ["address", "layer"] {
            self.leaked.with_label_values(&[kind]);
        }
        for result in ["ok", "nonzero", "timeout", "failed"] {
            self.execs.with_label_values(&[result]);
        }
    }
}

/// How a family of a type is made.
trait Make: Sized {
    const WORD: &'static str;
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! make {
    ($kind:ident, $word:literal, |$name:ident, $help:ident, $labels:ident| $made:expr) => {
        impl Make for $kind {
            const WORD: &'static str = $word;
            fn make($name: &str, $help: &str, $labels: &[&str]) -> prometheus::Result<Self> {
                $made
            }
        }
    };
}

make!(IntGauge, "gauge", |name, help, _labels| Self::new(name, help));
make!(Counter, "counter", |name, help, _labels| Self::new(name, help));
make!(Gauge, "gauge", |name, help, _labels| Self::new(name, help));
make!(IntCounter, "counter", |name, help, _labels| Self::new(name, help));
make!(IntGaugeVec, "gauge", |name, help, labels| Self::new(Opts::new(name, help), labels));
make!(GaugeVec, "gauge", |name, help, labels| Self::new(Opts::new(name, help), labels));
make!(IntCounterVec, "counter", |name, help, labels| Self::new(Opts::new(name, help), labels));
make!(Histogram, "histogram", |name, help, _labels| {
    Self::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()))
});
make!(HistogramVec, "histogram", |name, help, labels| {
    Self::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)
});
