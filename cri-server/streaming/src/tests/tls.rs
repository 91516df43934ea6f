//! TLS: whose clients are let in, and certificates that change under way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::{Client, Wire, split};
use super::{LIMITS, start};
use crate::{MinVersion, Tls};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key of "localhost".
fn issue(authority: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

fn write(dir: &Path, authority: &Authority) {
    let (cert, key) = issue(authority);
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

fn files(dir: &Path, client_ca: Option<&Authority>, min_version: MinVersion) -> Tls {
    let client_ca = client_ca.map(|authority| {
        std::fs::write(dir.join("ca.pem"), authority.as_ref().pem()).unwrap();
        dir.join("ca.pem")
    });
    Tls { cert: dir.join("cert.pem"), key: dir.join("key.pem"), client_ca, min_version }
}

async fn dial(
    url: &str,
    trusted: &Authority,
    own: Option<&Authority>,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<Box<dyn Wire>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.as_ref().der().to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let (cert, key) = issue(authority);
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![cert.der().clone()], key).unwrap()
        }
    };
    let socket = TcpStream::connect(split(url).0).await?;
    let name = ServerName::try_from("localhost").unwrap();
    Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, socket).await?))
}

const TLS12: &rustls::SupportedProtocolVersion = &rustls::version::TLS12;
const TLS13: &rustls::SupportedProtocolVersion = &rustls::version::TLS13;

#[tokio::test]
async fn sessions_run_over_tls_and_a_new_certificate_is_taken_without_a_restart() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), authority(), authority());
    write(dir.path(), &old);
    let running = start(LIMITS, Some(files(dir.path(), None, MinVersion::Tls12))).await;
    let url = running.exec("cat");
    assert!(url.starts_with("https://"), "{url}");
    let wire = dial(&url, &old, None, TLS12).await.unwrap();
    let mut client = Client::upgrade(wire, &url, "v4.channel.k8s.io").await;
    client.open_exec().await;
    client.send(3, b"before").await;

    // Half a replacement: the key does not fit, so the old pair stays in force.
    std::fs::write(dir.path().join("cert.pem"), issue(&new).0.pem()).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await; // the files are looked at once a second
    dial(&url, &old, None, TLS13).await.unwrap();
    write(dir.path(), &new);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    dial(&url, &new, None, TLS13).await.unwrap();
    assert!(dial(&url, &old, None, TLS13).await.is_err());

    client.send(3, b" and after").await;
    client.finish(3).await;
    assert_eq!(client.rest().await[&5].text(), "before and after");
}

#[tokio::test]
async fn only_clients_of_the_authority_are_served() {
    let (dir, server, clients) = (tempfile::tempdir().unwrap(), authority(), authority());
    write(dir.path(), &server);
    let tls = files(dir.path(), Some(&clients), MinVersion::Tls13);
    let running = start(LIMITS, Some(tls)).await;
    let answer = async |own: Option<&Authority>, version| {
        let url = running.exec("true");
        let Ok(wire) = dial(&url, &server, own, version).await else { return String::new() };
        // With TLS 1.3 the refusal comes after the client's side of the handshake.
        let upgrade =
            tokio::spawn(
                async move { Client::upgrade(wire, &url, "v4.channel.k8s.io").await.answer },
            );
        upgrade.await.unwrap_or_default()
    };
    assert!(answer(Some(&clients), TLS13).await.starts_with("HTTP/1.1 101 "));
    assert_eq!(answer(None, TLS13).await, "");
    assert_eq!(answer(Some(&server), TLS13).await, "");
    assert_eq!(answer(Some(&clients), TLS12).await, "");
}
