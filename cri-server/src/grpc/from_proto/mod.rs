//! Wire to inside: the only place that reads CRI requests. Parses, never merely validates: what
//! comes out is valid.

pub(crate) mod container;
pub(crate) mod filter;
mod mounts;
pub(crate) mod resources;
pub(crate) mod sandbox;
mod security;

#[cfg(test)]
mod fields;
pub(crate) mod streaming;

use proto::cri::v1 as cri;

use crate::error::Error;
use crate::sandbox::spec::NamespaceMode;

/// Longest part of a bad value that is repeated to the caller.
const SHOWN_MAX: usize = 64;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Longest name of a pod, namespace or container: Kubernetes allows a DNS subdomain (RFC 1123).
const NAME_MAX: usize = 253;

/// A name that identifies an object: present, bounded, printable.
fn name(field: &str, text: &str) -> Result<String, Error> {
    match text {
        "" => Err(Error::invalid(field, "is empty, but identifies the object")),
        long if long.len() > NAME_MAX => Err(Error::invalid(
            field,
            format!("has {} bytes; at most {NAME_MAX} are allowed", long.len()),
        )),
        text if text.contains(|c: char| c.is_control() || c == '/') => {
            Err(Error::invalid(field, format!("{text:?} has a control character or a slash")))
        }
        text => Ok(text.to_owned()),
    }
}

/// Largest labels or annotations of one object. Kubernetes itself allows 256 KiB of annotations;
/// the kubelet adds a few of its own.
const STRINGS_MAX: usize = 512 << 10;

/// Labels or annotations, kept verbatim.
fn string_map(
    field: &str,
    map: std::collections::HashMap<String, String>,
) -> Result<crate::sandbox::spec::StringMap, Error> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > STRINGS_MAX {
        let problem = format!("have {bytes} bytes; at most {STRINGS_MAX} are kept");
        return Err(Error::invalid(field, problem));
    }
    Ok(map.into_iter().collect())
}

/// A user or group id: CRI carries 64 bits, the kernel knows 32, and −1 means «unchanged» there.
fn kernel_id(field: &str, value: i64) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(field, format!("{value} is not a user or group id"))),
    }
}

fn namespace_mode(field: &str, value: i32, target: &str) -> Result<NamespaceMode, Error> {
    match cri::NamespaceMode::try_from(value) {
        Ok(cri::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(cri::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(cri::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(cri::NamespaceMode::Target) if target.is_empty() => {
            Err(Error::invalid(field, "TARGET needs a target_id"))
        }
        Ok(cri::NamespaceMode::Target) => Ok(NamespaceMode::Target(target.to_owned())),
        Err(_) => Err(Error::invalid(field, format!("{value} is no namespace mode"))),
    }
}

/// An absolute path without `..`, as every path of the contract has to be.
fn absolute(field: &str, path: &str) -> Result<std::path::PathBuf, Error> {
    let path = std::path::Path::new(path);
    if !path.is_absolute() {
        return Err(Error::invalid(field, format!("{path:?} is not an absolute path")));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::invalid(field, format!("{path:?} has a «..» part")));
    }
    Ok(path.to_owned())
}
