//! The pipeline of one layer: source → digest → inflate on one thread, diff id → files on another.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::archive::Archive;
use super::archive::ArchiveError;
use super::inflate::{self, TooLarge};
use super::write::{Made, WriteError, Writer};
use crate::config::Limits;
use crate::digest::Digest;

/// One layer to unpack. Everything in it blocks; run it on a thread that may.
pub(crate) struct Job<'a> {
    /// The bytes of the layer, compressed or not.
    pub(crate) source: Box<dyn Read + Send + 'a>,
    /// Makes a blocked read of `source` return an error; called when the writer gives up.
    pub(crate) interrupt: &'a (dyn Fn() + Sync),
    /// What the manifest says about `source`; an archive made by `docker save` says nothing.
    pub(crate) blob: Option<(Digest, u64)>,
    /// The source is no archive but one file of this name, whose size `blob` tells.
    pub(crate) title: Option<&'a str>,
    /// What the image configuration says about the uncompressed bytes.
    pub(crate) diff_id: &'a Digest,
    /// The empty directory to fill.
    pub(crate) directory: OwnedFd,
    pub(crate) limits: &'a Limits,
    pub(crate) cancel: &'a AtomicBool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the digest of what arrived is {found}, promised was {promised}")]
    Digest { found: Digest, promised: Digest },
    #[error("{found} bytes arrived, promised were {promised}")]
    Size { found: u64, promised: u64 },
    #[error("the uncompressed digest is {found}, the image configuration says {promised}")]
    DiffId { found: Digest, promised: Digest },
    #[error("it cannot be read or inflated: {0}")]
    Stream(io::Error),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Write(WriteError),
    #[error("cancelled")]
    Cancelled,
}

/// Unpacks one layer and checks every promise made about it. On an error the directory holds
/// whatever was written so far; the caller throws it away.
pub(crate) fn unpack(job: Job<'_>) -> Result<Made, UnpackError> {
    let Job { source, interrupt, blob, title, diff_id, directory, limits, cancel } = job;
    let (inflater, mut inflated) = inflate::pair(limits.layer_bytes, diff_id);
    let frame = title.zip(blob.as_ref()).map(|(title, (_, size))| inflate::frame(title, *size));
    let frame = frame.transpose().map_err(UnpackError::Stream)?;
    let is_file = frame.is_some();
    let like = blob.as_ref().map_or(diff_id, |(digest, _)| digest);
    let (written, compressed) = std::thread::scope(|scope| {
        let inflating = std::thread::Builder::new()
            .name("layer-inflate".into())
            .spawn_scoped(scope, move || inflater.run(source, like, frame))
            .map_err(UnpackError::Stream)?;
        let written = write(&mut inflated, directory, (limits, cancel)).and_then(|made| {
            let (found, _) = inflated.finish().map_err(stream_error)?;
            Ok((made, found))
        });
        if matches!(&written, Err(UnpackError::TooLarge(_) | UnpackError::Write(_))) {
            interrupt();
        }
        let compressed = inflating.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, UnpackError>((written, compressed))
    })?;
    // A wrong digest explains every other fault; a fault of ours explains a missing digest.
    if let (Ok(compressed), Some((promised, size))) = (&compressed, blob) {
        if compressed.bytes != size {
            return Err(UnpackError::Size { found: compressed.bytes, promised: size });
        }
        if compressed.digest != promised {
            return Err(UnpackError::Digest { found: compressed.digest.clone(), promised });
        }
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(UnpackError::Cancelled);
    }
    let (made, found) = written?;
    compressed.map_err(UnpackError::Stream)?;
    // Nobody promised anything about the frame; the blob's digest is right.
    if !is_file && found != *diff_id {
        return Err(UnpackError::DiffId { found, promised: diff_id.clone() });
    }
    Ok(made)
}

fn write(
    inflated: &mut inflate::Inflated,
    directory: OwnedFd,
    (limits, cancel): (&Limits, &AtomicBool),
) -> Result<Made, UnpackError> {
    let mut writer = Writer::new(directory, limits, cancel).map_err(UnpackError::Stream)?;
    let mut archive = Archive::new(inflated);
    writer.write(&mut archive).map_err(|e| match e {
        WriteError::Archive(ArchiveError::Read(e)) => stream_error(e),
        e => UnpackError::Write(e),
    })?;
    writer.finish().map_err(UnpackError::Write)
}

fn stream_error(error: io::Error) -> UnpackError {
    match error.downcast::<TooLarge>() {
        Ok(limit) => UnpackError::TooLarge(limit),
        Err(error) => UnpackError::Stream(error),
    }
}
