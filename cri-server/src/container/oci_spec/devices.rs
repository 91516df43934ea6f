//! The device nodes of a container and the rules of what it may open. Pure.

use serde_json::{Value, json};

use super::Input;

/// Nodes that every container may use: character devices by (major, minor), −1 for any.
const DEVICE_RULES: [(i64, i64); 9] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (136, -1), // pts
];

/// One device node to make, with the numbers and the owner it has on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    /// `c`, `b` or `p`.
    pub(crate) kind: char,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) permissions: String,
}

pub(crate) fn device(device: &DeviceNode) -> Value {
    json!({
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

pub(super) fn device_rules(input: &Input<'_>) -> Vec<Value> {
    if input.spec.security.privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    // Making a node is harmless: opening it is what the rules below decide.
    rules.extend(['c', 'b'].map(|kind| rule(kind, (-1, -1), "m")));
    rules.extend(DEVICE_RULES.map(|numbers| rule('c', numbers, "rwm")));
    rules.extend(input.devices.iter().map(device_rule));
    rules
}

/// What lets a container open a device node.
pub(crate) fn device_rule(node: &DeviceNode) -> Value {
    rule(node.kind, (node.major, node.minor), &node.permissions)
}

/// A negative number stands for any.
fn rule(kind: char, (major, minor): (i64, i64), access: &str) -> Value {
    let mut rule = json!({ "allow": true, "type": kind, "access": access });
    for (key, number) in [("major", major), ("minor", minor)] {
        if number >= 0 {
            rule[key] = json!(number);
        }
    }
    rule
}
