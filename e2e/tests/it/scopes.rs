//! Pods whose cgroup parent is a slice: their groups are scopes of systemd. Of a double of it on any machine, of the real
//! one in the vm ring's guest.

#[path = "../../../runtime/systemd/tests/double/mod.rs"]
mod double;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use double::Double;
use e2e::{
    Container, ContainerSpec, Node, Options, PodSpec, container, guest, host, image, pod, wait,
};
use k8s_cri::v1 as cri;
use tonic::{Code, Status};

use crate::metrics::left_to_the_host;
use crate::refused::refused;

#[tokio::test]
async fn pause_and_containers_are_scopes_that_systemd_is_told_of_and_that_end_with_them() {
    if left_to_the_host("a double of systemd, which gives no group its controllers,") {
        return;
    }
    let double = Double::start();
    let slice = format!("lapstraketest-e{}.slice", std::process::id());
    let slices = format!("/lapstraketest.slice/{slice}");
    let mut node = node_on(double.address()).await;
    let pod = node.run_pod(in_slice("sliced", &slice)).await;
    let mut spec = sleeper();
    spec.resources().memory_limit_in_bytes = 64 << 20;
    let main = pod.start(&spec).await;
    let scopes = [scope(&pod.id), scope(&main.id)];
    let group = format!("{slices}/{}", scopes[1]);
    in_group(node.pid_of(&main).await, &group);
    let calls = double.calls();
    assert_eq!(calls.len(), 2, "one for each: {calls:?}");
    assert!(calls[0].starts_with(&format!("start {} replace ", scopes[0])), "{calls:?}");
    let memory = (64_u64 << 20).to_string();
    let named = calls[1].starts_with(&format!("start {} replace ", scopes[1]));
    assert!(named && calls[1].contains(&memory) && calls[1].contains(&slice), "{calls:?}");

    // As a daemon that was killed: the next one finds the scopes by its records.
    node.kill9();
    node.spawn().await;
    let limits = |megabytes: i64| cri::LinuxContainerResources {
        memory_limit_in_bytes: megabytes << 20,
        ..Default::default()
    };
    update(&node, &main, limits(96)).await.unwrap();
    let told = |n: usize, what: &str| {
        let calls = double.calls();
        assert!(calls[n].starts_with(&format!("set {} true", scopes[1])), "{calls:?}");
        assert!(calls[n].contains(what), "{what}: {calls:?}");
    };
    told(2, &(96_u64 << 20).to_string());
    let refused_by_kernel =
        cri::LinuxContainerResources { cpuset_cpus: "4000".into(), ..limits(128) };
    update(&node, &main, refused_by_kernel).await.unwrap_err();
    told(3, &(128_u64 << 20).to_string());
    told(4, &(96_u64 << 20).to_string());
    assert_eq!(main.shell("echo inside").await, "inside");
    in_group(node.pid_of(&main).await, &group);

    main.stop(0).await;
    main.remove().await;
    pod.stop().await;
    pod.remove().await;
    let ends: Vec<_> = double.calls().split_off(5);
    assert_eq!(ends, [format!("stop {}", scopes[1]), format!("stop {}", scopes[0])]);
    for dir in everywhere(&slices) {
        assert_eq!(scopes_in(&dir), Vec::<PathBuf>::new());
    }
    prune(&slices);
    finish_connected(node).await;
}

#[tokio::test]
async fn without_systemd_a_slice_is_refused_with_the_reason_and_a_path_is_not() {
    let node = node_on("unix:path=/nonexistent/bus").await;
    let slice = format!("lapstraketest-n{}.slice", std::process::id());
    let answer = node.try_run_pod(in_slice("sliced", &slice)).await;
    refused(answer.map(drop), Code::Unavailable, &["system bus", "is this node run by systemd"]);
    let pod = node.run_pod(pod("plain")).await;
    pod.start(&sleeper()).await;
    prune(&format!("/lapstraketest.slice/{slice}"));
    node.finish().await;
}

#[tokio::test]
async fn the_real_systemd_keeps_a_containers_limits_and_is_left_without_units() {
    if !guest::inside() {
        println!("SKIPPED: systemd is not the first process here, `make test-vm` has it");
        return;
    }
    let mut node = Node::with_busybox().await;
    let driver =
        node.cri.runtime.clone().runtime_config(cri::RuntimeConfigRequest::default()).await;
    let driver = driver.unwrap().into_inner().linux.unwrap().cgroup_driver();
    assert_eq!(driver, cri::CgroupDriver::Systemd);

    let pod = node.run_pod(in_slice("sliced", "e2e-pod1.slice")).await;
    let mut spec = sleeper();
    spec.resources().memory_limit_in_bytes = 64 << 20;
    spec.resources().cpu_period = 100_000;
    spec.resources().cpu_quota = 50_000;
    let main = pod.start(&spec).await;
    let (pid, unit) = (node.pid_of(&main).await, scope(&main.id));
    in_group(pid, &format!("/e2e.slice/e2e-pod1.slice/{unit}"));
    let limits = || ["memory.max", "cpu.max"].map(|file| host::cgroup_value(pid, "", "", file));
    let shown = || systemctl(&["show", "--value", "--property=MemoryMax", &unit]);
    let wanted = |memory: u64| [memory.to_string(), "50000 100000".to_owned()];
    assert_eq!((limits(), shown()), (wanted(64 << 20), (64 << 20).to_string()));
    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), wanted(64 << 20), "what systemd does not know it undoes");

    node.kill9();
    node.spawn().await;
    let change =
        cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    update(&node, &main, change).await.unwrap();
    assert_eq!((limits(), shown()), (wanted(96 << 20), (96 << 20).to_string()));
    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), wanted(96 << 20));
    assert_eq!(main.shell("echo inside").await, "inside");

    // systemd takes a scope away as soon as it is empty; how the container ended is known all the same.
    for attempt in 0..3 {
        let mut spec = container("greedy", image::BUSYBOX).command(&["tail", "/dev/zero"]);
        spec.resources().memory_limit_in_bytes = 16 << 20;
        let greedy = pod.start(&spec.attempt(attempt)).await;
        let status = greedy.exited().await;
        assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    }
    pod.stop().await;
    pod.remove().await;
    assert_eq!(left_of(&[&pod.id, &main.id]), Vec::<String>::new());
    systemctl(&["stop", "e2e.slice"]);
    finish_connected(node).await;
}

#[tokio::test]
async fn another_runtime_makes_its_own_scope_of_the_same_name() {
    if !guest::inside() {
        println!("SKIPPED: systemd is not the first process here, `make test-vm` has it");
        return;
    }
    let config = "[runtime.handlers.other]\npath = \"/usr/sbin/runc\"\n".to_owned();
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let mut spec = in_slice("foreign", "e2eother-pod.slice");
    spec.handler = "other".into();
    let pod = node.run_pod(spec).await;
    let mut spec = sleeper();
    spec.resources().memory_limit_in_bytes = 64 << 20;
    let main = pod.start(&spec).await;
    let (pid, unit) = (node.pid_of(&main).await, scope(&main.id));
    in_group(pid, &format!("/e2eother.slice/e2eother-pod.slice/{unit}"));
    let limit = || host::cgroup_value(pid, "", "", "memory.max");
    let change =
        cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    update(&node, &main, change).await.unwrap();
    systemctl(&["daemon-reload"]);
    assert_eq!(limit(), (96 << 20).to_string());
    assert_eq!(main.shell("echo inside").await, "inside");
    pod.stop().await;
    pod.remove().await;
    assert_eq!(left_of(&[&pod.id, &main.id]), Vec::<String>::new());
    systemctl(&["stop", "e2eother.slice"]);
    finish_connected(node).await;
}

async fn node_on(bus: &str) -> Node {
    let environment = vec![("DBUS_SYSTEM_BUS_ADDRESS", bus.to_owned())];
    let node = Node::start_with(Options { environment, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    node
}

/// The daemon has a descriptor more than at its start: its way to systemd.
async fn finish_connected(mut node: Node) {
    wait::until("the pod's processes and links are gone", host::SETTLE_LIMIT, || {
        (node.scope.pids(node.pid()).is_empty() && node.scope.has_no_pod_links()).then_some(())
    });
    node.rebase();
    node.finish().await;
}

fn in_slice(name: &str, slice: &str) -> PodSpec {
    let mut spec = pod(name);
    spec.linux().cgroup_parent = slice.into();
    spec
}

fn sleeper() -> ContainerSpec {
    container("main", image::BUSYBOX).command(&["sleep", "1000"])
}

fn scope(id: &str) -> String {
    format!("lapstrake-{id}.scope")
}

#[track_caller]
fn in_group(pid: i32, group: &str) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = |line: &str| line.ends_with(&format!(":{group}"));
    assert!(groups.lines().all(inside), "{pid} is not in {group} everywhere:\n{groups}");
}

async fn update(
    node: &Node,
    container: &Container,
    linux: cri::LinuxContainerResources,
) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

fn systemctl(arguments: &[&str]) -> String {
    let done = Command::new("systemctl").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "systemctl {arguments:?}: {error}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// What systemd still has of these.
fn left_of(ids: &[&str]) -> Vec<String> {
    let units = systemctl(&["list-units", "--all", "--plain", "--no-legend", "lapstrake-*.scope"]);
    ids.iter().map(|id| scope(id)).filter(|unit| units.contains(unit)).collect()
}

/// The directories of a group in all hierarchies that have it.
fn everywhere(group: &str) -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let roots = roots.chain([PathBuf::from("/sys/fs/cgroup")]);
    roots.map(|root| root.join(&group[1..])).filter(|dir| dir.is_dir()).collect()
}

fn scopes_in(slice: &Path) -> Vec<PathBuf> {
    let inside = fs::read_dir(slice).unwrap().flatten().map(|entry| entry.path());
    inside.filter(|path| path.is_dir()).collect()
}

/// What the double does not take away: the slices.
fn prune(slices: &str) {
    for dir in everywhere(slices) {
        fs::remove_dir(&dir).unwrap();
        let _ = fs::remove_dir(dir.parent().unwrap()); // another test may be in it
    }
}
