//! Numbers of pods and containers: compared with the kernel's own files, and with what a load of
//! known size must show.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::pod::SOON;
use e2e::{Container, Node, Options, Pod, container, image, pod, wait};
use futures::StreamExt;
use proto::cri::v1 as cri;

/// A container that has used something and is quiet now.
fn worker() -> e2e::ContainerSpec {
    let script = "dd if=/dev/urandom of=/big bs=1M count=5 2>/dev/null; touch /one /two; echo ready; sleep 1000";
    container("worker", image::BUSYBOX).shell(script)
}

async fn stats(node: &Node, container: &Container) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: container.id.clone() };
    let answer = node.cri.newer_runtime.clone().container_stats(request).await;
    answer.expect("ContainerStats").into_inner().stats.expect("stats")
}

async fn pod_stats(node: &Node, pod: &Pod) -> cri::LinuxPodSandboxStats {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = node.cri.newer_runtime.clone().pod_sandbox_stats(request).await;
    answer.expect("PodSandboxStats").into_inner().stats.expect("stats").linux.expect("linux")
}

async fn listed(node: &Node, filter: Option<cri::ContainerStatsFilter>) -> Vec<String> {
    let request = cri::ListContainerStatsRequest { filter };
    let answer = node.cri.newer_runtime.clone().list_container_stats(request).await;
    let stats = answer.expect("ListContainerStats").into_inner().stats;
    let mut ids: Vec<_> = stats.into_iter().map(|it| it.attributes.unwrap().id).collect();
    ids.sort();
    ids
}

/// Every item of a streamed answer.
async fn streamed_items<R, T>(
    stream: Result<tonic::Response<tonic::Streaming<R>>, tonic::Status>,
    items: fn(R) -> Vec<T>,
) -> Vec<T> {
    let messages: Vec<_> = stream.unwrap().into_inner().collect().await;
    messages.into_iter().flat_map(|message| items(message.unwrap())).collect()
}

fn number(value: Option<cri::UInt64Value>) -> u64 {
    value.expect("a value").value
}

/// Where the kernel keeps the group of a process: (file in v1, file in v2), whichever is there.
fn kernel(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &str| {
        membership.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            names.split(',').any(|it| it == wanted).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let file = match path(controller) {
        Some(group) => PathBuf::from("/sys/fs/cgroup").join(controller).join(group).join(v1),
        None => PathBuf::from("/sys/fs/cgroup").join(path("").expect("a v2 group")).join(v2),
    };
    fs::read_to_string(&file).unwrap_or_else(|it| panic!("{}: {it}", file.display()))
}

#[tokio::test]
async fn a_containers_numbers_are_the_kernels() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("numbers")).await;
    let container = pod.start(&worker()).await;
    let first = stats(&node, &container).await;
    assert!(first.cpu.unwrap().timestamp > 0, "measured when it starts, without waiting");
    assert!(number(first.memory.as_ref().unwrap().usage_bytes) > 0, "{:?}", first.memory);
    container.wait_for_log("ready");
    let pid = node.pid_of(&container).await;
    wait::until_async("CPU time and memory are those of the kernel", SOON, || async {
        let stats = stats(&node, &container).await;
        let cpu = number(stats.cpu.as_ref().unwrap().usage_core_nano_seconds);
        let kernels = kernel(pid, "cpuacct", "cpuacct.usage", "cpu.stat");
        let kernels = kernels.trim().parse().unwrap_or_else(|_| {
            let line = kernels.lines().next().unwrap();
            line.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 1000
        });
        let memory = stats.memory.unwrap();
        let usage = kernel(pid, "memory", "memory.usage_in_bytes", "memory.current");
        let usage: u64 = usage.trim().parse().unwrap();
        let same = cpu == kernels && number(memory.usage_bytes) == usage;
        let working_set = number(memory.working_set_bytes);
        (same && working_set <= usage && working_set > 0).then_some(())
    })
    .await;
    let written = wait::until_async("what was written is seen", SOON, || async {
        let layer = stats(&node, &container).await.writable_layer?;
        (number(layer.used_bytes) >= 5 << 20).then_some(layer)
    })
    .await;
    assert!(number(written.used_bytes) < 6 << 20, "{written:?}");
    // The upper directory itself, /big, /one, /two; mount points may add to it.
    assert!((4..20).contains(&number(written.inodes_used)), "{written:?}");
    assert!(PathBuf::from(written.fs_id.unwrap().mountpoint).is_dir());
    node.finish().await;
}

#[tokio::test]
async fn a_busy_container_shows_its_rate_and_a_stopped_one_what_it_used() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("busy")).await;
    let spinner = container("spin", image::BUSYBOX).shell("while :; do :; done");
    let container = pod.start(&spinner).await;
    let busy = wait::until_async("a rate", SOON, || async {
        let cpu = stats(&node, &container).await.cpu.unwrap();
        // A share of a busy machine, but far more than a sleeping one.
        (cpu.usage_nano_cores?.value > 20_000_000).then_some(cpu)
    })
    .await;
    assert!(number(busy.usage_nano_cores) <= 1_200_000_000, "one loop is at most a core: {busy:?}");
    container.stop(0).await;
    let ended = wait::until_async("a last sample", SOON, || async {
        let stats = stats(&node, &container).await;
        stats.memory.is_none().then_some(stats)
    })
    .await;
    let cpu = ended.cpu.unwrap();
    assert!(number(cpu.usage_core_nano_seconds) >= number(busy.usage_core_nano_seconds));
    assert_eq!(number(cpu.usage_nano_cores), 0, "it uses nothing now");
    assert_eq!(listed(&node, None).await, Vec::<String>::new(), "lists tell what runs");
    node.finish().await;
}

#[tokio::test]
async fn limits_tell_what_is_left() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("limited")).await;
    let mut spec = container("small", image::BUSYBOX).command(&["sleep", "1000"]);
    let limit = 64 << 20;
    spec.resources().memory_limit_in_bytes = limit;
    let container = pod.start(&spec).await;
    let memory = stats(&node, &container).await.memory.unwrap();
    let sum = number(memory.available_bytes) + number(memory.working_set_bytes);
    assert_eq!(sum, limit as u64, "{memory:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_pods_traffic_is_that_of_its_interface() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("talker")).await;
    let gateway = format!("{}1", node.network());
    let script = format!("ping -c 3 -i 0.2 {gateway}; echo ready; sleep 1000");
    let container = pod.start(&container("main", image::BUSYBOX).shell(&script)).await;
    container.wait_for_log("ready");
    let pid = node.pid_of(&container).await;
    let stats = wait::until_async("the counters are the kernel's", SOON, || async {
        let stats = pod_stats(&node, &pod).await;
        let eth = stats.network.as_ref()?.default_interface.clone()?;
        let dev = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
        let line = dev.lines().find_map(|it| it.trim().strip_prefix(&format!("{}:", eth.name)))?;
        let numbers: Vec<u64> = line.split_whitespace().map(|it| it.parse().unwrap()).collect();
        let sent = number(eth.tx_bytes);
        (sent == numbers[8] && number(eth.rx_bytes) == numbers[0] && sent >= 3 * 64)
            .then_some(stats)
    })
    .await;
    assert_eq!(stats.network.unwrap().default_interface.unwrap().name, "eth0");
    let processes = number(stats.process.unwrap().process_count);
    assert!((2..6).contains(&processes), "pause, sleep and perhaps its shell: {processes}");
    assert_eq!(stats.containers.len(), 1);
    let of_pod = number(stats.cpu.unwrap().usage_core_nano_seconds);
    assert!(of_pod > 0);

    let host = node.run_pod(e2e::pod("on-the-node").host_network()).await;
    let stats = wait::until_async("its numbers", SOON, || async {
        Some(pod_stats(&node, &host).await).filter(|stats| stats.cpu.is_some())
    })
    .await;
    assert_eq!(stats.network, None, "the node's traffic is not the pod's");
    node.finish().await;
}

#[tokio::test]
async fn lists_and_streams_are_filtered_and_say_the_same() {
    let node = Node::with_busybox().await;
    let mut runtime = node.cri.newer_runtime.clone();
    let one = node.run_pod(pod("one").label("app", "one")).await;
    let two = node.run_pod(pod("two").label("app", "two")).await;
    let sleeper = |name: &str| container(name, image::BUSYBOX).command(&["sleep", "1000"]);
    let a = one.start(&sleeper("a").label("tier", "front")).await;
    let b = one.start(&sleeper("b")).await;
    let c = two.start(&sleeper("c")).await;
    let created = two.create(&sleeper("d")).await;
    let mut all: Vec<_> = [&a, &b, &c, &created].iter().map(|it| it.id.clone()).collect();
    all.sort();
    assert_eq!(listed(&node, None).await, all);
    let filter = |filter: cri::ContainerStatsFilter| listed(&node, Some(filter));
    assert_eq!(filter(Default::default()).await, all);
    let by_id = cri::ContainerStatsFilter { id: a.id.clone(), ..Default::default() };
    assert_eq!(filter(by_id).await, [&*a.id]);
    let by_pod = cri::ContainerStatsFilter { pod_sandbox_id: one.id.clone(), ..Default::default() };
    assert_eq!(filter(by_pod).await.len(), 2);
    let label_selector = [("tier".to_owned(), "front".to_owned())].into();
    let by_label = cri::ContainerStatsFilter { label_selector, ..Default::default() };
    assert_eq!(filter(by_label).await, [&*a.id]);

    let stream = runtime.stream_container_stats(cri::StreamContainerStatsRequest::default()).await;
    let streamed = streamed_items(stream, |it| it.container_stats).await;
    assert_eq!(streamed.len(), 4);
    let stream = runtime.stream_containers(cri::StreamContainersRequest::default()).await;
    let containers = streamed_items(stream, |it| it.containers).await;
    let list = runtime.list_containers(cri::ListContainersRequest::default()).await;
    assert_eq!(containers, list.unwrap().into_inner().containers);
    let stream = runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default()).await;
    let pods = streamed_items(stream, |it| it.pod_sandboxes).await;
    let list = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    assert_eq!(pods, list.unwrap().into_inner().items);
    let label_selector = [("app".to_owned(), "two".to_owned())].into();
    let filter = Some(cri::PodSandboxStatsFilter { label_selector, ..Default::default() });
    let stream = runtime
        .stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter: filter.clone() })
        .await;
    let streamed = streamed_items(stream, |it| it.pod_sandbox_stats).await;
    let ids = |stats: &[cri::PodSandboxStats]| {
        stats.iter().map(|it| it.attributes.clone().unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&streamed), [&*two.id]);
    let list = runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter }).await;
    assert_eq!(ids(&list.unwrap().into_inner().stats), [&*two.id]);
    let mut images = node.cri.newer_images.clone();
    let stream = images.stream_images(cri::StreamImagesRequest::default()).await;
    let streamed = streamed_items(stream, |it| it.images).await;
    let list = images.list_images(cri::ListImagesRequest::default()).await;
    assert_eq!(streamed, list.unwrap().into_inner().images);
    node.finish().await;
}

#[tokio::test]
async fn every_announced_metric_of_a_pod_is_sent_with_its_labels() {
    let node = Node::with_busybox().await;
    let mut runtime = node.cri.newer_runtime.clone();
    let pod = node.run_pod(pod("measured")).await;
    let mut spec = worker();
    let resources = spec.resources();
    (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (100_000, 20_000, 1024);
    (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes) = (64 << 20, 64 << 20);
    let container = pod.start(&spec).await;
    let descriptors = runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await;
    let descriptors = descriptors.unwrap().into_inner().descriptors;
    let metrics = runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await;
    let metrics = metrics.unwrap().into_inner().pod_metrics;
    let ours = metrics.into_iter().find(|it| it.pod_sandbox_id == pod.id).expect("of the pod");
    assert_eq!(ours.container_metrics.len(), 1);
    assert_eq!(ours.container_metrics[0].container_id, container.id);
    let samples: Vec<_> = ours.metrics.iter().chain(&ours.container_metrics[0].metrics).collect();
    // Nothing was read from a disk, when everything is in memory.
    let optional = [
        "container_blkio_device_usage_total",
        "container_fs_reads_bytes_total",
        "container_fs_reads_total",
        "container_fs_writes_bytes_total",
        "container_fs_writes_total",
    ];
    for descriptor in &descriptors {
        let found: Vec<_> = samples.iter().filter(|it| it.name == descriptor.name).collect();
        assert!(!found.is_empty() || optional.contains(&&*descriptor.name), "{descriptor:?}");
        for sample in found {
            assert_eq!(sample.label_values.len(), descriptor.label_keys.len(), "{sample:?}");
        }
    }
    let of_container = |name: &str| {
        let sample = ours.container_metrics[0].metrics.iter().find(|it| it.name == name);
        number(sample.unwrap_or_else(|| panic!("{name}")).value)
    };
    assert_eq!(of_container("container_spec_cpu_quota"), 20_000);
    assert_eq!(of_container("container_spec_cpu_period"), 100_000);
    assert_eq!(of_container("container_spec_memory_limit_bytes"), 64 << 20);
    assert!((1..4).contains(&of_container("container_processes")));
    let stream = runtime.stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {}).await;
    let streamed = streamed_items(stream, |it| it.pod_sandbox_metrics).await;
    assert_eq!(streamed.len(), 1);
    let again = runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await;
    assert_eq!(again.unwrap().into_inner().descriptors, descriptors, "the kubelet reads them once");
    node.finish().await;
}

#[tokio::test]
async fn numbers_come_back_after_a_restart_of_the_daemon() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("kept")).await;
    let container = pod.start(&worker()).await;
    container.wait_for_log("ready");
    let before = number(stats(&node, &container).await.cpu.unwrap().usage_core_nano_seconds);
    node.kill9();
    node.spawn().await;
    let after = number(stats(&node, &container).await.cpu.unwrap().usage_core_nano_seconds);
    assert!(after >= before && before > 0, "{before} {after}");
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_container_has_no_numbers() {
    let node = Node::cold(Options::default()).await;
    let request = cri::ContainerStatsRequest { container_id: "f".repeat(64) };
    let answer = node.cri.newer_runtime.clone().container_stats(request).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: "f".repeat(64) };
    let answer = node.cri.newer_runtime.clone().pod_sandbox_stats(request).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
    tokio::time::timeout(Duration::from_secs(5), listed(&node, None)).await.expect("no wait");
    node.finish().await;
}
