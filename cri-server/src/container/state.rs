//! The life of a container, and which request is allowed when. Pure.
//!
//! ```text
//! Creating ──► Created ──► Running ──► Exited
//!     │           └───────── start failed ──▲
//!     └── create failed ──► (gone)       Exited ──► Removing ──► (gone)
//! ```
#![deny(clippy::wildcard_enum_match_arm)]

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// The exit status; 128 + n for signal n.
    pub(crate) code: i32,
    pub(crate) started_at_ns: i64,
    pub(crate) finished_at_ns: i64,
    pub(crate) reason: Reason,
    /// What to tell people, when there is more to say than the code.
    pub(crate) message: String,
}

/// Kubernetes shows these words; see `to_proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Reason {
    Completed,
    Error,
    OomKilled,
    /// The program never ran.
    StartError,
    /// It wrote more than it may.
    WritableLimit,
    /// The shim died and with it the knowledge of how the container ended.
    ShimLost,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// On record, not yet shown.
    Creating,
    /// Everything is set up; the program waits for its start.
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at_ns: i64,
    },
    Exited(Exit),
    /// On its way out, no longer shown. Keeps nothing: the way down is the same for all.
    Removing,
}

impl Phase {
    /// The word for messages.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
            Self::Removing => "being removed",
        }
    }

    pub(crate) fn is_shown(&self) -> bool {
        match self {
            Self::Created { .. } | Self::Running { .. } | Self::Exited(_) => true,
            Self::Creating | Self::Removing => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    Exec,
    ReopenLog,
    Update,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Proceed,
    AlreadyDone,
    Denied,
}

pub(crate) fn decide(phase: &Phase, request: Request) -> Decision {
    use Decision::{AlreadyDone, Denied, Proceed};
    match (request, phase) {
        (Request::Stop, Phase::Creating | Phase::Created { .. } | Phase::Running { .. }) => Proceed,
        // CRI wants Stop idempotent.
        (Request::Stop, Phase::Exited(_) | Phase::Removing) => AlreadyDone,
        (Request::Exec | Request::ReopenLog, Phase::Running { .. }) => Proceed,
        (
            Request::Exec | Request::ReopenLog,
            Phase::Creating | Phase::Created { .. } | Phase::Exited(_) | Phase::Removing,
        ) => Denied,
        (Request::Update, Phase::Created { .. } | Phase::Running { .. }) => Proceed,
        (Request::Update, Phase::Creating | Phase::Exited(_) | Phase::Removing) => Denied,
    }
}
