//! Prometheus and logs: what the daemon counts, who may read it, and that rules and dashboards show
//! what they promise, with a real Prometheus.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::layer::Layer;
use e2e::pod::SOON;
use e2e::registry::Form;
use e2e::spdy::Asked;
use e2e::{
    Node, Options, Registry, RegistryAuth, container, guest, host, http, image, pod, tls, wait,
};
use serde_json::Value;
use tonic::Request;

use proto::cri::v1 as cri;

use crate::pulling::{mirrors, pull};

const OUT: Asked = Asked { stdin: false, stdout: true, stderr: false, tty: false };

/// A scrape a second, some rounds of rules, on a busy machine.
const PROMETHEUS_LIMIT: Duration = Duration::from_secs(60);

/// The vm ring's guest has neither the sources nor these programs; nothing of them depends on its
/// kernel or on systemd.
pub(crate) fn left_to_the_host(what: &str) -> bool {
    if guest::inside() {
        eprintln!("SKIPPED: {what} is tested on the host");
    }
    guest::inside()
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Where the daemon serves its metrics: the port that asks for a token or gives them.
pub(crate) fn address(node: &Node) -> String {
    let ports = host::listening_ports(node.pid().unwrap()).into_iter();
    let mut answers = ports.map(|port| format!("127.0.0.1:{port}")).filter(|address| {
        let answer = http::request("GET", address, "/metrics", &[], &[]);
        [200, 401].contains(&answer.status)
    });
    answers.next().expect("one serves /metrics")
}

fn text(node: &Node, path: &str) -> String {
    let answer = http::request("GET", &address(node), path, &[], &[]);
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).unwrap()
}

/// Series and their values.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}")));
    pairs.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// A node on which something of every kind has happened.
async fn used_node(options: Options) -> Node {
    let node = Node::start_with(options).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("load")).await;
    let writer = "dd if=/dev/zero of=/big bs=1M count=2 2>/dev/null; while :; do :; done";
    let busy = pod.start(&container("busy", image::BUSYBOX).shell(writer)).await;
    assert_eq!(busy.try_exec(&["true"], 10).await.unwrap().exit_code, 0);
    assert_eq!(busy.try_exec(&["false"], 10).await.unwrap().exit_code, 1);
    busy.try_exec(&["sleep", "100"], 1).await.unwrap_err();
    let short = pod.start(&container("short", image::BUSYBOX).command(&["false"])).await;
    short.exited().await;
    let broken = pod.create(&container("broken", image::BUSYBOX).command(&["/nothing"])).await;
    broken.try_start().await.unwrap_err();
    node
}

#[tokio::test]
async fn every_documented_family_is_served_and_has_counted_something() {
    let registry = Registry::start(RegistryAuth::Anonymous);
    let small = Layer::default().file("small", 0o644, "what no other image has");
    let pulled = image::Image::new(vec![small], serde_json::json!({}));
    registry.push(&pulled, "library/pulled", "1", Form::Oci);
    let mirrors = mirrors(&registry.address);
    let mut node = used_node(Options { mirrors, ..Options::default() }).await;
    node.kill9();
    node.spawn().await;
    pull(&node, "pulled:1", None).await.expect("PullImage");
    // After a restart the counters begin anew: something has to happen again.
    let again = node.run_pod(pod("again")).await;
    let quick = again.start(&container("quick", image::BUSYBOX).command(&["true"])).await;
    quick.exited().await;
    let speaker = container("exec", image::BUSYBOX).shell("echo hello; sleep 1000");
    let exec = again.start(&speaker).await;
    assert_eq!(exec.try_exec(&["true"], 10).await.unwrap().exit_code, 0);
    let session = exec.stream("sleep 1000", OUT).await;
    // One call is under way while the numbers are read.
    let waiting = tokio::spawn(async move { exec.try_exec(&["sleep", "60"], 100).await });
    let events =
        node.cri.newer_runtime.clone().get_container_events(cri::GetEventsRequest {}).await;
    // Nothing of these has happened here, or may have.
    let quiet = [
        "lapstrake_slow_operations_total", // nothing is slow; see the test of that
        "lapstrake_network_repairs_total", // nobody took a link away
        "lapstrake_events_dropped_total",  // every subscriber keeps up
        "lapstrake_records_quarantined",   // every record is good
        "lapstrake_log_dropped_bytes_total", // every line is in its log
        "lapstrake_network_debt",          // no plugins here
        "lapstrake_pulls",                 // none is under way
        "lapstrake_pull_missing_bytes",
        "lapstrake_leaked_total", // nothing leaked
    ];
    let documented: Vec<_> = include_str!("../../../deploy/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| !name.starts_with("container_"))
        .collect();
    assert!(documented.len() > 30, "{documented:?}");
    // The shims are asked for their counts every ten seconds.
    wait::until_async("every family has counted", 2 * SOON, || async {
        text(&node, "/metrics"); // the first scrape is timed by the second
        let samples = samples(&text(&node, "/metrics"));
        let counted = |name: &str| {
            let own = |series: &str| {
                let base = series.split('{').next().unwrap();
                base == name || base == format!("{name}_count")
            };
            samples.iter().any(|(series, value)| own(series) && *value > 0.0)
        };
        let missing: Vec<_> =
            documented.iter().filter(|name| !quiet.contains(name) && !counted(name)).collect();
        if !missing.is_empty() {
            eprintln!("not yet: {missing:?}");
        }
        missing.is_empty().then_some(())
    })
    .await;
    let served = text(&node, "/metrics");
    for line in served.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(documented.contains(&name), "{name} is not in deploy/metrics.md");
    }
    let samples = samples(&served);
    assert_eq!(samples["lapstrake_recovered{kind=\"sandbox\"}"] as u32, 1);
    assert_eq!(samples["lapstrake_recovered{kind=\"container\"}"] as u32, 3);
    drop((events, session));
    waiting.abort();
    node.finish().await;
}

#[tokio::test]
async fn the_number_of_series_does_not_grow_with_what_users_name() {
    let node = Node::with_busybox().await;
    let round = |name: String| {
        let node = &node;
        async move {
            let pod = node.run_pod(pod(&name)).await;
            let spec = container(&name, image::BUSYBOX).label(&name, &name).command(&["true"]);
            pod.start(&spec).await.exited().await;
            pod.try_create(&container(&name, &name)).await.unwrap_err();
            pod.remove().await;
        }
    };
    round("first".to_owned()).await;
    let before = samples(&text(&node, "/metrics"));
    for number in 0..4 {
        round(format!("round-{number}")).await;
    }
    let after = samples(&text(&node, "/metrics"));
    let new: Vec<_> = after.keys().filter(|series| !before.contains_key(*series)).collect();
    assert!(new.iter().all(|series| !series.contains("round-")), "{new:?}");
    // A code that one round happened not to meet, at most.
    assert!(new.len() < 5, "{new:?}");
    assert_eq!(text(&node, "/metrics/pods"), "", "pods that are gone leave no series");
    node.finish().await;
}

#[tokio::test]
async fn metrics_of_pods_are_exact_and_a_hostile_name_is_one_label() {
    let node = Node::with_busybox().await;
    let hostile = "a\"} 1 #\\";
    let pod = node.run_pod(pod("exact")).await;
    let spec =
        container(hostile, image::BUSYBOX).shell("dd if=/dev/zero of=/x bs=1M count=3; sleep 1000");
    let mut spec = spec;
    spec.config.log_path.clear();
    pod.start(&spec).await;
    let name = "container=\"a\\\"} 1 #\\\\\"";
    wait::until("what was written", SOON, || {
        let samples = samples(&text(&node, "/metrics/pods"));
        let written = samples.iter().find(|(series, _)| {
            series.starts_with("container_fs_usage_bytes{") && series.contains(name)
        });
        written.is_some_and(|(_, value)| (3e6..5e6).contains(value)).then_some(())
    });
    let all = samples(&text(&node, "/metrics/pods"));
    let cpu = all.iter().find(|(series, _)| {
        series.starts_with("container_cpu_usage_seconds_total{") && series.contains(name)
    });
    assert!(cpu.unwrap().1.fract() > 0.0, "seconds have fractions here: {cpu:?}");
    node.finish().await;
}

#[tokio::test]
async fn without_the_token_there_is_nothing_to_see_and_with_tls_nothing_to_overhear() {
    if left_to_the_host("access to metrics (openssl, curl)") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let token = "a-token-of-some-length";
    fs::write(at("token"), format!("{token}\n")).unwrap();
    let config = format!("[metrics]\ntoken_file = {:?}\n", at("token"));
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let address = address(&node);
    for path in ["/", "/page.json", "/metrics", "/metrics/pods", "/nothing"] {
        let answer = http::request("GET", &address, path, &[], &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.body.len() < 100, "{path}");
    }
    let bearer = format!("Authorization: Bearer {token}");
    for path in ["/", "/page.json", "/metrics", "/metrics/pods"] {
        assert_eq!(http::request("GET", &address, path, &[&bearer], &[]).status, 200, "{path}");
    }
    node.finish().await;

    tls::certificate(scratch.path());
    let config = format!(
        "[metrics]\ntls_certificate = {:?}\ntls_key = {:?}\n",
        at("cert.pem"),
        at("key.pem")
    );
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let ports = host::listening_ports(node.pid().unwrap());
    let answers: Vec<_> = ports
        .iter()
        .map(|port| {
            Command::new("curl")
                .args(["--silent", "--max-time", "20", "--cacert", &at("cert.pem")])
                .arg(format!("https://127.0.0.1:{port}/metrics"))
                .output()
                .unwrap()
        })
        .filter(|output| String::from_utf8_lossy(&output.stdout).contains("lapstrake_build_info"))
        .collect();
    assert_eq!(answers.len(), 1, "one port serves metrics with TLS");
    node.finish().await;
}

#[tokio::test]
async fn the_log_follows_a_call_and_its_level_changes_while_the_daemon_runs() {
    let config = "[log]\nformat = \"json\"\n".to_owned();
    let node = Node::cold(Options { config, ..Options::default() }).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut request = Request::new(cri::StartContainerRequest { container_id: "f".repeat(64) });
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    node.cri.newer_runtime.clone().start_container(request).await.unwrap_err();
    let lines = || -> Vec<Value> {
        let log = node.log();
        log.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|it| panic!("{line}: {it}")))
            .collect()
    };
    let failed = lines().into_iter().find(|line| line["message"] == "failed").expect("a line");
    assert_eq!(failed["level"], "WARN");
    assert_eq!(failed["method"], "StartContainer");
    assert_eq!(failed["object"].as_str().unwrap(), "f".repeat(64));
    assert_eq!(failed["span"]["trace_id"], trace, "{failed}");
    assert!(failed["span"]["request"].as_u64().unwrap() > 0);

    let version = || async {
        let mut runtime = node.cri.runtime.clone();
        runtime.version(k8s_cri::v1::VersionRequest::default()).await
    };
    version().await.unwrap();
    let debug = || lines().iter().filter(|line| line["level"] == "DEBUG").count();
    assert_eq!(debug(), 0, "nothing of that at the ordinary level");
    let changed = node.verb(&["log-level", "debug"]);
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    version().await.unwrap();
    assert!(lines().iter().any(|line| line["message"] == "done" && line["method"] == "Version"));
    let refused = node.verb(&["log-level", "loud"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("loud"));
    assert!(node.verb(&["log-level", "info"]).status.success());
    let before = debug();
    version().await.unwrap();
    assert_eq!(debug(), before);
    node.finish().await;
}

#[tokio::test]
async fn a_slow_operation_is_told_with_its_stages() {
    let config = "[log]\nslow_operation_seconds = 0.000001\n".to_owned();
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let log = node.log();
    let slow = log.lines().find(|line| line.contains("slow") && line.contains("run_pod_sandbox"));
    let slow = slow.unwrap_or_else(|| panic!("{log}"));
    for stage in ["record ", "network_and_shim ", "files ", "pause ", "ready "] {
        assert!(slow.contains(stage), "{stage} is not in {slow}");
    }
    let samples = samples(&text(&node, "/metrics"));
    let counted = samples["lapstrake_slow_operations_total{operation=\"run_pod_sandbox\"}"];
    assert!(counted >= 1.0);
    let page: Value = serde_json::from_str(&text(&node, "/page.json")).unwrap();
    let slow = page["slow"].as_array().unwrap();
    assert!(
        slow.iter().any(|it| it["operation"] == "run_pod_sandbox"
            && it["stages"].as_array().unwrap().len() == 5)
    );
    node.finish().await;
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    if left_to_the_host("rules (promtool)") {
        return;
    }
    let tested = Command::new("promtool")
        .args(["test", "rules", "tests.yaml"])
        .current_dir(deploy("prometheus"))
        .output()
        .expect("promtool is installed: Debian's package `prometheus`");
    let said = String::from_utf8_lossy(&tested.stdout).into_owned()
        + &String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{said}");
    let checked = Command::new("promtool")
        .args(["check", "config", "prometheus.yaml"])
        .current_dir(deploy("prometheus"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let rules = fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    let tests = fs::read_to_string(deploy("prometheus/tests.yaml")).unwrap();
    let mut alerts = 0;
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.matches(alert).count() >= 2, "{alert} is tested firing and silent");
        alerts += 1;
    }
    assert!(alerts >= 10);
}

/// A Prometheus of the test's own; ends with this value.
struct Prometheus {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Prometheus {
    /// With the shipped configuration, but at a test's pace and for this daemon.
    fn start(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(deploy("prometheus/prometheus.yaml")).unwrap();
        let config = config
            .replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s")
            .replace("127.0.0.1:9323", target);
        fs::write(dir.path().join("prometheus.yaml"), config).unwrap();
        fs::copy(deploy("prometheus/rules.yaml"), dir.path().join("rules.yaml")).unwrap();
        // A port that is free now; another test may be quicker, and then this fails loudly.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = free.to_string();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus is installed: Debian's package `prometheus`");
        Self { process, address, dir }
    }

    /// The values that a query gives now; `None` while it does not answer.
    fn values(&self, query: &str) -> Option<Vec<f64>> {
        if std::net::TcpStream::connect(&self.address).is_err() {
            return None;
        }
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let answer = http::request("GET", &self.address, &path, &[], &[]);
        let answer: Value = serde_json::from_slice(&answer.body).ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap().iter();
        Some(results.map(|it| it["value"][1].as_str().unwrap().parse().unwrap()).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("prometheus's log:\n{}", &log[log.len().saturating_sub(3000)..]);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn every_query_of_every_dashboard_shows_something_sane_in_a_real_prometheus() {
    if left_to_the_host("dashboards (prometheus)") {
        return;
    }
    let node = used_node(Options::default()).await;
    let prometheus = Prometheus::start(&address(&node));
    wait::until("two scrapes", PROMETHEUS_LIMIT, || {
        let scrapes = prometheus.values("min(count_over_time(up{job=~\"lapstrake.*\"}[5m]))")?;
        (*scrapes.first()? >= 2.0).then_some(())
    });
    // Something has to change between two scrapes, for rates and quantiles to have data.
    let pod = node.run_pod(pod("during")).await;
    let during = pod.start(&container("main", image::BUSYBOX).command(&["sleep", "1000"])).await;
    during.try_exec(&["true"], 10).await.unwrap();
    pod.start(&container("ends", image::BUSYBOX).command(&["true"])).await.exited().await;
    pod.stop().await;
    let mut queries = Vec::new();
    for file in fs::read_dir(deploy("grafana")).unwrap().flatten() {
        let dashboard: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let title = format!("{}: {}", dashboard["title"], panel["title"]);
                let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap().to_owned();
                queries.push((title, unit, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    assert!(queries.len() >= 30, "{}", queries.len());
    for (title, unit, query) in queries {
        // The quota is none of the load's: without one there is nothing to be throttled by.
        if query.contains("throttled") {
            assert!(prometheus.values(&query).is_some());
            continue;
        }
        let mut last = None;
        let values = wait::until(&format!("{title}: {query}"), PROMETHEUS_LIMIT, || {
            let values = prometheus.values(&query)?;
            last = Some(values.clone());
            // A quantile over a window without calls is no number yet.
            (!values.is_empty() && values.iter().any(|it| it.is_finite())).then_some(values)
        });
        for value in values.iter().filter(|it| !it.is_nan()) {
            let sign = if query.starts_with('-') { -1.0 } else { 1.0 };
            let largest = match &*unit {
                "percentunit" => 4.0, // the daemon may use more than one core
                "s" => 300.0,
                _ => 1e15,
            };
            assert!((0.0..=largest).contains(&(value * sign)), "{title}: {query} gives {value}");
        }
    }
    assert!(prometheus.values("lapstrake:disk_used:ratio").is_some_and(|it| it.len() == 1));
    drop(prometheus);
    node.finish().await;
}

/// How long and at what pace a daemon is asked. `E2E_SOAK_SECONDS` makes an hour of what is some seconds in CI, with as
/// many pods as a busy node has (`E2E_SOAK_PODS`) and a scraper that comes every second: `make soak-numbers`.
struct Soak {
    pods: usize,
    /// Until caches, pools and the curves of the page are full; and then, while nothing may grow.
    rounds: [usize; 2],
    pace: Duration,
}

impl Soak {
    fn wanted() -> Self {
        let number = |name: &str| Some(std::env::var(name).ok()?.parse().expect("a whole number"));
        match number("E2E_SOAK_SECONDS") {
            None => Self { pods: 6, rounds: [60, 120], pace: Duration::ZERO },
            Some(seconds) => Self {
                pods: number("E2E_SOAK_PODS").unwrap_or(100),
                rounds: [seconds / 4, seconds - seconds / 4],
                pace: Duration::from_secs(1),
            },
        }
    }
}

/// What a process weighs.
#[derive(Debug)]
struct Weight {
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

fn weight(pid: i32) -> Weight {
    let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
    Weight {
        descriptors: count("fd"),
        threads: count("task"),
        memory_kib: host::anonymous_kib(pid),
    }
}

/// Asks for everything that there is to be asked for.
async fn ask(node: &Node, address: &str, pods: usize) {
    for path in ["/metrics", "/metrics/pods", "/page.json", "/"] {
        assert_eq!(http::request("GET", address, path, &[], &[]).status, 200);
    }
    let mut runtime = node.cri.newer_runtime.clone();
    let request = cri::ListPodSandboxStatsRequest::default();
    let stats = runtime.list_pod_sandbox_stats(request).await.unwrap();
    assert_eq!(stats.into_inner().stats.len(), pods);
    let request = cri::ListPodSandboxMetricsRequest {};
    runtime.list_pod_sandbox_metrics(request).await.unwrap();
}

#[tokio::test]
async fn being_asked_for_numbers_all_the_time_leaves_the_daemon_as_it_was() {
    let Soak { pods, rounds, pace } = Soak::wanted();
    let node = Node::with_busybox().await;
    for number in 0..pods {
        let pod = node.run_pod(pod(&format!("pod-{number}"))).await;
        pod.start(&container("main", image::BUSYBOX).command(&["sleep", "100000"])).await;
    }
    let address = address(&node);
    let pid = node.pid().unwrap();
    let mut weights = Vec::new();
    for rounds in rounds {
        for round in 0..rounds {
            let next = tokio::time::Instant::now() + pace;
            ask(&node, &address, pods).await;
            if !pace.is_zero() && round % 60 == 0 {
                let used = samples(&text(&node, "/metrics"));
                let seconds = |name: &str| used[name];
                println!(
                    "{round} s: {:?}, CPU seconds {:.1}, of them the sampler's {:.1}",
                    weight(pid),
                    seconds("process_cpu_seconds_total"),
                    seconds("lapstrake_sampler_cpu_seconds_total")
                );
            }
            tokio::time::sleep_until(next).await;
        }
        weights.push(weight(pid));
    }
    let before = &weights[0];
    let after = wait::until("descriptors and threads are as before", SOON, || {
        let after = weight(pid);
        // A blocking worker may come or go.
        let same = after.descriptors <= before.descriptors + 2;
        (same && after.threads <= before.threads + 4).then_some(after)
    });
    assert!(after.memory_kib < before.memory_kib + 4096, "it grew: {before:?}, {after:?}");
    node.finish().await;
}
