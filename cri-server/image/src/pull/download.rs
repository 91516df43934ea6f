//! Brings one blob over the network into its file, however often the connection breaks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::registry::Session;
use crate::registry::session::{Arriving, describe};
use crate::service::Core;
use crate::store::blob::Blob;

/// Connections in a row that bring less than [`PROGRESS`]; then the registry is given up.
const FAILURES_MAX: u32 = 5;
/// A connection that brought this much was a good one.
const PROGRESS: u64 = 1 << 20;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Written to the file at once: few system calls, little memory.
const BATCH: usize = 512 << 10;
const STAGE: &str = "download of a layer";

/// Appends to `blob` until it has `size` bytes. The digest is checked by who reads along.
pub(crate) async fn download(
    core: &Core,
    session: &Session,
    (digest, size, elsewhere): (&Digest, u64, &[String]),
    blob: &Arc<Blob>,
) -> Result<(), Error> {
    let mut failures = 0;
    let mut pause = PAUSE_FIRST;
    let mut last: Option<Broken> = None;
    loop {
        let start = blob.bytes();
        if start == size {
            return Ok(());
        }
        if failures == FAILURES_MAX {
            return Err(given_up(session, (digest, size), start, last));
        }
        if failures > 0 {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        match session.blob(digest, start, elsewhere).await {
            // Once something has arrived, a registry that restarts is waited for.
            Err(e) if e.kind() == ErrorKind::RegistryUnavailable && start > 0 => {
                failures += 1;
                if failures == FAILURES_MAX {
                    return Err(e);
                }
                continue;
            }
            Err(e) => return Err(e),
            Ok(arriving) => last = receive(core, session, (arriving, size), blob).await?,
        }
        if blob.bytes() - start >= PROGRESS {
            (failures, pause) = (0, PAUSE_FIRST);
        }
        failures += 1;
    }
}

/// How a connection ended before everything was there.
struct Broken {
    url: String,
    /// The connection's own error; none when the registry ended the answer in good order.
    cause: Option<String>,
}

fn given_up(
    session: &Session,
    (digest, size): (&Digest, u64),
    bytes: u64,
    last: Option<Broken>,
) -> Error {
    match last {
        Some(Broken { url, cause: Some(cause) }) => {
            let cause =
                format!("it broke off {FAILURES_MAX} times, last after byte {bytes}: {cause}");
            session.broke_off(STAGE, url, cause)
        }
        Some(Broken { cause: None, .. }) | None => Error::Verification {
            reference: session.reference.to_string(),
            object: format!("layer {digest}"),
            reason: format!("the registry ended it after {bytes} bytes, promised were {size}"),
        },
    }
}

/// Takes in one answer. `None`: all of the blob is there.
async fn receive(
    core: &Core,
    session: &Session,
    (mut arriving, size): (Arriving, u64),
    blob: &Arc<Blob>,
) -> Result<Option<Broken>, Error> {
    let have = blob.bytes();
    if arriving.offset > have {
        let cause = format!("asked for byte {have} it sent byte {}", arriving.offset);
        return Ok(Some(Broken { url: arriving.url, cause: Some(cause) }));
    }
    let mut skip = have - arriving.offset;
    let mut room = size - have;
    let mut floor = Floor::new(&core.config);
    let mut batch = Vec::new();
    let mut batched = 0;
    let ended = loop {
        let chunk = match tokio::time::timeout_at(floor.deadline, arriving.response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break None,
            Ok(Err(e)) => break Some(describe(&e)),
            Err(_) => match floor.passed() {
                Ok(()) => continue,
                Err(cause) => return Err(session.broke_off(STAGE, arriving.url, cause)),
            },
        };
        floor.bytes += chunk.len() as u64;
        core.arrivals.count(chunk.len() as u64);
        if floor.deadline <= Instant::now()
            && let Err(cause) = floor.passed()
        {
            return Err(session.broke_off(STAGE, arriving.url, cause));
        }
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        let chunk = chunk.slice(skipped..);
        room = room.checked_sub(chunk.len() as u64).ok_or_else(|| Error::Verification {
            reference: session.reference.to_string(),
            object: "a layer".into(),
            reason: format!("the registry sends more than the {size} bytes promised"),
        })?;
        batched += chunk.len();
        batch.push(chunk);
        if batched >= BATCH || room == 0 {
            append(blob, std::mem::take(&mut batch)).await?;
            core.step("part arrived");
            batched = 0;
        }
        if room == 0 {
            return Ok(None);
        }
    };
    append(blob, batch).await?;
    Ok(Some(Broken { url: arriving.url, cause: ended }))
}

async fn append<B: AsRef<[u8]> + Send + 'static>(
    blob: &Arc<Blob>,
    batch: Vec<B>,
) -> Result<(), Error> {
    let writer = Arc::clone(blob);
    tokio::task::spawn_blocking(move || {
        writer.append(&batch).map_err(|e| Error::io("write the download", writer.path(), e))
    })
    .await
    .map_err(|_| Error::Lost("writing a download".into()))?
}

/// The least a server must send to be worth waiting for.
struct Floor {
    window: Duration,
    least: u64,
    deadline: Instant,
    bytes: u64,
}

impl Floor {
    fn new(config: &Config) -> Floor {
        let window = config.progress_timeout;
        Floor { window, least: config.progress_floor, deadline: Instant::now() + window, bytes: 0 }
    }

    /// At the deadline: begins the next window, or says why there is none.
    fn passed(&mut self) -> Result<(), String> {
        if self.bytes < self.least {
            let seconds = self.window.as_secs_f32();
            return Err(format!("only {} bytes came within {seconds} s", self.bytes));
        }
        self.bytes = 0;
        self.deadline = Instant::now() + self.window;
        Ok(())
    }
}
