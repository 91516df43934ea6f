//! Changes of the records: an image appears, gets a name, goes. Each is on disk before it shows.

use std::path::Path;
use std::sync::Arc;

use super::{Core, blocking};
use crate::config::Config;
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::fetch::{self, Ready};
use crate::manifest::ImageConfig;
use crate::reference::Reference;
use crate::store::catalog::{Image, Known};
use crate::store::layout::{self, Layout};
use crate::store::record::{self, ImageRecord, LayerOfImage};
use crate::store::shelf::{Hold, Shelf};

/// An image whose layers are ready.
pub(crate) struct Fresh {
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfig,
    pub(crate) config_bytes: Vec<u8>,
    /// Manifests and indexes that led to it.
    pub(crate) manifests: Vec<Content>,
    pub(crate) layers: Vec<LayerOfImage>,
    /// Whole names with a tag; other images lose them.
    pub(crate) tags: Vec<String>,
    /// Whole names with a digest.
    pub(crate) digests: Vec<String>,
}

/// A small document.
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

impl Core {
    /// Makes a pulled or imported image durable and visible.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        fresh: Fresh,
        layers: Vec<Arc<Ready>>,
    ) -> Result<ImageId, Error> {
        let shelving = Arc::clone(self);
        let hold = blocking("shelving layers", move || fetch::shelve(&shelving, &layers)).await?;
        let id = fresh.id.clone();
        let core = Arc::clone(self);
        // Run to its end once begun: a dropped pull must not leave half a record.
        let commit = tokio::spawn(async move {
            let _records = core.records.lock().await;
            let core = Arc::clone(&core);
            blocking("writing the image record", move || {
                for document in &fresh.manifests {
                    core.keep(&document.digest, &document.bytes)?;
                }
                core.keep(&fresh.id, &fresh.config_bytes)?;
                for algorithm in ["sha256", "sha512"] {
                    layout::sync_directory(&core.layout.content(algorithm))?;
                }
                core.step("content written");
                let snapshot = core.catalog.snapshot();
                let old = snapshot.by_id(&fresh.id).map(|known| ImageRecord::clone(&known.record));
                let mut record = old.unwrap_or_else(|| ImageRecord {
                    id: fresh.id.clone(),
                    tags: Vec::new(),
                    digests: Vec::new(),
                    manifests: Vec::new(),
                    layers: Vec::new(),
                    pinned: false,
                    unknown: serde_json::Map::new(),
                });
                merge(&mut record.manifests, fresh.manifests.into_iter().map(|m| m.digest));
                merge(&mut record.digests, fresh.digests);
                record.layers = fresh.layers;
                core.name(record, fresh.tags, (fresh.config, hold))
            })
            .await
        });
        commit.await.map_err(|_| Error::Lost("writing the image record".into()))??;
        Ok(id)
    }

    /// The image that `manifest` of this name stands for is here: the digests it is known by, that
    /// one first.
    pub(crate) fn digests_of(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Option<Vec<Digest>> {
        let snapshot = self.catalog.snapshot();
        let known = snapshot.by_name(&reference.repo_digest(manifest))?;
        if known.image.layers.iter().any(|chain| self.shelf.is_damaged(chain)) {
            return None;
        }
        let others = known.record.manifests.iter().filter(|digest| *digest != manifest);
        Some(std::iter::once(manifest).chain(others).cloned().collect())
    }

    /// What a person or the kubelet means by `text`; a short name by the registries it may be in.
    pub(crate) fn find(&self, text: &str) -> Option<Known> {
        let snapshot = self.catalog.snapshot();
        let names = self.registries().candidates(text).unwrap_or_default();
        let named = names.iter().find_map(|name| snapshot.named(name));
        named.or_else(|| snapshot.find(text)).cloned()
    }

    /// Gives an image that is here already the name it was just asked for by. `None`: the registry
    /// means a manifest that no image here came from.
    pub(crate) async fn add_name(
        self: &Arc<Self>,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<Option<ImageId>, Error> {
        let digest = reference.repo_digest(manifest);
        let tag = reference.repo_tag();
        let current = |known: &Known| {
            let tags = &known.image.repo_tags;
            tag.as_ref().is_none_or(|tag| tags.contains(tag))
        };
        match self.catalog.snapshot().by_name(&digest) {
            None => return Ok(None),
            Some(known) if current(known) => return Ok(Some(known.image.id.clone())),
            Some(_) => {}
        }
        let core = Arc::clone(self);
        let naming = tokio::spawn(async move {
            let _records = core.records.lock().await;
            let snapshot = core.catalog.snapshot();
            let Some(known) = snapshot.by_name(&digest).cloned() else { return Ok(None) };
            let Some(hold) = core.shelf.hold(&known.image.layers) else { return Ok(None) };
            let core = Arc::clone(&core);
            blocking("writing the image record", move || {
                let record = ImageRecord::clone(&known.record);
                let tags = tag.into_iter().collect();
                core.name(record, tags, (known.image.config.clone(), hold))?;
                Ok(Some(known.image.id.clone()))
            })
            .await
        });
        naming.await.map_err(|_| Error::Lost("writing the image record".into()))?
    }

    /// Says of an image whether it is to stay. `None`: there is no such image.
    pub(super) async fn pin(
        self: &Arc<Self>,
        text: &str,
        pinned: bool,
    ) -> Result<Option<ImageId>, Error> {
        let core = Arc::clone(self);
        let text = text.to_owned();
        let pinning = tokio::spawn(async move {
            let _records = core.records.lock().await;
            let Some(known) = core.find(&text) else { return Ok(None) };
            let Some(hold) = core.shelf.hold(&known.image.layers) else { return Ok(None) };
            let core = Arc::clone(&core);
            blocking("writing the image record", move || {
                let record = ImageRecord { pinned, ..ImageRecord::clone(&known.record) };
                core.name(record, Vec::new(), (known.image.config.clone(), hold))?;
                Ok(Some(known.image.id.clone()))
            })
            .await
        });
        pinning.await.map_err(|_| Error::Lost("writing the image record".into()))?
    }

    /// Removes an image by any of its names; tells which.
    pub(super) async fn remove(self: &Arc<Self>, text: &str) -> Result<Option<ImageId>, Error> {
        let core = Arc::clone(self);
        let text = text.to_owned();
        let removal = tokio::spawn(async move {
            let records = core.records.lock().await;
            let Some(known) = core.find(&text) else { return Ok(None) };
            let id = known.image.id.clone();
            let removing = Arc::clone(&core);
            let hold = blocking("removing an image", move || {
                let id = &known.image.id;
                layout::remove_file(&removing.layout.image(id))?;
                layout::sync_directory(&removing.layout.images())?;
                removing.step("record removed");
                let hold = removing.catalog.remove(id);
                let snapshot = removing.catalog.snapshot();
                let shared = |digest: &&Digest| {
                    snapshot.known().any(|other| content_of(&other.record).any(|d| d == *digest))
                };
                for digest in content_of(&known.record).filter(|digest| !shared(digest)) {
                    layout::remove_file(&removing.layout.blob(digest))?;
                }
                removing.step("content removed");
                Ok(hold)
            })
            .await?;
            // The record is gone: others may go on while the space is being freed.
            drop(records);
            if let Some(hold) = hold {
                blocking("removing layers", move || hold.release()).await?;
            }
            Ok(Some(id))
        });
        removal.await.map_err(|_| Error::Lost("removing an image".into()))?
    }

    /// Writes the record with `tags` added and shows it; takes the tags from other images first,
    /// so that no moment has two images of one name.
    fn name(
        &self,
        mut record: ImageRecord,
        tags: Vec<String>,
        (config, hold): (ImageConfig, Hold),
    ) -> Result<(), Error> {
        let snapshot = self.catalog.snapshot();
        for tag in &tags {
            let Some(other) = snapshot.by_name(tag).filter(|k| k.image.id != record.id) else {
                continue;
            };
            let mut theirs = ImageRecord::clone(&other.record);
            theirs.tags.retain(|t| !tags.contains(t));
            if let Some(hold) = self.shelf.hold(&other.image.layers) {
                let config = other.image.config.clone();
                self.write(&theirs)?;
                self.show(theirs, config, hold);
            }
        }
        merge(&mut record.tags, tags);
        self.write(&record)?;
        self.step("record written");
        self.show(record, config, hold);
        layout::sync_directory(&self.layout.images())?;
        self.step("committed");
        Ok(())
    }

    fn write(&self, record: &ImageRecord) -> Result<(), Error> {
        let path = self.layout.image(&record.id);
        let bytes = record::seal("image", record)
            .map_err(|e| Error::io("seal", &path, std::io::Error::other(e.to_string())))?;
        layout::write_whole(&path, &bytes)
    }

    fn show(&self, record: ImageRecord, config: ImageConfig, hold: Hold) {
        let documents = content_bytes(&self.layout, &record);
        let image = image(&self.config, &self.shelf, (&record, config), documents);
        self.catalog.insert(image, record, hold);
    }

    /// A small document into `content/`, if it is not there.
    fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.layout.blob(digest);
        if path.is_file() { Ok(()) } else { layout::write_whole(&path, bytes) }
    }
}

/// What the catalog shows of a record.
pub(super) fn image(
    config: &Config,
    shelf: &Shelf,
    (record, parsed): (&ImageRecord, ImageConfig),
    documents: u64,
) -> Image {
    let layers: Vec<Digest> = record.layers.iter().map(|layer| layer.chain.clone()).collect();
    let names = || record.tags.iter().chain(&record.digests);
    Image {
        id: record.id.clone(),
        repo_tags: record.tags.clone(),
        repo_digests: record.digests.clone(),
        size: (shelf.usage_of(&layers) + documents).max(1),
        config: parsed,
        layers,
        pinned: record.pinned
            || config.pinned.iter().any(|glob| names().any(|name| fits(glob, name))),
    }
}

/// Everything in `content/` that belongs to an image.
pub(super) fn content_of(record: &ImageRecord) -> impl Iterator<Item = &Digest> {
    let blobs = record.layers.iter().filter_map(|layer| layer.blob.as_ref());
    std::iter::once(&record.id).chain(&record.manifests).chain(blobs)
}

/// Bytes of the configuration and manifests.
pub(super) fn content_bytes(layout: &Layout, record: &ImageRecord) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    content_of(record).map(|digest| size(&layout.blob(digest))).sum()
}

fn merge<T: PartialEq>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// `*` stands for any run of characters.
fn fits(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else {
        return false;
    };
    let Some(tail) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn pin_globs_match_whole_names() {
        for (glob, name, expect) in [
            ("a/b:c", "a/b:c", true),
            ("a/b", "a/b:c", false),
            ("*pause*", "registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/*", "registry.k8s.io/pause:3.10", true),
            ("*:3.10", "registry.k8s.io/pause:3.10", true),
            ("a*a", "a", false),
            ("*", "anything", true),
            ("a*b*c", "a-c", false),
        ] {
            assert_eq!(fits(glob, name), expect, "{glob} {name}");
        }
    }
}
