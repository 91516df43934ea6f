//! What can go wrong with an image, told so that the caller can act and the reader can fix it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::reference::ReferenceError;

/// Every failure of this crate. Cheap to clone, because joined pulls share one result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{reference:?} is not an image reference: {reason}")]
    InvalidReference { reference: String, reason: ReferenceError },

    #[error("image {reference} was not found in any registry tried: {tried}")]
    NotInRegistry { reference: String, tried: Attempts },

    #[error("pull of {reference} is not authorized: {tried}")]
    Unauthorized { reference: String, tried: Attempts },

    /// The text starts with the word the kubelet turns into the reason of a pull back-off.
    #[error("RegistryUnavailable: {stage} of {reference} failed: {tried}")]
    RegistryUnavailable { reference: String, stage: &'static str, tried: Attempts },

    #[error("{object} of {reference} is not what its digest promises: {reason}")]
    Verification { reference: String, object: String, reason: String },

    #[error("{object} of {reference} cannot be used: {reason}")]
    Unsupported { reference: String, object: String, reason: String },

    #[error("layer {layer} of {reference} cannot be unpacked: {reason}")]
    BadLayer { reference: String, layer: String, reason: String },

    #[error("archive cannot be imported: {reason}")]
    BadArchive { reason: String },

    #[error("no image {0} on this node")]
    NoSuchImage(String),

    #[error("registry configuration {} is not usable: {reason}", path.display())]
    HostsFile { path: PathBuf, reason: String },

    /// The node's own configuration says no.
    #[error("{reference} is refused by {}: {reason}", by.display())]
    Refused { reference: String, by: PathBuf, reason: String },

    /// The text starts with the word the kubelet turns into the reason of a pull back-off.
    #[error("SignatureValidationFailed: {reference} is refused by {}: {reason}", policy.display())]
    Signature { reference: String, policy: PathBuf, reason: String },

    #[error("credential helper docker-credential-{helper}: {reason}")]
    Helper { helper: String, reason: String },

    #[error("{} of image {image} cannot be read: {reason}", path.display())]
    Accounts { image: Digest, path: PathBuf, reason: String },

    #[error("container {0} has no writable layer here")]
    NotPrepared(String),

    #[error("root of container {container} cannot be mounted: {reason}")]
    Root { container: String, reason: String },

    /// The text starts with the word the kubelet looks for.
    #[error("ImageVolumeMountFailed: {} of image {image}: {reason}", shown(path))]
    Volume { image: String, path: PathBuf, reason: String },

    #[error("disk is full: {action} {}: {source}", path.display())]
    DiskFull { action: &'static str, path: PathBuf, source: Arc<io::Error> },

    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },

    #[error("{0} was cancelled")]
    Cancelled(String),

    /// A background task ended without a result; only a bug does that.
    #[error("{0} ended without a result, please report this")]
    Lost(String),
}

/// What kind of answer a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidReference,
    NotFound,
    Unauthorized,
    RegistryUnavailable,
    Verification,
    Unsupported,
    BadContent,
    Configuration,
    /// The image policy does not let it in.
    Signature,
    /// A directory of an image cannot be mounted.
    Volume,
    DiskFull,
    Cancelled,
    Internal,
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidReference { .. } => ErrorKind::InvalidReference,
            Error::NotInRegistry { .. } | Error::NoSuchImage(_) | Error::NotPrepared(_) => {
                ErrorKind::NotFound
            }
            Error::Volume { .. } => ErrorKind::Volume,
            Error::Unauthorized { .. } => ErrorKind::Unauthorized,
            Error::RegistryUnavailable { .. } => ErrorKind::RegistryUnavailable,
            Error::Verification { .. } => ErrorKind::Verification,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::BadLayer { .. } | Error::BadArchive { .. } | Error::Accounts { .. } => {
                ErrorKind::BadContent
            }
            Error::HostsFile { .. } | Error::Refused { .. } | Error::Helper { .. } => {
                ErrorKind::Configuration
            }
            Error::Signature { .. } => ErrorKind::Signature,
            Error::DiskFull { .. } => ErrorKind::DiskFull,
            Error::Cancelled(_) => ErrorKind::Cancelled,
            Error::Io { .. } | Error::Root { .. } | Error::Lost(_) => ErrorKind::Internal,
        }
    }

    /// An I/O failure on `path`; a full disk or an exhausted quota becomes its own kind.
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        let source: Arc<io::Error> = Arc::new(source.into());
        let path = path.to_owned();
        if is_full(&source) {
            Error::DiskFull { action, path, source }
        } else {
            Error::Io { action, path, source }
        }
    }
}

/// The root has no name of its own.
fn shown(path: &Path) -> std::path::Display<'_> {
    if path.as_os_str().is_empty() { Path::new("/").display() } else { path.display() }
}

/// No space, no quota, or no inode left.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The endpoints that were tried and what each of them answered, in order.
#[derive(Clone, Debug, Default)]
pub struct Attempts(pub(crate) Vec<Attempt>);

/// One endpoint's answer.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Scheme, host, port and path; never a query or user information, which can hold secrets.
    pub(crate) url: String,
    pub(crate) cause: String,
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no endpoint is configured for it");
        }
        for (at, attempt) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; then " };
            write!(f, "{separator}{}: {}", attempt.url, attempt.cause)?;
        }
        Ok(())
    }
}
