//! What can go wrong with an operation on a sandbox, a container or an image, before it becomes
//! a gRPC status in `grpc/status.rs`.

use std::io;
use std::path::PathBuf;

/// The failure of one operation. The text names the object, the stage and, where there is one,
/// the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request itself is wrong; no retry can help.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// The request asks for something that this build or node does not do.
    #[error("{field} is not supported: {hint}")]
    Unsupported { field: String, hint: String },
    #[error("{kind} {id:?} does not exist")]
    NotFound { kind: &'static str, id: String },
    /// The name is taken by an object with another configuration, or by one on its way down.
    #[error("{kind} name {name:?} is taken by {holder}: {why}")]
    AlreadyExists { kind: &'static str, name: String, holder: String, why: &'static str },
    /// The object is not in a state that allows the operation.
    #[error("cannot {operation} {kind} {id}: it is {state}")]
    State { operation: &'static str, kind: &'static str, id: String, state: String },
    #[error("the exec in container {id} did not end within {seconds} s and was killed")]
    ExecTimeout { id: String, seconds: u64 },
    #[error("network of pod {pod}: {source}")]
    Network { pod: String, source: netplugin::Error },
    #[error("network of pod {pod}: {source}")]
    Cni { pod: String, source: Box<cni::Error> },
    /// The cluster has not said yet what its network is.
    #[error("network of pod {pod}: {reason}")]
    NoNetwork { pod: String, reason: String },
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    #[error(transparent)]
    Streaming(#[from] crate::streaming::Error),
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A fault of this node, whose own text names no image.
    #[error("pull of {reference}: {source}")]
    Pull { reference: String, source: image::Error },
    /// The kubelet reads the first word.
    #[error("ImageVolumeMountFailed: config.mounts[{path}]: {problem}")]
    ImageVolume { path: String, problem: String },
    #[error("CDI device: {0}")]
    Cdi(#[from] crate::container::cdi::CdiError),
    #[error(transparent)]
    Cgroup(runtime::cgroup::Error),
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    #[error(transparent)]
    Record(#[from] crate::store::disk::DiskError),
    #[error("{attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    /// A retry joined an operation that failed; the cause is shared between all who waited.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),
    /// The cause, and what the way down could not take back.
    #[error("{cause}; not everything could be taken back: {leftovers}")]
    Leftovers { cause: Box<Error>, leftovers: String },
    /// A task of the daemon panicked: a bug, contained to this one request.
    #[error("internal error while handling {operation}; see the daemon's log")]
    Panicked { operation: &'static str },
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn io(attempt: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { attempt, path: path.into(), source }
    }

    pub(crate) fn no_sandbox(id: impl Into<String>) -> Self {
        Self::NotFound { kind: "pod sandbox", id: id.into() }
    }

    pub(crate) fn no_container(id: impl Into<String>) -> Self {
        Self::NotFound { kind: "container", id: id.into() }
    }
}
