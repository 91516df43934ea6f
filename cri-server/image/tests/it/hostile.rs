//! Layers made to do harm: each is refused or contained, and nothing outside its directory changes.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use image::ErrorKind;

use super::build::{Blob, Image, Layer};
use super::node::Node;

/// Files that no archive may touch, and their state before.
struct Canary {
    directory: tempfile::TempDir,
}

impl Canary {
    fn new() -> Canary {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "alive").unwrap();
        std::fs::create_dir(directory.path().join("dir")).unwrap();
        Canary { directory }
    }

    fn path(&self) -> String {
        self.directory.path().to_string_lossy().into_owned()
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let path = self.directory.path();
        let names = super::node::names(path);
        assert_eq!(names.len(), 2, "{what} made {names:?}");
        let file = std::fs::metadata(path.join("file")).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "alive", "{what}");
        assert_eq!((file.mode() & 0o7777, file.uid(), file.nlink()), (0o644, 0, 1), "{what}");
        assert!(super::node::names(&path.join("dir")).is_empty(), "{what}");
    }
}

async fn import(node: &Node, layers: Vec<Layer>) -> Result<image::Imported, image::Error> {
    let layers: Vec<Blob> = layers.into_iter().map(Layer::plain).collect();
    let archive = Image::new(layers).docker_save(&["hostile:v"]);
    Ok(node.service.import(archive.as_slice(), None).await?.remove(0))
}

fn special(kind: tar::EntryType, major: u32, minor: u32) -> tar::Header {
    let mut header = Layer::header(kind, 0o666, 0);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header
}

/// Refused outright: the layer has no honest meaning.
#[tokio::test]
async fn archives_without_an_honest_meaning_are_refused() {
    let canary = Canary::new();
    let out = canary.path();
    let up = "../".repeat(30);
    let mut huge_uid = Layer::header(tar::EntryType::Regular, 0o644, 0);
    huge_uid.as_mut_bytes()[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
    let mut odd = Layer::header(tar::EntryType::new(b'Z'), 0o644, 0);
    odd.set_cksum();
    let sparse = |map: &[u8]| {
        Layer::new()
            .pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", b"100")])
            .file("s", 0o644, b"abc")
    };
    let cases: Vec<(&str, Layer)> = vec![
        ("a name with ..", Layer::new().file("../file", 0o644, b"x")),
        ("many ..", Layer::new().file(&format!("{up}{out}/x"), 0o644, b"x")),
        (".. in the middle", Layer::new().file("a/../../file", 0o644, b"x")),
        ("hard link out", Layer::new().hard_link("l", "../../file")),
        ("hard link to nothing", Layer::new().hard_link("l", "nothing")),
        ("hard link to itself", Layer::new().file("a", 0o644, b"").hard_link("a", "./a")),
        ("hard link to a directory", Layer::new().directory("d", 0o755).hard_link("l", "d")),
        ("hard link to the root", Layer::new().hard_link("l", "/")),
        ("hard link to a whiteout", Layer::new().file(".wh.a", 0o644, b"").hard_link("l", "a")),
        ("whiteout of nothing", Layer::new().file(".wh.", 0o644, b"")),
        ("whiteout of .", Layer::new().file(".wh..", 0o644, b"")),
        ("whiteout of ..", Layer::new().file("d/.wh...", 0o644, b"")),
        ("a file as the root", Layer::new().file("./", 0o644, b"x")),
        ("a file as a parent", Layer::new().file("a", 0o644, b"").file("a/b", 0o644, b"")),
        ("a fifo as a parent", {
            Layer::new()
                .entry(special(tar::EntryType::Fifo, 0, 0), "p", b"")
                .file("p/b", 0o644, b"")
        }),
        (
            "links in circles",
            Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, b""),
        ),
        ("too long a component", Layer::new().file(&"n".repeat(300), 0o644, b"")),
        ("too long a name", Layer::new().file(&"n/".repeat(3000), 0o644, b"")),
        ("an owner of 33 bits", Layer::new().entry(huge_uid, "f", b"")),
        ("an unknown type", Layer::new().entry(odd, "f", b"")),
        ("a sparse map that overlaps", sparse(b"0,2,1,1")),
        ("a sparse map beyond the end", sparse(b"0,2,99,1000")),
        ("a sparse map of other data", sparse(b"0,1")),
        ("an empty symbolic link", Layer::new().symlink("l", "")),
        ("extensions without end", {
            let extended = |layer: Layer, _| layer.pax(&[("comment", b"x")]);
            (0..33).fold(Layer::new(), extended).file("f", 0o644, b"")
        }),
    ];
    for (what, layer) in cases {
        let node = Node::new().await;
        let error = import(&node, vec![layer]).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::BadContent, "{what}: {error}");
        canary.check(what);
        node.assert_empty();
    }
}

/// Taken, but everything stays within the layer.
#[tokio::test]
async fn tricks_with_links_stay_within_the_layer() {
    let canary = Canary::new();
    let out = canary.path();
    let under = out.trim_start_matches('/');
    let cases: Vec<(&str, Layer, String)> = vec![
        ("absolute name", Layer::new().file("/abs", 0o644, b"x"), "abs".into()),
        (
            "through an absolute link",
            Layer::new().symlink("l", &out).file("l/dir/x", 0o644, b"x"),
            format!("{under}/dir/x"),
        ),
        (
            "through a relative link",
            Layer::new().symlink("l", "../../../../../../../../tmp").file("l/x", 0o644, b"x"),
            "tmp/x".into(),
        ),
        (
            "through a chain of links",
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "/c")
                .symlink("c", &out)
                .file("a/x", 0o644, b"x"),
            format!("{under}/x"),
        ),
        (
            "over a link",
            Layer::new().symlink("l", &format!("{out}/file")).file("l", 0o644, b"x"),
            "l".into(),
        ),
        (
            "directory over a link",
            Layer::new().symlink("l", &out).directory("l", 0o700).file("l/x", 0o644, b"x"),
            "l/x".into(),
        ),
        (
            "directory replaced by a link",
            Layer::new().file("d/one", 0o644, b"1").symlink("d", &out).file("d/x", 0o644, b"x"),
            format!("{under}/x"),
        ),
        (
            "hard link to a link out",
            Layer::new()
                .symlink("l", &format!("{out}/file"))
                .hard_link("h", "l")
                .file("h", 0o644, b"x"),
            "h".into(),
        ),
        (
            "the same file twice",
            Layer::new().file("f", 0o600, b"longer").file("f", 0o644, b"x"),
            "f".into(),
        ),
    ];
    for (what, layer, expect) in cases {
        let node = Node::new().await;
        let imported = import(&node, vec![layer]).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let snapshot = node.service.prepare("c", &imported.id).await.unwrap();
        let file = snapshot.lowers[0].join(&expect);
        assert!(std::fs::symlink_metadata(&file).is_ok_and(|m| m.is_file()), "{what}: no {file:?}");
        assert_eq!(std::fs::read(&file).unwrap(), b"x", "{what}");
        canary.check(what);
    }
}

#[tokio::test]
async fn lower_layers_do_not_lead_out_either() {
    let canary = Canary::new();
    let out = canary.path();
    // The upper layer's hard link names a file that a link of the lower layer points out to.
    let lower = Layer::new().symlink("l", &out).file("real", 0o644, b"x");
    let upper = Layer::new().hard_link("stolen", "l/file");
    let node = Node::new().await;
    let error = import(&node, vec![lower, upper]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{error}");
    canary.check("hard link through a lower link");
    node.assert_empty();
    let lower = Layer::new().symlink("d", &out);
    let upper = Layer::new().file("d/x", 0o644, b"x");
    import(&node, vec![lower, upper]).await.unwrap();
    canary.check("implicit directory over a lower link");
}

#[tokio::test]
async fn whiteouts_and_duplicates_keep_their_meaning() {
    let node = Node::new().await;
    let layer = Layer::new()
        .file("kept/a", 0o644, b"x")
        .file(".wh.kept", 0o644, b"")
        .file(".wh.again", 0o644, b"")
        .file("again/b", 0o644, b"x")
        .file(".wh.third", 0o644, b"")
        .directory("third", 0o750)
        .file(".wh.f", 0o644, b"")
        .file("f", 0o644, b"x")
        .file(".wh..wh.plnk", 0o644, b"")
        .entry(special(tar::EntryType::Char, 1, 3), "null", b"")
        .entry(special(tar::EntryType::Fifo, 0, 0), "fifo", b"");
    let imported = import(&node, vec![layer]).await.unwrap();
    let top = node.service.prepare("c", &imported.id).await.unwrap().lowers.remove(0);
    let opaque = |name: &str| {
        let mut value = [0; 4];
        rustix::fs::lgetxattr(top.join(name), "trusted.overlay.opaque", &mut value).is_ok()
    };
    assert!(opaque("kept") && opaque("again") && opaque("third"));
    assert_eq!(std::fs::read(top.join("again/b")).unwrap(), b"x");
    assert_eq!(std::fs::read(top.join("f")).unwrap(), b"x");
    assert_eq!(std::fs::metadata(top.join("third")).unwrap().mode() & 0o777, 0o750);
    let null = std::fs::metadata(top.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o777), (0x103, 0o666));
    assert!(std::fs::metadata(top.join("fifo")).unwrap().file_type().is_fifo());
    assert!(!top.join(".wh..wh.plnk").exists());
}

#[tokio::test]
async fn sparse_files_of_every_form_keep_their_holes() {
    let node = Node::new().await;
    let size = b"1000000";
    let mut map = b"1\n999997\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"end");
    let layer = Layer::new()
        .pax(&[("GNU.sparse.map", b"999997,3"), ("GNU.sparse.size", size)])
        .file("zero-one", 0o644, b"end")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one-zero"),
            ("GNU.sparse.realsize", size),
        ])
        .file("GNUSparseFile.0/one-zero", 0o644, &map)
        .entry(
            {
                let mut header = Layer::header(tar::EntryType::GNUSparse, 0o644, 3);
                let bytes = header.as_mut_bytes();
                bytes[386..398].copy_from_slice(b"00003641075\0"); // 999997
                bytes[398..410].copy_from_slice(b"00000000003\0");
                bytes[483..495].copy_from_slice(b"00003641100\0"); // 1000000
                header
            },
            "old",
            b"end",
        );
    let imported = import(&node, vec![layer]).await.unwrap();
    let top = node.service.prepare("c", &imported.id).await.unwrap().lowers.remove(0);
    for name in ["zero-one", "one-zero", "old"] {
        let bytes = std::fs::read(top.join(name)).unwrap();
        assert_eq!((bytes.len(), &bytes[999_997..]), (1_000_000, b"end".as_slice()), "{name}");
        let blocks = std::fs::metadata(top.join(name)).unwrap().blocks();
        assert!(blocks * 512 < 100_000, "{name} takes {blocks} blocks");
    }
}

#[tokio::test]
async fn bombs_stop_at_the_limits() {
    let limited = || {
        Node::with(|config| {
            config.limits.layer_bytes = 1_000_000;
            config.limits.layer_entries = 100;
        })
    };
    let node = limited().await;
    let many = (0..101).fold(Layer::new(), |l, n| l.file(&n.to_string(), 0o644, b""));
    let error = import(&node, vec![many]).await.unwrap_err();
    assert!(error.to_string().contains("more than 100 entries"), "{error}");
    let zeros = Layer::new().file("z", 0o644, &vec![0; 2_000_000]);
    let error = import(&node, vec![zeros]).await.unwrap_err();
    assert!(error.to_string().contains("1000000 bytes"), "{error}");
    let hole = Layer::new()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"99999999999999")])
        .file("hole", 0o644, b"x");
    let error = import(&node, vec![hole]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{error}");
    // Zeros that inflate a thousandfold after the archive's end count as well.
    let mut plain = Layer::new().file("a", 0o644, b"").tar();
    plain.resize(3_000_000, 0);
    let error = node
        .service
        .import(
            Image::new(vec![Blob { bytes: plain.clone(), plain, media_type: super::build::PLAIN }])
                .docker_save(&["x"])
                .as_slice(),
            None,
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{error}");
    node.assert_empty();
}

/// Pulls a layer of so many empty files, most of which are beyond the limit.
pub(crate) async fn beyond_the_limit(entries: u64, node: &Node) {
    let mut archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = Layer::header(tar::EntryType::Regular, 0o644, 0);
    for number in 0..entries {
        // A thousand in each directory.
        let name = format!("{}/{number}", number / 1000);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.write_all(header.as_bytes()).unwrap();
    }
    let bytes = archive.finish().unwrap();
    let image = Image::new(vec![Blob { bytes, plain: Vec::new(), media_type: super::build::GZIP }]);
    let registry = super::faulty::Faulty::start(image, |_| None).await;
    let error = node.service.pull(&registry.name("bomb:v"), None).await.unwrap_err();
    let limit = node.config.limits.layer_entries;
    assert!(error.to_string().contains(&format!("more than {limit} entries")), "{error}");
}

#[tokio::test]
async fn an_archive_of_very_many_entries_is_refused_at_the_limit() {
    let node = Node::with(|config| config.limits.layer_entries = 5_000).await;
    beyond_the_limit(50_000, &node).await;
    node.assert_empty();
}

#[tokio::test]
async fn trees_deeper_than_any_path_are_removed_too() {
    let node = Node::new().await;
    let mut layer = Layer::new();
    let step = "d/".repeat(40);
    // Each link leads to the deepest directory so far, so the next name begins there.
    let mut at = String::new();
    for n in 0..40 {
        let link = format!("l{n}");
        let deep = format!("{at}{step}");
        layer = layer.file(&format!("{deep}f"), 0o644, b"").symlink(&link, &deep);
        at = format!("{link}/");
    }
    let began = Instant::now();
    match import(&node, vec![layer]).await {
        Ok(imported) => node.service.remove(imported.id.as_str()).await.unwrap(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::BadContent, "{error}"),
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    node.assert_empty();
}

#[tokio::test]
async fn accounts_of_hostile_images_give_an_error_or_nothing_of_the_host() {
    let fifo = || special(tar::EntryType::Fifo, 0, 0);
    let zero = || special(tar::EntryType::Char, 1, 5);
    let big = vec![b'x'; (1 << 20) + 1];
    let cases: Vec<(&str, Layer, bool)> = vec![
        ("no file", Layer::new().file("x", 0o644, b""), true),
        ("link to the host", Layer::new().symlink("etc/passwd", "/etc/shadow"), true),
        ("link up", Layer::new().symlink("etc/passwd", "../../../../../etc/hostname"), true),
        ("proc", Layer::new().symlink("etc/passwd", "/proc/mounts"), true),
        ("fifo", Layer::new().entry(fifo(), "etc/passwd", b""), false),
        ("device", Layer::new().entry(zero(), "etc/passwd", b""), false),
        ("directory", Layer::new().directory("etc/passwd", 0o755), false),
        ("circle", Layer::new().symlink("etc/passwd", "passwd"), false),
        ("huge", Layer::new().file("etc/group", 0o644, &big), false),
        (
            "huge hole",
            Layer::new()
                .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"10000000000")])
                .file("etc/group", 0o644, b"x"),
            false,
        ),
        ("noise", Layer::new().file("etc/passwd", 0o644, &[0xff; 5000]), true),
        (
            "link within",
            { Layer::new().symlink("etc", "/other").file("other/passwd", 0o644, b"a:x:5:6::/:\n") },
            true,
        ),
    ];
    for (what, layer, good) in cases {
        let node = Node::new().await;
        let imported = import(&node, vec![layer]).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let began = Instant::now();
        let result = node.service.accounts(&imported.id);
        assert!(began.elapsed() < Duration::from_secs(1), "{what}");
        assert_eq!(result.is_ok(), good, "{what}: {result:?}");
        if let Ok(accounts) = result {
            let names: Vec<&str> = accounts.users.iter().map(|user| user.name.as_str()).collect();
            let expect: &[&str] = if what == "link within" { &["a"] } else { &[] };
            assert_eq!(names, expect, "{what}");
        }
    }
}

#[tokio::test]
async fn accounts_follow_whiteouts_and_upper_layers() {
    let node = Node::new().await;
    let base = || {
        Layer::new().file("etc/passwd", 0o644, b"old:x:1:1::/:\n").file(
            "etc/group",
            0o644,
            b"old:x:1:\n",
        )
    };
    let upper = Layer::new().file("etc/passwd", 0o644, b"new:x:2:2::/:\n").file(
        "etc/.wh.group",
        0o644,
        b"",
    );
    let imported = import(&node, vec![base(), upper]).await.unwrap();
    let accounts = node.service.accounts(&imported.id).unwrap();
    assert_eq!(accounts.user_named("new").map(|u| u.uid), Some(2));
    assert!(accounts.user_named("old").is_none() && accounts.groups.is_empty());
    let opaque = Layer::new().file("etc/.wh..wh..opq", 0o644, b"");
    let imported = import(&node, vec![base(), opaque]).await.unwrap();
    assert_eq!(*node.service.accounts(&imported.id).unwrap(), image::Accounts::default());
}

#[tokio::test]
async fn container_ids_cannot_leave_their_directory() {
    let node = Node::new().await;
    let imported = import(&node, vec![Layer::new().file("x", 0o644, b"")]).await.unwrap();
    for bad in ["", ".", "..", "../x", "a/b", "a\0b", &"x".repeat(300)] {
        assert!(node.service.prepare(bad, &imported.id).await.is_err(), "{bad:?}");
        assert!(node.service.discard(bad).await.is_err(), "{bad:?}");
    }
    // A foreign link in the container's place is not followed.
    let outside = tempfile::tempdir().unwrap();
    let place = node.root().join("containers/c");
    symlink(outside.path(), &place).unwrap();
    node.service.discard("c").await.unwrap();
    assert!(!Path::new(&place).exists() && outside.path().exists());
}
