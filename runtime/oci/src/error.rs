//! What a command can fail with, in words for its user.

use std::path::PathBuf;

use container::error::words;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container {id:?} does not exist")]
    NoContainer { id: String },
    #[error("container {id:?} exists already")]
    Exists { id: String },
    #[error(
        "invalid container id {id:?}: 1 to 1024 letters, digits, `_`, `+`, `-` and `.`, not starting with a dot"
    )]
    BadId { id: String },
    /// The words are those that engines look for.
    #[error("cannot kill container {id:?}: container not running")]
    NotRunning { id: String },
    #[error(
        "container {id:?}: container's cgroup is not empty: {group} holds processes of somebody else"
    )]
    Occupied { id: String, group: String },
    #[error(
        "container {id:?}: container's cgroup unexpectedly frozen: nothing would run in {group} (thaw it first)"
    )]
    Frozen { id: String, group: String },
    #[error("container {id:?}: cannot exec in a paused container (resume it, or --ignore-paused)")]
    Paused { id: String },
    #[error("cannot {verb} container {id:?}: it is {status}")]
    WrongState { verb: &'static str, id: String, status: &'static str },
    #[error("{verb} {path}: {why}", path = path.display(), why = words(source))]
    File { verb: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}", path = path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{0}")]
    Container(#[from] container::Error),
    #[error("{0}")]
    Cgroup(#[from] cgroup::Error),
    #[error("{0}")]
    Systemd(#[from] systemd::Error),
    #[error("{verb}: {why}", why = words(source))]
    System { verb: &'static str, source: std::io::Error },
    #[error("{0}")]
    Compile(#[from] ::seccomp::Error),
    #[error("{0}")]
    Seccomp(String),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Error {
    pub(crate) fn file(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }

    pub(crate) fn system<E: Into<std::io::Error>>(verb: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { verb, source: source.into() }
    }
}
