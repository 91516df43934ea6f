//! The mounts and device nodes of a container, decided.

use std::path::{Component, Path, PathBuf};

use super::namespaces::Mappings;
use crate::error::Error;
use crate::options::{self, Idmap, Options};
use crate::spec;

/// The type of a mount that an image's `VOLUME` becomes.
const VOLUME: &str = "volume";

/// One mount to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    pub destination: PathBuf,
    pub from: From,
    pub options: Options,
    /// The ids of an id-mapped mount; empty with `options.idmap` means those of the container's user namespace.
    pub mappings: Mappings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// A tree of the host (or of another container).
    Bind(PathBuf),
    /// A tree of the container's own, at this place in its root, with what is mounted there by then.
    Inside(PathBuf),
    /// A new instance of a file system type, with its source string.
    New { kind: String, source: String },
    /// The container's own control groups.
    Cgroup,
    /// The directory at this place in the root itself, made when it is missing: it stays writable when the root does
    /// not. Not of the OCI specification.
    Root,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    pub kind: NodeKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    Char,
    Block,
    Fifo,
}

/// File systems that show labels of their own, or the kernel's. The root of a message queue is labelled when it is made.
const OWN_LABELS: [&str; 3] = ["proc", "sysfs", "mqueue"];

/// `own_users`: the container has a user namespace, whose ids a mount may take over. `label`: what its new file systems
/// show.
pub(super) fn mount(m: &spec::Mount, own_users: bool, label: Option<&str>) -> Result<Mount, Error> {
    let stage = format!("mount {}", m.destination.display());
    if m.destination.as_os_str().is_empty() {
        return Err(Error::new(stage, "no destination"));
    }
    // A relative one is relative to the root, says the specification.
    let destination = Path::new("/").join(&m.destination);
    let mut options = options::parse(m.options.as_deref().unwrap_or_default())?;
    let kind = m.kind.as_deref().unwrap_or("");
    let source = m.source.clone().unwrap_or_default();
    let from = match kind {
        _ if options.bind || kind == "bind" => {
            if source.as_os_str().is_empty() {
                return Err(Error::new(stage, "a bind mount needs a source"));
            }
            if let Some((key, _)) = options.parameters.first() {
                let why = format!("{key:?} is no option of a bind mount");
                return Err(Error::new(stage, why));
            }
            From::Bind(source)
        }
        "cgroup" | "cgroup2" => From::Cgroup,
        VOLUME => From::Root,
        "" => return Err(Error::new(stage, "neither a type nor a bind option")),
        _ => From::New { kind: kind.to_owned(), source: source.to_string_lossy().into_owned() },
    };
    if options.tmpcopyup && !matches!(&from, From::New { kind, .. } if kind == "tmpfs") {
        return Err(Error::new(stage, "tmpcopyup is for a tmpfs"));
    }
    if let (From::New { kind, .. }, Some(label)) = (&from, label) {
        let given = options.parameters.iter().any(|(key, _)| key.ends_with("context"));
        if !given && !OWN_LABELS.contains(&kind.as_str()) {
            options.parameters.push(("context".to_owned(), Some(label.to_owned())));
        }
    }
    let mappings = Mappings::read(&stage, m.uid_mappings.as_ref(), m.gid_mappings.as_ref())?;
    if !mappings.is_empty() && options.idmap == Idmap::No {
        options.idmap = Idmap::Top;
    }
    if options.idmap != Idmap::No {
        if !matches!(from, From::Bind(_)) {
            return Err(Error::new(stage, "only a bind mount can be id-mapped"));
        }
        if mappings.is_empty() && !own_users {
            return Err(Error::new(
                stage,
                "an id-mapped mount needs uidMappings and gidMappings, or a user namespace to take them from",
            ));
        }
    }
    Ok(Mount { destination, from, options, mappings })
}

impl Mount {
    /// A destination or a source that is named by its path on the host, below the root file system, means the
    /// container's own place.
    pub(super) fn within(&mut self, bundle: &Path, rootfs: &Path) {
        let inside = |path: &Path| {
            let own = path.strip_prefix(rootfs).ok()?;
            // A path that climbs out again is the host's.
            let stays = !own.components().any(|c| c == Component::ParentDir);
            stays.then(|| Path::new("/").join(own))
        };
        if let Some(own) = inside(&self.destination) {
            self.destination = own;
        }
        if let From::Bind(path) = &self.from
            && let Some(own) = inside(&bundle.join(path))
        {
            self.from = From::Inside(own);
        }
    }
}

pub(super) fn device(d: &spec::Device) -> Result<Node, Error> {
    let stage = format!("device {}", d.path.display());
    let (kind, default_mode) = match d.kind.as_str() {
        "c" | "u" => (NodeKind::Char, 0o666),
        "b" => (NodeKind::Block, 0o666),
        "p" => (NodeKind::Fifo, 0o666),
        other => return Err(Error::new(stage, format!("unknown device type {other:?}"))),
    };
    if !d.path.is_absolute() {
        return Err(Error::new(stage, "the path is not absolute"));
    }
    let number =
        |n: i64| u32::try_from(n).or_else(|_| if kind == NodeKind::Fifo { Ok(0) } else { Err(n) });
    let bad = |n| Error::new(stage.clone(), format!("{n} is no device number"));
    Ok(Node {
        path: d.path.clone(),
        kind,
        major: number(d.major).map_err(bad)?,
        minor: number(d.minor).map_err(bad)?,
        mode: d.file_mode.unwrap_or(default_mode) & 0o7777,
        uid: d.uid.unwrap_or(0),
        gid: d.gid.unwrap_or(0),
    })
}
