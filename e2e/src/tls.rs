//! TLS by Debian's `openssl`: a certificate, and a client's end of a connection.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::net::TcpListener;

/// Puts a certificate for this machine's loopback and its key into `cert.pem` and `key.pem`.
pub fn certificate(dir: &Path) {
    let at = |name: &str| dir.join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-keyout", &at("key.pem"), "-out", &at("cert.pem"), "-days", "2"])
        .args(["-subj", "/CN=node", "-addext", "subjectAltName=IP:127.0.0.1"])
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A plain URL that leads, once, to the same place as one with TLS, whose server has this certificate.
pub async fn plain(url: &str, certificate: &Path) -> String {
    let rest = url.strip_prefix("https://").expect("a URL with TLS");
    let (host, path) = rest.split_at(rest.find('/').unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = tokio::process::Command::new("openssl");
    client.args(["s_client", "-quiet", "-no_ign_eof", "-nocommands", "-verify_return_error"]);
    client.arg("-CAfile").arg(certificate).args(["-connect", host]).stderr(Stdio::null());
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let socket = socket.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        let socket = OwnedFd::from(socket);
        client.stdin(socket.try_clone().unwrap()).stdout(socket);
        client.spawn().unwrap().wait().await.unwrap();
    });
    format!("http://{address}{path}")
}
