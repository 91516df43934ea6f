//! The rules of the house as a test: who may know whom, where `unsafe` may stand, what a file is
//! called and how it begins. Needs no root, no daemon and no build of the other crates.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our crates and which of ours each may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "lapstrake",
        &["cni", "image", "netplugin", "proto", "runtime", "seccomp", "streaming", "systemd"],
    ),
    ("streaming", &[]),
    ("image", &[]),
    ("proto", &[]),
    ("netplugin", &[]),
    ("cni", &[]),
    ("runtime", &["cgroup", "protocol"]),
    ("runtime-bench", &["cgroup", "container", "runtime", "seccomp"]),
    ("protocol", &[]),
    ("cgroup", &[]),
    ("seccomp", &[]),
    ("container", &["cgroup"]),
    ("lapstrake-shim", &["cgroup", "container", "protocol"]),
    ("lapstrake-oci", &["cgroup", "container", "seccomp", "systemd"]),
    ("systemd", &["cgroup"]),
    ("e2e", &["proto"]),
];

/// One shim lives per pod: each of these would cost every pod of the node.
const NOT_IN_THE_SHIM: &[&str] = &[
    "axum",
    "hyper",
    "libseccomp",
    "openssl",
    "prost-types",
    "reqwest",
    "rustls",
    "tokio",
    "tonic",
    "zbus",
];

/// A drawer is not a name: say what the file knows.
const DRAWERS: &[&str] =
    &["common", "helper", "helpers", "inner", "manager", "misc", "util", "utils"];

/// A file longer than this has more than one idea in it.
const LINES_MAX: usize = 700;

/// The only places that may name wire types; everything else has types of its own.
const WIRE_PLACES: &[&str] = &["cri-server/src/grpc/", "cri-server/src/cli/", "e2e/", "proto/"];

#[test]
fn our_crates_know_only_whom_they_may() {
    let metadata = cargo(&["metadata", "--format-version=1", "--offline", "--no-deps"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let ours: BTreeSet<_> = ARROWS.iter().map(|(name, _)| *name).collect();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let allowed = ARROWS.iter().find(|it| it.0 == name).map(|it| it.1);
        let allowed = allowed.unwrap_or_else(|| panic!("{name}: say in ARROWS whom it may know"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            let fine = !ours.contains(dependency) || allowed.contains(&dependency);
            assert!(fine, "{name} must not know {dependency}");
        }
        seen.insert(name);
    }
    assert_eq!(seen, ours.into_iter().map(str::to_owned).collect(), "ARROWS lists the workspace");
}

#[test]
fn the_shim_stays_small() {
    let tree = cargo(&[
        "tree",
        "--offline",
        "--package=lapstrake-shim",
        "--edges=normal",
        "--prefix=none",
    ]);
    for line in tree.lines() {
        let name = line.split(' ').next().unwrap();
        assert!(!NOT_IN_THE_SHIM.contains(&name), "lapstrake-shim links {name}:\n{tree}");
    }
    assert!(tree.contains("rustix"), "the tree was read: {tree}");
}

#[test]
fn every_file_says_why_it_exists_and_has_a_name() {
    let mut faults = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let mut fault = |broken: bool, what: &str| {
            if broken {
                faults.push(format!("{} {what}", shown(&file)));
            }
        };
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let folder = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
        fault(!text.starts_with("//! "), "does not open with a line that says why it exists");
        fault(DRAWERS.contains(&stem) || DRAWERS.contains(&folder), "is a drawer");
        fault(text.lines().count() > LINES_MAX, &format!("is longer than {LINES_MAX} lines"));
        fault(is_catch_all(&text), "has an error that can be anything: `Other(String)`");
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys() {
    let in_sys = |file: &Path| shown(file).split('/').any(|it| it == "sys" || it == "sys.rs");
    let mut faults = Vec::new();
    for file in sources().into_iter().filter(|it| !in_sys(it)) {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap();
            let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code)"];
            // These words stand here as text.
            if words.iter().any(|it| code.contains(it)) && !file.ends_with("tests/tidy.rs") {
                faults.push(format!("{}:{number}: {}", shown(&file), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "`unsafe` belongs in a module named sys:\n{}", faults.join("\n"));
}

#[test]
fn wire_types_stop_at_the_wire() {
    let faults: Vec<_> = sources()
        .into_iter()
        .filter(|file| !WIRE_PLACES.iter().any(|it| shown(file).starts_with(it)))
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap();
            let shipped = text.split("#[cfg(test)]").next().unwrap();
            shipped.lines().any(|it| it.split("//").next().unwrap().contains("proto::"))
        })
        .map(|it| shown(&it))
        .collect();
    assert!(faults.is_empty(), "say `proto::`:\n{}", faults.join("\n"));
}

#[test]
fn every_path_that_readme_and_contributing_name_exists() {
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(workspace().join(document)).unwrap();
        let mut named = 0;
        for word in text.split('`').skip(1).step_by(2) {
            let top = word.split('/').next().unwrap();
            let is_path = word.contains('/') && !word.contains(char::is_whitespace);
            if is_path && workspace().join(top).is_dir() && !top.is_empty() && top != "target" {
                assert!(workspace().join(word).exists(), "{document} names {word}");
                named += 1;
            }
        }
        assert!(named > 0, "{document} names no path at all");
    }
}

/// An error variant that takes any text: the place where precise errors go to die.
fn is_catch_all(text: &str) -> bool {
    let variants = ["Other", "Message", "Custom", "Generic"];
    let names = |line: &str| variants.iter().any(|it| line.trim() == format!("{it}(String),"));
    text.lines().any(names)
}

/// Every Rust file of ours, generated ones apart.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for top in ["cri-server", "e2e", "netplugin", "proto", "runtime"] {
        collect(&workspace().join(top), &mut found);
    }
    assert!(found.len() > 30, "the sources were found");
    found
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

fn shown(file: &Path) -> String {
    file.strip_prefix(workspace()).unwrap().display().to_string()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO")).args(arguments).current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
