//! Archives that go out and come back: the same image where its layers are kept compressed, the
//! same files where they are not.

use std::process::Command;

use image::Exported;

use super::build::{Image, Layer};
use super::node::Node;
use super::registry::Registry;

async fn export(node: &Node, names: &[&str]) -> (Vec<Exported>, Vec<u8>) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let (exported, mut chunks) = node.service.export(&names).await.unwrap();
    let mut archive = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        archive.extend_from_slice(&chunk.unwrap());
    }
    (exported, archive)
}

/// Every kind of file, over two layers.
fn rich() -> Image {
    let mut special = Layer::header(tar::EntryType::Char, 0o666, 0);
    special.set_device_major(1).unwrap();
    special.set_device_minor(3).unwrap();
    let mut owned = Layer::header(tar::EntryType::Regular, 0o4755, 2);
    owned.set_uid(3_000_000);
    owned.set_gid(44);
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let lower = Layer::new()
        .directory("data/", 0o1777)
        .file("data/gone", 0o644, b"gone")
        .file("cache/old", 0o644, b"old")
        .symlink("link", &"t".repeat(99))
        .entry(special, "null", b"")
        .pax(&[("SCHILY.xattr.user.note", b"a note")])
        .file("noted", 0o600, b"noted")
        .entry(owned, "owned", b"id")
        .hard_link("again", "owned")
        .file(&long, 0o644, b"long");
    let upper = Layer::new()
        .file("data/.wh.gone", 0o644, b"")
        .file("cache/.wh..wh..opq", 0o644, b"")
        .file("cache/new", 0o644, b"new");
    Image::new(vec![lower.gzip(), upper.zstd()])
}

/// What `find` and `sha256sum` say about every layer of an image, without times of access.
async fn look(node: &Node, name: &str) -> Vec<String> {
    let id = node.service.find(name).unwrap().id.clone();
    let snapshot = node.service.prepare("look", &id).await.unwrap();
    let script = "find . -printf '%y %m %U %G %s %T@ %n %l %p\\n' | sort; \
                  find . -type f -exec sha256sum {} + | sort; \
                  getfattr -Rdm 'user|overlay' . 2>/dev/null | sort";
    let mut seen = Vec::new();
    for layer in &snapshot.lowers {
        let output = Command::new("sh").args(["-c", script]).current_dir(layer).output().unwrap();
        // A directory's own size is the file system's business.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = |line: &str| match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["d", mode, uid, gid, _, time, rest @ ..] => {
                // Archives of images tell whole seconds.
                let time = time.split('.').next().unwrap_or_default();
                format!("d {mode} {uid} {gid} {time} {}", rest.join(" "))
            }
            // A whiteout has no attributes of its own.
            ["c", "0", .., path] => format!("whiteout {path}"),
            _ => line.to_owned(),
        };
        let mut lines: Vec<String> = text.lines().map(line).collect();
        lines.sort();
        seen.extend(lines);
    }
    node.service.discard("look").await.unwrap();
    seen
}

#[tokio::test]
async fn an_image_without_its_blobs_comes_back_with_the_same_files() {
    let registry = Registry::start().await;
    registry.push("app", "v", &rich()).await;
    let (node, other) = (Node::new().await, Node::new().await);
    let name = registry.name("app:v");
    node.service.pull(&name, None).await.unwrap();
    let (exported, archive) = export(&node, &[name.as_str()]).await;
    assert_ne!(exported[0].id, exported[0].archive_id, "and it is said");
    assert_eq!(exported[0].names, std::slice::from_ref(&name));
    assert_eq!(export(&node, &[name.as_str()]).await.1, archive, "the same bytes every time");
    let imported = other.service.import(archive.as_slice(), None).await.unwrap();
    assert_eq!(imported[0].id, exported[0].archive_id);
    let (before, after) = (look(&node, &name).await, look(&other, &name).await);
    assert!(before.iter().any(|line| line.contains("3000000")), "{before:#?}");
    assert_eq!(before, after);
    let config = |node: &Node| node.service.find(&name).unwrap().config.clone();
    assert_eq!(config(&node).cmd, config(&other).cmd);
}

#[tokio::test]
async fn an_image_with_its_blobs_keeps_its_id_and_digests() {
    let registry = Registry::start().await;
    let (image, second) = (rich(), Image::busybox());
    let digest = registry.push("app", "v", &image).await;
    registry.push("busybox", "v", &second).await;
    let node = Node::with(|config| config.keep_blobs = true).await;
    let names = [registry.name("app:v"), registry.name("busybox:v")];
    for name in &names {
        node.service.pull(name, None).await.unwrap();
    }
    let (exported, archive) = export(&node, &[&names[0], &names[1], &names[0]]).await;
    assert_eq!(exported.len(), 2, "an image that is named twice is there once");
    let other = Node::new().await;
    let imported = other.service.import(archive.as_slice(), None).await.unwrap();
    let ids: Vec<&str> = imported.iter().map(|image| image.id.as_str()).collect();
    assert_eq!(ids, [image.id(), second.id()]);
    let found = other.service.find(&names[0]).unwrap();
    assert!(found.repo_digests.iter().any(|name| name.ends_with(&digest)), "{found:?}");
    // Docker's tools read the other index of the same archive.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.tar");
    std::fs::write(&file, &archive).unwrap();
    let tar = Command::new("tar").arg("-xOf").arg(&file).arg("manifest.json").output().unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&tar.stdout).unwrap();
    assert_eq!(saved[0]["RepoTags"][0], names[0]);
}

#[tokio::test]
async fn an_unknown_image_is_not_exported_and_a_pinned_one_stays_pinned() {
    let node = Node::new().await;
    let error = node.service.export(&["none".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), image::ErrorKind::NotFound, "{error}");
    let archive = Image::busybox().docker_save(&["a:1"]);
    node.service.import(archive.as_slice(), None).await.unwrap();
    assert!(!node.service.list()[0].pinned);
    assert!(node.service.pin("a:1", true).await.unwrap().is_some());
    assert!(node.service.pin("none", true).await.unwrap().is_none());
    let node = node.restart().await;
    assert!(node.service.list()[0].pinned);
    node.service.pin("a:1", false).await.unwrap();
    assert!(!node.restart().await.service.list()[0].pinned);
}
