//! The daemon as a service: it starts, says what it is, refuses what it does not do, and ends.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::Stdio;

use e2e::{Node, Options, container, host, http, image, pod, wait};
use k8s_cri::v1 as cri;
use proto::cri::v1 as newer;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_pod_runs_a_command_and_leaves_its_output_in_a_file() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("hello")).await;
    let container =
        pod.start(&container("main", image::BUSYBOX).shell("echo hello; uname -n")).await;
    let status = container.exited().await;
    assert_eq!((status.exit_code, &*status.reason), (0, "Completed"), "{}", status.message);
    let lines: Vec<_> = container.log_lines().into_iter().map(|it| it.text).collect();
    assert_eq!(lines, ["hello", "hello"]);
    node.finish().await;
}

#[tokio::test]
async fn version_leaves_nothing_empty() {
    let node = Node::cold(Options::default()).await;
    let version = node.cri.runtime.clone().version(cri::VersionRequest::default()).await;
    let version = version.unwrap().into_inner();
    assert_eq!(version.runtime_name, "lapstrake");
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.version.is_empty() && !version.runtime_version.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn status_says_ready_and_names_the_handlers() {
    let node = Node::start().await;
    let status = node.cri.runtime.clone().status(cri::StatusRequest { verbose: true }).await;
    let status = status.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|it| it.r#type == name).expect(name);
        assert!(condition.status, "{condition:?}");
    }
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|it| &*it.name).collect();
    assert!(handlers.contains(&"") && handlers.contains(&"lapstrake"), "{handlers:?}");
    node.finish().await;
}

#[tokio::test]
async fn the_cgroup_driver_is_told() {
    let node = Node::cold(Options::default()).await;
    let answer = node.cri.runtime.clone().runtime_config(cri::RuntimeConfigRequest {}).await;
    assert!(answer.unwrap().into_inner().linux.is_some());
    node.finish().await;
}

#[tokio::test]
async fn update_runtime_config_is_taken() {
    let node = Node::start().await;
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig { pod_cidr: String::new() }),
        }),
    };
    node.cri.runtime.clone().update_runtime_config(request).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    let node = Node::cold(Options::default()).await;
    let mut runtime = node.cri.newer_runtime.clone();
    let answer = runtime.checkpoint_pod(newer::CheckpointPodRequest::default()).await;
    refused(answer, Code::Unimplemented, &["CheckpointPod"]);
    let answer = runtime.restore_pod(newer::RestorePodRequest::default()).await;
    refused(answer, Code::Unimplemented, &["RestorePod"]);
    let answer = runtime.checkpoint_container(newer::CheckpointContainerRequest::default()).await;
    refused(answer, Code::Unimplemented, &["CheckpointContainer"]);
    node.finish().await;
}

#[tokio::test]
async fn the_socket_is_for_root_and_its_group_and_replaces_a_stale_one() {
    let mut node = Node::start().await;
    let socket = node.state_dir().join("lapstrake.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    node.kill9();
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket(), "kill -9 leaves it");
    node.spawn().await;
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_root_is_refused() {
    let node = Node::start().await;
    let mut second = node.command().stderr(Stdio::piped()).spawn().unwrap();
    wait::until("the second ends", e2e::pod::SOON, || second.try_wait().unwrap());
    let second = second.wait_with_output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    let root = node.root_dir().display().to_string();
    let state = node.state_dir().display().to_string();
    assert!(text.contains(&root) || text.contains(&state), "names the directory: {text}");
    node.cri
        .runtime
        .clone()
        .version(cri::VersionRequest::default())
        .await
        .expect("the first lives");
    node.finish().await;
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_told_together() {
    let node = Node::cold(Options::default()).await;
    let file = node.scratch().join("bad.toml");
    fs::write(&file, "[netwrok]\nbridge = \"x\"\n[images]\ncerts_dd = []\n").unwrap();
    let output = std::process::Command::new(e2e::node::binary("lapstrake"))
        .args(["serve", "--config"])
        .arg(&file)
        .arg("--root")
        .arg(node.scratch().join("root"))
        .arg("--state")
        .arg(node.scratch().join("state"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8_lossy(&output.stderr);
    for word in ["bad.toml", "netwrok", "certs_dd"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_metrics_page_answers() {
    let node = Node::start().await;
    let pages: Vec<_> = host::listening_ports(node.pid().unwrap())
        .into_iter()
        .map(|port| http::request("GET", &format!("127.0.0.1:{port}"), "/metrics", &[], &[]))
        .filter(|it| it.status == 200)
        .collect();
    let [page] = &*pages else { panic!("{} ports answer", pages.len()) };
    let text = String::from_utf8_lossy(&page.body);
    assert!(text.lines().any(|it| it.starts_with("lapstrake_")), "{text}");
    node.finish().await;
}
