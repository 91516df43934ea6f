//! Limits that change while a container runs, of containers and of whole pods, and classes of
//! service.

use std::fs;
use std::process::Command;

use e2e::{ContainerSpec, Node, Options, Pod, container, host, image, pod};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn an_update_changes_what_it_names_is_reported_and_survives_a_restart() {
    let (mut node, pod) = busybox_pod("").await;
    let mut spec = sleeper("main");
    spec.resources().memory_limit_in_bytes = 64 << 20;
    spec.resources().cpu_quota = 20_000;
    spec.resources().cpu_period = 100_000;
    let main = pod.start(&spec).await;
    let pid = node.pid_of(&main).await;
    let memory = || host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max");
    let quota = || host::cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    // Up, down and up again: the kernel wants memory and swap in another order each time.
    for megabytes in [256_i64, 32, 128] {
        let change = cri::LinuxContainerResources {
            memory_limit_in_bytes: megabytes << 20,
            ..Default::default()
        };
        update(&node, &main.id, change).await.unwrap();
        assert_eq!(memory(), (megabytes << 20).to_string());
        assert!(quota().starts_with("20000"), "not named: {}", quota());
    }
    let change = cri::LinuxContainerResources {
        cpu_quota: -1,
        oom_score_adj: 300,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    update(&node, &main.id, change).await.unwrap();
    assert!(["-1", "max 100000"].contains(&&*quota()), "{}", quota());
    assert_eq!(main.shell("cat /proc/1/oom_score_adj").await, "300");

    node.kill9();
    node.spawn().await;
    let reported = main.status().await.resources.unwrap().linux.unwrap();
    assert_eq!((reported.memory_limit_in_bytes, reported.cpu_quota), (128 << 20, -1));
    assert_eq!((reported.oom_score_adj, &*reported.cpuset_cpus), (300, "0"));
    node.finish().await;
}

#[tokio::test]
async fn an_update_that_the_kernel_refuses_changes_nothing() {
    let (node, pod) = busybox_pod("").await;
    let mut spec = sleeper("main");
    spec.resources().cpu_shares = 512;
    let main = pod.start(&spec).await;
    let pid = node.pid_of(&main).await;
    let values = || {
        (
            host::cgroup_value(pid, "cpu", "cpu.shares", "cpu.weight"),
            host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max"),
        )
    };
    let before = (values(), main.status().await.resources);
    let change = cri::LinuxContainerResources {
        cpu_shares: 100,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "4000".into(),
        ..Default::default()
    };
    let error = update(&node, &main.id, change).await.unwrap_err();
    assert!(error.message().contains("cpuset"), "{error}");
    assert_eq!((values(), main.status().await.resources), before);

    let absent = update(&node, &"0".repeat(64), Default::default()).await;
    refused(absent, Code::NotFound, &["container"]);
    main.stop(0).await;
    let late = cri::LinuxContainerResources { cpu_shares: 9, ..Default::default() };
    refused(update(&node, &main.id, late).await, Code::FailedPrecondition, &["exited"]);
    node.finish().await;
}

#[tokio::test]
async fn a_pods_own_cgroup_has_the_sum_of_containers_and_overhead() {
    use proto::cri::v1 as newer;
    let node = Node::with_busybox().await;
    let mut spec = pod("pod");
    let limits = |megabytes: i64| cri::LinuxContainerResources {
        memory_limit_in_bytes: megabytes << 20,
        ..Default::default()
    };
    spec.linux().overhead = Some(limits(10));
    spec.linux().resources = Some(limits(90));
    let pod = node.run_pod(spec).await;
    let main = pod.start(&sleeper("main")).await;
    // The container's cgroup is below the pod's.
    let pid = node.pid_of(&main).await;
    let of_pod = || host::cgroup_value(pid, "memory", "../memory.limit_in_bytes", "../memory.max");
    assert_eq!(of_pod(), (100 << 20).to_string());
    let request = newer::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(newer::LinuxContainerResources {
            memory_limit_in_bytes: 190 << 20,
            ..Default::default()
        }),
    };
    let mut client = node.cri.newer_runtime.clone();
    client.update_pod_sandbox_resources(request.clone()).await.unwrap();
    assert_eq!(of_pod(), (200 << 20).to_string());
    pod.stop().await;
    let late = client.update_pod_sandbox_resources(request).await;
    refused(late, Code::FailedPrecondition, &["stopped"]);
    node.finish().await;
}

#[tokio::test]
async fn a_class_of_block_io_by_annotation_limits_its_devices() {
    let Some(disk) = Loop::new() else {
        println!("SKIPPED: no loop device can be made here");
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let classes =
        format!("Classes:\n  slow:\n  - Devices: [{}]\n    ThrottleReadBps: 5M\n", disk.0);
    fs::write(&file, classes).unwrap();
    let config = format!("blockio_config = {:?}\n", file.path());
    let (node, _) = busybox_pod(&config).await;
    const ANNOTATION: &str = "blockio.resources.beta.kubernetes.io/container.slow";
    let pod = node.run_pod(pod("limited").annotation(ANNOTATION, "slow")).await;
    let slow = pod.start(&sleeper("slow")).await;
    let value = |pid| host::cgroup_value(pid, "blkio", "blkio.throttle.read_bps_device", "io.max");
    let limit = value(node.pid_of(&slow).await);
    assert!(limit.contains("5000000"), "{limit:?}");
    let other = pod.start(&sleeper("other")).await;
    assert_eq!(value(node.pid_of(&other).await), "");
    let unknown = sleeper("unknown").annotation("io.kubernetes.cri.blockio-class", "fast");
    refused(pod.try_create(&unknown).await, Code::InvalidArgument, &["\"fast\"", "blockio"]);
    node.finish().await;
}

#[tokio::test]
async fn a_class_that_the_node_does_not_have_is_refused_by_its_annotation() {
    let (node, pod) = busybox_pod("").await;
    for (annotation, words) in [
        ("io.kubernetes.cri.blockio-class", "blockio_config"),
        ("io.kubernetes.cri.rdt-class", "resctrl"),
    ] {
        let spec = sleeper("main").annotation(annotation, "gold");
        let words = [annotation, "gold", words];
        refused(pod.try_create(&spec).await, Code::InvalidArgument, &words);
    }
    node.finish().await;
}

async fn update(
    node: &Node,
    id: &str,
    linux: cri::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

/// A block device over a file.
struct Loop(String, #[expect(dead_code, reason = "keeps the file")] tempfile::NamedTempFile);

impl Loop {
    fn new() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        let made = made.ok().filter(|made| made.status.success())?;
        Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned(), file))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

async fn busybox_pod(config: &str) -> (Node, Pod) {
    let node = Node::start_with(Options { config: config.into(), ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
