//! Archives: what `docker save` writes, the OCI layout, gzipped or not, broken or not.

use super::build::{Image, Layer, docker_save, gzip};
use super::node::Node;

#[tokio::test]
async fn docker_and_oci_archives_plain_and_gzipped_give_the_same_image() {
    let image = Image::busybox();
    let name = "docker.io/library/busybox:1";
    let archives = [
        image.docker_save(&["busybox:1"]),
        gzip(&image.docker_save(&["busybox:1"])),
        image.oci_archive(Some("docker.io/library/busybox:1")),
        gzip(&image.oci_archive(Some("busybox:1"))),
    ];
    for archive in archives {
        let node = Node::new().await;
        let imported = node.service.import(archive.as_slice(), None).await.unwrap();
        assert_eq!(imported.len(), 1);
        assert_eq!(imported[0].id.as_str(), image.id());
        assert!(imported[0].names.contains(&name.to_owned()), "{imported:?}");
        assert_eq!(node.service.find("busybox:1").unwrap().id.as_str(), image.id());
        node.service.remove("busybox:1").await.unwrap();
        node.assert_empty();
    }
}

#[tokio::test]
async fn one_archive_holds_many_images() {
    let (one, two) =
        (Image::busybox(), Image::new(vec![Layer::new().file("x", 0o644, b"").gzip()]));
    let archive = docker_save(&[(&one, &["one:1", "uno:1"]), (&two, &["two:2"])]);
    let node = Node::new().await;
    let imported = node.service.import(archive.as_slice(), None).await.unwrap();
    assert_eq!(imported.len(), 2);
    assert_eq!(node.service.find("uno:1").unwrap().id.as_str(), one.id());
    assert_eq!(node.service.find("two:2").unwrap().id.as_str(), two.id());
}

#[tokio::test]
async fn a_name_goes_to_the_image_that_has_none() {
    let node = Node::new().await;
    let image = Image::busybox();
    node.service.import(image.docker_save(&[]).as_slice(), Some("app:v9")).await.unwrap();
    assert_eq!(node.service.find("app:v9").unwrap().id.as_str(), image.id());
    let other = Image::new(vec![Layer::new().file("x", 0o644, b"").gzip()]);
    let two = docker_save(&[(&image, &[]), (&other, &[])]);
    let error = node.service.import(two.as_slice(), Some("app:v9")).await.unwrap_err();
    assert_eq!(error.kind(), image::ErrorKind::BadContent, "{error}");
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    let image = Image::busybox();
    let whole = image.docker_save(&["busybox:1"]);
    let mut lying = image.clone();
    lying.layers[0].plain = Layer::new().file("other", 0o644, b"").tar();
    let mut config_lies = Image::busybox();
    config_lies.layers.pop();
    let archives: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("noise", vec![42; 5000]),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("cut gzip", {
            let z = gzip(&whole);
            z[..z.len() / 2].to_vec()
        }),
        ("no manifest", Layer::new().file("x", 0o644, b"").tar()),
        ("bad json", Layer::new().file("manifest.json", 0o644, b"{").tar()),
        ("other layer", {
            let mut other = lying.clone();
            other.layers[1] = lying.layers[0].clone();
            other.docker_save(&["busybox:1"])
        }),
        ("missing layer", config_lies.docker_save(&["busybox:1"])),
        ("bad name", image.docker_save(&["Bad Name"])),
    ];
    for (what, archive) in archives {
        let node = Node::new().await;
        let error = node.service.import(archive.as_slice(), None).await.unwrap_err();
        assert!(
            !matches!(error.kind(), image::ErrorKind::Internal | image::ErrorKind::Cancelled),
            "{what}: {error:?}"
        );
        node.assert_empty();
    }
}
