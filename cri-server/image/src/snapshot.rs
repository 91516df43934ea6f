//! The writable side of a container: its own `upper` and `work` over the layers of its image, and
//! the link on disk that keeps those layers as long as the container is there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::digest::ImageId;
use crate::error::Error;
use crate::service::Core;
use crate::store::layout;
use crate::store::shelf::Kept;

/// What an overlay mount of a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Layer directories, top first; never empty.
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// The link's name: it points to the topmost layer. A link is made in one step, so it cannot be
/// half written, and it needs no sync: after a power loss the container is gone too.
pub(crate) const PIN: &str = "lower";
/// What an image without any layer is mounted from.
const EMPTY: &str = "empty";
/// Longer ids do not fit a file name.
const ID_MAX: usize = 255;

pub(crate) fn prepare(core: &Core, id: &str, image: &ImageId) -> Result<Snapshot, Error> {
    let directory = directory(core, id)?;
    let snapshot = core.catalog.snapshot();
    let known = snapshot.by_id(image).ok_or_else(|| Error::NoSuchImage(image.to_string()))?;
    let hold = core
        .shelf
        .hold(&known.image.layers)
        .ok_or_else(|| Error::NoSuchImage(image.to_string()))?;
    let mut lowers: Vec<PathBuf> =
        known.image.layers.iter().rev().map(|chain| core.shelf.path(chain)).collect();
    if lowers.is_empty() {
        let empty = core.layout.root.join(EMPTY);
        make(&empty)?;
        lowers.push(empty);
    }
    let result = Snapshot { upper: directory.join("upper"), work: directory.join("work"), lowers };
    make(&directory)?;
    pin(&directory, &result.lowers[0])?;
    make(&result.work)?;
    make(&result.upper)?;
    // The root of the mount shows the attributes of `upper`.
    like(&result.upper, &result.lowers[0])?;
    let old =
        core.pins.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), hold.keep());
    drop(old.map(Kept::regain)); // the same layers, held twice for a moment
    Ok(result)
}

pub(crate) fn discard(core: &Core, id: &str) -> Result<(), Error> {
    let directory = directory(core, id)?;
    layout::remove_tree(&directory)?;
    match core.unpin(id) {
        Some(hold) => hold.release(),
        None => Ok(()),
    }
}

fn directory(core: &Core, id: &str) -> Result<PathBuf, Error> {
    let plain = !id.is_empty()
        && id.len() <= ID_MAX
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let path = core.layout.containers().join(if plain { id } else { "" });
    if plain {
        Ok(path)
    } else {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "not the id of a container");
        Err(Error::io("find the directory of a container in", &path, cause))
    }
}

fn make(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("make the directory", path, e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn pin(directory: &Path, top: &Path) -> Result<(), Error> {
    let link = directory.join(PIN);
    match std::os::unix::fs::symlink(top, &link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let same = fs::read_link(&link).is_ok_and(|old| old == top);
            if same { Ok(()) } else { Err(Error::io("link the layers at", &link, e)) }
        }
        made => made.map_err(|e| Error::io("link the layers at", &link, e)),
    }
}

fn like(upper: &Path, lower: &Path) -> Result<(), Error> {
    let fault = |e| Error::io("set the attributes of", upper, e);
    let meta = fs::symlink_metadata(lower).map_err(|e| Error::io("stat", lower, e))?;
    std::os::unix::fs::chown(upper, Some(meta.uid()), Some(meta.gid())).map_err(fault)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(fault)
}
