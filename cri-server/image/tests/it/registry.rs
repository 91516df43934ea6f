//! Debian's `docker-registry` as a process of its own on a free port of loopback.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::build::{Blob, Image, OCI_MANIFEST, digest};

pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
    store: PathBuf,
    _own: tempfile::TempDir,
    _directory: Option<tempfile::TempDir>,
    client: reqwest::Client,
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("data");
        let mut registry = Registry::serving(&store, "").await;
        registry._directory = Some(directory);
        registry
    }

    /// Serves what another one stored; `extra`: more lines of its configuration, `http:` last.
    pub(crate) async fn serving(store: &Path, extra: &str) -> Registry {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = own.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: \
             {}\nhttp:\n  addr: {address}\n{extra}",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's docker-registry is installed");
        for _ in 0..500 {
            if TcpStream::connect(&address).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Registry { process, address, store: store.to_owned(), _own: own, _directory: None, client }
    }

    /// Where its blobs are.
    pub(crate) fn store(&self) -> PathBuf {
        self.store.clone()
    }

    /// `127.0.0.1:port/name`.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes everything and tags the manifest; returns the manifest's digest.
    pub(crate) async fn push(&self, name: &str, tag: &str, image: &Image) -> String {
        for Blob { bytes, .. } in &image.layers {
            self.push_blob(name, bytes).await;
        }
        self.push_blob(name, &image.config).await;
        self.push_manifest(name, tag, OCI_MANIFEST, &image.manifest()).await
    }

    pub(crate) async fn push_blob(&self, name: &str, bytes: &[u8]) {
        let url = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
        let answer = self.client.post(url).send().await.unwrap();
        let place = answer.headers()["location"].to_str().unwrap().to_owned();
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{joint}digest={}", digest(bytes));
        let answer = self.client.put(url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    pub(crate) async fn manifest(&self, name: &str, tag: &str) -> Vec<u8> {
        let url = format!("http://{}/v2/{name}/manifests/{tag}", self.address);
        let request = self.client.get(url).header("accept", OCI_MANIFEST);
        request.send().await.unwrap().bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn push_manifest(
        &self,
        name: &str,
        tag: &str,
        kind: &str,
        bytes: &[u8],
    ) -> String {
        let url = format!("http://{}/v2/{name}/manifests/{tag}", self.address);
        let request = self.client.put(url).header("content-type", kind).body(bytes.to_vec());
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        digest(bytes)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
