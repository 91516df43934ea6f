//! What has to be done to a container for all of its devices together; gathered from the files,
//! with the facts of the node that they leave open.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use super::CdiError;
use super::spec::{ContainerEdits, Hook, Mount, Node};
use crate::container::oci_spec::DeviceNode;

/// Ready to be put into an OCI configuration.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) nodes: Vec<DeviceNode>,
    /// OCI mounts.
    pub(super) mounts: Vec<Value>,
    /// Hooks by the name of their list in OCI.
    pub(super) hooks: Vec<(&'static str, Value)>,
    pub(super) gids: Vec<u32>,
    /// The resctrl group that the container's processes join.
    pub(crate) rdt_class: Option<String>,
}

impl Edits {
    pub(super) fn add(
        &mut self,
        device: &str,
        file: &Path,
        part: &ContainerEdits,
    ) -> Result<(), CdiError> {
        let at = At { device, file };
        if !part.net_devices.is_empty() {
            return Err(at.unserved("netDevices"));
        }
        if let Some(rdt) = &part.intel_rdt {
            let schemas = [&rdt.l3_cache_schema, &rdt.mem_bw_schema];
            if schemas.iter().any(|schema| schema.is_some()) || !rdt.schemata.is_empty() {
                return Err(at.unserved("an intelRdt schema"));
            }
            if rdt.enable_monitoring || rdt.enable_cmt || rdt.enable_mbm {
                return Err(at.unserved("intelRdt monitoring"));
            }
            self.rdt_class.clone_from(&rdt.clos_id);
        }
        for pair in &part.env {
            if pair.starts_with('=') || !pair.contains('=') || pair.contains('\0') {
                return Err(at.bad("env", pair, "is not of the form NAME=value"));
            }
        }
        self.env.extend(part.env.iter().cloned());
        for node in &part.device_nodes {
            self.nodes.push(at.node(node)?);
        }
        for mount in &part.mounts {
            self.mounts.push(at.mount(mount)?);
        }
        for hook in &part.hooks {
            self.hooks.push(at.hook(hook)?);
        }
        self.gids.extend(part.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

/// Where a mistake would be.
struct At<'a> {
    device: &'a str,
    file: &'a Path,
}

impl At<'_> {
    fn unserved(&self, what: &'static str) -> CdiError {
        CdiError::Unserved { device: self.device.to_owned(), what, file: self.file.to_owned() }
    }

    fn bad(&self, what: &'static str, value: &str, problem: impl Into<String>) -> CdiError {
        CdiError::Bad {
            device: self.device.to_owned(),
            file: self.file.to_owned(),
            what,
            value: value.chars().take(200).collect(),
            problem: problem.into(),
        }
    }

    /// What the file leaves open is as the device node of the node has it.
    fn node(&self, node: &Node) -> Result<DeviceNode, CdiError> {
        let path = node.path.to_string_lossy().into_owned();
        if !node.path.is_absolute() {
            return Err(self.bad("device path", &path, "is not absolute"));
        }
        let permissions = node.permissions.clone().unwrap_or_else(|| "rwm".to_owned());
        if permissions.is_empty() || permissions.chars().any(|c| !"rwm".contains(c)) {
            return Err(self.bad("device permissions", &permissions, "are not of r, w, m"));
        }
        let host = node.host_path.as_ref().unwrap_or(&node.path);
        let looked = std::fs::metadata(host);
        let whole = node.kind.is_some() && node.major.is_some() && node.minor.is_some();
        let found = match looked {
            Ok(metadata) => Some(metadata),
            Err(_) if whole => None,
            Err(error) => {
                return Err(self.bad("device", &host.to_string_lossy(), error.to_string()));
            }
        };
        let own_kind = found.as_ref().map(|found| {
            let kind = found.file_type();
            match (kind.is_block_device(), kind.is_char_device(), kind.is_fifo()) {
                (true, ..) => "b",
                (_, true, _) => "c",
                (.., true) => "p",
                _ => "",
            }
        });
        let kind = match node.kind.as_deref().or(own_kind) {
            Some("b") => 'b',
            Some("c" | "u") => 'c',
            Some("p") => 'p',
            _ => return Err(self.bad("device", &host.to_string_lossy(), "is no device")),
        };
        let number = |given: Option<i64>, own: fn(u64) -> u32| {
            given.or(found.as_ref().map(|found| own(found.rdev()).into())).unwrap_or_default()
        };
        Ok(DeviceNode {
            path,
            kind,
            major: number(node.major, major),
            minor: number(node.minor, minor),
            mode: node.file_mode.or(found.as_ref().map(MetadataExt::mode)).unwrap_or(0o666)
                & 0o7777,
            uid: node.uid.or(found.as_ref().map(MetadataExt::uid)).unwrap_or(0),
            gid: node.gid.or(found.as_ref().map(MetadataExt::gid)).unwrap_or(0),
            permissions,
        })
    }

    fn mount(&self, mount: &Mount) -> Result<Value, CdiError> {
        let absolute = |path: &str| PathBuf::from(path).is_absolute();
        if !absolute(&mount.container_path) {
            return Err(self.bad("mount", &mount.container_path, "is not absolute"));
        }
        let kind = mount.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
        let mut options = mount.options.clone();
        if kind == "bind" {
            if !absolute(&mount.host_path) || !PathBuf::from(&mount.host_path).exists() {
                return Err(self.bad("mount source", &mount.host_path, "does not exist"));
            }
            if !options.iter().any(|option| option == "bind" || option == "rbind") {
                options.push("rbind".to_owned());
            }
        }
        Ok(json!({
            "destination": mount.container_path,
            "source": mount.host_path,
            "type": kind,
            "options": options,
        }))
    }

    fn hook(&self, hook: &Hook) -> Result<(&'static str, Value), CdiError> {
        const LISTS: [&str; 6] = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ];
        let Some(list) = LISTS.into_iter().find(|list| *list == hook.hook_name) else {
            return Err(self.bad("hook", &hook.hook_name, "is no moment of a hook"));
        };
        if !hook.path.is_absolute() {
            return Err(self.bad("hook", &hook.path.to_string_lossy(), "is not absolute"));
        }
        let mut value = json!({ "path": hook.path });
        if !hook.args.is_empty() {
            value["args"] = json!(hook.args);
        }
        if !hook.env.is_empty() {
            value["env"] = json!(hook.env);
        }
        if let Some(timeout) = hook.timeout {
            value["timeout"] = json!(timeout);
        }
        Ok((list, value))
    }
}
