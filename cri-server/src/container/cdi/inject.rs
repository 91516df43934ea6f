//! Edits put into an OCI configuration. Pure.

use std::path::Path;

use serde_json::{Value, json};

use super::Edits;
use crate::container::oci_spec;

/// What about the container decides how it is edited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// Everything is allowed to it: no rules are needed.
    pub(crate) privileged: bool,
}

pub(crate) fn inject(config: &mut Value, edits: &Edits, facts: Facts) {
    let env = list(&mut config["process"]["env"]);
    for pair in &edits.env {
        let name = pair.split_once('=').map_or(pair.as_str(), |(name, _)| name);
        let same = |known: &&mut Value| {
            known.as_str().and_then(|known| known.split_once('=')).is_some_and(|it| it.0 == name)
        };
        match env.iter_mut().find(same) {
            Some(known) => *known = json!(pair),
            None => env.push(json!(pair)),
        }
    }
    let gids = list(&mut config["process"]["user"]["additionalGids"]);
    for gid in &edits.gids {
        if !gids.contains(&json!(gid)) {
            gids.push(json!(gid));
        }
    }
    let devices = list(&mut config["linux"]["devices"]);
    for node in &edits.nodes {
        devices.retain(|known| known["path"] != json!(node.path));
        devices.push(oci_spec::device(node));
    }
    if !facts.privileged {
        let rules = list(&mut config["linux"]["resources"]["devices"]);
        rules.extend(edits.nodes.iter().map(oci_spec::device_rule));
    }
    let mounts = list(&mut config["mounts"]);
    for mount in &edits.mounts {
        mounts.retain(|known| known["destination"] != mount["destination"]);
        mounts.push(mount.clone());
    }
    // Parents first, in the order given otherwise.
    mounts.sort_by_key(|mount| {
        Path::new(mount["destination"].as_str().unwrap_or_default()).components().count()
    });
    for (moment, hook) in &edits.hooks {
        list(&mut config["hooks"][*moment]).push(hook.clone());
    }
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it was made one just now")
}
