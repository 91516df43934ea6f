//! What is made of the tables for `deploy/`: the page that lists every metric, and Grafana's
//! dashboards. A test fails when a file there is not what the tables say; with `BLESS=1` it writes it.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::families::Families;
use super::pods;

/// A panel: title, unit of Grafana, and (query, legend).
type Panel = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Quantiles come out of buckets in the same way everywhere.
const NODE: &[Panel] = &[
    ("Pods by state", "short", &[("sum by (state) (lapstrake_sandboxes)", "{{state}}")]),
    ("Containers by state", "short", &[("sum by (state) (lapstrake_containers)", "{{state}}")]),
    (
        "CPU of pods",
        "short",
        &[(
            "sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{container=\"\"}[5m]))",
            "{{namespace}}/{{pod}}",
        )],
    ),
    (
        "Memory of pods (working set)",
        "bytes",
        &[(
            "sum by (namespace, pod) (container_memory_working_set_bytes{container=\"\"})",
            "{{namespace}}/{{pod}}",
        )],
    ),
    (
        "CPU throttling",
        "percentunit",
        &[(
            "sum by (namespace, pod, container) (rate(container_cpu_cfs_throttled_periods_total{container!=\"\"}[5m])) / (sum by (namespace, pod, container) (rate(container_cpu_cfs_periods_total{container!=\"\"}[5m])) > 0)",
            "{{namespace}}/{{pod}}/{{container}}",
        )],
    ),
    (
        "Pressure: share of time that some task waited",
        "percentunit",
        &[
            (
                "max by (namespace, pod) (rate(container_pressure_cpu_waiting_seconds_total{container=\"\"}[5m]))",
                "CPU {{namespace}}/{{pod}}",
            ),
            (
                "max by (namespace, pod) (rate(container_pressure_memory_waiting_seconds_total{container=\"\"}[5m]))",
                "memory {{namespace}}/{{pod}}",
            ),
            (
                "max by (namespace, pod) (rate(container_pressure_io_waiting_seconds_total{container=\"\"}[5m]))",
                "disk {{namespace}}/{{pod}}",
            ),
        ],
    ),
    (
        "Network received and sent",
        "Bps",
        &[
            (
                "sum by (namespace, pod) (rate(container_network_receive_bytes_total[5m]))",
                "in {{namespace}}/{{pod}}",
            ),
            (
                "-sum by (namespace, pod) (rate(container_network_transmit_bytes_total[5m]))",
                "out {{namespace}}/{{pod}}",
            ),
        ],
    ),
    (
        "Ends of containers",
        "short",
        &[("sum by (reason) (increase(lapstrake_container_exits_total[5m]))", "{{reason}}")],
    ),
];

const PODS: &[Panel] = &[
    (
        "RunPodSandbox",
        "s",
        &[
            (
                "histogram_quantile(0.5, sum by (le) (rate(lapstrake_rpc_seconds_bucket{method=\"RunPodSandbox\"}[5m])))",
                "p50",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(lapstrake_rpc_seconds_bucket{method=\"RunPodSandbox\"}[5m])))",
                "p99",
            ),
        ],
    ),
    (
        "CreateContainer and StartContainer",
        "s",
        &[(
            "histogram_quantile(0.99, sum by (le, method) (rate(lapstrake_rpc_seconds_bucket{method=~\"CreateContainer|StartContainer\"}[5m])))",
            "p99 {{method}}",
        )],
    ),
    (
        "Mean time in each stage",
        "s",
        &[(
            "sum by (operation, stage) (rate(lapstrake_stage_seconds_sum[5m])) / (sum by (operation, stage) (rate(lapstrake_stage_seconds_count[5m])) > 0)",
            "{{operation}} {{stage}}",
        )],
    ),
    (
        "Starts",
        "ops",
        &[(
            "sum by (method) (rate(lapstrake_rpc_total{method=~\"RunPodSandbox|StartContainer\"}[5m]))",
            "{{method}}",
        )],
    ),
    (
        "Slow operations",
        "short",
        &[(
            "sum by (operation) (increase(lapstrake_slow_operations_total[5m])) or vector(0)",
            "{{operation}}",
        )],
    ),
    ("Events", "ops", &[("sum by (kind) (rate(lapstrake_events_total[5m]))", "{{kind}}")]),
];

const STORAGE: &[Panel] = &[
    ("Images", "short", &[("lapstrake_images", "images")]),
    (
        "Disk space of images and of containers",
        "bytes",
        &[
            ("lapstrake_image_bytes", "images"),
            ("lapstrake_writable_bytes", "written by containers"),
        ],
    ),
    (
        "File system of the root directory",
        "percentunit",
        &[(
            "1 - lapstrake_disk_bytes{state=\"free\"} / ignoring(state) lapstrake_disk_bytes{state=\"total\"}",
            "in use",
        )],
    ),
    ("Inodes of images", "short", &[("lapstrake_image_inodes", "inodes")]),
    (
        "What containers have written",
        "bytes",
        &[(
            "topk(10, sum by (namespace, pod, container) (container_fs_usage_bytes))",
            "{{namespace}}/{{pod}}/{{container}}",
        )],
    ),
    (
        "Received from registries",
        "Bps",
        &[("rate(lapstrake_pull_received_bytes_total[5m])", "layers")],
    ),
    (
        "Calls about images",
        "ops",
        &[("sum by (method) (rate(lapstrake_rpc_total{method=~\".*Image.*\"}[5m]))", "{{method}}")],
    ),
];

const HEALTH: &[Panel] = &[
    ("Calls", "ops", &[("sum by (method) (rate(lapstrake_rpc_total[5m]))", "{{method}}")]),
    (
        "Failed calls",
        "ops",
        &[(
            "sum by (method, code) (rate(lapstrake_rpc_total{code!=\"Ok\"}[5m])) or vector(0)",
            "{{method}} {{code}}",
        )],
    ),
    (
        "Time of calls, p99",
        "s",
        &[(
            "histogram_quantile(0.99, sum by (le, method) (rate(lapstrake_rpc_seconds_bucket[5m])))",
            "{{method}}",
        )],
    ),
    (
        "Age of the oldest call",
        "s",
        &[("max(lapstrake_rpc_oldest_seconds) or vector(0)", "oldest")],
    ),
    (
        "Daemon: CPU",
        "percentunit",
        &[
            ("rate(process_cpu_seconds_total{job=\"lapstrake\"}[5m])", "daemon"),
            ("rate(lapstrake_sampler_cpu_seconds_total[5m])", "of it, measuring"),
        ],
    ),
    (
        "Daemon: memory",
        "bytes",
        &[("process_resident_memory_bytes{job=\"lapstrake\"}", "resident")],
    ),
    (
        "Daemon: descriptors",
        "short",
        &[
            ("process_open_fds{job=\"lapstrake\"}", "open"),
            ("process_max_fds{job=\"lapstrake\"}", "most"),
        ],
    ),
    ("Shims by state", "short", &[("sum by (state) (lapstrake_shims)", "{{state}}")]),
    (
        "Network: addresses in use",
        "percentunit",
        &[("lapstrake_network_leases / lapstrake_network_pool_addresses", "in use")],
    ),
    (
        "Network: ready, and repairs",
        "short",
        &[
            ("lapstrake_network_ready", "ready"),
            ("increase(lapstrake_network_repairs_total[5m])", "repairs"),
        ],
    ),
    (
        "Quarantined records and collected leaks",
        "short",
        &[
            ("lapstrake_records_quarantined", "quarantined"),
            ("sum by (kind) (increase(lapstrake_leaked_total[1h]))", "leaked {{kind}}"),
        ],
    ),
    (
        "Logs: lines, and bytes that are missing",
        "short",
        &[
            ("rate(lapstrake_log_lines_total[5m])", "lines"),
            (
                "sum by (why) (rate(lapstrake_log_dropped_bytes_total[5m]))",
                "dropped bytes, {{why}}",
            ),
        ],
    ),
    (
        "Commands (ExecSync)",
        "ops",
        &[("sum by (result) (rate(lapstrake_exec_total[5m]))", "{{result}}")],
    ),
    ("Sessions (exec, attach, port-forward)", "short", &[("lapstrake_streaming_sessions", "open")]),
];

const DASHBOARDS: &[(&str, &str, &[Panel])] = &[
    ("node", "Lapstrake: node", NODE),
    ("pod-start", "Lapstrake: pod start", PODS),
    ("storage", "Lapstrake: images and disk", STORAGE),
    ("health", "Lapstrake: runtime health", HEALTH),
];

/// Grafana has 24 columns; two panels stand side by side.
fn dashboard(uid: &str, title: &str, panels: &[Panel]) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${source}" });
    let panels: Vec<_> = panels
        .iter()
        .enumerate()
        .map(|(at, (title, unit, queries))| {
            let targets: Vec<_> = queries
                .iter()
                .zip('A'..)
                .map(|((query, legend), letter)| {
                    json!({
                        "refId": letter.to_string(), "datasource": source,
                        "expr": query, "legendFormat": legend,
                    })
                })
                .collect();
            json!({
                "id": at + 1, "type": "timeseries", "title": title, "datasource": source,
                "gridPos": { "w": 12, "h": 8, "x": at % 2 * 12, "y": at / 2 * 8 },
                "fieldConfig": { "defaults": { "unit": unit }, "overrides": [] },
                "options": { "legend": { "displayMode": "list", "placement": "bottom" } },
                "targets": targets,
            })
        })
        .collect();
    json!({
        "uid": format!("lapstrake-{uid}"), "title": title, "tags": ["lapstrake"],
        "schemaVersion": 39, "editable": true, "refresh": "30s",
        "time": { "from": "now-1h", "to": "now" },
        "templating": { "list": [{
            "name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus",
        }]},
        "panels": panels,
    })
}

fn metrics_page() -> String {
    let mut page = "# Metrics\n\n\
        Generated from the tables in `cri-server/src/metrics/`; do not edit.\n\n\
        ## The daemon: `/metrics`\n\n| name | type | labels | what it says |\n|---|---|---|---|\n"
        .to_owned();
    let families = Families::new().unwrap();
    for (family, kind) in families.all() {
        for desc in family.desc() {
            let labels = desc.variable_labels.join(", ");
            let _ = writeln!(page, "| `{}` | {kind} | {labels} | {} |", desc.fq_name, desc.help);
        }
    }
    let _ = write!(
        page,
        "\n## Pods and containers: `/metrics/pods`, and by CRI for the kubelet\n\n\
         Every sample has the labels {}. A pod as a whole has an empty `container`. Over CRI values are whole \
         numbers: seconds are rounded down there, and exact in `/metrics/pods`.\n\n\
         | name | type | own labels | what it says |\n|---|---|---|---|\n",
        pods::LABELS.join(", ")
    );
    for family in pods::FAMILIES {
        let kind = match family.kind {
            pods::Kind::Counter => "counter",
            pods::Kind::Gauge => "gauge",
        };
        let labels = family.labels.join(", ");
        let _ = writeln!(page, "| `{}` | {kind} | {labels} | {} |", family.name, family.help);
    }
    page
}

fn check(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == wanted,
        "deploy/{name} is not what the tables say: `BLESS=1 cargo test -p lapstrake docs` writes it"
    );
}

#[test]
fn the_page_of_all_metrics_is_what_the_tables_say() {
    check("metrics.md", &metrics_page());
}

#[test]
fn the_dashboards_are_what_their_tables_say() {
    for (uid, title, panels) in DASHBOARDS {
        let text = serde_json::to_string_pretty(&dashboard(uid, title, panels)).unwrap();
        check(&format!("grafana/{uid}.json"), &(text + "\n"));
    }
}

/// A query over a family that is renamed would show nothing, for ever and in silence.
#[test]
fn every_query_is_about_families_that_there_are() {
    let families = Families::new().unwrap();
    let own = families.all();
    let own = own.iter().flat_map(|(family, _)| family.desc());
    let own = own.map(|desc| desc.fq_name.clone());
    let known: Vec<_> =
        own.chain(pods::FAMILIES.iter().map(|family| family.name.to_owned())).collect();
    let rules = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/rules.yaml"),
    );
    let rules = rules.unwrap();
    let recorded = |word: &str| rules.contains(&format!("record: {word}"));
    let queries = DASHBOARDS.iter().flat_map(|(_, _, panels)| *panels);
    let queries = queries.flat_map(|(_, _, queries)| queries.iter().map(|(query, _)| *query));
    let texts: Vec<_> = queries.chain([&*rules]).collect();
    let mut seen = 0;
    for word in texts.iter().flat_map(|text| {
        text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_' || it == ':'))
    }) {
        let ours = ["lapstrake_", "container_", "process_"].iter().any(|it| word.starts_with(it));
        if !ours || word.contains(':') || word == "container_name" {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|it| word.strip_suffix(it));
        let there = known.iter().any(|name| name == word || Some(&**name) == base);
        assert!(there || recorded(word), "no family is called {word}");
        seen += 1;
    }
    assert!(seen > 40, "the queries were read");
}
