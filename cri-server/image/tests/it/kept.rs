//! What is left of a pull that did not succeed, for the next one, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use image::ErrorKind;

use super::build::{Image, Layer, digest};
use super::faulty::{Faulty, Reply, Request, honest};
use super::node::{Node, names};

/// Bytes that do not compress, other ones for each seed.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    use sha2::Digest as _;
    let block = |at: usize| sha2::Sha256::digest([&[seed], at.to_le_bytes().as_slice()].concat());
    (0..length / 32).flat_map(block).collect()
}

/// Ten layers, each alone too small to be kept in part.
fn many_layers() -> Image {
    let layer = |seed| Layer::new().file(&format!("f{seed}"), 0o644, &noise(seed, 320_000)).gzip();
    Image::new((0..10).map(layer).collect())
}

/// Serves until `open` is false; from the first answer on that goes over `limit` bytes of blobs,
/// every connection breaks.
fn until_cut(
    image: &Image,
    limit: u64,
    mended: &Arc<AtomicBool>,
) -> impl Fn(&Request) -> Option<Reply> + Send + Sync + use<> {
    let (image, mended, passed) = (image.clone(), Arc::clone(mended), AtomicU64::new(0));
    move |request| {
        let mut reply = honest(&image, request);
        if mended.load(Ordering::SeqCst) || !request.target.contains("/blobs/") {
            return Some(reply);
        }
        let before = passed.fetch_add(reply.body.len() as u64, Ordering::SeqCst);
        if before >= limit {
            reply.hang_up = true;
        } else if before + reply.body.len() as u64 > limit {
            reply.length = Some(reply.body.len());
            reply.cut = Some(usize::try_from(limit - before).unwrap());
        }
        Some(reply)
    }
}

#[tokio::test]
async fn layers_that_were_whole_when_the_registry_went_away_are_not_fetched_again() {
    for restarted in [false, true] {
        let image = many_layers();
        let whole: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
        let mended = Arc::new(AtomicBool::new(false));
        let rule = until_cut(&image, whole as u64 * 9 / 10, &mended);
        let (faulty, mut node) = (Faulty::start(image.clone(), rule).await, Node::new().await);
        let name = faulty.name("app:v");
        let error = node.service.pull(&name, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        if restarted {
            node = node.restart().await;
        }
        *faulty.sent.lock().unwrap() = 0;
        mended.store(true, Ordering::SeqCst);
        let id = node.service.pull(&name, None).await.unwrap();
        // The layer that was cut is smaller than what is kept in part.
        let sent = usize::try_from(*faulty.sent.lock().unwrap()).unwrap();
        assert!(sent < whole * 22 / 100, "{sent} bytes again of {whole}");
        node.service.remove(id.as_str()).await.unwrap();
        node.assert_empty();
    }
}

#[tokio::test]
async fn nothing_of_the_download_is_left_once_the_image_is_there() {
    let image = many_layers();
    let (faulty, node) = (Faulty::start(image, |_| None).await, Node::new().await);
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
    assert_eq!(names(&node.root().join("content/ingest")), [""; 0]);
}

#[tokio::test]
async fn a_download_nobody_comes_back_for_goes_in_time() {
    let node = Node::with(|config| config.partial_age_max = Duration::from_secs(1)).await;
    let ingest = node.root().join("content/ingest");
    let (old, importing) = (digest(b"x").replace("sha256:", ""), ".new-spool");
    std::fs::write(ingest.join(&old), vec![0; 5 << 20]).unwrap();
    std::fs::create_dir(ingest.join(importing)).unwrap();
    assert!(ingest.join(&old).exists(), "young");
    tokio::time::timeout(Duration::from_secs(20), async {
        while ingest.join(&old).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it goes");
    assert!(ingest.join(importing).exists(), "an import under way is somebody's");
}
