//! The Container Device Interface: what the vendors of devices say, in files of the node, has to
//! be done to a container that uses them. Read anew for each container that asks, so that a
//! driver that was just installed is there without a restart.

mod edits;
mod inject;
pub(crate) mod name;
mod registry;
mod spec;

use std::path::PathBuf;

pub(crate) use edits::Edits;
pub(crate) use inject::{Facts, inject};
pub(crate) use registry::edits_for;

/// Annotations that ask for devices the old way: their values are lists of names.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    #[error("{text:?} is not of the form vendor/class=device")]
    Name { text: String },
    #[error("no CDI specification describes {device:?}; looked in {}{}", list(dirs), also(broken))]
    Unknown { device: String, dirs: Vec<PathBuf>, broken: Vec<String> },
    #[error("{device:?} is described twice: in {} and in {}", one.display(), two.display())]
    Conflict { device: String, one: PathBuf, two: PathBuf },
    #[error("{device:?} asks for {what} in {}, which this runtime does not serve", file.display())]
    Unserved { device: String, what: &'static str, file: PathBuf },
    #[error("{device:?} of {}: {what} {value:?} {problem}", file.display())]
    Bad { device: String, file: PathBuf, what: &'static str, value: String, problem: String },
}

fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" and ")
}

fn also(broken: &[String]) -> String {
    broken.iter().map(|problem| format!("; unreadable: {problem}")).collect()
}

/// The devices a container asks for: by the field, and then by annotation those that are not in
/// it yet.
pub(crate) fn wanted(
    devices: &[String],
    annotations: &crate::sandbox::spec::StringMap,
) -> Result<Vec<String>, CdiError> {
    let mut wanted = devices.to_vec();
    let lists = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    for text in lists.flat_map(|(_, value)| value.split(',')).map(str::trim) {
        if name::parse(text).is_none() {
            return Err(CdiError::Name { text: text.chars().take(64).collect() });
        }
        if !wanted.iter().any(|known| known == text) {
            wanted.push(text.to_owned());
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests;
