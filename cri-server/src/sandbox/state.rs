//! The life of a sandbox. Pure.
//!
//! ```text
//! Starting ──► Ready ──────────► Stopping ──► NotReady ──► Removing ──► (gone)
//!     │          └─► Failed ──────▲                            ▲
//!     └───────────────── could not be brought up ──────────────┘
//! ```
#![deny(clippy::wildcard_enum_match_arm)]

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// On record, not yet shown.
    Starting,
    Ready,
    /// Its pause process or its shim died; what it held is still to be given back.
    Failed,
    /// No container can be created any more.
    Stopping,
    NotReady,
    /// On its way out, no longer shown.
    Removing,
}

impl Phase {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Stopping => "being stopped",
            Self::NotReady => "stopped",
            Self::Removing => "being removed",
        }
    }

    pub(crate) fn is_shown(self) -> bool {
        match self {
            Self::Ready | Self::Failed | Self::Stopping | Self::NotReady => true,
            Self::Starting | Self::Removing => false,
        }
    }
}
