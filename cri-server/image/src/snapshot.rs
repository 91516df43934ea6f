//! The writable side of a container: its own `upper` and `work` over the layers of its image, and
//! the link on disk that keeps those layers as long as the container is there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::digest::{ChainId, ImageId};
use crate::error::Error;
use crate::layer::Usage;
use crate::service::Core;
use crate::store::layout;
use crate::store::shelf::{Hold, Kept};
use crate::weigh::weigh;

/// What an overlay mount of a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Layer directories, top first; never empty.
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Whether the overlay may leave out every sync: what a container wrote is never read again
    /// after a power loss, because the container is not started again.
    pub volatile: bool,
}

/// The link's name: it points to the topmost layer. A link is made in one step, so it cannot be
/// half written, and it needs no sync: after a power loss the container is gone too.
pub(crate) const PIN: &str = "lower";
/// In front of the hex of the topmost layer of an image that a container has as a volume.
pub(crate) const PIN_VOLUME: &str = "volume-";
/// Longer ids do not fit a file name.
const ID_MAX: usize = 255;

pub(crate) fn prepare(core: &Core, id: &str, image: &ImageId) -> Result<Snapshot, Error> {
    let directory = directory(core, id)?;
    let (hold, lowers) = held(core, image)?;
    let result = snapshot(&directory, lowers);
    make(&directory)?;
    pin(&directory.join(PIN), &result.lowers[0])?;
    // A volatile overlay that ended without its process leaves a mark there, and refuses to go on.
    layout::remove_tree(&result.work)?;
    make(&result.work)?;
    make(&result.upper)?;
    if let Some(quota) = &core.quota {
        // Without a project of its own, what it writes is found out by a walk.
        let _ = quota.begin([&result.upper, &result.work]);
    }
    // The root of the mount shows the attributes of `upper`.
    like(&result.upper, &result.lowers[0])?;
    keep(core, id, PIN.to_owned(), hold);
    Ok(result)
}

/// Keeps the layers of an image that a prepared container has as a volume; answers them top first.
pub(crate) fn pin_volume(core: &Core, id: &str, image: &ImageId) -> Result<Vec<PathBuf>, Error> {
    let directory = directory(core, id)?;
    let (hold, lowers) = held(core, image)?;
    let top = lowers[0].file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{PIN_VOLUME}{top}");
    pin(&directory.join(&name), &lowers[0])?;
    keep(core, id, name, hold);
    Ok(lowers)
}

/// What [`prepare`] made for a container.
pub(crate) fn find(core: &Core, id: &str) -> Result<Snapshot, Error> {
    let directory = directory(core, id)?;
    let pins = core.pins.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = pins.get(id).and_then(|pins| pins.get(PIN));
    let kept = kept.ok_or_else(|| Error::NotPrepared(id.to_owned()))?;
    let lowers = lowers(core, kept.chains());
    drop(pins);
    Ok(snapshot(&directory, if lowers.is_empty() { vec![core.layout.empty()] } else { lowers }))
}

/// Limits what a prepared container may write; whether the kernel sees to it.
pub(crate) fn limit(core: &Core, id: &str, bytes: u64) -> Result<bool, Error> {
    let Some(quota) = &core.quota else { return Ok(false) };
    let upper = directory(core, id)?.join("upper");
    quota.limit(&upper, bytes).map_err(|e| Error::io("limit the size of", &upper, e))
}

/// What a prepared container has written. At once where the kernel counts it.
pub(crate) fn usage(core: &Core, id: &str) -> io::Result<Usage> {
    let directory = core.layout.containers().join(id);
    let upper = directory.join("upper");
    let counted = match &core.quota {
        Some(quota) => quota.usage(&upper)?,
        None => None,
    };
    let Some(all) = counted else { return weigh(&upper) };
    // What overlayfs keeps beside it, a few directories, is the project's too.
    let beside = weigh(&directory.join("work"))?;
    Ok(Usage {
        bytes: all.bytes.saturating_sub(beside.bytes),
        inodes: all.inodes.saturating_sub(beside.inodes),
    })
}

pub(crate) fn discard(core: &Core, id: &str) -> Result<(), Error> {
    let directory = directory(core, id)?;
    let quota = core.quota.as_ref();
    let project = quota.and_then(|quota| quota.project_of(&directory.join("upper")).ok());
    layout::remove_tree(&directory)?;
    if let Some((quota, project)) = quota.zip(project) {
        quota.end(project);
    }
    let pins = core.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    // Every hold is released, also when one of them fails.
    let released: Vec<Result<(), Error>> =
        pins.into_iter().flat_map(HashMap::into_values).map(|k| k.regain().release()).collect();
    released.into_iter().collect()
}

fn snapshot(directory: &Path, lowers: Vec<PathBuf>) -> Snapshot {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    Snapshot { lowers, upper, work, volatile: true }
}

/// Holds the layers of an image; never no directory at all.
fn held(core: &Core, image: &ImageId) -> Result<(Hold, Vec<PathBuf>), Error> {
    let known = core.catalog.snapshot().by_id(image).cloned();
    let gone = || Error::NoSuchImage(image.to_string());
    let hold = core.shelf.hold(&known.ok_or_else(gone)?.image.layers).ok_or_else(gone)?;
    let lowers = lowers(core, hold.chains());
    Ok((hold, if lowers.is_empty() { vec![core.layout.empty()] } else { lowers }))
}

fn lowers(core: &Core, chains: &[ChainId]) -> Vec<PathBuf> {
    chains.iter().rev().map(|chain| core.shelf.path(chain)).collect()
}

fn keep(core: &Core, id: &str, name: String, hold: Hold) {
    let mut pins = core.pins.lock().unwrap_or_else(PoisonError::into_inner);
    let old = pins.entry(id.to_owned()).or_default().insert(name, hold.keep());
    drop(pins);
    drop(old.map(Kept::regain)); // the same layers, held twice for a moment
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

fn pin(link: &Path, top: &Path) -> Result<(), Error> {
    match std::os::unix::fs::symlink(top, link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let same = fs::read_link(link).is_ok_and(|old| old == top);
            if same { Ok(()) } else { Err(Error::io("link the layers at", link, e)) }
        }
        made => made.map_err(|e| Error::io("link the layers at", link, e)),
    }
}

fn like(upper: &Path, lower: &Path) -> Result<(), Error> {
    let fault = |e| Error::io("set the attributes of", upper, e);
    let meta = fs::symlink_metadata(lower).map_err(|e| Error::io("stat", lower, e))?;
    std::os::unix::fs::chown(upper, Some(meta.uid()), Some(meta.gid())).map_err(fault)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(fault)
}
