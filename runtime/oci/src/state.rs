//! The record of a container, `<root>/<id>/state.json`, and its status, which is never stored but looked at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use container::hooks::Hooks;
use container::spec;
use serde::{Deserialize, Serialize};

use crate::cli::Cli;
use crate::error::Error;
use crate::seccomp::Kept;

/// What must be known after `create` has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) pid: i32,
    /// With the pid, the identity of the process.
    pub(crate) start_ticks: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    pub(crate) cgroup: String,
    /// The unit of systemd whose group it is.
    #[serde(default)]
    pub(crate) scope: Option<String>,
    /// The mount of its root among the caller's, when it has no mount namespace of its own.
    #[serde(default)]
    pub(crate) shown: Option<u64>,
    /// Directories of resctrl that were made for it alone, innermost first.
    #[serde(default)]
    pub(crate) rdt: Vec<PathBuf>,
    /// Init is pid 1 of its own namespace.
    pub(crate) own_pids: bool,
    pub(crate) annotations: BTreeMap<String, String>,
    /// The compiled seccomp program of the container, for exec.
    pub(crate) seccomp: Option<Kept>,
    #[serde(default)]
    pub(crate) memory_policy: Option<spec::MemoryPolicy>,
    /// As of creation: later changes of the bundle do not count.
    #[serde(default)]
    pub(crate) hooks: Hooks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of a container that need not exist.
pub(crate) fn dir(cli: &Cli, id: &str) -> Result<PathBuf, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 1024 || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(Error::BadId { id: id.to_owned() });
    }
    Ok(cli.root.join(id))
}

pub(crate) fn load(cli: &Cli, id: &str) -> Result<Record, Error> {
    let path = dir(cli, id)?.join("state.json");
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoContainer { id: id.to_owned() });
        }
        other => other.map_err(Error::file("read", &path))?,
    };
    serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })
}

impl Record {
    /// Written to a new name and renamed, so that a reader never sees half of it.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let (path, new) = (dir.join("state.json"), dir.join("state.json.new"));
        let text = serde_json::to_vec(self)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        std::fs::write(&new, text).map_err(Error::file("write", &new))?;
        std::fs::rename(&new, &path).map_err(Error::file("rename to", &path))
    }

    pub(crate) fn status(&self, cli: &Cli, node: &cgroup::Hierarchies) -> Status {
        if !self.is_alive() {
            return Status::Stopped;
        }
        if dir(cli, &self.id).is_ok_and(|d| d.join("start.sock").exists()) {
            return Status::Created;
        }
        match node.is_frozen(&self.cgroup) {
            Ok(true) => Status::Paused,
            _ => Status::Running,
        }
    }

    /// The same process as at creation, and not a zombie.
    pub(crate) fn is_alive(&self) -> bool {
        container::identity::is_alive(self.pid, self.start_ticks)
    }

    /// As the specification's `State`, which hooks and `state` get.
    pub(crate) fn state(&self, status: Status) -> State<'_> {
        State {
            version: &self.oci_version,
            id: &self.id,
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status: status.word(),
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: "",
        }
    }
}

/// In this order: others match it as text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    #[serde(rename = "ociVersion")]
    version: &'a str,
    id: &'a str,
    pid: i32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    owner: &'static str,
}

impl State<'_> {
    pub(crate) fn to_text(&self, pretty: bool) -> String {
        let text =
            if pretty { serde_json::to_string_pretty(self) } else { serde_json::to_string(self) };
        text.unwrap_or_default() // strings and a number cannot fail
    }
}

/// Now, as RFC 3339 with nanoseconds.
pub(crate) fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = container::stamp::format(now.as_secs() as i64, now.subsec_nanos());
    String::from_utf8_lossy(&stamp).into_owned()
}
