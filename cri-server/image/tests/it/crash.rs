//! Power cuts: a process that pulls or removes is killed at each step of it, and the next one finds
//! a right image or a clean absence, and can go on.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use image::{Config, ImageService};

use super::build::{Image, Layer};
use super::child;
use super::node::Node;
use super::registry::Registry;

/// Tells a child of this process what to do and where to die: `verb step root reference`.
const ERRAND: &str = "IMAGE_CRASH_ERRAND";

fn image() -> Image {
    let noise: Vec<u8> =
        (0..700_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let lower = Layer::new().file("data/a", 0o644, &noise).file("data/b", 0o600, b"b");
    let upper = Layer::new().file("data/.wh.b", 0o644, b"").hard_link("data/c", "data/a");
    Image::new(vec![lower.gzip(), upper.zstd(), Layer::new().file("x", 0o755, b"x").plain()])
}

fn config(root: &Path) -> Config {
    let mut config = Config::new(root.to_owned());
    (config.certs_d, config.registries_conf, config.policy, config.auth_files) = Default::default();
    config
}

fn errand(text: &str) {
    let words: Vec<&str> = text.splitn(4, '|').collect();
    let [verb, step, root, reference] = words[..] else { panic!("{text}") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = config(Path::new(root));
        config.die_at = Some(step.to_owned());
        let service = ImageService::open(config).await.unwrap();
        match verb {
            "pull" => drop(service.pull(reference, None).await.unwrap()),
            _ => service.remove(reference).await.unwrap(),
        }
    });
}

/// Runs this very test again as a child that is to die; whether it did.
fn dies(test: &str, errand: &str) -> bool {
    let child = child::run(test, &[(ERRAND, errand)]);
    let killed = child.status.signal() == Some(9);
    assert!(killed || child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    killed
}

/// Opens what is left and looks at it from all sides.
async fn inspect(root: &Path, reference: &str) -> (ImageService, bool) {
    let service = ImageService::open(config(root)).await.unwrap();
    assert!(service.lost().is_empty(), "{:?}", service.lost());
    let here = service.find(reference).is_some();
    if here {
        let damaged = service.verify(reference).await.unwrap().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        assert_eq!(service.find(reference).unwrap().layers.len(), 3);
    } else {
        assert_eq!(service.fs_info().used_bytes, 0, "layers of no image are swept");
        let names = super::node::names(&root.join("content/sha256"));
        assert!(names.is_empty(), "{names:?}");
    }
    (service, here)
}

#[test]
fn a_pull_killed_at_any_step_is_whole_or_absent_and_is_done_by_the_next() {
    if let Ok(text) = std::env::var(ERRAND) {
        return errand(&text);
    }
    let test = "crash::a_pull_killed_at_any_step_is_whole_or_absent_and_is_done_by_the_next";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let registry = Registry::start().await;
        registry.push("app", "v", &image()).await;
        let name = registry.name("app:v");
        for (step, expect) in [
            ("resolved", false),
            ("layer begun", false),
            ("part arrived", false),
            ("unpacked", false),
            ("settled", false),
            ("synced", false),
            ("layer shelved", false),
            ("shelved", false),
            ("content written", false),
            ("record written", true),
            ("committed", true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let root: PathBuf = directory.path().join("root");
            let errand = format!("pull|{step}|{}|{name}", root.display());
            assert!(dies(test, &errand), "nothing died at {step:?}");
            let (service, here) = inspect(&root, &name).await;
            assert_eq!(here, expect, "after {step:?}");
            service.pull(&name, None).await.unwrap();
            drop(service);
            assert!(inspect(&root, &name).await.1, "after {step:?} and a pull");
        }
    });
}

#[test]
fn a_removal_killed_at_any_step_leaves_nothing_of_the_image() {
    if let Ok(text) = std::env::var(ERRAND) {
        return errand(&text);
    }
    let test = "crash::a_removal_killed_at_any_step_leaves_nothing_of_the_image";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let registry = Registry::start().await;
        registry.push("app", "v", &image()).await;
        let name = registry.name("app:v");
        for step in ["record removed", "content removed"] {
            let directory = tempfile::tempdir().unwrap();
            let root: PathBuf = directory.path().join("root");
            let service = ImageService::open(config(&root)).await.unwrap();
            service.pull(&name, None).await.unwrap();
            drop(service);
            assert!(dies(test, &format!("remove|{step}|{}|{name}", root.display())), "{step}");
            assert!(!inspect(&root, &name).await.1, "after {step:?}");
        }
    });
}

/// As if the power had failed: the note of the boot is another boot's.
fn cut_power(root: &Path) {
    std::fs::write(root.join("boot"), "another-boot running\n").unwrap();
}

fn layer_file(root: &Path, name: &str) -> PathBuf {
    let layers = root.join("layers");
    let names = super::node::names(&layers).into_iter().map(|layer| layers.join(layer).join(name));
    names.into_iter().find(|path| path.exists()).unwrap()
}

#[tokio::test]
async fn a_layer_damaged_by_a_power_cut_is_found_and_made_again() {
    let registry = Registry::start().await;
    registry.push("app", "v", &image()).await;
    registry
        .push("other", "v", &Image::new(vec![Layer::new().file("y", 0o644, b"y").gzip()]))
        .await;
    let (name, other) = (registry.name("app:v"), registry.name("other:v"));
    let node = Node::new().await;
    node.service.pull(&name, None).await.unwrap();
    node.service.pull(&other, None).await.unwrap();
    let file = layer_file(&node.root(), "x");
    std::fs::write(&file, b"").unwrap();
    // Nobody looks while the machine stays up, or after a clean end.
    let node = node.restart().await;
    assert!(node.service.lost().is_empty());
    cut_power(&node.root());
    let node = node.restart().await;
    let lost = node.service.lost().join("\n");
    assert!(lost.contains("/x: has 0 bytes, made with 1"), "{lost}");
    assert!(node.service.find(&name).is_none());
    assert!(node.service.find(&other).is_some());
    node.service.pull(&name, None).await.unwrap();
    assert_eq!(std::fs::read(layer_file(&node.root(), "x")).unwrap(), b"x");
    node.service.close().await.unwrap();
    let text = std::fs::read_to_string(node.root().join("boot")).unwrap();
    assert!(text.ends_with(" stopped\n"), "{text}");
}

#[tokio::test]
async fn verification_finds_every_kind_of_damage_and_the_next_pull_heals_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let registry = Registry::start().await;
    registry.push("app", "v", &image()).await;
    let name = registry.name("app:v");
    let node = Node::new().await;
    let id = node.service.pull(&name, None).await.unwrap();
    let file = layer_file(&node.root(), "x");
    let layer = file.parent().unwrap().to_owned();
    let damages: [(&str, &dyn Fn()); 6] = [
        ("/x: has other content", &|| std::fs::write(&file, b"y").unwrap()),
        ("/x: has 2 bytes", &|| std::fs::write(&file, b"xx").unwrap()),
        ("/x: is missing", &|| std::fs::remove_file(&file).unwrap()),
        ("/x: is of another type", &|| {
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
        }),
        ("/x: has the mode 644", &|| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("/new: was not there", &|| std::fs::write(layer.join("new"), b"").unwrap()),
    ];
    // A container uses the image all the while.
    node.service.prepare("c", &id).await.unwrap();
    for (expect, damage) in damages {
        assert_eq!(node.service.verify(&name).await.unwrap().unwrap(), [], "before {expect}");
        damage();
        let damaged = node.service.verify(&name).await.unwrap().unwrap();
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert!(damaged[0].differences.iter().any(|d| d.contains(expect)), "{damaged:?}");
        node.service.pull(&name, None).await.unwrap();
    }
    assert_eq!(node.service.verify(&name).await.unwrap().unwrap(), []);
    assert!(node.service.verify("unknown").await.unwrap().is_none());
    node.service.discard("c").await.unwrap();
    node.service.remove(&name).await.unwrap();
    let node = node.restart().await;
    node.assert_empty();
}
