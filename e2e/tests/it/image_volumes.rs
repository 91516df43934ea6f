//! Images as volumes.

use e2e::{Node, Pod, container, image, layer::Layer, pod};
use proto::cri::v1 as cri;
use serde_json::json;

const DATA: &str = "docker.io/library/data:test";

/// Two layers, the upper one of which takes something away; a program; links that lead out.
fn data() -> image::Image {
    let lower = Layer::default()
        .dir("part", 0o755)
        .file("part/kept", 0o644, "kept")
        .file("part/gone", 0o644, "gone")
        .host_file("busybox", "/bin/busybox");
    let upper = Layer::default()
        .whiteout("part/gone")
        .symlink("inside", "part")
        .symlink("outside", "/../../etc");
    image::Image::new(vec![lower], json!({})).with(upper, json!({}))
}

#[tokio::test]
async fn an_image_volume_shows_the_image_read_only_and_names_it() {
    let (node, pod) = node_with_data().await;
    let mut request = request(&pod, "main", vec![volume("/model", ""), volume("/part", "inside")]);
    let config = request.config.as_mut().unwrap();
    config.mounts[1].image.as_mut().unwrap().user_specified_image = "data:test".into();
    let id = create(&node, request).await.unwrap();
    let main = e2e::Container::known(&node.cri, &id);
    main.start().await;
    assert_eq!(main.shell("cat /model/part/kept /part/kept; ls /part").await, "keptkeptkept");
    main.shell("! touch /model/x 2>/dev/null && /model/busybox true").await;

    let status = cri::ContainerStatusRequest { container_id: id, verbose: false };
    let status = node.cri.newer_runtime.clone().container_status(status).await.unwrap();
    let mounts = status.into_inner().status.unwrap().mounts;
    let image = mounts[1].image.clone().unwrap();
    assert_eq!((&*image.image_ref, &*image.user_specified_image), (&*data().id(), "data:test"));
    assert_eq!((&*mounts[1].image_sub_path, &*mounts[1].host_path), ("inside", ""));

    let users = node.verb(&["images", "ls"]);
    let users = String::from_utf8(users.stdout).unwrap();
    assert!(users.contains("main at /model ("), "{users}");

    // Its layers stay as long as the container does.
    node.cri
        .images
        .clone()
        .remove_image(k8s_cri::v1::RemoveImageRequest {
            image: Some(k8s_cri::v1::ImageSpec { image: DATA.into(), ..Default::default() }),
        })
        .await
        .unwrap();
    assert_eq!(main.shell("cat /model/part/kept").await, "kept");
    node.finish().await;
}

#[tokio::test]
async fn an_image_volume_that_cannot_be_says_so_with_the_kubelets_word() {
    let (node, pod) = node_with_data().await;
    let mut writable = volume("/v", "");
    writable.readonly = false;
    let mut absent = volume("/v", "");
    absent.image.as_mut().unwrap().image = "docker.io/library/absent:1".into();
    for (mount, word) in [
        (writable, "read-only"),
        (absent, "absent:1"),
        (volume("/v", "no/such"), "no/such"),
        (volume("/v", "../x"), "image_sub_path"),
        (volume("/v", "outside"), "outside"),
        (volume("/v", "part/kept"), "not a directory"),
    ] {
        let status = create(&node, request(&pod, "main", vec![mount])).await.unwrap_err();
        assert!(status.message().starts_with("ImageVolumeMountFailed: "), "{status}");
        assert!(status.message().contains(word), "{word}: {status}");
        assert_eq!(status.code(), tonic::Code::Unknown, "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_has_as_many_image_volumes_as_it_asks_for_up_to_a_limit_that_is_told() {
    let (node, pod) = node_with_data().await;
    let volumes = |n: usize| (1..=n).map(|i| volume(&format!("/v{i}"), "part")).collect();
    let id = create(&node, request(&pod, "main", volumes(56))).await.unwrap();
    let main = e2e::Container::known(&node.cri, &id);
    main.start().await;
    assert_eq!(main.shell("cat /v1/kept /v9/kept /v56/kept").await, "keptkeptkept");
    let status = create(&node, request(&pod, "more", volumes(57))).await.unwrap_err();
    for word in ["ImageVolumeMountFailed: ", "/v57", "56 image volumes"] {
        assert!(status.message().contains(word), "{word}: {status}");
    }
    node.finish().await;
}

async fn node_with_data() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    node.import(&data(), DATA).await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn volume(at: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(cri::ImageSpec { image: DATA.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// `k8s-cri` does not know all of these fields yet.
fn request(pod: &Pod, name: &str, mounts: Vec<cri::Mount>) -> cri::CreateContainerRequest {
    let plain = container(name, image::BUSYBOX).command(&["sleep", "1000"]);
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image::BUSYBOX.into(), ..Default::default() }),
        command: plain.config.command,
        mounts,
        ..Default::default()
    };
    cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: None,
    }
}

async fn create(
    node: &Node,
    request: cri::CreateContainerRequest,
) -> Result<String, tonic::Status> {
    let created = node.cri.newer_runtime.clone().create_container(request).await?;
    Ok(created.into_inner().container_id)
}
