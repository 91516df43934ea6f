//! Exec, attach and port-forward for clients: the sessions live in a process of their own, so that the daemon may be
//! restarted under them. Here is the daemon's end; `serve` is the process', `target` what it knows of pods.

mod message;
mod process;
pub(crate) mod serve;
mod settings;
mod target;

use std::io;

pub(crate) use message::{Target, What};
pub(crate) use process::Streaming;
pub(crate) use settings::{Raw, Settings};

/// Why a client cannot be given a URL.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("start the streaming process: {0}")]
    Start(io::Error),
    #[error("the streaming process cannot serve: {0}")]
    Refused(String),
    #[error("{0}")]
    TooMany(String),
    #[error("speak to the streaming process: {0}")]
    Broken(io::Error),
}
