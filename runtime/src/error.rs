//! One error for everything a shim can refuse or fail at.

use std::fmt;

/// What went wrong, on which object, at which stage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage} of {object}: {message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub object: String,
    pub stage: String,
    pub message: String,
}

/// What the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No shim lives, or it went away during the call.
    Gone,
    NotFound,
    AlreadyExited,
    InvalidState,
    InvalidArgument,
    Timeout,
    /// The shim is older than the call.
    Unsupported,
    Failed,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        object: &str,
        stage: impl Into<String>,
        message: impl fmt::Display,
    ) -> Self {
        Self { kind, object: object.to_owned(), stage: stage.into(), message: message.to_string() }
    }

    pub(crate) fn gone(object: &str, stage: &str) -> Self {
        Self::new(ErrorKind::Gone, object, stage, "the shim is gone")
    }

    pub(crate) fn answered(object: &str, failed: protocol::Failed) -> Self {
        let kind = match failed.kind() {
            protocol::Kind::NotFound => ErrorKind::NotFound,
            protocol::Kind::AlreadyExited => ErrorKind::AlreadyExited,
            protocol::Kind::InvalidState => ErrorKind::InvalidState,
            protocol::Kind::Unsupported if failed.stage == "call" => ErrorKind::Unsupported,
            protocol::Kind::InvalidArgument | protocol::Kind::Unsupported => {
                ErrorKind::InvalidArgument
            }
            protocol::Kind::Timeout => ErrorKind::Timeout,
            protocol::Kind::Failed => ErrorKind::Failed,
        };
        Self::new(kind, object, failed.stage, failed.message)
    }
}
