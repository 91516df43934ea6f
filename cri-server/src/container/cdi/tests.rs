//! CDI files in a directory, and what they make of a configuration.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::*;

/// Two directories of specifications, the second of which wins.
struct Node {
    _dir: tempfile::TempDir,
    dirs: Vec<PathBuf>,
}

impl Node {
    fn with(files: &[(usize, &str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs: Vec<_> = ["etc", "run"].iter().map(|name| dir.path().join(name)).collect();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        for (index, name, text) in files {
            fs::write(dirs[*index].join(name), text).unwrap();
        }
        Self { _dir: dir, dirs }
    }

    fn edits(&self, devices: &[&str]) -> Result<Edits, String> {
        let devices: Vec<_> = devices.iter().map(|name| (*name).to_owned()).collect();
        edits_for(&devices, &self.dirs).map_err(|error| error.to_string())
    }
}

const YAML: &str = "
cdiVersion: 1.0.0
kind: acme.com/gpu
containerEdits:
  env: [ACME=1]
  hooks:
  - {hookName: createContainer, path: /bin/true, args: [true], timeout: 3}
devices:
- name: gpu0
  containerEdits:
    deviceNodes:
    - {path: /dev/acme0, hostPath: /dev/null, permissions: rw, fileMode: 432, uid: 7}
    mounts:
    - {hostPath: /usr, containerPath: /opt/acme, options: [ro]}
    additionalGids: [44, 0]
    intelRdt: {closID: fast}
- name: gpu1
  containerEdits: {env: [SECOND=1]}
";

#[test]
fn a_device_brings_its_own_edits_and_those_of_its_file_once() {
    let node = Node::with(&[(0, "acme.yaml", YAML)]);
    let edits = node.edits(&["acme.com/gpu=gpu0", "acme.com/gpu=gpu1"]).unwrap();
    assert_eq!(edits.rdt_class.as_deref(), Some("fast"));
    let mut config = json!({
        "process": { "env": ["PATH=/bin", "ACME=0"], "user": { "additionalGids": [5] } },
        "mounts": [{ "destination": "/opt" }, { "destination": "/a/b/c" }],
    });
    inject(&mut config, &edits, Facts { privileged: false });
    assert_eq!(config["process"]["env"], json!(["PATH=/bin", "ACME=1", "SECOND=1"]));
    assert_eq!(config["process"]["user"]["additionalGids"], json!([5, 44]));
    let device = &config["linux"]["devices"][0];
    assert_eq!((&device["path"], &device["major"]), (&json!("/dev/acme0"), &json!(1)));
    assert_eq!((&device["fileMode"], &device["uid"]), (&json!(0o660), &json!(7)));
    let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" });
    assert_eq!(config["linux"]["resources"]["devices"], json!([rule]));
    assert_eq!(config["mounts"][1]["destination"], "/opt/acme");
    assert_eq!(config["mounts"][1]["options"], json!(["ro", "rbind"]));
    let hook = json!({ "path": "/bin/true", "args": ["true"], "timeout": 3 });
    assert_eq!(config["hooks"]["createContainer"], json!([hook]));
}

#[test]
fn the_later_directory_wins_and_two_files_of_one_are_a_conflict() {
    let file = |value: &str| {
        let edits = json!({ "env": [format!("FROM={value}")] });
        json!({ "cdiVersion": "0.6.0", "kind": "acme.com/gpu",
                "devices": [{ "name": "0", "containerEdits": edits }] })
        .to_string()
    };
    let node = Node::with(&[(0, "a.json", &file("etc")), (1, "a.json", &file("run"))]);
    assert_eq!(node.edits(&["acme.com/gpu=0"]).unwrap().env, ["FROM=run"]);
    let node = Node::with(&[(1, "a.json", &file("one")), (1, "b.json", &file("two"))]);
    let error = node.edits(&["acme.com/gpu=0"]).unwrap_err();
    assert!(error.contains("twice") && error.contains("b.json"), "{error}");
}

#[test]
fn a_missing_device_is_named_with_the_places_and_what_was_broken_there() {
    let node = Node::with(&[(0, "bad.json", "{"), (0, "old.yaml", "cdiVersion: 0.1.0\nkind: a/b")]);
    let error = node.edits(&["acme.com/gpu=0"]).unwrap_err();
    for part in ["\"acme.com/gpu=0\"", "etc and ", "bad.json", "0.1.0"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_is_not_served_or_not_there_is_refused_by_name() {
    let with = |edits: &str| {
        format!(
            "cdiVersion: 1.0.0\nkind: acme.com/gpu\ndevices: [{{name: a, containerEdits: {edits}}}]"
        )
    };
    for (edits, expect) in [
        ("{netDevices: [{hostInterfaceName: x}]}", "netDevices"),
        ("{intelRdt: {schemata: [L3]}}", "intelRdt schema"),
        ("{env: [X]}", "NAME=value"),
        ("{deviceNodes: [{path: /dev/is-not-there}]}", "/dev/is-not-there"),
        ("{mounts: [{hostPath: /is-not-there, containerPath: /x}]}", "does not exist"),
        ("{hooks: [{hookName: never, path: /x}]}", "no moment"),
        ("{flying: true}", "flying"),
    ] {
        let node = Node::with(&[(0, "a.yaml", &with(edits))]);
        let error = node.edits(&["acme.com/gpu=a"]).unwrap_err();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }
}

#[test]
fn annotations_ask_for_devices_as_well() {
    let annotations = [("cdi.k8s.io/x".to_owned(), "a.b/c=1,a.b/c=2".to_owned())].into();
    let names = wanted(&["a.b/c=2".to_owned()], &annotations).unwrap();
    assert_eq!(names, ["a.b/c=2", "a.b/c=1"]);
    let bad = [("cdi.k8s.io/x".to_owned(), "gpu".to_owned())].into();
    assert!(wanted(&[], &bad).is_err());
}
