//! Containers: created, running, exited, gone, and what is said about them in between.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use e2e::wait::scaled;
use e2e::{Container, Node, Pod, container, image, pod};
use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_container_goes_through_its_states_with_times_that_grow() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX).shell("sleep 0.2; exit 7").label("k", "v");
    let container = pod.create(&spec).await;

    let created = container.status().await;
    assert_eq!(created.state(), ContainerCreated);
    assert!(created.created_at > 0);
    assert_eq!((created.started_at, created.finished_at), (0, 0));

    container.start().await;
    let running = container.status().await;
    assert_eq!(running.state(), ContainerRunning);
    assert!(running.started_at >= running.created_at);
    assert_eq!(running.finished_at, 0);

    let exited = container.exited().await;
    assert_eq!((exited.exit_code, &*exited.reason), (7, "Error"));
    assert!(exited.finished_at - exited.started_at >= 200_000_000, "{exited:?}");
    assert_eq!(exited.labels, spec.config.labels);
    node.finish().await;
}

#[tokio::test]
async fn status_repeats_what_was_asked_and_says_what_was_made_of_it() {
    let (node, pod) = busybox_pod().await;
    let data = node.scratch().display().to_string();
    let mut spec = container("main", image::BUSYBOX)
        .shell("sleep 1000")
        .annotation("io.kubernetes.container.hash", "abc")
        .mount(&data, "/data", true)
        .user(1000, None);
    spec.resources().memory_limit_in_bytes = 64 << 20;
    spec.resources().cpu_shares = 512;
    spec.config.image.as_mut().unwrap().user_specified_image = "busybox:test".into();
    let container = pod.start(&spec).await;

    let status = container.status().await;
    let id = image::busybox().id();
    assert_eq!((&*status.image_ref, &*status.image_id), (&*id, &*id));
    assert_eq!(status.image.as_ref().unwrap().user_specified_image, "busybox:test");
    assert!(!status.image.as_ref().unwrap().image.is_empty());
    assert_eq!(status.annotations, spec.config.annotations);
    assert_eq!(status.log_path, container.log.display().to_string());
    let [mount] = &*status.mounts else { panic!("the mounts asked for: {:?}", status.mounts) };
    assert_eq!(
        (&*mount.host_path, &*mount.container_path, mount.readonly),
        (&*data, "/data", true)
    );
    let resources = status.resources.unwrap().linux.unwrap();
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (64 << 20, 512));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 1234]));
    node.finish().await;
}

#[tokio::test]
async fn death_by_a_signal_is_128_and_its_number() {
    // In a namespace of its own it would be process 1, which no signal but SIGKILL ends.
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod").shared_pids()).await;
    let spec = container("main", image::BUSYBOX).shared_pids().command(&["sleep", "1000"]);
    let container = pod.start(&spec).await;
    let pid = rustix::process::Pid::from_raw(node.pid_of(&container).await).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let status = container.exited().await;
    assert_eq!((status.exit_code, &*status.reason), (128 + 10, "Error"));
    node.finish().await;
}

#[tokio::test]
async fn only_a_created_container_can_be_started() {
    let (node, pod) = busybox_pod().await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("sleep 0.3")).await;
    refused(container.try_start().await, Code::FailedPrecondition, &[&container.id, "running"]);
    container.exited().await;
    refused(container.try_start().await, Code::FailedPrecondition, &[&container.id, "exited"]);
    node.finish().await;
}

#[tokio::test]
async fn stop_asks_first() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX)
        .shell("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let container = pod.start(&spec).await;
    container.wait_for_log("ready");
    container.stop(20).await;
    let status = container.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerExited, 3));
    container.wait_for_log("asked");
    container.stop(20).await;
    node.finish().await;
}

#[tokio::test]
async fn stop_kills_when_the_grace_is_over() {
    let (node, pod) = busybox_pod().await;
    let container = deaf(&pod).await;
    let asked = Instant::now();
    container.stop(1).await;
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(1) && took < scaled(Duration::from_secs(10)), "{took:?}");
    assert_eq!(container.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn stop_without_grace_kills_at_once() {
    let (node, pod) = busybox_pod().await;
    let container = deaf(&pod).await;
    container.stop(0).await;
    let status = container.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerExited, 137));
    node.finish().await;
}

#[tokio::test]
async fn a_shorter_stop_wins_over_the_one_under_way() {
    let (node, pod) = busybox_pod().await;
    let container = deaf(&pod).await;
    let asked = Instant::now();
    let patient = tokio::spawn({
        let container = container.clone();
        async move { container.stop(50).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    container.stop(0).await;
    patient.await.unwrap();
    assert!(asked.elapsed() < scaled(Duration::from_secs(20)), "{:?}", asked.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn stop_uses_the_images_signal() {
    let node = Node::start().await;
    node.import(&image::nginx(), image::NGINX).await;
    let pod = node.run_pod(pod("web")).await;
    let nginx = pod.start(&container("nginx", image::NGINX)).await;
    let pid = node.pid_of(&nginx).await;
    e2e::wait::until("nginx has workers", e2e::pod::SOON, || {
        (!e2e::host::children(pid).is_empty()).then_some(())
    });
    nginx.stop(20).await;
    assert_eq!(nginx.status().await.exit_code, 0, "SIGQUIT ends nginx gracefully");
    node.finish().await;
}

#[tokio::test]
async fn a_created_container_can_be_stopped_and_removed() {
    let (node, pod) = busybox_pod().await;
    let container = pod.create(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    container.stop(0).await;
    assert_eq!(container.state().await, ContainerExited);
    container.remove().await;
    refused(container.try_status().await, Code::NotFound, &[&container.id]);
    node.finish().await;
}

#[tokio::test]
async fn removal_kills_can_be_repeated_and_spares_the_log() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX).shell("echo kept; sleep 1000");
    let container = pod.start(&spec).await;
    container.wait_for_log("kept");
    container.remove().await;
    container.remove().await;
    container.stop(1).await;
    refused(container.try_status().await, Code::NotFound, &[&container.id]);
    assert!(container.log.exists(), "the log belongs to the kubelet");
    node.finish().await;
}

#[tokio::test]
async fn the_same_request_again_is_the_same_container() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX).shell("sleep 1000");
    let first = pod.create(&spec).await;
    assert_eq!(pod.create(&spec).await.id, first.id);
    let other = pod.try_create(&spec.clone().env("OTHER", "configuration")).await;
    refused(other, Code::AlreadyExists, &[&first.id]);
    let next = pod.create(&spec.clone().attempt(1)).await;
    assert_ne!(next.id, first.id);
    first.remove().await;
    assert_ne!(pod.create(&spec).await.id, first.id, "a removed one's name is free");
    node.finish().await;
}

#[tokio::test]
async fn a_stopped_pod_takes_no_containers() {
    let (node, pod) = busybox_pod().await;
    pod.stop().await;
    let created = pod.try_create(&container("late", image::BUSYBOX)).await;
    refused(created, Code::FailedPrecondition, &[&pod.id]);
    node.finish().await;
}

#[tokio::test]
async fn a_container_outlives_none_of_its_children() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX).shell("setsid sleep 4242 & sleep 0.2; exit 0");
    let container = pod.start(&spec).await;
    container.exited().await;
    let processes = node.scope.snapshot(node.pid()).of("process");
    assert!(processes.iter().all(|it| !it.contains("4242")), "{processes:?}");
    node.finish().await;
}

#[tokio::test]
async fn lists_can_be_filtered() {
    let (node, pod) = busybox_pod().await;
    let other_pod = node.run_pod(e2e::pod("other")).await;
    let sleep =
        |name: &str| container(name, image::BUSYBOX).shell("sleep 1000").label("name", name);
    let running = pod.start(&sleep("running")).await.id;
    let created = pod.create(&sleep("created")).await.id;
    let elsewhere = other_pod.start(&sleep("elsewhere")).await.id;

    let ids = async |filter| {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let found = node.cri.runtime.clone().list_containers(request).await.unwrap();
        found.into_inner().containers.into_iter().map(|it| it.id).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&String]| ids.iter().map(|it| (*it).clone()).collect::<BTreeSet<_>>();
    let none = cri::ContainerFilter::default();
    let state = |it| Some(cri::ContainerStateValue { state: it as i32 });
    let label = |name: &str| HashMap::from([("name".to_owned(), name.to_owned())]);

    assert_eq!(ids(none.clone()).await, set(&[&running, &created, &elsewhere]));
    let filter = cri::ContainerFilter { id: created[..12].into(), ..none.clone() };
    assert_eq!(ids(filter).await, set(&[&created]));
    let filter = cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..none.clone() };
    assert_eq!(ids(filter).await, set(&[&running, &created]));
    let filter = cri::ContainerFilter { state: state(ContainerRunning), ..none.clone() };
    assert_eq!(ids(filter).await, set(&[&running, &elsewhere]));
    let filter = cri::ContainerFilter {
        label_selector: label("running"),
        pod_sandbox_id: other_pod.id.clone(),
        ..none
    };
    assert_eq!(ids(filter).await, set(&[]));
    node.finish().await;
}

#[tokio::test]
async fn many_containers_start_at_once() {
    let (node, pod) = busybox_pod().await;
    let specs: Vec<_> = (0..10)
        .map(|it| container(&format!("c{it}"), image::BUSYBOX).shell(&format!("exit {it}")))
        .collect();
    let started = futures::future::join_all(specs.iter().map(|it| pod.start(it))).await;
    for (code, container) in (0..).zip(&started) {
        assert_eq!(container.exited().await.exit_code, code);
    }
    node.finish().await;
}

async fn busybox_pod() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

/// Runs, and takes no notice of SIGTERM.
async fn deaf(pod: &Pod) -> Container {
    let spec = container("deaf", image::BUSYBOX)
        .shell("trap '' TERM; echo ready; while :; do sleep 1; done");
    let container = pod.start(&spec).await;
    container.wait_for_log("ready");
    container
}
