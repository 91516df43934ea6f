//! Roots and image volumes as the kernel mounts them: owners translated, nothing chowned, nothing
//! writable that should not be, and nothing in the host's mount table.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use image::{ErrorKind, ImageId};
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::build::{Image, Layer};
use super::node::Node;

/// A user namespace whose ids 0–65535 are 100000–165535 of the host.
struct Userns {
    holder: Child,
}

const FIRST: u32 = 100_000;

impl Userns {
    fn new() -> Userns {
        let holder = Command::new("unshare").args(["--user", "sleep", "600"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let proc = format!("/proc/{}", holder.id());
        for _ in 0..500 {
            if std::fs::read_link(format!("{proc}/ns/user")).is_ok_and(|theirs| theirs != own) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("{proc}/{map}"), format!("0 {FIRST} 65536")).unwrap();
        }
        Userns { holder }
    }

    fn descriptor(&self) -> OwnedFd {
        std::fs::File::open(format!("/proc/{}/ns/user", self.holder.id())).unwrap().into()
    }
}

impl Drop for Userns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from(0o644) } else { Mode::empty() };
    rustix::fs::openat2(root, path, flags, mode, ResolveFlags::IN_ROOT)
}

fn read(root: &OwnedFd, path: &str) -> String {
    let file = std::fs::File::from(open(root.as_fd(), path, OFlags::RDONLY).unwrap());
    std::io::read_to_string(file).unwrap()
}

fn stat(root: &OwnedFd, path: &str) -> Stat {
    rustix::fs::fstat(open(root.as_fd(), path, OFlags::PATH).unwrap()).unwrap()
}

async fn imported(node: &Node, layers: Vec<Layer>, name: &str) -> ImageId {
    let image = Image::new(layers.into_iter().map(Layer::plain).collect());
    node.service.import(image.docker_save(&[name]).as_slice(), None).await.unwrap().remove(0).id
}

fn two_layers() -> Vec<Layer> {
    let mut owned = Layer::header(tar::EntryType::Regular, 0o640, 2);
    owned.set_uid(33);
    owned.set_gid(44);
    let lower = Layer::new()
        .directory("data/", 0o755)
        .file("data/old", 0o644, b"old")
        .file("data/gone", 0o644, b"gone")
        .symlink("escape", "../../../../../../etc")
        .symlink("link", "/data")
        .entry(owned, "data/owned", b"33");
    let upper = Layer::new().file("data/.wh.gone", 0o644, b"").file("data/new", 0o755, b"new");
    vec![lower, upper]
}

fn host_mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[tokio::test]
async fn a_root_with_translated_owners_leaves_the_disk_as_the_image_has_it() {
    let (node, userns) = (Node::new().await, Userns::new());
    let id = imported(&node, two_layers(), "x").await;
    let snapshot = node.service.prepare("c", &id).await.unwrap();
    let root = node.service.root("c", Some(userns.descriptor())).await.unwrap();
    assert_eq!(read(&root, "data/new"), "new");
    assert_eq!(open(root.as_fd(), "data/gone", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
    let owned = stat(&root, "data/owned");
    assert_eq!((owned.st_uid, owned.st_gid), (FIRST + 33, FIRST + 44));
    assert_eq!(stat(&root, ".").st_uid, FIRST);
    // The container's root may write; the layers stay as they were.
    let made = Command::new("nsenter")
        .arg(format!("--user=/proc/{}/ns/user", userns.holder.id()))
        .args(["-S", "0", "-G", "0", "--", "sh", "-c"])
        .arg("cd /proc/self/fd/0 && echo mine > data/mine && echo more >> data/owned")
        .stdin(root.try_clone().unwrap())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(stat(&root, "data/mine").st_uid, FIRST);
    let on_disk = |path: &str| {
        let meta = std::fs::metadata(snapshot.upper.join("data").join(path)).unwrap();
        (std::os::unix::fs::MetadataExt::uid(&meta), std::os::unix::fs::MetadataExt::gid(&meta))
    };
    assert_eq!(on_disk("mine"), (FIRST, FIRST));
    assert_eq!(on_disk("owned"), (FIRST + 33, FIRST + 44));
    let lower = snapshot.lowers[1].join("data/owned");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(lower).unwrap()), 33);
    assert!(!host_mounts().contains(&*node.root().to_string_lossy()));
    drop(root);
    node.service.discard("c").await.unwrap();
    node.service.remove("x").await.unwrap();
    node.assert_empty();
}

#[tokio::test]
async fn a_root_without_a_user_namespace_is_the_same_tree() {
    let node = Node::new().await;
    let id = imported(&node, two_layers(), "x").await;
    node.service.prepare("c", &id).await.unwrap();
    let root = node.service.root("c", None).await.unwrap();
    assert_eq!(stat(&root, "data/owned").st_uid, 33);
    let file = open(root.as_fd(), "data/w", OFlags::WRONLY | OFlags::CREATE).unwrap();
    std::fs::File::from(file).write_all(b"w").unwrap();
    assert_eq!(read(&root, "data/w"), "w");
    let error = node.service.root("unknown", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_stack_of_many_layers_is_one_root() {
    const LAYERS: usize = 200;
    let (node, userns) = (Node::new().await, Userns::new());
    let layer = |n: usize| {
        Layer::new().file(&format!("f{n}"), 0o644, b"x").file(
            "top",
            0o644,
            n.to_string().as_bytes(),
        )
    };
    let id = imported(&node, (0..LAYERS).map(layer).collect(), "x").await;
    for (container, userns) in [("plain", None), ("mapped", Some(userns.descriptor()))] {
        node.service.prepare(container, &id).await.unwrap();
        let root = node.service.root(container, userns).await.unwrap();
        assert_eq!(read(&root, "top"), (LAYERS - 1).to_string());
        assert_eq!(read(&root, "f0"), "x");
    }
    // Made once more after a crash, with the mark that a volatile overlay leaves.
    node.service.prepare("plain", &id).await.unwrap();
    node.service.root("plain", None).await.unwrap();
}

#[tokio::test]
async fn an_image_volume_is_a_read_only_directory_of_the_image() {
    let (node, userns) = (Node::new().await, Userns::new());
    let own = imported(&node, vec![Layer::new().file("x", 0o644, b"")], "own").await;
    let id = imported(&node, two_layers(), "x").await;
    node.service.prepare("c", &own).await.unwrap();
    for (userns, first) in [(None, 0), (Some(userns.descriptor()), FIRST)] {
        let volume = async |path: &str| {
            let userns = userns.as_ref().map(|fd| fd.try_clone().unwrap());
            node.service.volume("c", &id, Path::new(path), userns).await
        };
        let whole = volume("").await.unwrap();
        assert_eq!(read(&whole, "data/new"), "new");
        for path in ["data", "/data/", "link", "data/../data"] {
            let part = volume(path).await.unwrap();
            assert_eq!(read(&part, "old"), "old", "{path}");
            assert_eq!(open(part.as_fd(), "gone", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
            assert_eq!(stat(&part, "owned").st_uid, first + 33);
            let write = open(part.as_fd(), "w", OFlags::WRONLY | OFlags::CREATE);
            assert_eq!(write.unwrap_err(), Errno::ROFS);
        }
        for path in ["none", "data/old", "escape", "data/gone"] {
            let error = volume(path).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Volume, "{path}: {error}");
            assert!(error.to_string().starts_with("ImageVolumeMountFailed: "), "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}

#[tokio::test]
async fn a_volume_keeps_its_image_over_removal_and_restart() {
    let node = Node::new().await;
    let own = imported(&node, vec![Layer::new().file("x", 0o644, b"")], "own").await;
    let id = imported(&node, two_layers(), "x").await;
    node.service.prepare("c", &own).await.unwrap();
    let volume = node.service.volume("c", &id, Path::new("data"), None).await.unwrap();
    node.service.remove("x").await.unwrap();
    assert_eq!(read(&volume, "old"), "old");
    let node = node.restart().await;
    assert_eq!(read(&volume, "old"), "old");
    drop(volume);
    node.service.remove("own").await.unwrap();
    node.service.discard("c").await.unwrap();
    node.assert_empty();
}
