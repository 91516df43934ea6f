//! Makes images: layers with the `tar` crate, manifests and archives by hand.

use std::io::Write as _;

use serde_json::{Value, json};
use sha2::Digest as _;

/// A layer in the making.
pub(crate) struct Layer {
    builder: tar::Builder<Vec<u8>>,
}

/// An image ready to be pushed or saved.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Blob>,
}

/// A layer as a registry holds it.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) plain: Vec<u8>,
    pub(crate) media_type: &'static str,
}

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn digest(bytes: &[u8]) -> String {
    let sum = sha2::Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    pub(crate) fn new() -> Layer {
        Layer { builder: tar::Builder::new(Vec::new()) }
    }

    pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
    }

    pub(crate) fn file(self, name: &str, mode: u32, bytes: &[u8]) -> Layer {
        let header = Layer::header(tar::EntryType::Regular, mode, bytes.len() as u64);
        self.entry(header, name, bytes)
    }

    pub(crate) fn directory(self, name: &str, mode: u32) -> Layer {
        let header = Layer::header(tar::EntryType::Directory, mode, 0);
        self.entry(header, name, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Layer {
        let mut header = Layer::header(tar::EntryType::Symlink, 0o777, 0);
        set_link(&mut header, target);
        self.entry(header, name, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Layer {
        let mut header = Layer::header(tar::EntryType::Link, 0o644, 0);
        set_link(&mut header, target);
        self.entry(header, name, b"")
    }

    /// PAX attributes for the member after them.
    pub(crate) fn pax(mut self, pairs: &[(&str, &[u8])]) -> Layer {
        self.builder.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    /// A member under a name that the builder itself might refuse.
    pub(crate) fn entry(mut self, mut header: tar::Header, name: &str, bytes: &[u8]) -> Layer {
        if name.len() > 100 {
            let mut long = Layer::header(tar::EntryType::GNULongName, 0o644, name.len() as u64 + 1);
            long.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
            long.set_cksum();
            self.builder.append(&long, format!("{name}\0").as_bytes()).unwrap();
        }
        let short = &name.as_bytes()[..name.len().min(100)];
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..short.len()].copy_from_slice(short);
        header.set_cksum();
        self.builder.append(&header, bytes).unwrap();
        self
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }

    pub(crate) fn gzip(self) -> Blob {
        let plain = self.tar();
        Blob { bytes: gzip(&plain), plain, media_type: GZIP }
    }

    pub(crate) fn zstd(self) -> Blob {
        let plain = self.tar();
        Blob { bytes: zstd::encode_all(plain.as_slice(), 3).unwrap(), plain, media_type: ZSTD }
    }

    pub(crate) fn plain(self) -> Blob {
        let plain = self.tar();
        Blob { bytes: plain.clone(), plain, media_type: PLAIN }
    }
}

fn set_link(header: &mut tar::Header, target: &str) {
    let bytes = &mut header.as_mut_bytes()[157..257];
    bytes.fill(0);
    bytes[..target.len()].copy_from_slice(target.as_bytes());
}

impl Image {
    pub(crate) fn new(layers: Vec<Blob>) -> Image {
        Image::with_config(layers, json!({"Cmd": ["/bin/sh"], "User": "1000:1000"}))
    }

    pub(crate) fn with_config(layers: Vec<Blob>, config: Value) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.plain)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Image { config: config.to_string().into_bytes(), layers }
    }

    /// busybox with a passwd file.
    pub(crate) fn busybox() -> Image {
        let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
        let base = Layer::new()
            .directory("bin/", 0o755)
            .file("bin/busybox", 0o755, &busybox)
            .symlink("bin/sh", "busybox")
            .directory("etc/", 0o755)
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:\n")
            .file("etc/group", 0o644, b"root:x:0:\nweb:x:33:\nextra:x:44:web\n");
        let top = Layer::new().file("etc/motd", 0o644, b"hello\n");
        Image::new(vec![base.gzip(), top.gzip()])
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config)
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| descriptor(layer.media_type, &layer.bytes)).collect();
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &self.config),
            "layers": layers,
        })
        .to_string()
        .into_bytes()
    }

    /// What `docker save` of this image writes.
    pub(crate) fn docker_save(&self, tags: &[&str]) -> Vec<u8> {
        docker_save(&[(self, tags)])
    }

    /// The image in the OCI layout, as a tar stream.
    pub(crate) fn oci_archive(&self, name: Option<&str>) -> Vec<u8> {
        let manifest = self.manifest();
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        if let Some(name) = name {
            entry["annotations"] = json!({"io.containerd.image.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let mut archive = Layer::new()
            .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index.as_bytes());
        let blobs = self.layers.iter().map(|layer| layer.bytes.as_slice());
        for blob in blobs.chain([manifest.as_slice(), self.config.as_slice()]) {
            archive = archive.file(&blob_name(blob), 0o644, blob);
        }
        archive.tar()
    }
}

pub(crate) fn docker_save(images: &[(&Image, &[&str])]) -> Vec<u8> {
    let mut archive = Layer::new();
    let mut manifest = Vec::new();
    for (image, tags) in images {
        let config = format!("{}.json", image.id().trim_start_matches("sha256:"));
        let mut layers = Vec::new();
        for layer in &image.layers {
            let name = format!("{}/layer.tar", digest(&layer.plain).trim_start_matches("sha256:"));
            archive = archive.file(&name, 0o644, &layer.plain);
            layers.push(name);
        }
        archive = archive.file(&config, 0o644, &image.config);
        manifest.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    let manifest = Value::from(manifest).to_string();
    archive.file("manifest.json", 0o644, manifest.as_bytes()).tar()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/{}", digest(bytes).replace(':', "/"))
}
