//! The layer directories, and who holds them. A layer lives exactly as long as somebody holds it:
//! an image, a container, or an operation under way.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::{self, BAD, DEAD, EMPTY, NEW};
use super::record::{self, LayerRecord};
use crate::digest::{ChainId, nonce};
use crate::error::Error;
use crate::layer::Usage;
use crate::layer::compare::{Depth, compare};
use crate::layer::inventory;

/// All layers on this node.
pub(crate) struct Shelf {
    directory: PathBuf,
    layers: Mutex<HashMap<ChainId, Shelved>>,
}

struct Shelved {
    record: LayerRecord,
    holders: usize,
    /// It is not what its inventory says: the next pull makes it again.
    damaged: bool,
}

/// Keeps layers on the shelf. Dropping it lets go; the last one out removes the directory.
pub(crate) struct Hold {
    shelf: Arc<Shelf>,
    chains: Vec<ChainId>,
}

/// A hold that outlives this process: of an image or a container that is on disk. Dropping it at
/// the daemon's end removes nothing; [`Kept::regain`] makes it a [`Hold`] again.
#[must_use]
pub(crate) struct Kept {
    shelf: Arc<Shelf>,
    chains: Vec<ChainId>,
}

/// A directory that is being filled; dropped before it is shelved, it is removed.
pub(crate) struct Staging {
    path: PathBuf,
    armed: bool,
}

impl Shelf {
    /// Reads what is on disk. Whatever is unfinished, half removed or without a good record goes
    /// away; the returned lines say what was lost.
    /// `suspicious`: the power may have failed, so that sizes are compared with the inventories.
    pub(crate) fn open(
        directory: PathBuf,
        suspicious: bool,
    ) -> Result<(Arc<Shelf>, Vec<String>), Error> {
        let mut layers = HashMap::new();
        let mut lost = Vec::new();
        let names = layout::names(&directory)?;
        for name in &names {
            let path = directory.join(name);
            let Some(hex) = name.strip_suffix(RECORD) else { continue };
            match record::read::<LayerRecord>("layer", &path) {
                Ok(record) if record.chain.hex() == hex && directory.join(hex).is_dir() => {
                    let shelved = Shelved { record, holders: 0, damaged: false };
                    if suspicious
                        && let Some(what) = differences(&directory, &shelved.record, Depth::Sizes)?
                    {
                        lost.push(format!("layer {}: {}", shelved.record.chain, what.join("; ")));
                        layout::remove_file(&path)?;
                    } else {
                        layers.insert(shelved.record.chain.clone(), shelved);
                    }
                }
                Ok(_) => layout::remove_file(&path)?,
                Err(damage) => {
                    lost.push(format!("layer record {} {damage}", path.display()));
                    layout::remove_file(&path)?;
                }
            }
        }
        for name in names.iter().filter(|name| !name.ends_with(RECORD)) {
            let name = name.strip_suffix(INVENTORY).unwrap_or(name);
            let known = layers.keys().any(|chain| chain.hex() == name);
            if !known && !name.starts_with(BAD) && name != EMPTY {
                layout::remove_tree(&directory.join(name))?;
                layout::remove_file(&directory.join(format!("{name}{INVENTORY}")))?;
            }
        }
        Ok((Arc::new(Shelf { directory, layers: Mutex::new(layers) }), lost))
    }

    /// Where a layer's directory is when it is on the shelf.
    pub(crate) fn path(&self, chain: &ChainId) -> PathBuf {
        self.directory.join(chain.hex())
    }

    /// Holds all of `chains`, or none when one of them is not here.
    pub(crate) fn hold(self: &Arc<Self>, chains: &[ChainId]) -> Option<Hold> {
        let mut layers = self.lock();
        if !chains.iter().all(|chain| layers.contains_key(chain)) {
            return None;
        }
        for chain in chains {
            if let Some(layer) = layers.get_mut(chain) {
                layer.holders += 1;
            }
        }
        Some(Hold { shelf: Arc::clone(self), chains: chains.to_vec() })
    }

    /// Holds one layer, unless it is known to be damaged.
    pub(crate) fn hold_sound(self: &Arc<Self>, chain: &ChainId) -> Option<Hold> {
        if self.is_damaged(chain) { None } else { self.hold(std::slice::from_ref(chain)) }
    }

    pub(crate) fn is_damaged(&self, chain: &ChainId) -> bool {
        self.lock().get(chain).is_some_and(|layer| layer.damaged)
    }

    /// Compares a layer with its inventory, every byte; a damaged one is made again by the next
    /// pull. `None`: it is as it was made. Blocks, for long.
    pub(crate) fn verify(&self, chain: &ChainId) -> Result<Option<Vec<String>>, Error> {
        let Some(record) = self.lock().get(chain).map(|layer| layer.record.clone()) else {
            return Ok(None);
        };
        let found = differences(&self.directory, &record, Depth::Bytes)?;
        if found.is_some()
            && let Some(layer) = self.lock().get_mut(chain)
        {
            layer.damaged = true;
        }
        Ok(found)
    }

    /// Holds a layer and all the layers it stands on, lowest first.
    pub(crate) fn hold_stack(self: &Arc<Self>, top: &ChainId) -> Option<Hold> {
        let mut chains = Vec::new();
        {
            let layers = self.lock();
            let mut next = Some(top);
            while let Some(chain) = next {
                // A chain id is a hash over its parents, so this cannot go in circles.
                chains.push(chain.clone());
                next = layers.get(chain)?.record.parent.as_ref();
            }
        }
        chains.reverse();
        self.hold(&chains)
    }

    /// The top layer among `hexes` names: containers name their layer by its directory.
    pub(crate) fn chain_of(&self, hex: &str) -> Option<ChainId> {
        self.lock().keys().find(|chain| chain.hex() == hex).cloned()
    }

    pub(crate) fn staging(&self) -> Result<Staging, Error> {
        let path = self.directory.join(format!("{NEW}{}", nonce()));
        fs::create_dir(&path).map_err(|e| Error::io("make the directory", &path, e))?;
        Ok(Staging { path, armed: true })
    }

    /// Puts a complete and synced directory on the shelf and holds it. If the same layer got there
    /// first, that one is held and the new one removed. The caller syncs the shelf's directory.
    pub(crate) fn shelve(
        self: &Arc<Self>,
        mut staging: Staging,
        record: LayerRecord,
    ) -> Result<Hold, Error> {
        let chain = record.chain.clone();
        let mut layers = self.lock();
        let mut holders = 0;
        if let Some(layer) = layers.get(&chain).filter(|layer| layer.damaged) {
            // Containers still read from it: swept when the service opens.
            holders = layer.holders;
            let dead = self.directory.join(format!("{DEAD}{}", nonce()));
            let path = self.path(&chain);
            fs::rename(&path, &dead).map_err(|e| Error::io("rename", &path, e))?;
            layers.remove(&chain);
        }
        if let Some(layer) = layers.get_mut(&chain) {
            layer.holders += 1;
        } else {
            let path = self.path(&chain);
            fs::rename(&staging.path, &path).map_err(|e| Error::io("rename to", &path, e))?;
            let from = [INVENTORY, RECORD].map(|end| beside(&staging.path, end));
            staging.path.clone_from(&path); // what is removed if the next step fails
            // The record last: it says that the others are there.
            for (from, end) in from.iter().zip([INVENTORY, RECORD]) {
                let to = beside(&path, end);
                fs::rename(from, &to).map_err(|e| Error::io("rename to", &to, e))?;
            }
            staging.armed = false;
            holders += 1;
            layers.insert(chain.clone(), Shelved { record, holders, damaged: false });
        }
        drop(layers);
        Ok(Hold { shelf: Arc::clone(self), chains: vec![chain] })
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        layout::sync_directory(&self.directory)
    }

    /// What all layers take.
    pub(crate) fn usage(&self) -> Usage {
        self.lock().values().fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.record.bytes,
            inodes: sum.inodes + layer.record.inodes,
        })
    }

    pub(crate) fn usage_of(&self, chains: &[ChainId]) -> u64 {
        let layers = self.lock();
        chains.iter().filter_map(|chain| layers.get(chain)).map(|layer| layer.record.bytes).sum()
    }

    /// Takes layers nobody holds off the shelf; used once, when all holders are known.
    pub(crate) fn sweep(&self) -> Vec<PathBuf> {
        let mut layers = self.lock();
        let idle: Vec<ChainId> = layers
            .iter()
            .filter(|(_, layer)| layer.holders == 0)
            .map(|(chain, _)| chain.clone())
            .collect();
        idle.iter().filter_map(|chain| self.bury(&mut layers, chain)).collect()
    }

    fn let_go(&self, chains: &[ChainId]) -> Vec<PathBuf> {
        let mut layers = self.lock();
        let mut dead = Vec::new();
        for chain in chains {
            let Some(layer) = layers.get_mut(chain) else { continue };
            layer.holders -= 1;
            if layer.holders == 0 {
                dead.extend(self.bury(&mut layers, chain));
            }
        }
        dead
    }

    /// Forgets a layer and moves its directory out of the way, so that the same layer can be made
    /// again while the old one is being removed.
    fn bury(&self, layers: &mut HashMap<ChainId, Shelved>, chain: &ChainId) -> Option<PathBuf> {
        layers.remove(chain);
        let path = self.path(chain);
        let dead = self.directory.join(format!("{DEAD}{}", nonce()));
        // The record first: a directory without one is swept, a record without one misleads.
        let _ = fs::remove_file(beside(&path, RECORD));
        let _ = fs::remove_file(beside(&path, INVENTORY));
        // On a full disk the rename may be refused; then it is removed where it stands.
        Some(if fs::rename(&path, &dead).is_ok() { dead } else { path })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChainId, Shelved>> {
        // Every change under the lock is complete in itself, so a panic elsewhere harms nothing.
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    pub(crate) fn chains(&self) -> &[ChainId] {
        &self.chains
    }

    pub(crate) fn keep(mut self) -> Kept {
        Kept { shelf: Arc::clone(&self.shelf), chains: std::mem::take(&mut self.chains) }
    }

    /// Lets go and removes what nobody holds any more before returning. Blocks.
    pub(crate) fn release(mut self) -> Result<(), Error> {
        let chains = std::mem::take(&mut self.chains);
        remove_all(&self.shelf.let_go(&chains))
    }
}

impl Kept {
    /// Lowest first.
    pub(crate) fn chains(&self) -> &[ChainId] {
        &self.chains
    }

    pub(crate) fn regain(self) -> Hold {
        Hold { shelf: self.shelf, chains: self.chains }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let dead = self.shelf.let_go(&self.chains);
        if !dead.is_empty() {
            // What this misses is swept at the next start.
            let _ = std::thread::Builder::new()
                .name("layer-remove".into())
                .spawn(move || remove_all(&dead));
        }
    }
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty file beside the directory for its inventory; the sync of the whole image covers it.
    pub(crate) fn inventory(&self) -> Result<fs::File, Error> {
        let path = beside(&self.path, INVENTORY);
        fs::File::create(&path).map_err(|e| Error::io("create", &path, e))
    }

    /// Writes the layer's record beside the directory; the sync of the whole image covers it.
    pub(crate) fn describe(&self, record: &LayerRecord) -> Result<(), Error> {
        let path = beside(&self.path, RECORD);
        let bytes = record::seal("layer", record)
            .map_err(|e| Error::io("seal", &path, std::io::Error::other(e.to_string())))?;
        fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))
    }

    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        crate::layer::open_directory_path(&self.path).map_err(|e| Error::io("open", &self.path, e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let path = self.path.clone();
        // What this misses is swept at the next start.
        let _ = std::thread::Builder::new().name("layer-remove".into()).spawn(move || {
            let _ = layout::remove_file(&beside(&path, RECORD));
            let _ = layout::remove_file(&beside(&path, INVENTORY));
            let _ = layout::remove_tree(&path);
        });
    }
}

/// Removes every tree, also when one of them fails; the first failure is told.
pub(crate) fn remove_all(paths: &[PathBuf]) -> Result<(), Error> {
    let failures: Vec<Error> =
        paths.iter().filter_map(|path| layout::remove_tree(path).err()).collect();
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// How a layer differs from its inventory; `None`: not at all, or it has none.
fn differences(
    directory: &Path,
    record: &LayerRecord,
    depth: Depth,
) -> Result<Option<Vec<String>>, Error> {
    let Some(promised) = &record.inventory else { return Ok(None) };
    let path = directory.join(record.chain.hex());
    let damaged = |what: &str| Ok(Some(vec![format!("its inventory {what}")]));
    let opened = fs::File::open(beside(&path, INVENTORY));
    let text = match opened.and_then(|file| inventory::open(file, promised)) {
        Ok(Some(text)) => text,
        Ok(None) => return damaged("is damaged"),
        Err(e) => return damaged(&e.to_string()),
    };
    let layer = crate::layer::open_directory_path(&path);
    let compared = layer.and_then(|layer| compare(layer.as_fd(), text, depth));
    // A disk that cannot be read is as bad as one that lies.
    let found = compared.unwrap_or_else(|e| vec![e.to_string()]);
    Ok((!found.is_empty()).then_some(found))
}

/// A file of a layer beside its directory.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The ending of a layer's record, beside its directory.
const RECORD: &str = ".layer";
/// The ending of a layer's inventory, beside its directory.
const INVENTORY: &str = ".files";
