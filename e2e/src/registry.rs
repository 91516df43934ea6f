//! A real registry: Debian's `docker-registry` on a loopback port, with its storage at hand so
//! that a test can spoil it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image::Image;
use crate::layer::{digest, gzip};
use crate::{http, wait};

/// A registry process; ends with this value.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    dir: TempDir,
    /// `127.0.0.1:PORT`
    pub address: String,
    auth: RegistryAuth,
}

/// A blob that the registry has.
#[derive(Debug, Clone)]
pub struct Pushed {
    pub digest: String,
    pub size: u64,
}

impl Pushed {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// Who may read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryAuth {
    Anonymous,
    /// HTTP basic: `user` with the password `secret`.
    Basic,
}

/// Which media types a manifest is pushed with.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    Oci,
    Docker,
}

/// `user:secret`, bcrypt at its lowest cost.
const HTPASSWD: &str = "user:$2b$04$YCB62zmVB0.tFKzXQrK9qexrffrMNIsRr1tC4shKOKZWe/rxJhPR.\n";
const BASIC_HEADER: &str = "Authorization: Basic dXNlcjpzZWNyZXQ=";

/// A cold start of the process on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);

impl Registry {
    pub fn start(auth: RegistryAuth) -> Self {
        let dir = TempDir::with_prefix("lapstrake-registry-").unwrap();
        // Bound for a moment to learn a free port; the registry does not tell which it took.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }}, delete: {{ enabled: true }} }}\n\
             http: {{ addr: \"{address}\" }}\n",
            dir.path().join("data").display()
        );
        if auth == RegistryAuth::Basic {
            let htpasswd = dir.path().join("htpasswd");
            fs::write(&htpasswd, HTPASSWD).unwrap();
            config +=
                &format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", htpasswd.display());
        }
        let config_path = dir.path().join("config.yml");
        fs::write(&config_path, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("docker-registry is installed (Debian package of that name)");
        wait::until("the registry answers", START_LIMIT, || {
            std::net::TcpStream::connect(&address).ok()
        });
        Self { process, dir, address, auth }
    }

    /// Uploads an image under `repository:tag` and returns the digest of its manifest.
    pub fn push(&self, image: &Image, repository: &str, tag: &str, form: Form) -> String {
        let blobs = image.layers.iter().map(|tar| self.push_blob(repository, &gzip(tar)));
        let layers: Vec<Pushed> = blobs.collect();
        let config = self.push_blob(repository, &image.config);
        self.push_parts(repository, tag, form, (&config, &layers))
    }

    /// Uploads the manifest of an image whose configuration and layers are there, lowest first.
    pub fn push_parts(
        &self,
        repository: &str,
        tag: &str,
        form: Form,
        (config, layers): (&Pushed, &[Pushed]),
    ) -> String {
        let (manifest_type, config_type, layer_type) = match form {
            Form::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            Form::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        };
        let layers: Vec<Value> = layers.iter().map(|it| it.descriptor(layer_type)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(config_type),
            "layers": layers,
        });
        self.push_manifest(repository, tag, manifest_type, &manifest)
    }

    /// Uploads an index of manifests that are already there: (digest, size, architecture).
    pub fn push_index(
        &self,
        repository: &str,
        tag: &str,
        manifests: &[(&str, usize, &str)],
    ) -> String {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let entries: Vec<_> = manifests
            .iter()
            .map(|(digest, size, architecture)| {
                json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": digest,
                    "size": size,
                    "platform": { "os": "linux", "architecture": architecture },
                })
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        self.push_manifest(repository, tag, media_type, &index)
    }

    /// The raw manifest under a tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Vec<u8> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
        let answer = self.request("GET", &path, &[accept], &[]);
        assert_eq!(answer.status, 200, "GET {path}");
        answer.body
    }

    /// The file the registry keeps a blob in, for spoiling.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Makes `hosts` come here: one `hosts.toml` each under `certs_d`.
    pub fn mirror(&self, certs_d: &Path, hosts: &[&str]) {
        mirror(certs_d, hosts, &self.address);
    }

    /// Uploads a configuration or a layer as it is.
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) -> Pushed {
        let digest = digest(bytes);
        let begun = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[]);
        assert_eq!(begun.status, 202, "begin an upload to {repository}");
        let location = &begun.headers["location"];
        let path = location.trim_start_matches(&format!("http://{}", self.address));
        let path = format!("{path}&digest={digest}");
        let done = self.request("PUT", &path, &["Content-Type: application/octet-stream"], bytes);
        assert_eq!(done.status, 201, "upload {digest}");
        Pushed { digest, size: bytes.len() as u64 }
    }

    fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &Value,
    ) -> String {
        let bytes = manifest.to_string().into_bytes();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let done = self.request("PUT", &path, &[&format!("Content-Type: {media_type}")], &bytes);
        assert_eq!(
            done.status,
            201,
            "push {repository}:{tag}: {}",
            String::from_utf8_lossy(&done.body)
        );
        digest(&bytes)
    }

    fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> http::Response {
        let mut headers = headers.to_vec();
        if self.auth == RegistryAuth::Basic {
            headers.push(BASIC_HEADER);
        }
        http::request(method, &self.address, path, &headers, body)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "registry log:\n{}",
                fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes `hosts` lead to `address`, whatever listens there.
pub fn mirror(certs_d: &Path, hosts: &[&str], address: &str) {
    for host in hosts {
        let dir = certs_d.join(host);
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }
}
