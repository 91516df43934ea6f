//! Container output to CRI log files, in a thread of its own: a file can block, the control loop must not.

use std::sync::atomic::{AtomicBool, AtomicU64};

mod file;
mod limits;
mod lines;
mod pump;
mod readers;
mod tail;

pub(crate) use file::touch;
pub(crate) use limits::Limits;
pub(crate) use pump::{Outcome, Pump, Source, Stream};

/// What became of a container's output.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Written to the log, what the format adds included.
    pub(crate) bytes: AtomicU64,
    pub(crate) lines: AtomicU64,
    /// Refused by the file system.
    pub(crate) dropped: AtomicU64,
    /// Kept from the log by its limits.
    pub(crate) limited: AtomicU64,
    /// Nothing follows: all streams have ended, and what they said is in the log.
    pub(crate) complete: AtomicBool,
}
