//! Encrypted registries: an authority of one's own, a client certificate, none at all.

use std::path::Path;
use std::process::Command;

use image::{Auth, ErrorKind};

use super::build::Image;
use super::node::Node;
use super::registry::Registry;

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a server and a client certificate signed by it.
fn certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    openssl(
        at,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=test-ca -days 2",
    );
    for (name, extension) in
        [("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")]
    {
        openssl(
            at,
            &format!(
                "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ),
        );
        std::fs::write(at.join("ext"), extension).unwrap();
        openssl(
            at,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile ext"
            ),
        );
    }
    directory
}

#[tokio::test]
async fn an_encrypted_registry_is_trusted_as_its_hosts_file_says() {
    let certificates = certificates();
    let at = certificates.path().display();
    let plain = Registry::start().await;
    plain.push("app", "v", &Image::busybox()).await;
    let store = plain.store();
    for mutual in [false, true] {
        let client_ca =
            if mutual { format!("    clientcas: [{at}/ca.crt]\n") } else { String::new() };
        let registry = Registry::serving(
            &store,
            &format!(
                "  tls:\n    certificate: {at}/server.crt\n    key: {at}/server.key\n{client_ca}"
            ),
        )
        .await;
        let node = Node::new().await;
        let name = registry.name("app:v");
        let server = format!("server = 'https://{}'\n", registry.address);
        node.hosts(&registry.address, &server);
        let error = node.service.pull(&name, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
        let client = if mutual {
            format!("client = [['{at}/client.crt', '{at}/client.key']]\n")
        } else {
            String::new()
        };
        if mutual {
            node.hosts(&registry.address, &format!("{server}ca = '{at}/ca.crt'\n"));
            let error = node.service.pull(&name, None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        }
        node.hosts(&registry.address, &format!("{server}ca = '{at}/ca.crt'\n{client}"));
        node.service.pull(&name, None).await.unwrap();
        node.service.remove(&name).await.unwrap();
        node.hosts(&registry.address, &format!("{server}skip_verify = true\n{client}"));
        node.service.pull(&name, None).await.unwrap();
        node.hosts(&registry.address, &format!("{server}ca = '{at}/ca.key'\n"));
        let error = node.service.pull(&name, None).await.unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}

#[tokio::test]
async fn a_real_registry_with_passwords_lets_the_right_one_in() {
    let plain = Registry::start().await;
    plain.push("app", "v", &Image::busybox()).await;
    let passwords = tempfile::tempdir().unwrap();
    // bcrypt of "secret".
    let line = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
    let file = passwords.path().join("htpasswd");
    std::fs::write(&file, line).unwrap();
    let extra = format!("auth:\n  htpasswd:\n    realm: r\n    path: {}\n", file.display());
    let registry = Registry::serving(&plain.store(), &extra).await;
    let node = Node::new().await;
    let auth = |password: &str| {
        Some(Auth { username: "user".into(), password: password.into(), ..Auth::default() })
    };
    let name = registry.name("app:v");
    for wrong in [None, auth("guess")] {
        let error = node.service.pull(&name, wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    node.service.pull(&name, auth("secret")).await.unwrap();
}
