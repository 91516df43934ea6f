//! Registries that fail, lie, stall or send elsewhere: each time the right error with the endpoint
//! in it, no secret in any text, and nothing left on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use image::{Auth, Error, ErrorKind};

use super::build::{Image, Layer};
use super::faulty::{Faulty, Reply, Request, honest};
use super::node::Node;

/// Bytes that do not compress, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn small() -> Image {
    Image::new(vec![Layer::new().file("a", 0o644, &noise(200_000)).gzip()])
}

async fn fails(
    image: &Image,
    rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Error, Faulty) {
    let (faulty, node) = (Faulty::start(image.clone(), rule).await, Node::new().await);
    let error = node.service.pull(&faulty.name("app:v"), None).await.unwrap_err();
    node.assert_empty();
    (error, faulty)
}

#[track_caller]
fn check(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert_eq!(
        kind == ErrorKind::RegistryUnavailable,
        text.starts_with("RegistryUnavailable: "),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_image_is_not_found_and_the_endpoint_is_named() {
    let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let rule = |r: &Request| r.target.contains("/manifests/").then(|| Reply::new(404, body));
    let (error, faulty) = fails(&small(), rule).await;
    check(&error, ErrorKind::NotFound, &["app:v", &faulty.address, "404"]);
}

#[tokio::test]
async fn nobody_there_and_no_such_host_are_told_apart() {
    let node = Node::new().await;
    let error = node.service.pull("127.0.0.1:1/app", None).await.unwrap_err();
    check(&error, ErrorKind::RegistryUnavailable, &["Connection refused", "http://127.0.0.1:1/v2"]);
    let error = node.service.pull("no-such-host.invalid/app", None).await.unwrap_err();
    check(&error, ErrorKind::RegistryUnavailable, &["no-such-host.invalid"]);
    assert!(error.to_string().contains("dns") || error.to_string().contains("resolve"), "{error}");
    node.assert_empty();
}

#[tokio::test]
async fn references_that_are_none_are_refused_without_asking_anybody() {
    let node = Node::new().await;
    for bad in ["", "Bad Name", "a@sha256:12", "../x"] {
        let error = node.service.pull(bad, None).await.unwrap_err();
        check(&error, ErrorKind::InvalidReference, &[]);
    }
}

#[tokio::test]
async fn a_layer_with_other_bytes_than_promised_is_refused() {
    let image = small();
    let mut other = image.layers[0].bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let this = image.clone();
    let rule = move |r: &Request| r.is_blob(&this, 0).then(|| Reply::new(200, &other));
    let (error, _) = fails(&image, rule).await;
    check(&error, ErrorKind::Verification, &["layer sha256:", "digest"]);
}

#[tokio::test]
async fn layers_that_end_early_or_late_are_refused() {
    let image = small();
    let this = image.clone();
    let short = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) {
            // A good answer of a bad length: everything but the end, whatever was asked.
            reply = Reply::new(200, &this.layers[0].bytes[..1000]);
        }
        Some(reply)
    };
    let (error, _) = fails(&image, short).await;
    check(&error, ErrorKind::Verification, &["1000 bytes", "promised"]);
    let this = image.clone();
    let long = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) {
            reply.body.extend_from_slice(b"more");
        }
        Some(reply)
    };
    let (error, _) = fails(&image, long).await;
    check(&error, ErrorKind::Verification, &["more than"]);
}

#[tokio::test]
async fn a_layer_that_is_no_archive_or_another_one_is_refused() {
    let mut image = small();
    image.layers[0].bytes = super::build::gzip(&noise(5000));
    let (error, _) = fails(&image, |_| None).await;
    check(&error, ErrorKind::BadContent, &["malformed archive"]);
    let mut image = small();
    image.layers[0].bytes = noise(5000);
    image.layers[0].bytes[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
    let (error, _) = fails(&image, |_| None).await;
    check(&error, ErrorKind::BadContent, &["inflated"]);
    let mut image = small();
    image.layers[0].bytes = Layer::new().file("b", 0o644, b"").gzip().bytes;
    let (error, _) = fails(&image, |_| None).await;
    check(&error, ErrorKind::Verification, &["image configuration says"]);
}

#[tokio::test]
async fn a_broken_connection_is_continued_where_it_broke() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &noise(3_000_000)).gzip()]);
    let this = image.clone();
    let cuts = AtomicUsize::new(0);
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) && cuts.fetch_add(1, Ordering::SeqCst) < 3 {
            reply.length = Some(reply.body.len());
            reply.cut = Some(reply.body.len() / 2);
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(image.clone(), rule).await, Node::new().await);
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
    let sent = *faulty.sent.lock().unwrap();
    let whole = image.layers[0].bytes.len() as u64;
    assert!(sent < whole * 112 / 100, "{sent} of {whole}");
    assert_eq!(faulty.count("/blobs/") - 1, 4);
}

#[tokio::test]
async fn a_server_that_cannot_continue_sends_all_again_and_it_still_fits() {
    let image = small();
    let this = image.clone();
    let tries = AtomicUsize::new(0);
    let rule = move |r: &Request| {
        let blob = &this.layers[0].bytes;
        r.is_blob(&this, 0).then(|| {
            let mut reply = Reply::new(200, blob);
            if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                (reply.length, reply.cut) = (Some(blob.len()), Some(blob.len() / 2));
            }
            reply
        })
    };
    let (faulty, node) = (Faulty::start(image, rule).await, Node::new().await);
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
}

#[tokio::test]
async fn a_partial_download_survives_a_restart_and_a_bad_one_is_healed() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &noise(6_000_000)).gzip()]);
    let blob = &image.layers[0].bytes;
    let hex = super::build::digest(blob).replace("sha256:", "");
    let have = 5_000_000;
    for damaged in [false, true] {
        let (faulty, node) = (Faulty::start(image.clone(), |_| None).await, Node::new().await);
        let mut partial = blob[..have].to_vec();
        partial[1000] ^= u8::from(damaged);
        std::fs::write(node.root().join("content/ingest").join(&hex), partial).unwrap();
        let node = node.restart().await;
        node.service.pull(&faulty.name("app:v"), None).await.unwrap();
        let sent = usize::try_from(*faulty.sent.lock().unwrap()).unwrap();
        if damaged {
            assert!(sent > blob.len(), "{sent}");
        } else {
            assert!(sent < blob.len() - have + 10_000, "{sent}");
        }
        node.service.remove(&image.id()).await.unwrap();
        node.assert_empty();
    }
}

#[tokio::test]
async fn a_download_that_breaks_for_good_is_kept_for_the_next_pull() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &noise(6_000_000)).gzip()]);
    let this = image.clone();
    let healthy = Arc::new(AtomicUsize::new(0));
    let health = Arc::clone(&healthy);
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) && health.load(Ordering::SeqCst) == 0 {
            let start = this.layers[0].bytes.len() - reply.body.len();
            reply.length = Some(reply.body.len());
            reply.cut = Some((this.layers[0].bytes.len() * 9 / 10).saturating_sub(start));
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(image.clone(), rule).await, Node::new().await);
    let error = node.service.pull(&faulty.name("app:v"), None).await.unwrap_err();
    let whole = image.layers[0].bytes.len();
    check(
        &error,
        ErrorKind::RegistryUnavailable,
        &[&(whole * 9 / 10).to_string(), &faulty.address],
    );
    let node = node.restart().await;
    *faulty.sent.lock().unwrap() = 0;
    healthy.store(1, Ordering::SeqCst);
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
    let sent = usize::try_from(*faulty.sent.lock().unwrap()).unwrap();
    assert!(sent < whole * 12 / 100, "{sent} bytes again of {whole}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let image = small();
    let past = "Wed, 21 Oct 2015 07:28:00 GMT";
    for (status, when) in [(429, "0"), (503, "0"), (503, past)] {
        let tries = AtomicUsize::new(0);
        let rule = move |r: &Request| {
            (r.target.contains("/blobs/") && tries.fetch_add(1, Ordering::SeqCst) < 2)
                .then(|| Reply::new(status, b"").with("retry-after", when))
        };
        let (faulty, node) = (Faulty::start(image.clone(), rule).await, Node::new().await);
        node.service.pull(&faulty.name("app:v"), None).await.unwrap();
    }
    let busy = |_: &Request| Some(Reply::new(503, b"").with("retry-after", "0"));
    let (error, faulty) = fails(&image, busy).await;
    check(&error, ErrorKind::RegistryUnavailable, &["503"]);
    assert_eq!(faulty.seen.lock().unwrap().len(), 5, "tries are bounded");
    for much_later in ["3600", "Fri, 31 Dec 2077 23:59:59 GMT"] {
        let later = move |_: &Request| Some(Reply::new(429, b"").with("retry-after", much_later));
        let (error, faulty) = fails(&image, later).await;
        check(&error, ErrorKind::RegistryUnavailable, &["429"]);
        assert_eq!(faulty.seen.lock().unwrap().len(), 1, "nobody waits for {much_later}");
    }
}

#[tokio::test]
async fn pages_and_obsolete_or_huge_manifests_are_refused_by_name() {
    let answer = |kind: &'static str, body: Vec<u8>| {
        move |r: &Request| {
            let get = r.target.contains("/manifests/");
            get.then(|| Reply::new(200, &body).with("content-type", kind))
        }
    };
    let (error, _) = fails(&small(), answer("text/html", b"<html>login</html>".to_vec())).await;
    check(&error, ErrorKind::Unsupported, &["HTML"]);
    let schema1 = br#"{"schemaVersion":1,"name":"x"}"#.to_vec();
    let (error, _) = fails(&small(), answer("application/json", schema1)).await;
    check(&error, ErrorKind::Unsupported, &["schema 1", "push the image again"]);
    let (error, _) = fails(&small(), answer("application/json", vec![b' '; 5 << 20])).await;
    check(&error, ErrorKind::Unsupported, &["larger than"]);
    let foreign = br#"{"manifests":[{"digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size":2,"platform":{"os":"plan9","architecture":"mips"}}]}"#;
    let (error, _) = fails(&small(), answer("application/json", foreign.to_vec())).await;
    check(&error, ErrorKind::Unsupported, &["plan9/mips"]);
}

#[tokio::test]
async fn a_manifest_that_lies_about_its_digest_is_refused() {
    let rule = |r: &Request| {
        let mut reply = honest(&small(), r);
        if r.target.contains("/manifests/") {
            reply.body.push(b' ');
        }
        Some(reply)
    };
    let (error, _) = fails(&small(), rule).await;
    check(&error, ErrorKind::Verification, &["digest"]);
}

#[tokio::test]
async fn a_trickling_server_is_cut_at_the_floor() {
    let image = small();
    let this = image.clone();
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) {
            reply.trickle = Some((1000, Duration::from_millis(20)));
        }
        Some(reply)
    };
    let faulty = Faulty::start(image, rule).await;
    let node = Node::with(|config| {
        config.progress_timeout = Duration::from_secs(1);
        config.progress_floor = 4096;
    })
    .await;
    let began = Instant::now();
    let error = node.service.pull(&faulty.name("app:v"), None).await.unwrap_err();
    check(&error, ErrorKind::RegistryUnavailable, &["within 1 s", &faulty.address]);
    assert!(began.elapsed() < Duration::from_millis(1800), "{:?}", began.elapsed());
    node.assert_empty();
}

#[tokio::test]
async fn a_dropped_pull_stops_at_once_and_leaves_nothing() {
    let image = small();
    let this = image.clone();
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) {
            reply.trickle = Some((100_000, Duration::from_secs(3600)));
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(image, rule).await, Node::new().await);
    let name = faulty.name("app:v");
    for wait in [1, 50, 300] {
        let pull = node.service.pull(&name, None);
        assert!(tokio::time::timeout(Duration::from_millis(wait), pull).await.is_err());
        tokio::time::timeout(Duration::from_secs(1), async {
            while !node.files().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("still there: {:?}", node.files()));
        node.assert_empty();
    }
}

#[tokio::test]
async fn a_mirror_that_fails_is_followed_by_the_next() {
    let image = small();
    let good = Faulty::start(image.clone(), |_| None).await;
    let bad = Faulty::start(image.clone(), |_| Some(Reply::new(404, b""))).await;
    let node = Node::new().await;
    node.hosts(
        "r.example",
        &format!(
            "server = 'http://127.0.0.1:1'\n[host.'http://127.0.0.1:2']\n\
             [host.'http://{}']\n[host.'http://{}']\n",
            bad.address, good.address
        ),
    );
    node.service.pull("r.example/app:v", None).await.unwrap();
    assert!(good.seen.lock().unwrap().iter().all(|r| r.target.contains("ns=r.example")));
    // The file is read again at the next pull.
    node.hosts("r.example", &format!("server = 'http://{}'", bad.address));
    let error = node.service.pull("r.example/app:v", None).await.unwrap_err();
    check(&error, ErrorKind::NotFound, &[&bad.address]);
    node.hosts("r.example", "server = [");
    let error = node.service.pull("r.example/app:v", None).await.unwrap_err();
    check(&error, ErrorKind::Configuration, &["r.example/hosts.toml"]);
}

fn auth(user: &str, password: &str) -> Auth {
    Auth { username: user.into(), password: password.into(), ..Auth::default() }
}

const SECRET: &str = "canary-5e11";

#[tokio::test]
async fn basic_credentials_open_the_door_and_wrong_ones_are_not_repeated_in_errors() {
    let right = format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("u:{SECRET}"))
    );
    let rule = move |r: &Request| {
        (r.header("authorization") != right)
            .then(|| Reply::new(401, b"").with("www-authenticate", "Basic realm=\"x\""))
    };
    let (faulty, node) = (Faulty::start(small(), rule).await, Node::new().await);
    let name = faulty.name("app:v");
    let none = node.service.pull(&name, None).await.unwrap_err();
    check(&none, ErrorKind::Unauthorized, &["user and password", &faulty.address]);
    let wrong = format!("{SECRET}-wrong");
    let error = node.service.pull(&name, Some(auth("u", &wrong))).await.unwrap_err();
    check(&error, ErrorKind::Unauthorized, &["401"]);
    assert!(!format!("{error} {error:?}").contains(SECRET));
    let mut other = auth("u", SECRET);
    other.server_address = "elsewhere.example".into();
    let error = node.service.pull(&name, Some(other)).await.unwrap_err();
    check(&error, ErrorKind::Unauthorized, &["none are given"]);
    node.service.pull(&name, Some(auth("u", SECRET))).await.unwrap();
}

/// A registry that wants tokens, and its token server on the same port.
async fn with_tokens(valid_for: usize) -> Faulty {
    let issued = AtomicUsize::new(0);
    let used = AtomicUsize::new(0);
    let rule = move |r: &Request| {
        if r.target.starts_with("/token") {
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("u:{SECRET}"));
            let good = r.header("authorization") == format!("Basic {basic}")
                || r.body.contains(&format!("refresh_token={SECRET}"));
            let asked = format!("{}{}", r.target, r.body);
            let scoped = asked.contains("scope=repository%3Aapp%3Apull")
                && asked.contains("service=the+registry");
            if !good || !scoped {
                return Some(Reply::new(401, br#"{"errors":[{"code":"DENIED","message":"no"}]}"#));
            }
            used.store(0, Ordering::SeqCst);
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            let key = if r.method == "POST" { "access_token" } else { "token" };
            return Some(Reply::new(200, format!(r#"{{"{key}":"t{number}"}}"#).as_bytes()));
        }
        let good = r.header("authorization")
            == format!("Bearer t{}", issued.load(Ordering::SeqCst))
            || r.header("authorization") == "Bearer direct";
        if good && used.fetch_add(1, Ordering::SeqCst) < valid_for {
            return None;
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"the registry\",scope=\"repository:app:pull\"",
            r.header("host")
        );
        Some(Reply::new(401, b"").with("www-authenticate", &challenge))
    };
    Faulty::start(small(), rule).await
}

#[tokio::test]
async fn tokens_are_fetched_and_renewed_when_they_expire_in_the_middle() {
    for valid_for in [100, 1] {
        let (faulty, node) = (with_tokens(valid_for).await, Node::new().await);
        node.service.pull(&faulty.name("app:v"), Some(auth("u", SECRET))).await.unwrap();
        let expect = if valid_for == 1 { 4 } else { 1 };
        assert_eq!(faulty.count("/token"), expect);
    }
}

#[tokio::test]
async fn identity_and_registry_tokens_work() {
    let (faulty, node) = (with_tokens(100).await, Node::new().await);
    let identity = Auth { identity_token: SECRET.into(), ..Auth::default() };
    node.service.pull(&faulty.name("app:v"), Some(identity)).await.unwrap();
    assert!(
        faulty.seen.lock().unwrap().iter().any(|r| r.body.contains("grant_type=refresh_token"))
    );
    let node = Node::new().await;
    let token = Auth { registry_token: "direct".into(), ..Auth::default() };
    node.service.pull(&faulty.name("app:v"), Some(token)).await.unwrap();
    let error = Node::new().await.service.pull(&faulty.name("app:v"), Some(auth("u", "no"))).await;
    check(&error.unwrap_err(), ErrorKind::Unauthorized, &["/token", "401", "DENIED"]);
}

#[tokio::test]
async fn credentials_are_not_sent_in_the_clear_to_a_stranger() {
    let rule = |r: &Request| {
        let stranger = "Bearer realm=\"http://token.example/t?x=canary-5e11\"";
        (!r.target.is_empty()).then(|| Reply::new(401, b"").with("www-authenticate", stranger))
    };
    let (faulty, node) = (Faulty::start(small(), rule).await, Node::new().await);
    let name = faulty.name("app:v");
    let error = node.service.pull(&name, Some(auth("u", SECRET))).await.unwrap_err();
    check(&error, ErrorKind::Unauthorized, &["unencrypted", "token.example"]);
    assert!(!error.to_string().contains(SECRET), "{error}");
}

#[tokio::test]
async fn authorization_does_not_follow_a_redirect_to_another_host() {
    let image = small();
    let storage = Faulty::start(image.clone(), |_| None).await;
    let target = storage.address.clone();
    let rule = move |r: &Request| {
        if r.header("authorization").is_empty() {
            return Some(Reply::new(401, b"").with("www-authenticate", "Basic realm=\"x\""));
        }
        r.target.contains("/blobs/").then(|| {
            let location = format!("http://{target}{}?signature={SECRET}", r.target);
            Reply::new(307, b"").with("location", &location)
        })
    };
    let (faulty, node) = (Faulty::start(image, rule).await, Node::new().await);
    node.service.pull(&faulty.name("app:v"), Some(auth("u", SECRET))).await.unwrap();
    let seen = storage.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|r| r.header("authorization").is_empty()), "{seen:?}");
}

#[tokio::test]
async fn signed_addresses_and_loops_stay_out_of_errors() {
    let rule = |r: &Request| {
        r.target.contains("/blobs/").then(|| {
            Reply::new(307, b"").with("location", &format!("http://127.0.0.1:1/x?s={SECRET}"))
        })
    };
    let (error, _) = fails(&small(), rule).await;
    check(&error, ErrorKind::RegistryUnavailable, &["http://127.0.0.1:1/x"]);
    assert!(!format!("{error} {error:?}").contains(SECRET));
    let circle = |r: &Request| Some(Reply::new(302, b"").with("location", &r.target));
    let (error, _) = fails(&small(), circle).await;
    check(&error, ErrorKind::RegistryUnavailable, &["circles"]);
}

#[tokio::test]
async fn twenty_pulls_of_one_image_send_it_once() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &noise(2_000_000)).gzip()]);
    let (faulty, node) = (Faulty::start(image.clone(), |_| None).await, Node::new().await);
    let names: Vec<String> = (0..20).map(|n| faulty.name(&format!("app{}:v", n % 4))).collect();
    let pulls = names.iter().map(|name| node.service.pull(name, None));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    let sent = *faulty.sent.lock().unwrap();
    let whole = (image.layers[0].bytes.len() + 10_000) as u64;
    assert!(sent <= whole * 102 / 100, "{sent} of {whole}");
}

#[tokio::test]
async fn a_layer_on_different_parents_is_downloaded_once_for_all_images() {
    let big = Layer::new().file("big", 0o644, &noise(3_000_000)).gzip();
    let on = |name: &str| {
        let base = Layer::new().file(name, 0o644, name.as_bytes()).gzip();
        Image::new(vec![base, big.clone()])
    };
    let images = ["one", "two", "three"].map(on);
    let served = images.clone();
    let rule = move |r: &Request| {
        // Each name has its own image; the blobs are everybody's.
        let of = |image: &Image, name: &str| {
            r.target.contains(&format!("/{name}/")).then(|| honest(image, r))
        };
        let mut reply = ["one", "two", "three"].iter().zip(&served).find_map(|(n, i)| of(i, n))?;
        if r.is_blob(&served[0], 1) {
            reply.trickle = Some((reply.body.len() - 20, Duration::from_millis(10)));
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(images[0].clone(), rule).await, Node::new().await);
    let names = ["one", "two", "three"].map(|name| faulty.name(&format!("{name}:v")));
    let pulls = names.iter().map(|name| node.service.pull(name, None));
    for (result, image) in futures::future::join_all(pulls).await.into_iter().zip(&images) {
        assert_eq!(result.unwrap().as_str(), image.id());
    }
    let digest = super::build::digest(&big.bytes);
    assert_eq!(faulty.count(&digest), 1, "one request for the shared blob");
    assert!(*faulty.sent.lock().unwrap() < big.bytes.len() as u64 * 102 / 100 + 10_000);
}

#[tokio::test]
async fn closing_keeps_what_has_arrived_for_the_next_start() {
    let image = Image::new(vec![Layer::new().file("a", 0o644, &noise(8_000_000)).gzip()]);
    let whole = image.layers[0].bytes.len();
    let this = image.clone();
    let stalled = Arc::new(AtomicUsize::new(1));
    let stall = Arc::clone(&stalled);
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) && stall.load(Ordering::SeqCst) == 1 {
            reply.trickle = Some((whole * 9 / 10, Duration::from_secs(3600)));
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(image, rule).await, Node::new().await);
    let name = faulty.name("app:v");
    let pulling = tokio::spawn({
        let (service, name) = (node.service.clone(), name.clone());
        async move { service.pull(&name, None).await }
    });
    let near = |pull: &image::PullProgress| pull.bytes_here >= whole as u64 * 8 / 10;
    while !node.service.pulls().iter().any(near) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let progress = node.service.pulls_of(&name).remove(0);
    assert_eq!((progress.layers, progress.layers_done), (1, 0));
    assert_eq!((progress.bytes, progress.stage), (whole as u64, image::PullStage::Fetching));
    node.service.close().await.unwrap();
    let error = pulling.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(node.service.pulls().is_empty());
    let node = node.restart().await;
    stalled.store(0, Ordering::SeqCst);
    *faulty.sent.lock().unwrap() = 0;
    node.service.pull(&name, None).await.unwrap();
    let sent = usize::try_from(*faulty.sent.lock().unwrap()).unwrap();
    assert!(sent < whole * 21 / 100, "{sent} bytes again of {whole}");
    assert!(node.service.received_bytes() < whole as u64 * 21 / 100);
}

#[tokio::test]
async fn an_idle_connection_that_went_stale_is_replaced() {
    let image = small();
    let drops = AtomicUsize::new(0);
    let this = image.clone();
    let rule = move |r: &Request| {
        let mut reply = honest(&this, r);
        if r.is_blob(&this, 0) && drops.fetch_add(1, Ordering::SeqCst) == 0 {
            reply.hang_up = true;
        }
        Some(reply)
    };
    let (faulty, node) = (Faulty::start(image, rule).await, Node::new().await);
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
}

#[tokio::test]
async fn what_a_pull_would_do_is_explained_without_doing_it() {
    let image = small();
    let good = Faulty::start(image.clone(), |_| None).await;
    let bad = Faulty::start(image, |_| Some(Reply::new(404, b""))).await;
    let node = Node::new().await;
    node.hosts(
        "r.example",
        &format!(
            "server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull']\n",
            good.address, bad.address
        ),
    );
    let explained = node.service.explain("r.example/app:v", Some(auth("u", SECRET))).await.unwrap();
    assert_eq!(explained.len(), 1);
    assert_eq!(explained[0].reference, "r.example/app:v");
    let [mirror, server] = &explained[0].endpoints[..] else { panic!("{explained:?}") };
    assert!(mirror.mirror && !mirror.resolve && mirror.url.contains(&bad.address));
    assert!(mirror.answer.as_ref().unwrap_err().contains("404"), "{mirror:?}");
    assert_eq!(mirror.login, Ok(image::LoginSource::Nobody), "not meant for a mirror");
    assert!(mirror.named_in.as_ref().unwrap().ends_with("r.example/hosts.toml"));
    assert!(!server.mirror && server.insecure);
    assert!(server.answer.as_ref().unwrap().starts_with("sha256:"), "{server:?}");
    assert_eq!(server.login, Ok(image::LoginSource::Caller));
    assert!(!format!("{explained:?}").contains(SECRET));
    node.assert_empty();
}
