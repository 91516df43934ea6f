//! Images as one file: what `docker save` writes, and the OCI layout in a tar.

use serde_json::json;

use crate::image::Image;
use crate::layer::{Layer, digest, gzip};

/// The form `docker save` writes.
pub fn docker_save(images: &[(&Image, &str)]) -> Vec<u8> {
    let mut archive = Layer::default();
    let mut manifest = Vec::new();
    for (image, name) in images {
        let id = image.id().replace("sha256:", "");
        let mut layers = Vec::new();
        for tar in &image.layers {
            let path = format!("{}/layer.tar", digest(tar).replace("sha256:", ""));
            archive = archive.file(&path, 0o644, tar);
            layers.push(path);
        }
        archive = archive.file(&format!("{id}.json"), 0o644, &image.config);
        manifest
            .push(json!({ "Config": format!("{id}.json"), "RepoTags": [name], "Layers": layers }));
    }
    archive.file("manifest.json", 0o644, json!(manifest).to_string()).into_tar()
}

/// An OCI image layout with gzip layers.
pub fn oci(image: &Image, name: &str) -> Vec<u8> {
    let mut archive = Layer::default().dir("blobs", 0o755).dir("blobs/sha256", 0o755);
    let mut blob = |bytes: &[u8], media_type: &str| {
        let digest = digest(bytes);
        let path = format!("blobs/{}", digest.replace(':', "/"));
        archive = std::mem::take(&mut archive).file(&path, 0o644, bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|tar| blob(&gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip"))
        .collect();
    let config = blob(&image.config, "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut entry =
        blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({ "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    archive
        .file("oci-layout", 0o644, json!({ "imageLayoutVersion": "1.0.0" }).to_string())
        .file("index.json", 0o644, index.to_string())
        .into_tar()
}
