//! Registries behind the proxy that the environment names, as people set it for a service.

use image::ErrorKind;

use super::build::{Image, Layer};
use super::child;
use super::faulty::{Faulty, Reply};
use super::node::Node;

/// Tells a child of this process that it is one: its environment names the proxy.
const ERRAND: &str = "IMAGE_PROXY_ERRAND";

const TEST: &str = "proxy::the_environments_proxy_is_asked_except_where_none_is_needed";

#[tokio::test]
async fn the_environments_proxy_is_asked_except_where_none_is_needed() {
    if std::env::var_os(ERRAND).is_some() {
        let node = Node::new().await;
        for host in ["plain.example", "direct.example"] {
            node.hosts(host, &format!("server = \"http://{host}\"\n"));
        }
        node.service.pull("plain.example/app:v", None).await.unwrap();
        for unreachable in ["direct.example/app:v", "secret.example/app:v"] {
            let error = node.service.pull(unreachable, None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{unreachable}: {error}");
        }
        return;
    }
    let image = Image::new(vec![Layer::new().file("x", 0o644, b"x").gzip()]);
    // It answers in a registry's place, and lets no tunnel through.
    let tunnel = |request: &super::faulty::Request| request.method == "CONNECT";
    let proxy = Faulty::start(image, move |it| tunnel(it).then(|| Reply::new(403, b""))).await;
    let address = format!("http://{}", proxy.address);
    let child = move || {
        let proxies = ["HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name, address.as_str()));
        let others = [("NO_PROXY", "direct.example"), (ERRAND, "1")];
        child::passes(TEST, &[proxies, others].concat());
    };
    tokio::task::spawn_blocking(child).await.unwrap();
    let seen = proxy.seen.lock().unwrap();
    let asked = |method: &str, target: &str| {
        seen.iter().any(|it| it.method == method && it.target.starts_with(target))
    };
    assert!(asked("GET", "http://plain.example/v2/app/blobs/"), "{seen:?}");
    assert!(asked("CONNECT", "secret.example:443"), "{seen:?}");
    assert!(!seen.iter().any(|it| it.target.contains("direct.example")), "{seen:?}");
}
