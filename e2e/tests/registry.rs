//! The registry the e2e ring pulls from is a real one: another client of its kind agrees.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;

use e2e::registry::Form;
use e2e::{Registry, RegistryAuth, http, image, layer};

#[test]
fn what_is_pushed_can_be_fetched_and_spoiled() {
    let registry = Registry::start(RegistryAuth::Anonymous);
    let image = image::busybox();
    for form in [Form::Oci, Form::Docker] {
        let digest = registry.push(&image, "library/busybox", "1", form);
        let manifest = registry.manifest("library/busybox", "1");
        assert_eq!(layer::digest(&manifest), digest);
    }
    let config = registry.blob_file(&image.id());
    assert_eq!(fs::read(&config).unwrap(), image.config);
    fs::write(&config, "spoiled").unwrap();
    let path = format!("/v2/library/busybox/blobs/{}", image.id());
    let answer = http::request("GET", &registry.address, &path, &[], &[]);
    assert_eq!(answer.body, b"spoiled");
}

#[test]
fn basic_auth_is_asked_for() {
    let registry = Registry::start(RegistryAuth::Basic);
    registry.push(&image::busybox(), "library/busybox", "1", Form::Oci);
    let answer = http::request("GET", &registry.address, "/v2/", &[], &[]);
    assert_eq!(answer.status, 401);
    assert!(answer.headers["www-authenticate"].starts_with("Basic"));
}
