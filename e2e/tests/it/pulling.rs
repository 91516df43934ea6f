//! Pulling from a real registry, and everything a registry can do wrong.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use e2e::registry::Form;
use e2e::{Node, Options, Registry, RegistryAuth, container, image, layer::Layer, pod};
use k8s_cri::v1 as cri;
use proto::admin::v1 as admin;
use serde_json::json;
use tonic::{Code, Status};

use crate::refused::refused;

#[tokio::test]
async fn images_of_both_forms_come_through_the_mirrors_and_run() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let image = image::busybox();
    let docker = registry.push(&image, "library/busybox", "1", Form::Docker);
    let oci = registry.push(&image, "tools/busybox", "1", Form::Oci);

    let id = pull(&node, "busybox:1", None).await.unwrap();
    assert_eq!(id, image.id());
    assert_eq!(pull(&node, "registry.k8s.io/tools/busybox:1", None).await.unwrap(), id);
    let status = status(&node, &id).await.unwrap();
    let sorted = |mut it: Vec<String>| {
        it.sort();
        it
    };
    assert_eq!(
        sorted(status.repo_tags),
        ["docker.io/library/busybox:1", "registry.k8s.io/tools/busybox:1"]
    );
    assert_eq!(
        sorted(status.repo_digests),
        [
            format!("docker.io/library/busybox@{docker}"),
            format!("registry.k8s.io/tools/busybox@{oci}")
        ]
    );

    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", &id).shell("echo pulled")).await;
    container.exited().await;
    container.wait_for_log("pulled");
    for stage in ["resolve", "manifest", "layers", "commit"] {
        let series =
            format!("lapstrake_stage_seconds_count{{operation=\"pull_image\",stage=\"{stage}\"}} ");
        assert_eq!(node.metric(&series).as_deref(), Some("2"), "two pulls went through {stage}");
    }
    let layer = e2e::layer::gzip(&image.layers[0]).len().to_string();
    let received = node.metric("lapstrake_pull_received_bytes_total ");
    assert_eq!(received, Some(layer), "the second pull needed nothing");
    for at_rest in ["lapstrake_pulls{stage=\"fetching\"} ", "lapstrake_pull_missing_bytes "] {
        assert_eq!(node.metric(at_rest).as_deref(), Some("0"), "{at_rest}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pull_by_digest_has_no_tag() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let digest = registry.push(&image::busybox(), "library/busybox", "1", Form::Oci);
    let id = pull(&node, &format!("docker.io/library/busybox@{digest}"), None).await.unwrap();
    let status = status(&node, &id).await.unwrap();
    assert_eq!(status.repo_tags, [""; 0]);
    assert_eq!(status.repo_digests, [format!("docker.io/library/busybox@{digest}")]);
    node.finish().await;
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_machine() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let other = image::busybox().with(Layer::default().file("other", 0o644, ""), json!({}));
    let (ours, theirs) =
        if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
    let mut entries = Vec::new();
    for (image, architecture) in [(&other, theirs), (&image::busybox(), ours)] {
        let digest = registry.push(image, "library/multi", architecture, Form::Oci);
        let size = registry.manifest("library/multi", &digest).len();
        entries.push((digest, size, architecture));
    }
    let entries: Vec<_> =
        entries.iter().map(|(digest, size, arch)| (&**digest, *size, *arch)).collect();
    registry.push_index("library/multi", "1", &entries);
    assert_eq!(pull(&node, "multi:1", None).await.unwrap(), image::busybox().id());

    registry.push_index("library/multi", "foreign", &entries[..1]);
    let refusal = pull(&node, "multi:foreign", None).await;
    assert!(refusal.as_ref().is_err_and(|it| it.message().contains(ours)), "{refusal:?}");
    node.finish().await;
}

#[tokio::test]
async fn credentials_open_the_registry_and_never_show() {
    let (node, registry) = node_with_registry(RegistryAuth::Basic).await;
    registry.push(&image::busybox(), "library/busybox", "1", Form::Oci);
    let pair = |password: &str| cri::AuthConfig {
        username: "user".into(),
        password: password.into(),
        ..Default::default()
    };
    let denied = |answer: Result<String, Status>| {
        let error = answer.unwrap_err();
        let text = error.message().to_lowercase();
        assert!(text.contains("authori"), "{error}");
        assert!(!text.contains("wrong-password"), "{error}");
    };
    denied(pull(&node, "busybox:1", None).await);
    denied(pull(&node, "busybox:1", Some(pair("wrong-password"))).await);
    pull(&node, "busybox:1", Some(pair("secret"))).await.unwrap();
    let encoded = cri::AuthConfig { auth: "dXNlcjpzZWNyZXQ=".into(), ..Default::default() };
    pull(&node, "busybox:1", Some(encoded)).await.unwrap();
    for secret in ["wrong-password", "dXNlcjpzZWNyZXQ"] {
        assert!(!node.log().contains(secret), "{secret} is in the daemon's log");
    }
    node.finish().await;
}

#[tokio::test]
async fn pulls_of_one_image_at_the_same_time_are_one() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    registry.push(&image::nginx(), "library/nginx", "1", Form::Oci);
    let pulls = (0..8).map(|_| pull(&node, "nginx:1", None));
    for id in futures::future::join_all(pulls).await {
        assert_eq!(id.unwrap(), image::nginx().id());
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pull_is_told_as_events() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    registry.push(&image::busybox(), "library/busybox", "1", Form::Oci);
    let events = node.cri.admin.clone().watch_events(admin::WatchEventsRequest {}).await;
    let mut events = events.unwrap().into_inner();
    let id = pull(&node, "busybox:1", None).await.unwrap();
    pull(&node, "busybox:absent", None).await.unwrap_err();
    for (kind, said) in [
        ("pulling", "busybox:1"),
        ("pulled", &format!("busybox:1 is {id}, after ")),
        ("pulling", "busybox:absent"),
        ("not pulled", "busybox:absent: "),
    ] {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((&*event.subject, &*event.kind), ("image", kind));
        assert!(event.reason.starts_with(said), "{event:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_any_more_is_told_to_have_ended() {
    // Connections get as far as its queue.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirrors = mirrors(&silent.local_addr().unwrap().to_string());
    let node = Node::start_with(Options { mirrors, ..Default::default() }).await;
    let events = node.cri.admin.clone().watch_events(admin::WatchEventsRequest {}).await;
    let mut events = events.unwrap().into_inner();
    tokio::select! {
        answer = pull(&node, "busybox:1", None) => panic!("{answer:?}"),
        event = events.message() => assert_eq!(event.unwrap().unwrap().kind, "pulling"),
    }
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(event.kind, "not pulled");
    assert!(event.reason.contains("busybox:1: nobody waits"), "{event:?}");
    drop(events);
    node.finish().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_not_found() {
    let (node, _registry) = node_with_registry(RegistryAuth::Anonymous).await;
    refused(pull(&node, "busybox:absent", None).await, Code::NotFound, &["busybox:absent"]);
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_said_in_the_kubelets_words() {
    // Bound and closed: nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let node = Node::start_with(Options { mirrors: mirrors(&closed), ..Default::default() }).await;
    let error = pull(&node, "busybox:1", None).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert!(error.message().starts_with("RegistryUnavailable"), "{error}");
    assert!(error.message().contains(&closed), "names the endpoint: {error}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_layer_with_another_content_is_refused() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let layer = pushed_layer(&registry);
    let file = registry.blob_file(&layer);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let error = pull(&node, "busybox:1", None).await.unwrap_err();
    assert!(error.message().contains(&layer[..20]), "names the layer: {error}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_layer_cut_short_is_refused() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let layer = pushed_layer(&registry);
    let file = registry.blob_file(&layer);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = pull(&node, "busybox:1", None).await.unwrap_err();
    assert!(error.message().contains(&layer[..20]), "names the layer: {error}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    let mut image = image::busybox();
    let promised = e2e::layer::digest(&image.layers[0]);
    image.layers = vec![Layer::default().file("else", 0o644, "").into_tar()];
    registry.push(&image, "library/busybox", "1", Form::Oci);
    let error = pull(&node, "busybox:1", None).await.unwrap_err();
    assert!(error.message().contains(&promised[..20]), "names the promised digest: {error}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_stops_the_pull() {
    let (node, registry) = node_with_registry(RegistryAuth::Anonymous).await;
    registry.push(&image::nginx(), "library/nginx", "1", Form::Oci);
    let asked = tokio::time::timeout(Duration::from_millis(1), pull(&node, "nginx:1", None)).await;
    if asked.is_err() {
        e2e::wait::until_async("the pull is given up", e2e::pod::SOON, || async {
            node.assert_clean();
            Some(())
        })
        .await;
    }
    assert_eq!(pull(&node, "nginx:1", None).await.unwrap(), image::nginx().id());
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_room() {
    let registry = Registry::start(RegistryAuth::Anonymous);
    registry.push(&image::nginx(), "library/nginx", "1", Form::Oci);
    let small = Layer::default().file("small", 0o644, "x");
    registry.push(&image::Image::new(vec![small], json!({})), "library/small", "1", Form::Oci);
    let node = Node::start_with(Options {
        mirrors: mirrors(&registry.address),
        root_size: Some("3m".into()),
        ..Default::default()
    })
    .await;
    refused(pull(&node, "nginx:1", None).await, Code::ResourceExhausted, &["nginx:1", "space"]);
    pull(&node, "small:1", None).await.expect("what was written has been removed again");
    node.finish().await;
}

async fn node_with_registry(auth: RegistryAuth) -> (Node, Registry) {
    let registry = Registry::start(auth);
    let options = Options { mirrors: mirrors(&registry.address), ..Default::default() };
    (Node::start_with(options).await, registry)
}

pub(crate) fn mirrors(address: &str) -> Vec<(String, String)> {
    ["docker.io", "registry.k8s.io"].map(|it| (it.to_owned(), address.to_owned())).to_vec()
}

/// Pushes busybox and gives the digest of its layer as it lies in the registry.
fn pushed_layer(registry: &Registry) -> String {
    let digest = registry.push(&image::busybox(), "library/busybox", "1", Form::Oci);
    let manifest = registry.manifest("library/busybox", &digest);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

pub(crate) async fn pull(
    node: &Node,
    name: &str,
    auth: Option<cri::AuthConfig>,
) -> Result<String, Status> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::PullImageRequest { image, auth, sandbox_config: None };
    Ok(node.cri.images.clone().pull_image(request).await?.into_inner().image_ref)
}

async fn status(node: &Node, name: &str) -> Option<cri::Image> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image, verbose: false };
    node.cri.images.clone().image_status(request).await.unwrap().into_inner().image
}

/// No image, no layer, no half a blob.
async fn nothing_left(node: &Node) {
    let images = node.cri.images.clone().list_images(cri::ListImagesRequest { filter: None }).await;
    assert_eq!(images.unwrap().into_inner().images, []);
    let mut files = Vec::new();
    for dir in ["content", "layers", "images"] {
        let found = std::process::Command::new("busybox")
            .arg("find")
            .arg(node.root_dir().join(dir))
            .args(["-type", "f", "-size", "+0"])
            .output()
            .unwrap();
        files.push(String::from_utf8(found.stdout).unwrap());
    }
    assert_eq!(files.concat(), "", "files of a failed pull");
}
