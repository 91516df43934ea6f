//! The image service as the daemon sees it: one cheap handle, every answer about what is here from
//! memory, every change on disk before it is acknowledged.

pub(crate) mod commit;
mod open;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::AsyncRead;
use tokio::sync::Semaphore;

use crate::accounts::{self, Accounts};
use crate::archive::{self, Imported};
use crate::config::Config;
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::Error;
use crate::fetch::{Announced, Ready, Turns};
use crate::flight::{Flights, Landed};
use crate::layer::Usage;
use crate::reference::Reference;
use crate::registry::{Auth, Clients};
use crate::snapshot::Snapshot;
use crate::store::catalog::{Catalog, Image};
use crate::store::layout::Layout;
use crate::store::shelf::{Kept, Shelf};

/// The images of one node. Cheap to clone; all clones are the same service.
#[derive(Clone)]
pub struct ImageService {
    core: Arc<Core>,
}

/// Disk space of all images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// A directory on the file system that holds the images.
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
    /// Nanoseconds since 1970.
    pub timestamp_ns: i64,
}

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) catalog: Catalog,
    pub(crate) clients: Arc<Clients>,
    pub(crate) layers: Flights<Result<Arc<Ready>, Error>>,
    pub(crate) permits: Semaphore,
    pub(crate) turns: Turns,
    /// Only one change of records at a time.
    pub(crate) records: tokio::sync::Mutex<()>,
    /// What containers hold, by container id.
    pub(crate) pins: Mutex<HashMap<String, Kept>>,
    pulls: Flights<Result<ImageId, Error>>,
    announced: Announced,
    accounts: Mutex<HashMap<ImageId, Arc<Accounts>>>,
    lost: Vec<String>,
}

impl std::fmt::Debug for ImageService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageService").field("root", &self.core.layout.root).finish_non_exhaustive()
    }
}

impl ImageService {
    /// Reads what is on disk. Whatever an earlier run left half done is removed; a record that
    /// cannot be read is put aside and told by [`ImageService::lost`], and the rest works.
    pub async fn open(config: Config) -> Result<ImageService, Error> {
        let core = blocking("opening the image service", move || open::open(config)).await?;
        Ok(ImageService { core: Arc::new(core) })
    }

    /// What could not be read at the start and is gone, one line each.
    pub fn lost(&self) -> &[String] {
        &self.core.lost
    }

    /// Makes an image present and up to date. Callers with the same reference and credentials
    /// share one pull; when the last of them drops its future, the pull is cancelled and what it
    /// made is removed.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<ImageId, Error> {
        let parsed = parse(reference)?;
        let key = share_key(&parsed, auth.as_ref());
        let core = Arc::clone(&self.core);
        let start = || crate::pull::pull(core, parsed, auth);
        match self.core.pulls.join(&key, start).await {
            Landed::Own(result) | Landed::Joined(result) => result,
            Landed::Lost => Err(Error::Lost(format!("pull of {reference}"))),
        }
    }

    /// Takes in every image of an archive made by `docker save` or in the OCI layout, plain or
    /// gzipped. `name`: what the image is to be called if the archive does not say; refused when it
    /// holds several such images.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Send,
        name: Option<&str>,
    ) -> Result<Vec<Imported>, Error> {
        let name = name.map(parse).transpose()?;
        archive::import(&self.core, archive, name).await
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Arc<[Arc<Image>]> {
        Arc::clone(&self.core.catalog.snapshot().list)
    }

    /// The image that a name in any form, an id, or at least eight unambiguous digits of an id
    /// stand for.
    pub fn find(&self, reference: &str) -> Option<Arc<Image>> {
        self.core.catalog.snapshot().find(reference).map(|known| Arc::clone(&known.image))
    }

    /// Removes the image with all its names; returns when its space is free. Layers that a
    /// container or another image uses stay. An unknown image is removed already.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let removed = self.core.remove(reference).await?;
        if let Some(id) = removed {
            self.core.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        Ok(())
    }

    /// Disk space of all layers, counted when they were unpacked.
    pub fn fs_info(&self) -> FsInfo {
        let usage = self.core.shelf.usage();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        FsInfo {
            mountpoint: self.core.layout.layers(),
            used_bytes: usage.bytes,
            inodes_used: usage.inodes,
            timestamp_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        }
    }

    /// Makes the writable directories of a container and keeps the image's layers for it, also
    /// over a restart, until [`ImageService::discard`]. Doing it again gives the same.
    pub async fn prepare(&self, container_id: &str, image: &ImageId) -> Result<Snapshot, Error> {
        let (core, id, image) = (Arc::clone(&self.core), container_id.to_owned(), image.clone());
        blocking("preparing a container", move || crate::snapshot::prepare(&core, &id, &image))
            .await
    }

    /// Removes a container's directories and lets go of its layers. An unknown container is
    /// discarded already.
    pub async fn discard(&self, container_id: &str) -> Result<(), Error> {
        let (core, id) = (Arc::clone(&self.core), container_id.to_owned());
        blocking("discarding a container", move || crate::snapshot::discard(&core, &id)).await
    }

    /// Where all containers write.
    pub fn writable_root(&self) -> PathBuf {
        self.core.layout.containers()
    }

    /// Where one container writes: a directory on the file system that its space is taken from.
    pub fn writable(&self, container_id: &str) -> PathBuf {
        self.core.layout.containers().join(container_id).join("upper")
    }

    /// What a container has written, measured now: a walk over its own files, so it blocks.
    pub fn weigh(&self, container_id: &str) -> std::io::Result<Usage> {
        crate::weigh::weigh(&self.writable(container_id))
    }

    /// Containers that hold layers, as found on disk and made since.
    pub fn prepared(&self) -> Vec<String> {
        self.core.pins.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Users and groups of an image, read through its layers and remembered. Reads at most two
    /// files of 1 MiB.
    pub fn accounts(&self, image: &ImageId) -> Result<Arc<Accounts>, Error> {
        let cache = || self.core.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accounts) = cache().get(image) {
            return Ok(Arc::clone(accounts));
        }
        let snapshot = self.core.catalog.snapshot();
        let known = snapshot.by_id(image).ok_or_else(|| Error::NoSuchImage(image.to_string()))?;
        let hold = self.core.shelf.hold(&known.image.layers);
        let hold = hold.ok_or_else(|| Error::NoSuchImage(image.to_string()))?;
        let accounts = Arc::new(accounts::read(&self.core.shelf, image, hold.chains())?);
        cache().insert(image.clone(), Arc::clone(&accounts));
        Ok(accounts)
    }
}

impl Core {
    pub(crate) fn staged(&self, chain: &ChainId) -> Option<Arc<Ready>> {
        self.announced.find(chain)
    }

    pub(crate) fn announce(&self, chain: &ChainId, ready: &Arc<Ready>) {
        self.announced.add(chain, ready);
    }
}

pub(crate) fn parse(reference: &str) -> Result<Reference, Error> {
    /// An error repeats no more of a reference than a real one could have.
    const QUOTED_MAX: usize = 512;
    Reference::parse(reference).map_err(|reason| Error::InvalidReference {
        reference: reference.chars().take(QUOTED_MAX).collect(),
        reason,
    })
}

/// Pulls are shared only between callers with the same rights.
fn share_key(reference: &Reference, auth: Option<&Auth>) -> String {
    let Some(auth) = auth else { return reference.to_string() };
    let fields = [
        &auth.username,
        &auth.password,
        &auth.auth,
        &auth.server_address,
        &auth.identity_token,
        &auth.registry_token,
    ];
    // The length in front keeps neighbouring fields apart.
    let text: String = fields.iter().map(|f| format!("{}:{f}", f.len())).collect();
    format!("{reference} {}", Digest::of(text.as_bytes()))
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Lost(what.to_owned()))?
}
