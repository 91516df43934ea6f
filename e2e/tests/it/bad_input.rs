//! What must be refused, with a code a machine can act on and words a person can; and that a
//! refusal leaves nothing.

use e2e::{ContainerSpec, Node, Pod, container, image, layer::Layer, pod};
use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState::ContainerExited;
use serde_json::json;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_container_of_an_image_that_is_not_there() {
    let (node, pod) = busybox_pod().await;
    let created = pod.try_create(&container("main", "docker.io/library/absent:1")).await;
    refused(created, Code::NotFound, &["docker.io/library/absent:1"]);
    node.finish().await;
}

#[tokio::test]
async fn a_runtime_handler_that_is_not_configured() {
    let node = Node::start().await;
    let answer = node.try_run_pod(pod("pod").handler("kata-qemu")).await;
    refused(answer, Code::InvalidArgument, &["kata-qemu"]);
    node.finish().await;
}

#[tokio::test]
async fn a_volume_that_does_not_exist() {
    let (node, pod) = busybox_pod().await;
    let absent = node.scratch().join("absent").display().to_string();
    let spec = container("main", image::BUSYBOX).mount(&absent, "/data", false);
    let error = refused_to_run(&pod, &spec).await;
    assert!(error.contains(&absent), "{error}");
    assert!(!std::path::Path::new(&absent).exists(), "a missing volume is not made up");
    node.finish().await;
}

#[tokio::test]
async fn volumes_at_places_that_are_none() {
    let (node, pod) = busybox_pod().await;
    for place in ["relative/path", "", "/up/../../etc"] {
        let spec = container("main", image::BUSYBOX).mount("/tmp", place, false);
        refused(pod.try_create(&spec).await, Code::InvalidArgument, &["mount"]);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_is_not_in_the_image() {
    let (node, pod) = busybox_pod().await;
    let container =
        pod.create(&container("main", image::BUSYBOX).command(&["/no/such/command"])).await;
    let error = container.try_start().await.unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    let status = container.status().await;
    assert_eq!(
        (status.state(), status.exit_code, &*status.reason),
        (ContainerExited, 128, "StartError")
    );
    assert!(status.message.contains("/no/such/command"), "{}", status.message);
    node.finish().await;
}

#[tokio::test]
async fn a_container_with_nothing_to_run() {
    let node = Node::start().await;
    let name = "docker.io/library/empty:test";
    let empty = image::Image::new(vec![Layer::default().dir("etc", 0o755)], json!({}));
    node.import(&empty, name).await;
    let pod = node.run_pod(pod("pod")).await;
    refused(pod.try_create(&container("main", name)).await, Code::InvalidArgument, &["command"]);
    node.finish().await;
}

#[tokio::test]
async fn users_that_make_no_sense() {
    let (node, pod) = busybox_pod().await;
    let named = container("main", image::BUSYBOX).username("stranger");
    refused(pod.try_create(&named).await, Code::InvalidArgument, &["stranger"]);
    let mut group_only = container("main", image::BUSYBOX);
    group_only.security().run_as_group = Some(cri::Int64Value { value: 5 });
    refused(pod.try_create(&group_only).await, Code::InvalidArgument, &["run_as_group"]);
    let negative = container("main", image::BUSYBOX).user(-5, None);
    refused(pod.try_create(&negative).await, Code::InvalidArgument, &["run_as_user"]);
    node.finish().await;
}

#[tokio::test]
async fn capabilities_that_do_not_exist() {
    let (node, pod) = busybox_pod().await;
    let mut spec = container("main", image::BUSYBOX);
    spec.security().capabilities =
        Some(cri::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &["FLY"]);
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_in_a_pod_that_is_not() {
    let (node, pod) = busybox_pod().await;
    let mut spec = container("main", image::BUSYBOX);
    spec.security().privileged = true;
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &["privileged"]);
    node.finish().await;
}

#[tokio::test]
async fn ids_that_do_not_exist() {
    let (node, pod) = busybox_pod().await;
    let mut runtime = node.cri.runtime.clone();
    let id = || "absent".to_owned();
    let status = cri::PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    refused(runtime.pod_sandbox_status(status).await, Code::NotFound, &["absent"]);
    let status = cri::ContainerStatusRequest { container_id: id(), verbose: false };
    refused(runtime.container_status(status).await, Code::NotFound, &["absent"]);
    let start = cri::StartContainerRequest { container_id: id() };
    refused(runtime.start_container(start).await, Code::NotFound, &["absent"]);
    let exec = cri::ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
    refused(runtime.exec_sync(exec).await, Code::NotFound, &["absent"]);
    let reopen = cri::ReopenContainerLogRequest { container_id: id() };
    refused(runtime.reopen_container_log(reopen).await, Code::NotFound, &["absent"]);
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: id(),
        config: Some(container("main", image::BUSYBOX).config),
        sandbox_config: Some(pod.spec.config.clone()),
    };
    refused(runtime.create_container(create).await, Code::NotFound, &["absent"]);

    let stop = cri::StopContainerRequest { container_id: id(), timeout: 1 };
    runtime.stop_container(stop).await.expect("stopping what is not there succeeds");
    let remove = cri::RemoveContainerRequest { container_id: id() };
    runtime.remove_container(remove).await.expect("removing what is not there succeeds");
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id() };
    runtime.stop_pod_sandbox(stop).await.expect("stopping what is not there succeeds");
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id() };
    runtime.remove_pod_sandbox(remove).await.expect("removing what is not there succeeds");
    node.finish().await;
}

#[tokio::test]
async fn requests_with_nothing_in_them() {
    let node = Node::start().await;
    let mut runtime = node.cri.runtime.clone();
    let run = cri::RunPodSandboxRequest { config: None, runtime_handler: String::new() };
    refused(runtime.run_pod_sandbox(run).await, Code::InvalidArgument, &["config"]);
    let mut nameless = pod("");
    nameless.metadata().uid = "uid".into();
    refused(node.try_run_pod(nameless).await, Code::InvalidArgument, &["name"]);
    let mut images = node.cri.images.clone();
    let pull = cri::PullImageRequest { image: None, auth: None, sandbox_config: None };
    refused(images.pull_image(pull).await, Code::InvalidArgument, &["image"]);
    node.finish().await;
}

#[tokio::test]
async fn names_that_are_too_long() {
    let node = Node::with_busybox().await;
    refused(node.try_run_pod(pod(&"n".repeat(5000))).await, Code::InvalidArgument, &["name"]);
    let hostname = pod("pod").hostname(&"h".repeat(65));
    refused(node.try_run_pod(hostname).await, Code::InvalidArgument, &["hostname", "64"]);
    let pod = node.run_pod(pod("pod")).await;
    let created = pod.try_create(&container(&"c".repeat(5000), image::BUSYBOX)).await;
    refused(created, Code::InvalidArgument, &["name"]);
    node.finish().await;
}

#[tokio::test]
async fn names_that_lead_elsewhere() {
    let (node, pod) = busybox_pod().await;
    let mut spec = container("main", image::BUSYBOX).shell("true");
    spec.config.log_path = "../../outside.log".into();
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &["log_path"]);
    let mut parent = e2e::pod("up");
    parent.linux().cgroup_parent = "/kubepods/../..".into();
    refused(node.try_run_pod(parent).await, Code::InvalidArgument, &["cgroup_parent"]);
    node.finish().await;
}

#[tokio::test]
async fn a_name_that_is_not_utf_8() {
    let node = Node::start().await;
    let mut client =
        tonic::client::Grpc::new(e2e::client::channel(&node.state_dir().join("lapstrake.sock")));
    client.ready().await.unwrap();
    let request = raw::Request {
        config: Some(raw::Config {
            metadata: Some(raw::Metadata { name: vec![b'x', 0xff, 0xfe] }),
        }),
    };
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(
        "/runtime.v1.RuntimeService/RunPodSandbox",
    );
    let codec = tonic_prost::ProstCodec::<raw::Request, cri::RunPodSandboxResponse>::default();
    let error = client.unary(tonic::Request::new(request), path, codec).await.unwrap_err();
    assert!(matches!(error.code(), Code::InvalidArgument | Code::Internal), "{error}");
    assert!(error.message().contains("UTF-8"), "{error}");
    drop(client); // a connection is a descriptor of the daemon
    node.finish().await;
}

/// A request with bytes where the contract has text.
mod raw {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(message, tag = "1")]
        pub(super) config: Option<Config>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Config {
        #[prost(message, tag = "1")]
        pub(super) metadata: Option<Metadata>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metadata {
        #[prost(bytes, tag = "1")]
        pub(super) name: Vec<u8>,
    }
}

#[tokio::test]
async fn a_megabyte_of_annotations() {
    let node = Node::with_busybox().await;
    let large = "a".repeat(1 << 20);
    let answer = node.try_run_pod(pod("large").annotation("large", &large)).await;
    refused(answer, Code::InvalidArgument, &["annotations"]);
    let pod = node.run_pod(pod("pod")).await;
    let spec = container("main", image::BUSYBOX).annotation("large", &large);
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &["annotations"]);
    node.finish().await;
}

#[tokio::test]
async fn sysctls_of_namespaces_the_pod_does_not_own() {
    let node = Node::start().await;
    let host = pod("host").host_network().sysctl("net.core.somaxconn", "1");
    refused(node.try_run_pod(host).await, Code::InvalidArgument, &["net.core.somaxconn"]);
    let global = pod("global").sysctl("kernel.panic", "1");
    refused(node.try_run_pod(global).await, Code::InvalidArgument, &["kernel.panic"]);
    let absent = node.try_run_pod(pod("absent").sysctl("net.core.absent_key", "1")).await;
    assert!(absent.unwrap_err().message().contains("net.core.absent_key"));
    node.finish().await;
}

async fn busybox_pod() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

/// The text of the refusal, at the creation or the start.
async fn refused_to_run(pod: &Pod, spec: &ContainerSpec) -> String {
    match pod.try_create(spec).await {
        Err(status) => status.message().to_owned(),
        Ok(container) => {
            container.try_start().await.expect_err("must not start").message().to_owned()
        }
    }
}
