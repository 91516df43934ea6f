//! What images cost in memory: measured in a process of its own for each test, so that nothing else is in the figure.

use std::path::Path;

use image::{Config, ImageService};

use super::build::{Blob, Image, Layer, ZSTD};
use super::child;
use super::faulty::Faulty;
use super::node::Node;

/// Tells a child of this process what to do.
const ERRAND: &str = "IMAGE_MEMORY_ERRAND";

/// MiB by which the process grows while it does something, at the most.
async fn growth(work: impl Future<Output = ()>) -> u64 {
    let resident = |name: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    };
    // The peak so far is forgotten.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmRSS:");
    work.await;
    resident("VmHWM:").saturating_sub(before)
}

/// All of them are looked at: the limit is one less. Half a megabyte comes over the wire, which inflates to five
/// thousand.
#[tokio::test]
async fn ten_million_entries_take_little_until_they_are_refused() {
    // A build without optimization would take a minute.
    const ENTRIES: u64 = if cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 };
    const IN_FRAME: u64 = 10_000;
    if std::env::var_os(ERRAND).is_none() {
        let test = "memory::ten_million_entries_take_little_until_they_are_refused";
        return child::passes(test, &[(ERRAND, "pull")]);
    }
    // The same file again and again; the others are names that mean nothing here, because to make ten million files
    // takes minutes.
    let mut members = Layer::new().file("same/file", 0o644, b"x");
    for number in 1..IN_FRAME {
        members = members.file(&format!(".wh..wh.{number}"), 0o644, b"");
    }
    let mut members = members.tar();
    members.truncate(members.len() - 1024); // the end marker
    let frame = zstd::encode_all(members.as_slice(), 1).unwrap();
    let bytes = frame.repeat(usize::try_from(ENTRIES / IN_FRAME).unwrap());
    let image = Image::new(vec![Blob { bytes, plain: Vec::new(), media_type: ZSTD }]);
    let registry = Faulty::start(image, |_| None).await;
    let node = Node::with(|config| config.limits.layer_entries = ENTRIES - 1).await;
    let grown = growth(async {
        let error = node.service.pull(&registry.name("bomb:v"), None).await.unwrap_err();
        let refusal = format!("more than {} entries", ENTRIES - 1);
        assert!(error.to_string().contains(&refusal), "{error}");
    });
    let grown = grown.await;
    // With the server and its copies of the archive. Ten bytes kept of each entry would be a hundred.
    assert!(grown < 96, "{grown} MiB");
    node.assert_empty();
}

#[tokio::test]
async fn verification_takes_the_same_however_many_files_there_are() {
    const DIRECTORIES: usize = 20;
    const FILES: usize = 1_000;
    if let Ok(root) = std::env::var(ERRAND) {
        let mut config = Config::new(Path::new(&root).to_owned());
        (config.certs_d, config.registries_conf, config.policy, config.auth_files) =
            Default::default();
        let service = ImageService::open(config).await.unwrap();
        let grown = growth(async {
            assert_eq!(service.verify("many:v").await.unwrap().unwrap(), []);
        });
        let grown = grown.await;
        // The inventory alone has 3 MiB, and took more than that again in a map.
        assert!(grown < 4, "{grown} MiB");
        return;
    }
    let mut layer = Layer::new();
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            layer = layer.file(&format!("{directory}/{file:0>90}"), 0o644, b"");
        }
    }
    // In memory: a disk that others use takes its time for so many files.
    let store = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = store.path().join("root");
    let node = Node::with(|config| config.root.clone_from(&root)).await;
    let archive = Image::new(vec![layer.plain()]).docker_save(&["many:v"]);
    node.service.import(archive.as_slice(), None).await.unwrap();
    node.service.close().await.unwrap();
    drop(node);
    let test = "memory::verification_takes_the_same_however_many_files_there_are";
    child::passes(test, &[(ERRAND, root.to_str().unwrap())]);
}

/// `TMPDIR=/dev/shm cargo test … as_many_files -- --ignored --nocapture` takes a minute or two.
#[tokio::test]
#[ignore = "a measurement"]
async fn as_many_files_as_the_limit_allows_take_bounded_memory() {
    let node = Node::new().await;
    let grown = growth(super::hostile::beyond_the_limit(10_000_000, &node)).await;
    println!("the process has grown by {grown} MiB, with the archive and its server in it");
    assert!(grown < 512, "{grown} MiB");
}
