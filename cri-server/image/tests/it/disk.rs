//! A disk that fills up: a clear error, the space given back, and removal that needs none.

use std::path::Path;

use image::ErrorKind;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::build::{Image, Layer};
use super::node::Node;
use super::registry::Registry;

/// Runs `test` with a tmpfs of `megabytes` at a directory that only its own threads see.
fn on_small_disk<F: Future<Output = ()>>(
    megabytes: u32,
    test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static,
) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may have a mount namespace of its own");
        let directory = tempfile::tempdir().unwrap();
        let (none, slave) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, slave, none).unwrap();
        let options = format!("size={megabytes}m");
        let disk = directory.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(disk.clone()));
        drop(runtime);
        nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn overlayfs_shows_what_the_layers_mean() {
    on_small_disk(64, |disk| async move {
        let lower = Layer::new()
            .directory("./", 0o751)
            .file("data/old", 0o644, b"old")
            .file("data/gone", 0o644, b"gone")
            .file("cache/a", 0o644, b"a");
        let upper = Layer::new()
            .file("data/.wh.gone", 0o644, b"")
            .file("data/new", 0o644, b"new")
            .file("cache/.wh..wh..opq", 0o644, b"")
            .file("cache/b", 0o644, b"b");
        let archive = Image::new(vec![lower.plain(), upper.plain()]).docker_save(&["x"]);
        let node = Node::with(|config| config.root = disk.join("root")).await;
        let id = node.service.import(archive.as_slice(), None).await.unwrap().remove(0).id;
        let snapshot = node.service.prepare("c", &id).await.unwrap();
        let lowers: Vec<String> =
            snapshot.lowers.iter().map(|l| l.to_string_lossy().into_owned()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            snapshot.upper.display(),
            snapshot.work.display()
        );
        let merged = disk.join("merged");
        std::fs::create_dir(&merged).unwrap();
        let overlay = Some("overlay");
        mount(overlay, &merged, overlay, MsFlags::empty(), Some(options.as_str())).unwrap();
        let names = |directory: &str| {
            let mut names = super::node::names(&merged.join(directory));
            names.sort();
            names
        };
        assert_eq!(names("data"), ["new", "old"]);
        assert_eq!(names("cache"), ["b"]);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&merged).unwrap().permissions(),
        );
        assert_eq!(mode & 0o7777, 0o751, "the root looks as the image says");
        std::fs::write(merged.join("data/mine"), "x").unwrap();
        nix::mount::umount(&merged).unwrap();
        node.service.discard("c").await.unwrap();
        node.service.remove("x").await.unwrap();
        node.assert_empty();
    });
}

fn big() -> Image {
    let noise: Vec<u8> =
        (0..12_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Image::new(vec![Layer::new().file("big", 0o644, &noise).plain()])
}

fn free(disk: &Path) -> u64 {
    let stat = rustix::fs::statvfs(disk).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn a_full_disk_is_named_and_the_space_comes_back() {
    on_small_disk(8, |disk| async move {
        let registry = Registry::start().await;
        registry.push("app", "big", &big()).await;
        registry
            .push("app", "small", &Image::new(vec![Layer::new().file("x", 0o644, b"x").gzip()]))
            .await;
        let node = Node::with(|config| config.root = disk.join("root")).await;
        let before = free(&disk);
        let error = node.service.pull(&registry.name("app:big"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
        assert!(error.to_string().contains("disk is full"), "{error}");
        let archive = big().docker_save(&["big"]);
        let error = node.service.import(archive.as_slice(), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
        node.assert_empty();
        // A write under way may hold its file a moment longer.
        for _ in 0..100 {
            if free(&disk) + 100_000 >= before {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(free(&disk) + 100_000 >= before, "{} of {before}", free(&disk));
        // The service goes on, and what is there can be removed from a disk without a free block.
        let name = registry.name("app:small");
        node.service.pull(&name, None).await.unwrap();
        let _ = std::fs::write(disk.join("filler"), vec![1; 9_000_000]);
        assert_eq!(free(&disk), 0);
        let error = node.service.pull(&registry.name("app:big"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
        node.service.remove(&name).await.unwrap();
        std::fs::remove_file(disk.join("filler")).unwrap();
        node.assert_empty();
    });
}

#[test]
fn what_is_counted_is_what_the_disk_holds() {
    on_small_disk(64, |disk| async move {
        let node = Node::with(|config| config.root = disk.join("root")).await;
        let before = free(&disk);
        let mut layer = Layer::new();
        for n in 0..2000 {
            layer = layer.file(&format!("d{}/f{n}", n % 50), 0o644, &vec![1; n * 3]);
        }
        let archive = Image::new(vec![layer.plain()]).docker_save(&["x"]);
        node.service.import(archive.as_slice(), None).await.unwrap();
        // The archive's spool goes in the background.
        for _ in 0..100 {
            if super::node::names(&node.root().join("content/ingest")).is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let held = before - free(&disk);
        let counted = node.service.fs_info().used_bytes;
        assert!(counted.abs_diff(held) < held / 20, "counted {counted}, the disk holds {held}");
        assert_eq!(node.service.fs_info().inodes_used, 2000 + 50 + 1);
    });
}

#[tokio::test]
async fn the_space_that_is_told_is_what_du_finds() {
    let node = Node::new().await;
    let mut layers = vec![Layer::new(), Layer::new()];
    for (at, layer) in layers.iter_mut().enumerate() {
        let mut grown = std::mem::replace(layer, Layer::new());
        for n in 0..700 {
            grown = grown.file(&format!("l{at}/d{}/f{n}", n % 40), 0o644, &vec![1; n * 13]);
        }
        *layer = grown.hard_link("again", &format!("l{at}/d1/f1"));
    }
    let archive = Image::new(layers.into_iter().map(Layer::plain).collect()).docker_save(&["x"]);
    node.service.import(archive.as_slice(), None).await.unwrap();
    let layers = node.root().join("layers");
    let all: Vec<_> =
        super::node::names(&layers).into_iter().map(|name| layers.join(name)).collect();
    let directories = all.iter().filter(|path| path.is_dir() && !path.ends_with("empty"));
    let du =
        std::process::Command::new("du").args(["-s", "-B1"]).args(directories).output().unwrap();
    let du: u64 = String::from_utf8_lossy(&du.stdout)
        .lines()
        .map(|line| line.split('\t').next().unwrap().parse::<u64>().unwrap())
        .sum();
    let told = node.service.fs_info().used_bytes;
    assert!(told.abs_diff(du) * 100 <= du, "told {told}, du finds {du}");
}
