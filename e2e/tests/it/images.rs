//! Images that are on the node: imported, listed, described, removed.

use e2e::{Node, archive, container, image, layer::Layer, pod};
use k8s_cri::v1 as cri;
use serde_json::json;

#[tokio::test]
async fn an_imported_image_is_listed_and_found_by_all_its_names() {
    let node = Node::with_busybox().await;
    let id = image::busybox().id();
    let [listed] = &*list(&node).await else { panic!("one image") };
    assert_eq!((&*listed.id, &*listed.repo_tags), (&*id, &[image::BUSYBOX.to_owned()][..]));
    assert!(listed.size > 0);
    for name in
        [image::BUSYBOX, "busybox:test", "library/busybox:test", &id, &id["sha256:".len()..]]
    {
        assert_eq!(status(&node, name).await.expect(name).id, id);
    }
    node.finish().await;
}

#[tokio::test]
async fn an_absent_image_is_an_answer_without_image() {
    let node = Node::start().await;
    assert_eq!(status(&node, "docker.io/library/absent:1").await, None);
    node.finish().await;
}

#[tokio::test]
async fn the_users_of_images_are_told_as_number_or_name() {
    let node = Node::start().await;
    for (user, uid, username) in [
        ("", Some(0), ""),
        ("1000", Some(1000), ""),
        ("1000:5", Some(1000), ""),
        ("app:extra", None, "app"),
    ] {
        let name = format!("docker.io/library/user:t{}", user.replace(':', "-"));
        let image = image::busybox()
            .with(Layer::default().file("user", 0o644, user), json!({ "User": user }));
        node.import(&image, &name).await;
        let status = status(&node, &name).await.unwrap();
        let seen = (status.uid.map(|it| it.value), &*status.username);
        if user.is_empty() {
            assert!(matches!(seen, (None | Some(0), "")), "{seen:?}");
        } else {
            assert_eq!(seen, (uid, username), "{user}");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn removal_by_one_name_takes_all_and_can_be_repeated() {
    let node = Node::start().await;
    let image = image::busybox();
    let second = "docker.io/library/other:name";
    node.cri.import(archive::docker_save(&[(&image, image::BUSYBOX)]), "").await.unwrap();
    node.cri.import(archive::docker_save(&[(&image, second)]), "").await.unwrap();
    let mut tags = status(&node, second).await.unwrap().repo_tags;
    tags.sort();
    assert_eq!(tags, [image::BUSYBOX, second]);
    remove(&node, image::BUSYBOX).await;
    assert_eq!(list(&node).await, []);
    assert_eq!(status(&node, second).await, None);
    remove(&node, image::BUSYBOX).await;
    node.finish().await;
}

#[tokio::test]
async fn removal_gives_the_space_back() {
    let node = Node::start().await;
    let before = used_bytes(&node).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    assert!(used_bytes(&node).await >= before + (1 << 20));
    remove(&node, image::BUSYBOX).await;
    e2e::wait::until_async("the space is free", e2e::pod::SOON, || async {
        (used_bytes(&node).await <= before + (64 << 10)).then_some(())
    })
    .await;
    node.finish().await;
}

#[tokio::test]
async fn containers_keep_running_on_a_removed_image() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    remove(&node, image::BUSYBOX).await;
    assert_eq!(container.shell("cat /etc/group | head -n 1").await, "root:x:0:");
    assert_eq!(container.status().await.image_ref, image::busybox().id());
    node.finish().await;
}

#[tokio::test]
async fn the_image_file_system_is_a_real_directory_with_real_numbers() {
    let node = Node::with_busybox().await;
    let answer = node.cri.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap();
    let answer = answer.into_inner();
    let usage = answer.image_filesystems.first().expect("one file system");
    let mountpoint = &usage.fs_id.as_ref().unwrap().mountpoint;
    assert!(std::path::Path::new(mountpoint).starts_with(node.root_dir()), "{mountpoint}");
    assert!(std::path::Path::new(mountpoint).is_dir());
    assert!(usage.used_bytes.unwrap().value > 1 << 20);
    assert!(usage.inodes_used.unwrap().value > 1);
    assert!(usage.timestamp > 0);
    assert_eq!(answer.container_filesystems.len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn layers_lie_on_each_other_as_their_whiteouts_say() {
    let node = Node::start().await;
    let lower = Layer::default()
        .dir("data", 0o755)
        .file("data/gone", 0o644, "lower")
        .file("data/kept", 0o644, "lower")
        .dir("hidden", 0o755)
        .file("hidden/old", 0o644, "lower")
        .file("tool", 0o4755, "x")
        .hard_link("tool-link", "tool", 0o4755)
        .file("file-then-dir", 0o644, "lower");
    let upper = Layer::default()
        .whiteout("data/gone")
        .file("data/new", 0o644, "upper")
        .dir("hidden", 0o711)
        .opaque("hidden")
        .file("hidden/new", 0o644, "upper")
        .whiteout("file-then-dir")
        .dir("file-then-dir", 0o755)
        .file("file-then-dir/inside", 0o644, "upper");
    let image = image::busybox().with(lower, json!({})).with(upper, json!({ "Cmd": ["sh"] }));
    let name = "docker.io/library/layers:test";
    node.import(&image, name).await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", name).shell("sleep 1000")).await;
    assert_eq!(container.shell("ls /data").await, "kept\nnew");
    assert_eq!(container.shell("ls /hidden; stat -c %a /hidden").await, "new\n711");
    assert_eq!(
        container.shell("stat -c '%a %h' /tool; stat -c %i /tool /tool-link | uniq | wc -l").await,
        "4755 2\n1"
    );
    assert_eq!(container.shell("cat /file-then-dir/inside").await, "upper");
    node.finish().await;
}

#[tokio::test]
async fn an_oci_archive_is_imported_too() {
    let node = Node::start().await;
    let image = image::busybox();
    let imported = node.cri.import(archive::oci(&image, image::BUSYBOX), "").await.unwrap();
    assert_eq!((imported.len(), &*imported[0].id), (1, &*image.id()));
    assert_eq!(status(&node, image::BUSYBOX).await.expect("found by name").id, image.id());
    node.finish().await;
}

#[tokio::test]
async fn a_broken_archive_is_refused_and_leaves_nothing() {
    let node = Node::start().await;
    let before = used_bytes(&node).await;
    let whole = archive::docker_save(&[(&image::busybox(), image::BUSYBOX)]);
    let cut = whole[..whole.len() / 2].to_vec();
    let error = node.cri.import(cut, "").await.expect_err("half an archive");
    assert_ne!(error.code(), tonic::Code::Unknown, "{error}");
    let error =
        node.cri.import(b"not an archive at all".to_vec(), "").await.expect_err("no archive");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert_eq!(list(&node).await, []);
    assert!(used_bytes(&node).await <= before + (64 << 10));
    node.finish().await;
}

async fn list(node: &Node) -> Vec<cri::Image> {
    let request = cri::ListImagesRequest { filter: None };
    node.cri.images.clone().list_images(request).await.unwrap().into_inner().images
}

async fn status(node: &Node, name: &str) -> Option<cri::Image> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image, verbose: false };
    node.cri.images.clone().image_status(request).await.unwrap().into_inner().image
}

async fn remove(node: &Node, name: &str) {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    node.cri.images.clone().remove_image(cri::RemoveImageRequest { image }).await.unwrap();
}

/// Bytes on disk below the root directory, by the witness of `du`.
async fn used_bytes(node: &Node) -> u64 {
    let output =
        std::process::Command::new("du").arg("-sB1").arg(node.root_dir()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
