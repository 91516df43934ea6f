//! Two daemons: one shares what it has, the other takes it from there and from nowhere else.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use e2e::registry::Form;
use e2e::{Node, Options, Registry, RegistryAuth, container, image, pod};
use k8s_cri::v1 as cri;
use tonic::Status;

#[tokio::test]
async fn a_node_takes_from_its_neighbour_what_the_registry_no_longer_has() {
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let at = |name: &str| keys.path().join(name).display().to_string();
    let registry = Registry::start(RegistryAuth::Anonymous);
    let digest = registry.push(&image::busybox(), "app", "v", Form::Oci);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let giver = Node::start_with(Options {
        mirrors: vec![("r.example".into(), registry.address.clone())],
        images: "keep_blobs = true".into(),
        config: format!(
            "[images.share]\nlisten = \"{address}\"\ncertificate = \"{}\"\nkey = \"{}\"\n\
             client_ca = \"{}\"\n",
            at("server.crt"),
            at("server.key"),
            at("ca.crt")
        ),
        ..Options::default()
    })
    .await;
    let id = pull(&giver, "r.example/app:v").await.unwrap();
    drop(registry);

    let taker = Node::start().await;
    let hosts = |more: &str| {
        let directory = taker.certs_d().join("r.example");
        fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"https://{address}\"]\n\
             capabilities = [\"pull\"]\nca = \"{}\"\n{more}",
            at("ca.crt")
        );
        fs::write(directory.join("hosts.toml"), text).unwrap();
    };
    // Who has no certificate of the authority gets nothing.
    let by_digest = format!("r.example/app@{digest}");
    hosts("");
    pull(&taker, &by_digest).await.unwrap_err();
    hosts(&format!("client = [[\"{}\", \"{}\"]]\n", at("client.crt"), at("client.key")));
    assert_eq!(pull(&taker, &by_digest).await.unwrap(), id);
    // What a tag means is the registry's to say, and it is gone.
    let status = pull(&taker, "r.example/app:v").await.unwrap_err();
    assert!(status.message().starts_with("RegistryUnavailable: "), "{status}");

    let pod = taker.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", &id).shell("echo shared")).await;
    container.exited().await;
    container.wait_for_log("shared");
    giver.finish().await;
    taker.finish().await;
}

async fn pull(node: &Node, name: &str) -> Result<String, Status> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::PullImageRequest { image, auth: None, sandbox_config: None };
    Ok(node.cri.images.clone().pull_image(request).await?.into_inner().image_ref)
}

/// An authority, and a server and a client certificate signed by it.
fn certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("req -x509 {new} -keyout ca.key -out ca.crt -subj /CN=cluster"));
    for (name, extension) in
        [("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")]
    {
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req {new} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        fs::write(directory.join("ext"), extension).unwrap();
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt \
             -days 2 -extfile ext"
        ));
    }
}
