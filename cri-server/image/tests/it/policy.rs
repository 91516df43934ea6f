//! What may come in and from where: signatures in the registry, lists of digests, registries.conf
//! and credentials in files, each seen from the outside.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use image::ErrorKind;
use serde_json::json;

use super::build::{Image, Layer, OCI_MANIFEST, descriptor};
use super::faulty::{Faulty, Reply, Request, honest};
use super::node::Node;
use super::registry::Registry;

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output();
    let output = output.expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A key pair `NAME.key`, `NAME.pub` as `cosign generate-key-pair` would make it.
fn key(directory: &Path, name: &str) {
    let (private, public) = (format!("{name}.key"), format!("{name}.pub"));
    openssl(directory, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &private]);
    openssl(directory, &["ec", "-in", &private, "-pubout", "-out", &public]);
}

/// What `cosign sign` leaves in the registry, made with openssl.
async fn sign(registry: &Registry, keys: &Path, key: &str, (name, manifest): (&str, &str)) {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": registry.name(name)},
            "image": {"docker-manifest-digest": manifest},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    std::fs::write(keys.join("payload"), &payload).unwrap();
    let key = format!("{key}.key");
    openssl(keys, &["dgst", "-sha256", "-sign", &key, "-out", "signature", "payload"]);
    let signature = std::fs::read(keys.join("signature")).unwrap();
    let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
    layer["annotations"] = json!({
        "dev.cosignproject.cosign/signature":
            base64::engine::general_purpose::STANDARD.encode(signature)
    });
    let config = b"{}";
    registry.push_blob(name, &payload).await;
    registry.push_blob(name, config).await;
    let attached = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [layer],
    });
    let tag = format!("{}.sig", manifest.replace(':', "-"));
    registry.push_manifest(name, &tag, OCI_MANIFEST, attached.to_string().as_bytes()).await;
}

fn small(text: &str) -> Image {
    Image::new(vec![Layer::new().file("x", 0o644, text.as_bytes()).gzip()])
}

#[tokio::test]
async fn only_images_signed_by_the_right_key_for_the_right_name_come_in() {
    let registry = Registry::start().await;
    let keys = tempfile::tempdir().unwrap();
    let at = keys.path();
    key(at, "ours");
    key(at, "theirs");
    let mut digests = Vec::new();
    for name in ["signed", "foreign", "moved", "bare"] {
        digests.push(registry.push(name, "v", &small(name)).await);
    }
    sign(&registry, at, "ours", ("signed", &digests[0])).await;
    sign(&registry, at, "theirs", ("foreign", &digests[1])).await;
    // A good signature, but on another image.
    let other = registry.push("moved", "other", &small("other")).await;
    sign(&registry, at, "ours", ("moved", &other)).await;
    let good = format!("sha256-{}.sig", other.trim_start_matches("sha256:"));
    let manifest = registry.manifest("moved", &good).await;
    let tag = format!("{}.sig", digests[2].replace(':', "-"));
    registry.push_manifest("moved", &tag, OCI_MANIFEST, &manifest).await;

    let policy = json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {&registry.address: [
            {"type": "sigstoreSigned", "keyPath": at.join("ours.pub")},
        ]}},
    });
    std::fs::write(at.join("policy.json"), policy.to_string()).unwrap();
    let node = Node::with(|config| config.policy = vec![at.join("policy.json")]).await;
    for (name, why) in [
        ("foreign:v", "none of the policy's keys"),
        ("moved:v", "what was signed is"),
        ("bare:v", "no signature"),
    ] {
        let error = node.service.pull(&registry.name(name), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Signature, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("SignatureValidationFailed: "), "{text}");
        assert!(text.contains(why) && text.contains("policy.json"), "{text}");
    }
    let error = node.service.pull("127.0.0.1:1/x", None).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Signature, "nothing is there to be refused: {error}");
    node.assert_empty();
    let name = registry.name("signed:v");
    node.service.pull(&name, None).await.unwrap();
    node.service.pull(&name, None).await.unwrap();
    // A policy that changes holds for what is here already.
    std::fs::write(at.join("policy.json"), r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let error = node.service.pull(&name, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Signature, "{error}");
}

#[tokio::test]
async fn only_listed_digests_come_in() {
    let registry = Registry::start().await;
    let listed = registry.push("app", "listed", &small("listed")).await;
    registry.push("app", "other", &small("other")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{listed} # the one\n")).unwrap();
    let node = Node::with(|config| config.allowed_digests = Some(file.path().into())).await;
    node.service.pull(&registry.name("app:listed"), None).await.unwrap();
    let error = node.service.pull(&registry.name("app:other"), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    assert!(error.to_string().contains("not in the list"), "{error}");
}

#[tokio::test]
async fn an_archive_is_let_in_as_the_policy_says() {
    let at = tempfile::tempdir().unwrap();
    let (file, list) = (at.path().join("policy.json"), at.path().join("digests"));
    key(at.path(), "ours");
    let image = small("x");
    let save = image.docker_save(&["r.example/app:v"]);
    let nameless = image.docker_save(&[]);
    let signed = json!([{"type": "sigstoreSigned", "keyPath": at.path().join("ours.pub")}]);
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let node = Node::with(|config| config.policy = vec![file.clone()]).await;
    for (policy, archive, why) in [
        (json!({"default": [{"type": "reject"}]}), &save, Some("rejects")),
        (json!({"default": [{"type": "reject"}]}), &nameless, Some("rejects")),
        (
            json!({"default": accept, "transports": {"docker": {"r.example": signed}}}),
            &save,
            Some("an archive does not bring"),
        ),
        (json!({"default": signed, "transports": {"docker-archive": {"": accept}}}), &save, None),
        (json!({"default": signed, "transports": {"docker": {"r.example": accept}}}), &save, None),
    ] {
        std::fs::write(&file, policy.to_string()).unwrap();
        let imported = node.service.import(archive.as_slice(), None).await;
        match why {
            None => node.service.remove(imported.unwrap()[0].id.as_str()).await.unwrap(),
            Some(why) => {
                let error = imported.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Signature, "{error}");
                assert!(error.to_string().contains(why), "{policy}: {error}");
            }
        }
        node.assert_empty();
    }
    std::fs::write(&list, "").unwrap();
    let node = Node::with(|config| config.allowed_digests = Some(list.clone())).await;
    let error = node.service.import(save.as_slice(), None).await.unwrap_err();
    assert!(error.to_string().contains("not in the list"), "{error}");
    std::fs::write(&list, image.id()).unwrap();
    node.service.import(save.as_slice(), None).await.unwrap();
}

/// A node with this `registries.conf`.
async fn with_registries(text: String) -> (Node, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_owned();
    (Node::with(|config| config.registries_conf = vec![path]).await, file)
}

#[tokio::test]
async fn registries_conf_names_mirrors_blocks_and_searches() {
    let mirror = Registry::start().await;
    let image = small("mirrored");
    mirror.push("copy/team/app", "v", &image).await;
    mirror.push("alone", "v", &small("alone")).await;
    let empty = Faulty::start(image.clone(), |_| Some(Reply::new(404, b""))).await;
    let (node, file) = with_registries(format!(
        "unqualified-search-registries = ['{}', '{}']\n\
         [aliases]\nnick = '{}/alone'\n\
         [[registry]]\nlocation = 'r.example'\n\
         [[registry.mirror]]\nlocation = '{}'\n\
         [[registry.mirror]]\nlocation = '{}/copy'\ninsecure = true\n\
         [[registry]]\nprefix = 'r.example/secret'\nblocked = true\n",
        empty.address, mirror.address, mirror.address, empty.address, mirror.address
    ))
    .await;
    node.service.pull("r.example/team/app:v", None).await.unwrap();
    assert!(empty.count("/v2/team/app/manifests/v") > 0, "mirrors are asked in order");
    assert_eq!(node.service.find("r.example/team/app:v").unwrap().id.as_str(), image.id());
    let error = node.service.pull("r.example/secret/app:v", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    assert!(error.to_string().contains("blocked"), "{error}");
    // A short name is looked for in every registry of the list, and found again by it.
    node.service.pull("alone:v", None).await.unwrap();
    assert!(empty.count("/v2/alone/manifests/v") > 0);
    let found = node.service.find("alone:v").unwrap();
    assert_eq!(found.repo_tags, [mirror.name("alone:v")]);
    assert_eq!(node.service.find("nick:v").unwrap().id, found.id);
    node.service.remove("nick:v").await.unwrap();
    assert!(node.service.find("alone:v").is_none());
    // The file is read again.
    std::fs::write(file.path(), "unqualified-search-registries = 1").unwrap();
    let error = node.service.pull("alone:v", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
}

const SECRET: &str = "canary-5e12";

fn basic(user: &str) -> String {
    let text = format!("{user}:{SECRET}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

#[tokio::test]
async fn credentials_come_from_files_and_helpers_when_the_caller_has_none() {
    let image = small("private");
    let this = image.clone();
    let rule = move |r: &Request| {
        let user = if r.target.contains("/helped/") { "helper" } else { "filed" };
        if r.header("authorization") == basic(user) {
            return Some(honest(&this, r));
        }
        Some(Reply::new(401, b"").with("www-authenticate", "Basic realm=\"x\""))
    };
    let faulty = Faulty::start(image, rule).await;
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread server\n\
         [ \"$server\" = {}/helped ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"helper\",\"Secret\":\"{SECRET}\"}}'\n",
        faulty.address
    );
    std::fs::write(&helper, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&helper, executable).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    // Changing this process's PATH would disturb its other threads: a link in it does.
    let link = path
        .split(':')
        .map(Path::new)
        .find(|d| d.is_dir())
        .unwrap()
        .join("docker-credential-test-image-ring");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&helper, &link).unwrap();
    let auth = json!({
        "auths": {&faulty.address: {"username": "filed", "password": SECRET}},
        "credHelpers": {format!("{}/helped", faulty.address): "test-image-ring"},
    });
    let file = directory.path().join("auth.json");
    std::fs::write(&file, auth.to_string()).unwrap();
    let node = Node::with(|config| config.auth_files = vec![file.clone()]).await;
    node.service.pull(&faulty.name("app:v"), None).await.unwrap();
    let helped = node.service.pull(&faulty.name("helped/app:v"), None).await;
    std::fs::write(&helper, "#!/bin/sh\necho broken; exit 3\n").unwrap();
    let node = Node::with(|config| config.auth_files = vec![file.clone()]).await;
    let broken = node.service.pull(&faulty.name("helped/app:v"), None).await;
    std::fs::remove_file(&link).unwrap();
    helped.unwrap();
    let error = broken.unwrap_err();
    assert!(error.to_string().contains("docker-credential-test-image-ring"), "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET));
    std::fs::write(&file, format!("{{\"auths\": \"{SECRET}\"}}")).unwrap();
    let error = node.service.pull(&faulty.name("app:v"), None).await.unwrap_err();
    assert!(error.to_string().contains("auth.json"), "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
}
