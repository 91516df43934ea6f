//! The device nodes of a container: those asked for, and for a privileged one all of the node's.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::oci_spec::DeviceNode;
use super::spec::Spec;
use crate::error::Error;

/// What every container has of its own below /dev, and what is no device of the node.
const OWN: [&str; 6] =
    ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd", "/dev/ptmx"];

/// Deepest folder below a device directory that is looked into.
const DEPTH_MAX: usize = 8;

/// What the node's configuration says about devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Besides those asked for, everything below /dev.
    pub(crate) all_of_node: bool,
    /// Whose the asked ones are to be, instead of their owner on the node.
    pub(crate) owner: Option<(u32, u32)>,
}

pub(crate) fn resolve(spec: &Spec, policy: Policy) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes = Vec::new();
    if policy.all_of_node {
        let whole = Listing { permissions: "rwm", depth: 0 };
        collect(Path::new("/dev"), Path::new("/dev"), &whole, &mut nodes)?;
    }
    for device in &spec.devices {
        let host = fs::canonicalize(&device.host_path)
            .map_err(|source| Error::io("resolve the device", &device.host_path, source))?;
        let before = nodes.len();
        let listing = Listing { permissions: &device.permissions, depth: 0 };
        collect(&host, Path::new(&device.container_path), &listing, &mut nodes)?;
        if nodes.len() == before {
            return Err(Error::invalid(
                format!("config.devices[{}]", device.host_path.display()),
                "is neither a device nor a directory with devices",
            ));
        }
        if let Some((uid, gid)) = policy.owner {
            nodes[before..].iter_mut().for_each(|node| (node.uid, node.gid) = (uid, gid));
        }
    }
    Ok(nodes)
}

struct Listing<'a> {
    permissions: &'a str,
    depth: usize,
}

fn collect(
    host: &Path,
    inside: &Path,
    listing: &Listing<'_>,
    nodes: &mut Vec<DeviceNode>,
) -> Result<(), Error> {
    let metadata = match fs::symlink_metadata(host) {
        // Device nodes come and go while we look.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(|source| Error::io("look at the device", host, source))?,
    };
    let kind = metadata.file_type();
    if kind.is_dir() && listing.depth < DEPTH_MAX && !OWN.iter().any(|own| Path::new(own) == host) {
        let below = Listing { depth: listing.depth + 1, ..*listing };
        for name in names(host)? {
            collect(&host.join(&name), &inside.join(&name), &below, nodes)?;
        }
    }
    if (kind.is_char_device() || kind.is_block_device())
        && !OWN.iter().any(|own| Path::new(own) == host)
    {
        nodes.push(DeviceNode {
            path: inside.to_string_lossy().into_owned(),
            kind: if kind.is_block_device() { 'b' } else { 'c' },
            major: major(metadata.rdev()).into(),
            minor: minor(metadata.rdev()).into(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            permissions: listing.permissions.to_owned(),
        });
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut names = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    read().map_err(|source| Error::io("list the device directory", dir, source))
}
