//! The `[runtime]` part of the configuration: handlers, and what containers get that ask for
//! nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::container::{log_limits, writable_limit};
use crate::error::Error;

/// The name of the runtime that is built in.
pub(crate) const BUILT_IN: &str = "lapstrake";

#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    pub(crate) default_handler: String,
    /// Handlers beside the plain built-in one.
    pub(crate) handlers: BTreeMap<String, Handler>,
    pub(crate) cgroup_parent: String,
    pub(crate) cgroup_driver: CgroupDriver,
    pub(crate) shim_cgroup: String,
    /// `None`: beside the daemon's own binary.
    pub(crate) shim: Option<PathBuf>,
    pub(crate) missing_mount_source: MissingSource,
    pub(crate) device_ownership_from_security_context: bool,
    /// Where CDI specifications are; a later directory wins.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// Classes of block I/O.
    pub(crate) blockio_config: Option<PathBuf>,
    /// Set in a pod's own namespaces, unless the pod sets them itself.
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) rlimits: Vec<Rlimit>,
    /// For containers whose annotations say nothing else.
    pub(crate) logs: runtime::LogLimits,
    /// Bytes that a container may write into its own layer, unless its annotations say otherwise.
    pub(crate) writable_limit: Option<u64>,
}

/// What the kubelet is told to use; a pod's own driver follows from the form of its cgroup parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// How the containers of a pod are run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Handler {
    /// Another OCI runtime; `None` for the built-in one.
    pub(crate) path: Option<PathBuf>,
    /// A small init of ours is pid 1 of each container, before its program.
    pub(crate) init: bool,
    /// A privileged container gets the devices it asks for only.
    pub(crate) privileged_without_host_devices: bool,
}

/// What to do about a host path that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingSource {
    Error,
    /// Make a directory of it.
    Create,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rlimit {
    /// `RLIMIT_…`.
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Runtime {
    /// The handler of a pod. The empty name is the default.
    pub(crate) fn handler(&self, name: &str) -> Result<Handler, Error> {
        let name = if name.is_empty() { &self.default_handler } else { name };
        match self.handlers.get(name) {
            Some(handler) => Ok(handler.clone()),
            None if name == BUILT_IN => Ok(Handler::default()),
            None => Err(Error::invalid(
                "runtime_handler",
                format!("no runtime handler {name:?} is configured; there are: {}", self.names()),
            )),
        }
    }

    fn names(&self) -> String {
        let configured = self.handlers.keys().map(String::as_str);
        std::iter::once(BUILT_IN).chain(configured).collect::<Vec<_>>().join(", ")
    }
}

/// The table as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRuntime {
    default_handler: String,
    handlers: BTreeMap<String, RawHandler>,
    cgroup_parent: String,
    cgroup_driver: String,
    shim_cgroup: String,
    shim: PathBuf,
    missing_mount_source: String,
    device_ownership_from_security_context: bool,
    cdi_spec_dirs: Vec<PathBuf>,
    blockio_config: PathBuf,
    writable_limit: String,
    sysctls: BTreeMap<String, String>,
    rlimits: BTreeMap<String, String>,
    logs: RawLogs,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogs {
    rate: u64,
    size: u64,
    policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct RawHandler {
    path: PathBuf,
    init: bool,
    privileged_without_host_devices: bool,
    cni_conf_dir: PathBuf,
}

impl RawRuntime {
    /// Where pods of a handler find the configuration of their network, by its name. A pod that
    /// names no handler has the default one.
    pub(super) fn cni_conf_dirs(&self) -> BTreeMap<String, PathBuf> {
        let given = |(name, handler): (&String, &RawHandler)| {
            let dir = handler.cni_conf_dir.clone();
            (!dir.as_os_str().is_empty()).then(|| (name.clone(), dir))
        };
        let mut dirs: BTreeMap<_, _> = self.handlers.iter().filter_map(given).collect();
        if let Some(dir) = dirs.get(&self.default_handler).cloned() {
            dirs.insert(String::new(), dir);
        }
        dirs
    }

    pub(super) fn resolve(self, shim: Option<PathBuf>, mistakes: &mut Vec<String>) -> Runtime {
        let given = |path: PathBuf| Some(path).filter(|path| !path.as_os_str().is_empty());
        let handlers: BTreeMap<_, _> = self
            .handlers
            .into_iter()
            .map(|(name, raw)| {
                let handler = Handler {
                    path: given(raw.path),
                    init: raw.init,
                    privileged_without_host_devices: raw.privileged_without_host_devices,
                };
                (name, handler)
            })
            .collect();
        check_handlers(&handlers, &self.default_handler, mistakes);
        let missing_mount_source = match self.missing_mount_source.as_str() {
            "create" => MissingSource::Create,
            "error" => MissingSource::Error,
            other => {
                mistakes.push(format!(
                    "runtime.missing_mount_source: {other:?} is none of error, create"
                ));
                MissingSource::Error
            }
        };
        let cgroup_driver = match self.cgroup_driver.as_str() {
            "systemd" => CgroupDriver::Systemd,
            "auto" if crate::scope::is_booted() => CgroupDriver::Systemd,
            "auto" | "cgroupfs" => CgroupDriver::Cgroupfs,
            other => {
                mistakes.push(format!(
                    "runtime.cgroup_driver: {other:?} is none of auto, cgroupfs, systemd"
                ));
                CgroupDriver::Cgroupfs
            }
        };
        for dir in self.cdi_spec_dirs.iter().filter(|dir| !dir.is_absolute()) {
            mistakes.push(format!("runtime.cdi_spec_dirs: {} is not absolute", dir.display()));
        }
        let sysctls: BTreeMap<_, _> =
            self.sysctls.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        for key in sysctls.keys().filter(|key| !key.starts_with("net.")) {
            mistakes.push(format!("runtime.sysctls: {key:?} is none of a pod's own network"));
        }
        let policy = log_limits::blocks(&self.logs.policy);
        if policy.is_none() {
            let given = &self.logs.policy;
            mistakes.push(format!("runtime.logs.policy: {given:?} {}", log_limits::WORDS));
        }
        let writable_limit = match self.writable_limit.as_str() {
            "" => None,
            text => writable_limit::parse(text).unwrap_or_else(|problem| {
                mistakes.push(format!("runtime.writable_limit: {problem}"));
                None
            }),
        };
        let rlimits = self.rlimits.iter().filter(|(_, text)| !text.is_empty());
        Runtime {
            default_handler: self.default_handler,
            handlers,
            cgroup_parent: format!("/{}", self.cgroup_parent.trim_matches('/')),
            cgroup_driver,
            shim_cgroup: self.shim_cgroup.trim_matches('/').to_owned(),
            shim: shim.or(given(self.shim)),
            missing_mount_source,
            device_ownership_from_security_context: self.device_ownership_from_security_context,
            cdi_spec_dirs: self.cdi_spec_dirs,
            blockio_config: given(self.blockio_config),
            writable_limit,
            sysctls,
            logs: runtime::LogLimits {
                rate: self.logs.rate,
                size: self.logs.size,
                block: policy.unwrap_or(false),
                ..Default::default()
            },
            rlimits: rlimits.filter_map(|(name, text)| rlimit(name, text, mistakes)).collect(),
        }
    }
}

fn check_handlers(handlers: &BTreeMap<String, Handler>, default: &str, mistakes: &mut Vec<String>) {
    if handlers.contains_key(BUILT_IN) {
        let name = format!("runtime.handlers.{BUILT_IN}");
        mistakes.push(format!("{name}: this name is the built-in runtime's"));
    }
    for (name, handler) in handlers {
        let name = format!("runtime.handlers.{name}");
        match &handler.path {
            Some(path) if !path.is_absolute() => {
                mistakes.push(format!("{name}.path: {path:?} is not absolute"));
            }
            Some(_) if handler.init => {
                mistakes.push(format!("{name}.init: only the built-in runtime can do that"));
            }
            _ => {}
        }
    }
    if default != BUILT_IN && !handlers.contains_key(default) {
        mistakes.push(format!("runtime.default_handler: no handler {default:?} is configured"));
    }
}

/// `nofile = "1024:524288"`, `core = "unlimited"`.
fn rlimit(name: &str, text: &str, mistakes: &mut Vec<String>) -> Option<Rlimit> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let value = |text: &str| match text.trim() {
        "unlimited" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    match (NAMES.contains(&name), value(soft), value(hard)) {
        (true, Some(soft), Some(hard)) if soft <= hard => {
            Some(Rlimit { kind: format!("RLIMIT_{}", name.to_uppercase()), soft, hard })
        }
        (true, ..) => {
            mistakes.push(format!("runtime.rlimits.{name}: {text:?} is not of the form soft:hard"));
            None
        }
        (false, ..) => {
            mistakes.push(format!("runtime.rlimits: there is no limit {name:?}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_a_soft_and_a_hard_value() {
        let mut mistakes = Vec::new();
        let mut read = |name, text| rlimit(name, text, &mut mistakes).map(|it| (it.soft, it.hard));
        assert_eq!(read("nofile", "1024:524288"), Some((1024, 524_288)));
        assert_eq!(read("core", "unlimited"), Some((u64::MAX, u64::MAX)));
        assert_eq!(read("nofile", "2:1"), None);
        assert_eq!(read("flying", "1"), None);
        assert_eq!(mistakes.len(), 2);
    }
}
