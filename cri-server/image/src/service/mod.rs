//! The image service as the daemon sees it: one cheap handle, every answer about what is here from
//! memory, every change on disk before it is acknowledged.

mod boot;
pub(crate) mod commit;
mod open;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, mpsc};

use crate::accounts::{self, Accounts};
use crate::archive::{self, Imported};
use crate::config::Config;
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::Error;
use crate::export::{self, Export, Exported};
use crate::fetch::{Announced, Ready};
use crate::flight::{Flights, Landed};
use crate::layer::Usage;
use crate::manifest;
use crate::mount;
use crate::policy;
use crate::pull::arrivals::Arrivals;
use crate::pull::progress::{PullProgress, Pulls};
use crate::quota::Quota;
use crate::reference::Reference;
use crate::registry::{Auth, Clients, ExplainedName, Registries, Session};
use crate::snapshot::Snapshot;
use crate::store::catalog::{Catalog, Image};
use crate::store::layout::Layout;
use crate::store::shelf::{Kept, Shelf};

/// The images of one node. Cheap to clone; all clones are the same service.
#[derive(Clone)]
pub struct ImageService {
    core: Arc<Core>,
}

/// Partial downloads are looked at so often within the age that they may reach.
const TIDY_SHARE: u32 = 24;

/// As long as the service is there, removes what nobody comes back for.
async fn tidy(core: Weak<Core>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(core) = core.upgrade() else { return };
        // What fails now is tried again next time, and at the next start.
        let _ = blocking("removing old downloads", move || open::collect_partial(&core)).await;
    }
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

/// A file in the content of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub path: PathBuf,
    pub media_type: String,
    /// A manifest or an index, not a blob.
    pub is_manifest: bool,
}

/// A layer that is not what it was made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedLayer {
    pub layer: ChainId,
    /// One line a file, the first few of them.
    pub differences: Vec<String>,
}

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) catalog: Catalog,
    pub(crate) clients: Arc<Clients>,
    pub(crate) layers: Flights<Result<Arc<Ready>, Error>>,
    pub(crate) permits: Semaphore,
    pub(crate) arrivals: Arrivals,
    pub(crate) progress: Pulls,
    /// Only one change of records at a time.
    pub(crate) records: tokio::sync::Mutex<()>,
    pub(crate) pins: Mutex<Pins>,
    /// `None`: the file system does not count by project.
    pub(crate) quota: Option<Quota>,
    /// Signatures found good.
    pub(crate) admitted: crate::pull::admit::Seen,
    /// As read by the last pull, so that a look-up of a short name reads no file.
    registries: RwLock<Arc<Registries>>,
    pulls: Flights<Result<ImageId, Error>>,
    announced: Announced,
    accounts: Mutex<HashMap<ImageId, Arc<Accounts>>>,
    lost: Vec<String>,
}

/// What containers hold: by container id, then by the name of the link that says so on disk.
pub(crate) type Pins = HashMap<String, HashMap<String, Kept>>;

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
        let core = Arc::new(core);
        tokio::spawn(tidy(Arc::downgrade(&core), core.config.partial_age_max / TIDY_SHARE));
        Ok(ImageService { core })
    }

    /// What could not be read at the start and is gone, one line each.
    pub fn lost(&self) -> &[String] {
        &self.core.lost
    }

    /// Makes an image present and up to date. Callers with the same reference and credentials
    /// share one pull; when the last of them drops its future, the pull is cancelled and what it
    /// made is removed.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<ImageId, Error> {
        let registries = Registries::load(&self.core.config.registries_conf)?;
        let named = registries.candidates(reference).map_err(|refusal| Error::Refused {
            reference: reference.to_owned(),
            by: registries.file.clone().unwrap_or_default(),
            reason: refusal.to_string(),
        })?;
        let candidates = named.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
        self.core.use_registries(registries);
        let key = share_key(&candidates, auth.as_ref());
        let core = Arc::clone(&self.core);
        let start = || crate::pull::pull(core, candidates, auth);
        match self.core.pulls.join(&key, start).await {
            Landed::Own(result) | Landed::Joined(result) => result,
            Landed::Lost => Err(Error::Cancelled(format!("pull of {reference}"))),
        }
    }

    /// How far every pull under way is; from memory.
    pub fn pulls(&self) -> Vec<PullProgress> {
        self.core.progress.list(&self.core.arrivals)
    }

    /// Bytes of layers received from registries since the start.
    pub fn received_bytes(&self) -> u64 {
        self.core.arrivals.received()
    }

    /// Ends pulls under way, keeping what has arrived for the next start, and notes that this end
    /// is a clean one.
    pub async fn close(&self) -> Result<(), Error> {
        self.core.arrivals.close();
        self.core.pulls.cancel();
        let core = Arc::clone(&self.core);
        blocking("closing the image service", move || boot::end(&core.layout)).await
    }

    /// The progress of the pulls that were asked for by this name.
    pub fn pulls_of(&self, reference: &str) -> Vec<PullProgress> {
        let names = self.core.registries().candidates(reference).unwrap_or_default();
        let whole = |name: &String| Reference::parse(name).ok().map(|name| name.to_string());
        let whole: Vec<String> = names.iter().filter_map(whole).collect();
        self.pulls().into_iter().filter(|pull| whole.contains(&pull.reference)).collect()
    }

    /// Keeps an image from the kubelet's garbage collection, or no longer does. `None`: there is no
    /// such image.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<Option<ImageId>, Error> {
        self.core.pin(reference, pinned).await
    }

    /// What a pull of `reference` would do, tried on every endpoint.
    pub async fn explain(
        &self,
        reference: &str,
        auth: Option<Auth>,
    ) -> Result<Vec<ExplainedName>, Error> {
        let registries = Registries::load(&self.core.config.registries_conf)?;
        let named = registries.candidates(reference).map_err(|refusal| Error::Refused {
            reference: reference.to_owned(),
            by: registries.file.clone().unwrap_or_default(),
            reason: refusal.to_string(),
        })?;
        let mut explained = Vec::new();
        for name in named {
            let name = parse(&name)?;
            let policy = policy::describe(&self.core.config, &name);
            let clients = Arc::clone(&self.core.clients);
            let about = (&self.core.config, &registries);
            let (endpoints, policy) = match Session::new(clients, about, &name, auth.clone()) {
                Ok(session) => (session.explain().await, policy),
                Err(refused) => (Vec::new(), refused.to_string()),
            };
            explained.push(ExplainedName { reference: name.to_string(), endpoints, policy });
        }
        Ok(explained)
    }

    /// Several images as one archive: what will be in it, and its bytes piece by piece. Only an
    /// image whose compressed layers are kept ([`Config::keep_blobs`]) keeps its id there.
    pub async fn export(
        &self,
        references: &[String],
    ) -> Result<(Vec<Exported>, mpsc::Receiver<Result<Vec<u8>, Error>>), Error> {
        let (core, references) = (Arc::clone(&self.core), references.to_vec());
        let plan = move || Export::plan(&core, &references);
        let export = blocking("packing images", plan).await?;
        Ok((export.images(), export::start(export)))
    }

    /// Content of an image that is here, by digest: a manifest, an index, a configuration, or a
    /// compressed layer when these are kept.
    pub fn content(&self, digest: &Digest) -> Option<Content> {
        let snapshot = self.core.catalog.snapshot();
        let known = snapshot
            .known()
            .find(|known| commit::content_of(&known.record).any(|content| content == digest))?;
        let is_manifest = known.record.manifests.contains(digest);
        let path = self.core.layout.blob(digest);
        let media_type = if is_manifest {
            manifest::media_type_of(&std::fs::read(&path).ok()?)?
        } else {
            "application/octet-stream".to_owned()
        };
        path.is_file().then_some(Content { path, media_type, is_manifest })
    }

    /// Compares every layer of an image with what was written when it was made, byte by byte.
    /// A damaged layer is made again by the next pull. `None`: there is no such image.
    pub async fn verify(&self, reference: &str) -> Result<Option<Vec<DamagedLayer>>, Error> {
        let Some(known) = self.core.find(reference) else { return Ok(None) };
        let core = Arc::clone(&self.core);
        blocking("verifying an image", move || {
            let mut damaged = Vec::new();
            for layer in &known.image.layers {
                let _held = core.shelf.hold(std::slice::from_ref(layer));
                let differences = core.shelf.verify(layer)?;
                damaged.extend(
                    differences
                        .map(|found| DamagedLayer { layer: layer.clone(), differences: found }),
                );
            }
            Ok(Some(damaged))
        })
        .await
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
        self.core.find(reference).map(|known| known.image)
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

    /// What a container has written, measured now: a walk over its own files, unless the file system
    /// counts by project. So it blocks.
    pub fn weigh(&self, container_id: &str) -> std::io::Result<Usage> {
        crate::snapshot::usage(&self.core, container_id)
    }

    /// Limits what a prepared container may write. False: the file system cannot see to it, and
    /// somebody has to look at [`ImageService::weigh`].
    pub async fn limit(&self, container_id: &str, bytes: u64) -> Result<bool, Error> {
        let (core, id) = (Arc::clone(&self.core), container_id.to_owned());
        blocking("limiting a container", move || crate::snapshot::limit(&core, &id, bytes)).await
    }

    /// Containers that hold layers, as found on disk and made since.
    pub fn prepared(&self) -> Vec<String> {
        self.core.pins.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The root of a prepared container as a detached mount, for a caller that moves it to where it
    /// belongs. With `userns` (a descriptor of a user namespace) the owners of all files of the image
    /// are translated by its id maps; no layer is chowned or copied.
    pub async fn root(
        &self,
        container_id: &str,
        userns: Option<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let (core, id) = (Arc::clone(&self.core), container_id.to_owned());
        blocking("mounting a container's root", move || {
            mount::root(&core, &id, userns.as_ref().map(AsFd::as_fd))
        })
        .await
    }

    /// The directory `sub_path` (empty: the root) of an image as a detached, read-only mount, for
    /// a prepared container, which keeps the image's layers until it is discarded. Fails with
    /// [`ErrorKind::Volume`](crate::ErrorKind::Volume) when there is no such directory.
    pub async fn volume(
        &self,
        container_id: &str,
        image: &ImageId,
        sub_path: &Path,
        userns: Option<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let (core, id) = (Arc::clone(&self.core), container_id.to_owned());
        let (image, path) = (image.clone(), sub_path.to_owned());
        blocking("mounting an image volume", move || {
            mount::volume(&core, (&id, &image), &path, userns.as_ref().map(AsFd::as_fd))
        })
        .await
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
    pub(crate) fn registries(&self) -> Arc<Registries> {
        Arc::clone(&self.registries.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn use_registries(&self, registries: Registries) {
        *self.registries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registries);
    }

    /// Ends this process as a power cut would, where a test asks for it.
    pub(crate) fn step(&self, name: &str) {
        if self.config.die_at.as_deref() == Some(name) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
        }
    }

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
fn share_key(candidates: &[Reference], auth: Option<&Auth>) -> String {
    let reference = candidates.iter().map(Reference::to_string).collect::<Vec<_>>().join(" ");
    let Some(auth) = auth else { return reference };
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
