//! One error: the stage that failed (`mount /data`), and what exactly was attempted with the kernel's answer.

use std::fmt;

pub use cgroup::words;

/// Failure of a stage. The message names the object and the errno in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {message}")]
pub struct Error {
    pub stage: String,
    pub message: String,
}

impl Error {
    pub fn new(stage: impl Into<String>, message: impl Into<String>) -> Self {
        Self { stage: stage.into(), message: message.into() }
    }
}

/// Turns a system error into an `Error` of a stage.
pub(crate) trait At<T> {
    /// `what` is the attempted operation with its object: `open /srv/x`.
    fn at(self, stage: &str, what: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, stage: &str, what: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|e| Error::new(stage, format!("{what}: {}", words(&e.into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_reads_as_words() {
        let e: Result<(), _> = Err(rustix::io::Errno::NOENT).at("mount /data", "open /srv/x");
        assert_eq!(
            e.expect_err("is one").to_string(),
            "mount /data: open /srv/x: No such file or directory"
        );
    }
}
