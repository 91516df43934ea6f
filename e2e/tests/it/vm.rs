//! This suite inside a guest with what the build machine lacks: pure cgroup v2, systemd, AppArmor
//! and a kernel of Debian's.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::guest::{Guest, Outcome, Tests};
use serde_json::{Value, json};

/// A boot and a few short tests take half a minute on an idle machine, many on a crowded one.
const CORE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Every test, one after another, on an emulated processor.
const SUITE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What `make test` shows of it: a pod, its limits, an OOM kill.
const CORE: &[&str] = &[
    "isolation::limits_are_in_the_containers_cgroup",
    "isolation::a_container_over_its_memory_is_oom_killed_and_says_so",
];

/// What takes a guest, a browser or Prometheus, and shows nothing of the kernel.
const HOST_ONLY: &[&str] = &[
    "--skip=vm::",
    "--skip=node_page::",
    "--skip=metrics::every_alert",
    "--skip=metrics::every_query",
];

/// Crates whose tests meet the kernel.
const KERNEL_RING: &[&str] =
    &["cgroup", "container", "lapstrake-oci", "netplugin", "runtime", "seccomp"];

#[test]
fn the_core_holds_in_a_guest_with_pure_cgroup_v2() {
    let mut arguments = vec!["--exact", "--test-threads=1"];
    arguments.extend(CORE);
    let output = passes_in_a_guest(&arguments, CORE_LIMIT);
    if let Some(output) = output {
        let counted = format!("test result: ok. {} passed", CORE.len());
        assert!(output.contains(&counted), "all of them ran");
    }
}

#[test]
#[ignore = "takes long: `make test-vm` runs it"]
fn the_suite_holds_in_a_guest() {
    let filter = setting("VM_FILTER");
    let mut arguments = vec!["--test-threads=2"];
    arguments.extend(HOST_ONLY);
    arguments.extend(filter.split_whitespace());
    passes_in_a_guest(&arguments, SUITE_LIMIT);
}

#[test]
#[ignore = "takes long: `make test-vm` runs it"]
fn labels_hold_in_a_guest_with_selinux() {
    all_run_with_kernel("security=selinux selinux=1 enforcing=0", &["selinux::"]);
}

#[test]
#[ignore = "takes long: `make test-vm` runs it"]
fn a_guest_without_nf_tables_is_a_node_that_says_so() {
    all_run_with_kernel("module_blacklist=nf_tables", &["no_nf_tables::"]);
}

/// Tests that are for a kernel with these options, none of which may be left out there.
fn all_run_with_kernel(options: &'static str, arguments: &[&str]) {
    let Some(guest) = Guest::prepared() else { return };
    let tests = Tests { file: std::env::current_exe().unwrap(), arguments };
    let Outcome { exit, output, console } = guest.with_kernel(options).run(&[tests], CORE_LIMIT);
    assert_eq!(exit, Some(0), "the tests in the guest: {output}\nits console: {console}");
    assert!(!output.contains("SKIPPED") && !output.contains(" 0 passed"), "{output}");
}

#[test]
#[ignore = "takes long: `make test-vm` runs it"]
fn the_kernel_ring_holds_in_a_guest() {
    let filter = setting("VM_FILTER");
    let mut arguments = vec!["--test-threads=2"];
    arguments.extend(filter.split_whitespace());
    let arguments = &*arguments;
    let tests = kernel_ring().into_iter().map(|file| Tests { file, arguments });
    let tests: Vec<_> = tests.collect();
    all_pass(&tests, SUITE_LIMIT);
}

/// What the tests of this binary said, all of them being content; none where no guest can be had.
fn passes_in_a_guest(arguments: &[&str], limit: Duration) -> Option<String> {
    all_pass(&[Tests { file: std::env::current_exe().unwrap(), arguments }], limit)
}

fn all_pass(tests: &[Tests<'_>], limit: Duration) -> Option<String> {
    let outcome = Guest::prepared()?.run(tests, limit);
    assert_eq!(
        outcome.exit,
        Some(0),
        "the tests in the guest: {}\nits console: {}",
        outcome.output,
        outcome.console
    );
    Some(outcome.output)
}

/// For a developer who wants less than all: words of libtest's filter in `VM_FILTER`, crates of the
/// kernel ring in `VM_CRATES`.
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The test binaries of [`KERNEL_RING`], built as this one was.
fn kernel_ring() -> Vec<PathBuf> {
    let chosen = setting("VM_CRATES");
    let mut crates: Vec<_> = chosen.split_whitespace().collect();
    if crates.is_empty() {
        crates.extend(KERNEL_RING);
    }
    let mut cargo = Command::new(env!("CARGO"));
    // All of the workspace, so that nothing is compiled again with other features.
    cargo.args(["test", "--no-run", "--locked", "--workspace", "--message-format=json"]);
    if std::env::current_exe().unwrap().iter().any(|it| it == "release") {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let files = test_binaries(&String::from_utf8(built.stdout).unwrap(), &crates);
    assert!(files.len() >= crates.len(), "{files:?}");
    files
}

/// Of what cargo says that it has built, the tests of these crates.
fn test_binaries(messages: &str, crates: &[&str]) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|it| serde_json::from_str::<Value>(it).ok());
    messages
        .filter(|it| it["profile"]["test"] == true)
        .filter(|it| crates.contains(&package_name(it["package_id"].as_str().unwrap_or_default())))
        .filter_map(|it| it["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// `path+file:///a/cgroup#0.1.0` and `path+file:///a/oci#lapstrake-oci@0.1.0`: the name stands apart where the
/// directory has another one.
fn package_name(id: &str) -> &str {
    let (path, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or_default(),
    }
}

#[test]
fn test_binaries_are_chosen_by_their_crates() {
    let message = |package: &str, test: bool, executable: Option<&str>| {
        json!({ "reason": "compiler-artifact", "package_id": format!("path+file:///w/{package}"),
                "profile": { "test": test }, "executable": executable })
        .to_string()
    };
    let messages = [
        message("runtime/cgroup#0.1.0", true, Some("/t/cgroup-1")),
        message("runtime/cgroup#0.1.0", false, None),
        message("runtime/oci#lapstrake-oci@0.1.0", true, Some("/t/it-2")),
        message("runtime/oci#lapstrake-oci@0.1.0", false, Some("/t/lapstrake-oci")),
        message("runtime#0.1.0", true, Some("/t/runtime-3")),
        message("cri-server#lapstrake@0.1.0", true, Some("/t/lapstrake-4")),
        r#"{"reason":"build-finished","success":true}"#.to_owned(),
        "no message at all".to_owned(),
    ];
    let chosen = test_binaries(&messages.join("\n"), &["cgroup", "lapstrake-oci"]);
    assert_eq!(chosen, ["/t/cgroup-1", "/t/it-2"].map(PathBuf::from));
}
