//! The images on this node, as one snapshot in memory that is replaced whole at every change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::record::ImageRecord;
use super::shelf::{Hold, Kept};
use crate::digest::{ChainId, ImageId};
use crate::manifest::ImageConfig;
use crate::reference::Reference;

/// An image on this node.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: ImageId,
    /// `registry/path:tag`, whole; none for an image pulled by digest.
    pub repo_tags: Vec<String>,
    /// `registry/path@digest`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk: layers, configuration and manifests. Never 0.
    pub size: u64,
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<ChainId>,
    pub pinned: bool,
}

/// The images and what they hold.
#[derive(Default)]
pub(crate) struct Catalog {
    now: RwLock<Arc<Snapshot>>,
    held: Mutex<HashMap<ImageId, Kept>>,
}

/// All images at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub(crate) list: Arc<[Arc<Image>]>,
    by_id: BTreeMap<ImageId, Known>,
    by_name: HashMap<String, ImageId>,
}

#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) image: Arc<Image>,
    pub(crate) record: Arc<ImageRecord>,
}

/// Fewer hex digits than this are a name, not the beginning of an id.
const ID_PREFIX_MIN: usize = 8;

impl Catalog {
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds or replaces an image.
    pub(crate) fn insert(&self, image: Image, record: ImageRecord, hold: Hold) {
        let id = image.id.clone();
        let known = Known { image: Arc::new(image), record: Arc::new(record) };
        // The new hold before the old one goes: the layers are the same.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let old = held.insert(id.clone(), hold.keep()).map(Kept::regain);
        drop(held);
        self.change(|by_id| {
            by_id.insert(id, known);
        });
        drop(old);
    }

    /// Takes an image out; the caller releases what it held.
    pub(crate) fn remove(&self, id: &ImageId) -> Option<Hold> {
        self.change(|by_id| {
            by_id.remove(id);
        });
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id).map(Kept::regain)
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<ImageId, Known>)) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let mut by_id = now.by_id.clone();
        edit(&mut by_id);
        *now = Arc::new(Snapshot::of(by_id));
    }
}

impl Snapshot {
    fn of(by_id: BTreeMap<ImageId, Known>) -> Snapshot {
        let list = by_id.values().map(|known| Arc::clone(&known.image)).collect();
        let by_name = by_id
            .values()
            .flat_map(|known| {
                let image = &known.image;
                let names = image.repo_tags.iter().chain(&image.repo_digests);
                names.map(|name| (name.clone(), image.id.clone()))
            })
            .collect();
        Snapshot { list, by_id, by_name }
    }

    pub(crate) fn known(&self) -> impl Iterator<Item = &Known> {
        self.by_id.values()
    }

    pub(crate) fn by_id(&self, id: &ImageId) -> Option<&Known> {
        self.by_id.get(id)
    }

    /// By whole name, `name:tag` or `name@digest`.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Known> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// By anything a person or the kubelet may write: a name in any form, an id with or without
    /// `sha256:`, or the beginning of an id that fits one image only. Names win.
    pub(crate) fn find(&self, text: &str) -> Option<&Known> {
        self.named(text).or_else(|| self.by_id_prefix(text))
    }

    /// By a name in any form.
    pub(crate) fn named(&self, text: &str) -> Option<&Known> {
        let reference = Reference::parse(text).ok()?;
        let name = match reference.digest() {
            Some(digest) => reference.repo_digest(digest),
            None => reference.repo_tag()?,
        };
        self.by_name(&name)
    }

    fn by_id_prefix(&self, text: &str) -> Option<&Known> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < ID_PREFIX_MIN || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.by_id.iter().filter(|(id, _)| id.hex().starts_with(hex));
        let (_, known) = matching.next()?;
        matching.next().is_none().then_some(known)
    }
}
