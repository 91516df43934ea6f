//! Gets one layer onto this node: from the shelf, from an operation under way, or from a registry
//! or archive through the unpacking pipeline; and sets complete stacks of layers on the shelf.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::digest::{ChainId, Digest};
use crate::error::{Error, is_full};
use crate::flight::Landed;
use crate::layer::settle::SettleError;
use crate::layer::{self, Job, Made, UnpackError, inventory};
use crate::pull::arrivals::{self, Arrival, Ticket};
use crate::registry::Session;
use crate::service::Core;
use crate::store::blob::Blob;
use crate::store::record::LayerRecord;
use crate::store::shelf::{Hold, Shelf, Staging};

/// Which layer, and what is promised about it.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// The image's reference or the archive's member, for error messages.
    pub(crate) of: String,
    pub(crate) chain: ChainId,
    pub(crate) parent: Option<ChainId>,
    pub(crate) diff_id: Digest,
    /// Digest and size of the blob, when a manifest names them.
    pub(crate) blob: Option<(Digest, u64)>,
    /// The name of the file that the blob is, when it is no archive.
    pub(crate) title: Option<String>,
}

/// Where its bytes are.
#[derive(Clone)]
pub(crate) enum Source {
    /// With the addresses that the manifest names besides.
    Registry(Arc<Session>, Vec<String>),
    File(PathBuf),
}

/// A layer that is whole, on the shelf or about to be.
pub(crate) struct Ready {
    wanted: Wanted,
    directory: OwnedFd,
    phase: Mutex<Phase>,
}

enum Phase {
    Unpacked {
        staging: Staging,
        made: Made,
        /// Keeps the compressed layer until the image is complete.
        _ticket: Option<Ticket>,
    },
    Settled {
        staging: Staging,
        record: LayerRecord,
    },
    Shelved {
        _hold: Hold,
    },
    /// A step failed half way; the staging directory is gone.
    Spoiled,
}

/// A flight may fail for a reason of its starter's (credentials, cancellation); those who only
/// joined then try themselves, this often.
const JOINS_MAX: usize = 3;

/// The layer, made at most once at a time on this node.
pub(crate) async fn layer(
    core: &Arc<Core>,
    wanted: &Wanted,
    source: &Source,
) -> Result<Arc<Ready>, Error> {
    let mut joins = 0;
    loop {
        if let Some(hold) = core.shelf.hold_sound(&wanted.chain) {
            return Ready::shelved(wanted.clone(), &core.shelf, hold).map(Arc::new);
        }
        if let Some(ready) = core.staged(&wanted.chain) {
            return Ok(ready);
        }
        let start = || make(Arc::clone(core), wanted.clone(), source.clone());
        match core.layers.join(wanted.chain.as_str(), start).await {
            Landed::Own(result) | Landed::Joined(result @ Ok(_)) => return result,
            Landed::Joined(Err(error)) if joins >= JOINS_MAX => return Err(error),
            Landed::Joined(Err(_)) => joins += 1,
            Landed::Lost => return Err(Error::Lost(format!("unpacking layer {}", wanted.chain))),
        }
    }
}

/// Settles layers (lowest first) on each other, makes them durable with one sync, and puts them on
/// the shelf. Blocks.
pub(crate) fn shelve(core: &Core, layers: &[Arc<Ready>]) -> Result<Hold, Error> {
    let shelf = &core.shelf;
    let mut fresh = None;
    for (at, layer) in layers.iter().enumerate() {
        if layer.settle(&layers[..at])? {
            fresh = Some(layer);
        }
    }
    core.step("settled");
    if let Some(layer) = fresh {
        let root = shelf.path(&layer.wanted.chain);
        rustix::fs::syncfs(&layer.directory).map_err(|e| Error::io("sync", &root, e))?;
        core.step("synced");
        for layer in layers {
            layer.shelve(shelf)?;
            core.step("layer shelved");
        }
        shelf.sync()?;
    }
    core.step("shelved");
    let chains: Vec<ChainId> = layers.iter().map(|l| l.wanted.chain.clone()).collect();
    shelf.hold(&chains).ok_or_else(|| Error::Lost("shelving the layers".into()))
}

impl Ready {
    fn shelved(wanted: Wanted, shelf: &Shelf, hold: Hold) -> Result<Ready, Error> {
        let path = shelf.path(&wanted.chain);
        let directory =
            layer::open_directory_path(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Ready { wanted, directory, phase: Mutex::new(Phase::Shelved { _hold: hold }) })
    }

    /// True when the layer still has to be synced and shelved.
    fn settle(&self, below: &[Arc<Ready>]) -> Result<bool, Error> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let (staging, made) = match std::mem::replace(&mut *phase, Phase::Spoiled) {
            Phase::Unpacked { staging, made, .. } => (staging, made),
            other => {
                let fresh = !matches!(other, Phase::Shelved { .. });
                *phase = other;
                return Ok(fresh);
            }
        };
        let lowers: Result<Vec<OwnedFd>, _> =
            below.iter().rev().map(|ready| ready.directory.try_clone()).collect();
        let lowers = lowers.map_err(|e| Error::io("open", Path::new("layer"), e))?;
        layer::settle::settle(self.directory.as_fd(), &made, lowers)
            .map_err(|e| self.wanted.settle_error(e, staging.path()))?;
        let taken = inventory::take(self.directory.as_fd(), &made.sums, staging.inventory()?);
        let (inventory, usage) =
            taken.map_err(|e| Error::io("take the inventory of", staging.path(), e))?;
        let record = LayerRecord {
            chain: self.wanted.chain.clone(),
            parent: self.wanted.parent.clone(),
            diff_id: self.wanted.diff_id.clone(),
            bytes: usage.bytes,
            inodes: usage.inodes,
            inventory: Some(inventory),
            unknown: serde_json::Map::new(),
        };
        staging.describe(&record)?;
        *phase = Phase::Settled { staging, record };
        Ok(true)
    }

    fn shelve(&self, shelf: &Arc<Shelf>) -> Result<(), Error> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *phase, Phase::Spoiled) {
            Phase::Settled { staging, record } => {
                *phase = Phase::Shelved { _hold: shelf.shelve(staging, record)? };
                Ok(())
            }
            Phase::Shelved { _hold } => {
                *phase = Phase::Shelved { _hold };
                Ok(())
            }
            Phase::Unpacked { .. } | Phase::Spoiled => {
                Err(Error::Lost(format!("settling layer {}", self.wanted.chain)))
            }
        }
    }
}

impl Wanted {
    fn name(&self) -> String {
        self.blob.as_ref().map_or(&self.diff_id, |(digest, _)| digest).to_string()
    }

    fn bad(&self, reason: String) -> Error {
        Error::BadLayer { reference: self.of.clone(), layer: self.name(), reason }
    }

    fn settle_error(&self, error: SettleError, directory: &Path) -> Error {
        match error {
            SettleError::Io { source, .. } if is_full(&source) => {
                Error::io("settle a layer in", directory, source)
            }
            error => self.bad(error.to_string()),
        }
    }

    fn unpack_error(&self, error: UnpackError, directory: &Path) -> Error {
        match error {
            UnpackError::Digest { .. } | UnpackError::Size { .. } | UnpackError::DiffId { .. } => {
                Error::Verification {
                    reference: self.of.clone(),
                    object: format!("layer {}", self.name()),
                    reason: error.to_string(),
                }
            }
            UnpackError::Cancelled => Error::Cancelled(format!("pull of {}", self.of)),
            UnpackError::Stream(source) if is_full(&source) => {
                Error::io("unpack a layer in", directory, source)
            }
            UnpackError::Write(layer::WriteError::Io { source, .. }) if is_full(&source) => {
                Error::io("unpack a layer in", directory, source)
            }
            UnpackError::Stream(_) | UnpackError::TooLarge(_) | UnpackError::Write(_) => {
                self.bad(error.to_string())
            }
        }
    }
}

async fn make(core: Arc<Core>, wanted: Wanted, source: Source) -> Result<Arc<Ready>, Error> {
    // The semaphore is never closed.
    let _permit = core.permits.acquire().await;
    core.step("layer begun");
    let (staging, made, ticket) = match (&source, &wanted.blob) {
        (Source::File(path), _) => from_file(&core, &wanted, path).await?,
        (Source::Registry(session, elsewhere), Some((digest, size))) => {
            let kept = core.layout.blob(digest);
            if kept.is_file() {
                from_file(&core, &wanted, &kept).await?
            } else {
                from_registry(&core, &wanted, session, (digest, *size, elsewhere)).await?
            }
        }
        (Source::Registry(..), None) => return Err(wanted.bad("no manifest names it".into())),
    };
    let directory = staging.open()?;
    let chain = wanted.chain.clone();
    let phase = Mutex::new(Phase::Unpacked { staging, made, _ticket: ticket });
    let ready = Arc::new(Ready { wanted, directory, phase });
    core.announce(&chain, &ready);
    core.step("unpacked");
    Ok(ready)
}

async fn from_file(core: &Arc<Core>, wanted: &Wanted, path: &Path) -> Result<Fetched, Error> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let stop = Stop::default();
    let unpacking = unpack(core, wanted, Box::new(file), (Arc::clone(&stop.flag), || {}))?;
    let (staging, made) = landed(unpacking.await, wanted)?;
    Ok((staging, made, None))
}

/// What a layer was made into, and the hold on what it was made of.
type Fetched = (Staging, Made, Option<Ticket>);

async fn from_registry(
    core: &Arc<Core>,
    wanted: &Wanted,
    session: &Arc<Session>,
    (digest, size, elsewhere): (&Digest, u64, &[String]),
) -> Result<Fetched, Error> {
    let (mut spoiled, mut joins) = (false, 0);
    loop {
        let ticket = arrivals::join(core, session, (digest, size, elsewhere))?;
        match along(core, wanted, &ticket.arrival).await {
            // What an earlier, broken pull left may itself be the fault; so may what another began.
            Err(Error::Verification { .. } | Error::BadLayer { .. })
                if !spoiled && (ticket.arrival.continued || !ticket.own) =>
            {
                spoiled = true;
                ticket.spoil();
            }
            // The one who began it had other credentials, or was cancelled.
            Err(_) if !ticket.own && joins < JOINS_MAX => joins += 1,
            Ok((staging, made)) => {
                if core.config.keep_blobs {
                    keep(&core.layout.blob(digest), ticket.arrival.blob.path())?;
                }
                return Ok((staging, made, Some(ticket)));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Unpacks a blob while it arrives.
async fn along(
    core: &Arc<Core>,
    wanted: &Wanted,
    arrival: &Arrival,
) -> Result<(Staging, Made), Error> {
    let reader = Reader { stop: Arc::default(), blob: Arc::clone(&arrival.blob) };
    let follower = Box::new(arrival.blob.follow(Arc::clone(&reader.stop)));
    let interrupt = {
        let reader = reader.clone();
        move || reader.stop()
    };
    let stop = Stop { flag: Arc::default(), reader: Some(reader) };
    let mut unpacking = unpack(core, wanted, follower, (Arc::clone(&stop.flag), interrupt))?;
    tokio::select! {
        unpacked = &mut unpacking => {
            // A failed download ends the reading too; it knows why.
            if arrival.blob.is_aborted() {
                arrival.landed().await?;
            }
            return landed(unpacked, wanted);
        }
        downloaded = arrival.landed() => {
            if let Err(error) = downloaded {
                drop(stop);
                let _ = unpacking.await; // its error is only the echo of this one
                return Err(error);
            }
        }
    }
    landed(unpacking.await, wanted)
}

/// Moves a whole blob to where it is kept; another layer of the same blob may have done it.
fn keep(kept: &Path, arrived: &Path) -> Result<(), Error> {
    match std::fs::rename(arrived, kept) {
        Err(_) if kept.is_file() => Ok(()),
        moved => moved.map_err(|e| Error::io("rename to", kept, e)),
    }
}

/// Tells the writer and its reader to stop when the operation that wants the layer is dropped.
#[derive(Default)]
struct Stop {
    flag: Arc<AtomicBool>,
    reader: Option<Reader>,
}

/// One follower of a blob, which may be waiting.
#[derive(Clone)]
struct Reader {
    stop: Arc<AtomicBool>,
    blob: Arc<Blob>,
}

impl Reader {
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.blob.wake();
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Relaxed);
        if let Some(reader) = &self.reader {
            reader.stop();
        }
    }
}

/// Starts the pipeline on threads that may block. It owns the staging directory, so that nobody
/// removes it under the writer's hands.
fn unpack(
    core: &Arc<Core>,
    wanted: &Wanted,
    source: Box<dyn Read + Send>,
    (cancel, interrupt): (Arc<AtomicBool>, impl Fn() + Send + Sync + 'static),
) -> Result<Unpacking, Error> {
    let staging = core.shelf.staging()?;
    let (core, wanted) = (Arc::clone(core), wanted.clone());
    Ok(tokio::task::spawn_blocking(move || {
        let directory = staging.open()?;
        let job = Job {
            source,
            interrupt: &interrupt,
            blob: wanted.blob.clone(),
            title: wanted.title.as_deref(),
            diff_id: &wanted.diff_id,
            directory,
            limits: &core.config.limits,
            cancel: &cancel,
        };
        let made = layer::unpack(job).map_err(|e| wanted.unpack_error(e, &core.layout.layers()))?;
        Ok((staging, made))
    }))
}

type Unpacking = tokio::task::JoinHandle<Result<(Staging, Made), Error>>;
type Unpacked = Result<Result<(Staging, Made), Error>, tokio::task::JoinError>;

fn landed(unpacked: Unpacked, wanted: &Wanted) -> Result<(Staging, Made), Error> {
    unpacked.map_err(|_| Error::Lost(format!("unpacking layer {}", wanted.name())))?
}

/// Layers that are whole but not yet on the shelf, for pulls that come a moment later.
#[derive(Default)]
pub(crate) struct Announced {
    layers: Mutex<HashMap<ChainId, Weak<Ready>>>,
}

impl Announced {
    pub(crate) fn find(&self, chain: &ChainId) -> Option<Arc<Ready>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(chain)?.upgrade()
    }

    pub(crate) fn add(&self, chain: &ChainId, ready: &Arc<Ready>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, ready| ready.strong_count() > 0);
        layers.insert(chain.clone(), Arc::downgrade(ready));
    }
}
