//! Whose namespaces a container is in.

use std::fs;

use e2e::{ContainerSpec, Node, Pod, container, image, pod};
use k8s_cri::v1 as cri;
use k8s_cri::v1::NamespaceMode;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_debug_container_joins_the_processes_of_its_target() {
    let (node, pod) = busybox_pod().await;
    let target = pod.start(&sleeper("main")).await;
    let debugger = pod.start(&joining("debugger", &target.id)).await;
    assert_eq!(debugger.shell("cat /proc/1/cmdline | tr '\\0' ' '").await, "sleep 1000 ");
    debugger.shell("kill -0 1 && ls /proc/1/root/bin/sh > /dev/null").await;
    // Not killed with its target's files, but with its target's processes.
    target.stop(0).await;
    debugger.exited().await;
    refused(
        pod.try_create(&joining("late", &target.id)).await,
        Code::FailedPrecondition,
        &["exited"],
    );

    let mut other = e2e::pod("other");
    other.metadata().attempt = 1;
    let other = node.run_pod(other).await;
    let foreign = other.start(&sleeper("foreign")).await;
    refused(pod.try_create(&joining("spy", &foreign.id)).await, Code::NotFound, &[&foreign.id]);
    refused(pod.try_create(&joining("nobody", "")).await, Code::InvalidArgument, &["target_id"]);
    node.finish().await;
}

#[tokio::test]
async fn the_nodes_pids_and_ipc_are_shared_when_asked_for() {
    let node = Node::with_busybox().await;
    let mut spec = pod("pod");
    spec.namespaces().pid = NamespaceMode::Node.into();
    spec.namespaces().ipc = NamespaceMode::Node.into();
    let pod = node.run_pod(spec).await;
    let mut spec = sleeper("main");
    let namespaces = spec.security().namespace_options.get_or_insert_default();
    (namespaces.pid, namespaces.ipc) = (NamespaceMode::Node.into(), NamespaceMode::Node.into());
    let main = pod.start(&spec).await;
    for kind in ["pid", "ipc"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let inside = main.shell(&format!("readlink /proc/self/ns/{kind}")).await;
        assert_eq!(inside, host.display().to_string());
    }
    main.shell(&format!("test -d /proc/{}", std::process::id())).await;
    node.finish().await;
}

#[tokio::test]
async fn the_stop_signal_is_the_pods_then_the_images_then_term() {
    use proto::cri::v1 as newer;
    let node = Node::start().await;
    let name = "docker.io/library/quit:test";
    let settings = serde_json::json!({ "Cmd": ["sh"], "StopSignal": "SIGQUIT" });
    node.import(&image::busybox().with(e2e::layer::Layer::default(), settings), name).await;
    let pod = node.run_pod(pod("pod")).await;
    let script = "for s in TERM QUIT USR1; do trap \"echo $s; exit 0\" $s; done\n\
                  echo ready; while :; do sleep 0.02; done";
    let create = |attempt: u32, signal: newer::Signal| newer::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(newer::ContainerConfig {
            metadata: Some(newer::ContainerMetadata { name: "main".into(), attempt }),
            image: Some(newer::ImageSpec { image: name.into(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{attempt}.log"),
            stop_signal: signal.into(),
            ..Default::default()
        }),
        sandbox_config: None,
    };
    let mut client = node.cri.newer_runtime.clone();
    for (attempt, asked, expect, word) in [
        (0, newer::Signal::RuntimeDefault, newer::Signal::Sigquit, "QUIT"),
        (1, newer::Signal::Sigusr1, newer::Signal::Sigusr1, "USR1"),
    ] {
        let id = client.create_container(create(attempt, asked)).await.unwrap();
        let mut main = e2e::Container::known(&node.cri, &id.into_inner().container_id);
        main.log = format!("{}/{attempt}.log", pod.spec.config.log_directory).into();
        main.start().await;
        main.wait_for_log("ready");
        let request =
            newer::ContainerStatusRequest { container_id: main.id.clone(), verbose: false };
        let status = client.container_status(request).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.stop_signal(), expect);
        main.stop(20).await;
        main.wait_for_log(word);
    }
    node.finish().await;
}

fn joining(name: &str, target: &str) -> ContainerSpec {
    let mut spec = sleeper(name);
    let namespaces = spec.security().namespace_options.get_or_insert_default();
    namespaces.pid = cri::NamespaceMode::Target.into();
    target.clone_into(&mut namespaces.target_id);
    spec
}

async fn busybox_pod() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
