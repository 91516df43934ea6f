//! Blobs on their way in: each is downloaded once at a time, however many layers of however many
//! images wait for it, and the last one to lose interest ends the download.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::download;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::registry::Session;
use crate::service::Core;
use crate::store::blob::Blob;
use crate::store::layout;

/// All downloads under way.
#[derive(Default)]
pub(crate) struct Arrivals {
    open: Mutex<HashMap<Digest, Entry>>,
    /// The daemon is about to end: what has arrived is worth keeping.
    closing: AtomicBool,
    received: AtomicU64,
}

struct Entry {
    arrival: Arc<Arrival>,
    users: usize,
}

/// One download.
pub(crate) struct Arrival {
    pub(crate) blob: Arc<Blob>,
    /// It began with what an earlier download left.
    pub(crate) continued: bool,
    size: u64,
    session: Arc<Session>,
    outcome: watch::Receiver<Option<Result<(), Error>>>,
    task: AbortHandle,
    spoiled: AtomicBool,
}

/// Interest in a download: while the layer is made of it, and until the whole image is there, so
/// that a pull that fails at one layer leaves the others to the next.
pub(crate) struct Ticket {
    core: Arc<Core>,
    digest: Digest,
    pub(crate) arrival: Arc<Arrival>,
    /// This one began it, with its own credentials.
    pub(crate) own: bool,
}

/// A partial download smaller than this is quicker fetched again than kept.
const KEEP_PARTIAL_MIN: u64 = 4 << 20;

impl Arrivals {
    /// Bytes of layers received since the start.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How much of a blob is here while it is being downloaded.
    pub(crate) fn bytes_of(&self, digest: &Digest) -> Option<u64> {
        self.lock().get(digest).map(|entry| entry.arrival.blob.bytes())
    }

    /// Whether a blob whose digest has these digits is being downloaded or used.
    pub(crate) fn has(&self, hex: &str) -> bool {
        self.lock().keys().any(|digest| digest.hex() == hex)
    }

    /// From now on partial downloads stay on disk.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins the download of a blob, or begins it.
pub(crate) fn join(
    core: &Arc<Core>,
    session: &Arc<Session>,
    (digest, size, elsewhere): (&Digest, u64, &[String]),
) -> Result<Ticket, Error> {
    let ticket = |arrival, own| {
        let (core, digest) = (Arc::clone(core), digest.clone());
        Ticket { core, digest, arrival, own }
    };
    let path = core.layout.ingest().join(digest.hex());
    let mut open = core.arrivals.lock();
    if let Some(entry) = open.get_mut(digest) {
        if entry.arrival.is_good() {
            entry.users += 1;
            return Ok(ticket(Arc::clone(&entry.arrival), false));
        }
        // Whoever still has a ticket of it reads from its own descriptor.
        if !entry.arrival.is_worth_keeping() {
            layout::remove_file(&path)?;
        }
        open.remove(digest);
    }
    let fault = |e| Error::io("open", &path, e);
    let mut blob = Blob::open(&path).map_err(fault)?;
    if blob.bytes() > size {
        layout::remove_file(&path)?;
        blob = Blob::open(&path).map_err(fault)?;
    }
    let continued = blob.bytes() > 0;
    let (landed, outcome) = watch::channel(None);
    let task = {
        let (core, session) = (Arc::clone(core), Arc::clone(session));
        let (blob, digest, elsewhere) = (Arc::clone(&blob), digest.clone(), elsewhere.to_vec());
        tokio::spawn(async move {
            let what = (&digest, size, elsewhere.as_slice());
            let result = download::download(&core, &session, what, &blob).await;
            match &result {
                Ok(()) => blob.complete(),
                Err(e) => {
                    if e.kind() == ErrorKind::RegistryUnavailable {
                        session.give_up();
                    }
                    blob.abort();
                }
            }
            landed.send_replace(Some(result));
        })
        .abort_handle()
    };
    let spoiled = AtomicBool::new(false);
    let session = Arc::clone(session);
    let arrival = Arrival { blob, continued, size, session, outcome, task, spoiled };
    let arrival = Arc::new(arrival);
    open.insert(digest.clone(), Entry { arrival: Arc::clone(&arrival), users: 1 });
    Ok(ticket(arrival, true))
}

impl Arrival {
    fn is_good(&self) -> bool {
        let failed = matches!(&*self.outcome.borrow(), Some(Err(_)));
        !failed && !self.spoiled.load(Ordering::Relaxed)
    }

    /// Its pull did not fail for any fault of ours or of the bytes, and they are many or all.
    fn is_worth_keeping(&self) -> bool {
        let bytes = self.blob.bytes();
        self.session.is_given_up() && (bytes >= KEEP_PARTIAL_MIN || bytes == self.size)
    }

    /// How the download ends.
    pub(crate) async fn landed(&self) -> Result<(), Error> {
        let mut outcome = self.outcome.clone();
        let landed = outcome.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
        landed.unwrap_or_else(|| Err(Error::Lost("a download".into())))
    }
}

impl Ticket {
    /// What arrived is not what was promised: the next one begins anew.
    pub(crate) fn spoil(&self) {
        self.arrival.spoiled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut open = self.core.arrivals.lock();
        let Some(entry) = open.get_mut(&self.digest) else { return };
        if !Arc::ptr_eq(&entry.arrival, &self.arrival) {
            return; // a later download has the name now
        }
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        let arrival = &self.arrival;
        arrival.task.abort();
        arrival.blob.abort();
        let closing = self.core.arrivals.closing.load(Ordering::Relaxed);
        let keep = arrival.is_worth_keeping() || closing;
        if !keep || arrival.spoiled.load(Ordering::Relaxed) {
            arrival.blob.remove();
        }
        open.remove(&self.digest);
    }
}
