//! Pulls from a real registry: names, digests, media types, sharing, removal, restart.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use serde_json::json;

use super::build::{Image, Layer, OCI_INDEX, descriptor, digest};
use super::faulty::{Faulty, Reply, Request, honest};
use super::node::{Node, names};
use super::registry::Registry;

#[tokio::test]
async fn a_pulled_image_is_there_by_every_kind_of_reference_until_it_is_removed() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let image = Image::busybox();
    let manifest = registry.push("library/busybox", "latest", &image).await;
    let name = registry.name("library/busybox");
    let id = node.service.pull(&name, None).await.unwrap();
    assert_eq!(id.as_str(), image.id());
    for reference in [
        name.clone(),
        format!("{name}:latest"),
        format!("{name}@{manifest}"),
        id.to_string(),
        id.hex().to_owned(),
        id.hex()[..12].to_owned(),
    ] {
        let found = node.service.find(&reference).unwrap_or_else(|| panic!("no {reference}"));
        assert_eq!(found.id, id);
        assert_eq!(found.repo_tags, [format!("{name}:latest")]);
        assert_eq!(found.repo_digests, [format!("{name}@{manifest}")]);
        assert_eq!(found.config.user, "1000:1000");
        assert!(found.size > 0);
    }
    assert!(node.service.find("busybox").is_none());
    let info = node.service.fs_info();
    assert!(info.used_bytes > 500_000 && info.inodes_used >= 8, "{info:?}");
    node.service.remove(&name).await.unwrap();
    node.service.remove(&name).await.unwrap();
    node.assert_empty();
}

#[tokio::test]
async fn hosts_toml_sends_docker_io_to_a_mirror_on_loopback() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    registry.push("library/busybox", "1.36", &Image::busybox()).await;
    node.hosts(
        "docker.io",
        &format!("server = 'http://127.0.0.1:1'\n[host.'http://{}']\n", registry.address),
    );
    let id = node.service.pull("busybox:1.36", None).await.unwrap();
    let found = node.service.find("docker.io/library/busybox:1.36").unwrap();
    assert_eq!(found.repo_tags, ["docker.io/library/busybox:1.36"]);
    assert_eq!(found.id, id);
}

#[tokio::test]
async fn a_digest_pull_has_no_tag_and_the_exact_digest() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let manifest = registry.push("app", "v1", &Image::busybox()).await;
    let name = registry.name("app");
    node.service.pull(&format!("{name}@{manifest}"), None).await.unwrap();
    let list = node.service.list();
    assert!(list[0].repo_tags.is_empty());
    assert_eq!(list[0].repo_digests, [format!("{name}@{manifest}")]);
    // The tag comes on top, the image stays one.
    node.service.pull(&format!("{name}:v1"), None).await.unwrap();
    let list = node.service.list();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].repo_tags, [format!("{name}:v1")]);
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let name = registry.name("app");
    let (one, two) =
        (Image::busybox(), Image::new(vec![Layer::new().file("x", 0o644, b"2").gzip()]));
    registry.push("app", "v", &one).await;
    node.service.pull(&format!("{name}:v"), None).await.unwrap();
    registry.push("app", "v", &two).await;
    node.service.pull(&format!("{name}:v"), None).await.unwrap();
    let old = node.service.find(&one.id()).unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(node.service.find(&format!("{name}:v")).unwrap().id.as_str(), two.id());
    let node = node.restart().await;
    assert_eq!(node.service.list().len(), 2);
    assert!(node.service.find(&one.id()).unwrap().repo_tags.is_empty());
}

#[tokio::test]
async fn the_same_image_from_two_registries_is_one_image_with_two_names() {
    let (one, two, node) = (Registry::start().await, Registry::start().await, Node::new().await);
    let image = Image::busybox();
    one.push("a", "x", &image).await;
    two.push("b", "y", &image).await;
    let first = node.service.pull(&one.name("a:x"), None).await.unwrap();
    let second = node.service.pull(&two.name("b:y"), None).await.unwrap();
    assert_eq!(first, second);
    let found = node.service.find(first.as_str()).unwrap();
    assert_eq!(found.repo_tags, [one.name("a:x"), two.name("b:y")]);
    node.service.remove(&two.name("b:y")).await.unwrap();
    assert!(node.service.find(&one.name("a:x")).is_none(), "removal takes all names");
    node.assert_empty();
}

#[tokio::test]
async fn an_index_of_indexes_leads_to_the_image_for_this_platform() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let image = Image::busybox();
    registry.push("app", "mine", &image).await;
    let mut mine = descriptor(super::build::OCI_MANIFEST, &image.manifest());
    let here = image::Platform::here();
    mine["platform"] = json!({"os": "linux", "architecture": here.architecture});
    let inner =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [mine]}).to_string();
    registry.push_manifest("app", "inner", OCI_INDEX, inner.as_bytes()).await;
    let nested = descriptor(OCI_INDEX, inner.as_bytes());
    let outer =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [nested]}).to_string();
    let top = registry.push_manifest("app", "outer", OCI_INDEX, outer.as_bytes()).await;
    let id = node.service.pull(&registry.name("app:outer"), None).await.unwrap();
    assert_eq!(id.as_str(), image.id());
    let found = node.service.find(id.as_str()).unwrap();
    assert_eq!(found.repo_digests, [format!("{}@{top}", registry.name("app"))]);
}

#[tokio::test]
async fn gzip_zstd_and_plain_layers_make_the_same_files() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let layer = |n: &str| Layer::new().file(n, 0o644, &[7; 300_000]);
    let image = Image::new(vec![layer("gz").gzip(), layer("zst").zstd(), layer("tar").plain()]);
    registry.push("app", "v", &image).await;
    let id = node.service.pull(&registry.name("app:v"), None).await.unwrap();
    let snapshot = node.service.prepare("c1", &id).await.unwrap();
    for (lower, name) in snapshot.lowers.iter().zip(["tar", "zst", "gz"]) {
        assert_eq!(std::fs::read(lower.join(name)).unwrap(), vec![7; 300_000]);
    }
}

#[tokio::test]
async fn whiteouts_links_and_attributes_become_what_overlayfs_reads() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let mut owned = Layer::header(tar::EntryType::Regular, 0o4755, 3);
    owned.set_uid(33);
    owned.set_gid(44);
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let lower = Layer::new().directory("data/", 0o1777).file("data/old", 0o644, b"old").file(
        "data/gone",
        0o644,
        b"gone",
    );
    let upper = Layer::new()
        .file("data/.wh.gone", 0o644, b"")
        .directory("opaque/", 0o755)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .entry(owned, "suid", b"abc")
        .hard_link("same", "suid")
        .hard_link("data/linked", "data/old")
        .pax(&[("SCHILY.xattr.user.color", b"red"), ("mtime", b"1.5")])
        .file("fancy", 0o600, b"")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .directory("fake/", 0o755)
        .file(&long, 0o644, b"long");
    registry.push("app", "v", &Image::new(vec![lower.gzip(), upper.gzip()])).await;
    let id = node.service.pull(&registry.name("app:v"), None).await.unwrap();
    let snapshot = node.service.prepare("c1", &id).await.unwrap();
    let top = &snapshot.lowers[0];
    let meta = |name: &str| std::fs::symlink_metadata(top.join(name)).unwrap();
    assert!(meta("data/gone").file_type().is_char_device() && meta("data/gone").rdev() == 0);
    let opaque = |name: &str| {
        let mut value = [0; 4];
        let path = top.join(name);
        rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value)
            .map(|n| value[..n].to_vec())
    };
    assert_eq!(opaque("opaque").unwrap(), b"y");
    assert!(opaque("fake").is_err(), "an image must not fake overlayfs attributes");
    assert_eq!(meta("data").mode() & 0o7777, 0o1777, "an implicit parent looks like the one below");
    let suid = meta("suid");
    assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777), (33, 44, 0o4755));
    assert_eq!(suid.ino(), meta("same").ino());
    assert_eq!(std::fs::read(top.join("data/linked")).unwrap(), b"old", "copied up");
    assert_eq!(meta("data/linked").ino(), meta("data/old").ino());
    assert_eq!((meta("fancy").mtime(), meta("fancy").mtime_nsec()), (1, 500_000_000));
    let mut value = [0; 8];
    let length = rustix::fs::lgetxattr(top.join("fancy"), "user.color", &mut value).unwrap();
    assert_eq!(&value[..length], b"red");
    assert_eq!(std::fs::read(top.join(long)).unwrap(), b"long");
}

#[tokio::test]
async fn a_container_keeps_its_layers_over_removal_and_restart() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    registry.push("app", "v", &Image::busybox()).await;
    let name = registry.name("app:v");
    let id = node.service.pull(&name, None).await.unwrap();
    let snapshot = node.service.prepare("c1", &id).await.unwrap();
    assert_eq!(node.service.prepare("c1", &id).await.unwrap(), snapshot, "again is the same");
    let mode = std::fs::metadata(&snapshot.upper).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    node.service.remove(&name).await.unwrap();
    assert!(snapshot.lowers.iter().all(|lower| lower.is_dir()));
    let node = node.restart().await;
    assert_eq!(node.service.prepared(), ["c1"]);
    assert!(snapshot.lowers.iter().all(|lower| lower.is_dir()));
    assert!(node.service.fs_info().used_bytes > 0);
    node.service.discard("c1").await.unwrap();
    node.service.discard("c1").await.unwrap();
    assert!(names(&node.root().join("containers")).is_empty());
    node.assert_empty();
}

#[tokio::test]
async fn shared_layers_stay_for_the_image_that_remains() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let base = Layer::new().file("base", 0o644, b"base").gzip();
    let own = |n: &str| Layer::new().file(n, 0o644, n.as_bytes()).gzip();
    let (a, b) = (Image::new(vec![base.clone(), own("a")]), Image::new(vec![base, own("b")]));
    registry.push("a", "v", &a).await;
    registry.push("b", "v", &b).await;
    node.service.pull(&registry.name("a:v"), None).await.unwrap();
    node.service.pull(&registry.name("b:v"), None).await.unwrap();
    let layers = |node: &Node| {
        names(&node.root().join("layers")).iter().filter(|n| n.ends_with(".layer")).count()
    };
    assert_eq!(layers(&node), 3);
    node.service.remove(&registry.name("a:v")).await.unwrap();
    assert_eq!(layers(&node), 2);
    let id = node.service.find(&b.id()).unwrap().id.clone();
    let snapshot = node.service.prepare("c", &id).await.unwrap();
    assert_eq!(std::fs::read(snapshot.lowers[1].join("base")).unwrap(), b"base");
}

#[tokio::test]
async fn accounts_are_read_through_the_layers() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    registry.push("app", "v", &Image::busybox()).await;
    let id = node.service.pull(&registry.name("app:v"), None).await.unwrap();
    let accounts = node.service.accounts(&id).unwrap();
    assert_eq!(accounts.user_named("web").map(|u| (u.uid, u.gid)), Some((33, 33)));
    assert_eq!(accounts.user_with_uid(0).map(|u| u.home.as_str()), Some("/root"));
    assert_eq!(accounts.groups_of("web").collect::<Vec<_>>(), [44]);
}

#[tokio::test]
async fn twenty_pulls_at_once_are_one_and_a_repeated_pull_changes_nothing() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    registry.push("app", "v", &Image::busybox()).await;
    let name = registry.name("app:v");
    let pulls = (0..20).map(|_| node.service.pull(&name, None));
    let ids = futures::future::join_all(pulls).await;
    assert!(ids.iter().all(|id| id.as_ref().unwrap() == ids[0].as_ref().unwrap()));
    let files = node.files();
    node.service.pull(&name, None).await.unwrap();
    assert_eq!(node.files(), files);
}

#[tokio::test]
async fn a_damaged_record_is_put_aside_and_the_rest_works() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let image = Image::busybox();
    registry.push("app", "v", &image).await;
    registry.push("other", "v", &Image::new(vec![Layer::new().file("x", 0o644, b"").gzip()])).await;
    let name = registry.name("app:v");
    node.service.pull(&name, None).await.unwrap();
    node.service.pull(&registry.name("other:v"), None).await.unwrap();
    let record = node.root().join("images").join(image.id().trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    let node = node.restart().await;
    assert_eq!(node.service.lost().len(), 1, "{:?}", node.service.lost());
    assert!(node.service.find(&name).is_none());
    assert_eq!(node.service.list().len(), 1);
    node.service.pull(&name, None).await.unwrap();
    assert_eq!(node.service.list().len(), 2);
    assert_eq!(
        digest(
            &std::fs::read(node.root().join("content").join(image.id().replace(':', "/"))).unwrap()
        ),
        image.id()
    );
}

#[tokio::test]
async fn nobody_but_root_may_look_into_the_store() {
    let node = Node::new().await;
    for name in ["", "images", "layers", "containers", "content/sha256", "content/ingest"] {
        let mode = std::fs::metadata(node.root().join(name)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn docker_media_types_and_repeated_layers_are_understood() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let empty = Layer::new().directory("./", 0o755).gzip();
    let own = Layer::new().file("x", 0o644, b"x").gzip();
    let image = Image::new(vec![empty.clone(), own, empty.clone(), empty]);
    registry.push("app", "oci", &image).await;
    let manifest = String::from_utf8(image.manifest()).unwrap();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = manifest
        .replace(super::build::OCI_MANIFEST, kind)
        .replace(super::build::GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip")
        .replace(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        );
    registry.push_manifest("app", "docker", kind, manifest.as_bytes()).await;
    let id = node.service.pull(&registry.name("app:docker"), None).await.unwrap();
    assert_eq!(id.as_str(), image.id());
    assert_eq!(node.service.find(id.as_str()).unwrap().layers.len(), 4);
}

#[tokio::test]
async fn pinned_images_are_shown_as_such() {
    let registry = Registry::start().await;
    registry.push("keep/app", "v", &Image::busybox()).await;
    let node = Node::with(|config| config.pinned = vec!["*/keep/*".into()]).await;
    node.service.pull(&registry.name("keep/app:v"), None).await.unwrap();
    assert!(node.service.list()[0].pinned);
}

#[tokio::test]
async fn lazy_formats_are_plain_layers_here() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let parts = Layer::new().file("a", 0o644, b"aaa").file("b", 0o644, b"bbb").tar();
    // eStargz: one gzip member per file. zstd:chunked: frames, and a table in skippable ones.
    let estargz = [super::build::gzip(&parts[..1024]), super::build::gzip(&parts[1024..])].concat();
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let skippable = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18], length.as_slice(), bytes].concat()
    };
    let table = skippable(b"table of contents");
    let chunked = [frame(&parts[..1024]), frame(&parts[1024..]), table].concat();
    for (tag, bytes, media_type) in
        [("estargz", estargz, super::build::GZIP), ("chunked", chunked, super::build::ZSTD)]
    {
        let blob = super::build::Blob { bytes, plain: parts.clone(), media_type };
        registry.push("lazy", tag, &Image::new(vec![blob])).await;
        let id = node.service.pull(&registry.name(&format!("lazy:{tag}")), None).await.unwrap();
        let snapshot = node.service.prepare(tag, &id).await.unwrap();
        assert_eq!(std::fs::read(snapshot.lowers[0].join("b")).unwrap(), b"bbb", "{tag}");
    }
}

#[tokio::test]
async fn an_artifact_is_a_directory_of_its_files() {
    let (registry, node) = (Registry::start().await, Node::new().await);
    let (empty, long) = (b"{}", format!("{}/{}", "d".repeat(60), "f".repeat(60)));
    let files = [("model.bin", &b"weights"[..]), (long.as_str(), b"long"), ("same", b"weights")];
    registry.push_blob("model", empty).await;
    let mut layers = Vec::new();
    for (title, bytes) in files {
        registry.push_blob("model", bytes).await;
        let mut layer = super::build::descriptor("application/vnd.example.weights", bytes);
        layer["annotations"] = serde_json::json!({"org.opencontainers.image.title": title});
        layers.push(layer);
    }
    let manifest = |layers: &serde_json::Value| {
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": super::build::OCI_MANIFEST,
            "artifactType": "application/vnd.example.model",
            "config": super::build::descriptor("application/vnd.oci.empty.v1+json", empty),
            "layers": layers,
        })
        .to_string()
    };
    let kind = super::build::OCI_MANIFEST;
    let good = manifest(&layers.clone().into());
    let pushed = registry.push_manifest("model", "v", kind, good.as_bytes()).await;
    let id = node.service.pull(&registry.name("model:v"), None).await.unwrap();
    assert_eq!(id.as_str(), pushed, "it is known by its manifest");
    let node = node.restart().await;
    // Out of an archive it is the same one.
    let archive = artifact_archive(good.as_bytes(), &[&b"weights"[..], b"long", empty]);
    let other = Node::new().await;
    let imported = other.service.import(archive.as_slice(), Some("model:v")).await.unwrap();
    assert_eq!(imported[0].id, id);
    assert_eq!(other.service.list()[0].layers, node.service.list()[0].layers);
    assert!(node.service.lost().is_empty(), "{:?}", node.service.lost());
    let archive = Image::busybox().docker_save(&["own"]);
    let own = node.service.import(archive.as_slice(), None).await.unwrap().remove(0).id;
    node.service.prepare("c", &own).await.unwrap();
    let volume = node.service.volume("c", &id, std::path::Path::new(""), None).await.unwrap();
    for (title, bytes) in files {
        let file =
            rustix::fs::openat(&volume, title, rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
        let text = std::io::read_to_string(std::fs::File::from(file)).unwrap();
        assert_eq!(text.as_bytes(), bytes, "{title}");
    }
    // A title may not lead out.
    layers[0]["annotations"]["org.opencontainers.image.title"] = "../../escape".into();
    let bad = manifest(&layers.into());
    registry.push_manifest("model", "bad", kind, bad.as_bytes()).await;
    let error = node.service.pull(&registry.name("model:bad"), None).await.unwrap_err();
    assert_eq!(error.kind(), image::ErrorKind::BadContent, "{error}");
}

/// An OCI layout with one manifest and its blobs.
fn artifact_archive(manifest: &[u8], blobs: &[&[u8]]) -> Vec<u8> {
    let kind = super::build::OCI_MANIFEST;
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [super::build::descriptor(kind, manifest)],
    });
    let mut archive = Layer::new()
        .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", 0o644, index.to_string().as_bytes());
    for blob in blobs.iter().chain([&manifest]) {
        let name = format!("blobs/{}", super::build::digest(blob).replace(':', "/"));
        archive = archive.file(&name, 0o644, blob);
    }
    archive.tar()
}

#[tokio::test]
async fn a_foreign_layer_comes_from_the_address_in_its_manifest() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &[7; 100_000]).gzip()]);
    let publisher = Faulty::start(image.clone(), |_| None).await;
    let blob = digest(&image.layers[0].bytes);
    let served = image.clone();
    let address = publisher.address.clone();
    let rule = move |r: &Request| {
        if r.header("authorization").is_empty() {
            return Some(Reply::new(401, b"").with("www-authenticate", "Basic realm=\"x\""));
        }
        if r.is_blob(&served, 0) {
            return Some(Reply::new(404, b""));
        }
        let mut reply = honest(&served, r);
        if r.target.contains("/manifests/") {
            let mut manifest: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            manifest["layers"][0]["urls"] = serde_json::json!([
                "ftp://127.0.0.1/no",
                "http://127.0.0.1:1/gone",
                format!("http://{address}/download/{}", digest(&served.layers[0].bytes)),
            ]);
            let body = manifest.to_string().into_bytes();
            reply = Reply::new(200, &body).with("content-type", super::build::OCI_MANIFEST);
        }
        Some(reply)
    };
    let registry = Faulty::start(image, rule).await;
    let node = Node::new().await;
    let auth = || {
        let (username, password) = ("u".into(), "p".into());
        Some(image::Auth { username, password, ..image::Auth::default() })
    };
    node.service.pull(&registry.name("app:v"), auth()).await.unwrap();
    let seen = publisher.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].header("authorization").is_empty(), "a stranger gets no credentials");
    assert_eq!(registry.count(&blob), 1, "the registry goes first");
}
