//! Control groups as files: where the hierarchies are, what a limit is called there, and how a group ends.
//!
//! Works on cgroup v1, hybrid (v1 controllers beside an empty or small v2 tree) and pure v2. A *group* is
//! named by its path from the root of every hierarchy (`/kubepods/podX/<id>`); the same path is used in all.

pub mod devices;
pub mod freezer;
pub mod group;
pub mod hierarchy;
pub mod kill;
pub mod limits;
pub mod meter;
pub mod oom;
pub mod resources;
pub mod stats;
pub mod unit;
pub mod update;

mod sys;

pub use group::{Joins, Removal};
pub use hierarchy::{Driver, Hierarchies, driver};
pub use limits::{Missing, Setting, weight};
pub use meter::Meter;
pub use resources::Resources;
pub use stats::Stats;

use std::io::Read;
use std::path::{Path, PathBuf};

/// A file of one short line, by one read: there are many of them.
pub(crate) fn line(path: &Path) -> std::io::Result<String> {
    let mut text = [0; 512];
    let length = std::fs::File::open(path)?.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).trim_end().to_owned())
}

/// A failed access to a control group: the verb, the file and the kernel's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{verb} {path}: {why}", path = path.display(), why = words(source))]
    File { verb: &'static str, path: PathBuf, source: std::io::Error },
    #[error("write {value:?} to {path}: {why}", path = path.display(), why = words(source))]
    Limit { value: String, path: PathBuf, source: std::io::Error },
    #[error(
        "limit {file} asks for the {controller} controller, which this node does not have mounted"
    )]
    NoController { controller: &'static str, file: String },
    #[error("{attempt} for {group}: {why}", why = words(source))]
    DeviceProgram { attempt: &'static str, group: String, source: std::io::Error },
    #[error("{0}")]
    BadPath(String),
    #[error("{field}: {reason}")]
    BadResource { field: String, reason: String },
}

/// The text of an errno without the "(os error 2)" that `std` appends.
pub fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

impl Error {
    pub(crate) fn file(
        verb: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::File { verb, path: path.into(), source }
    }
}
