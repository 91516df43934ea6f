//! What can go wrong with a network of plugins: which plugin, at which operation, and why.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::call::Verb;

/// A network that cannot be used, or an operation on it that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration at all.
    #[error(
        "no network configuration in {}: a network add-on of the cluster puts one there \
         (*.conflist, *.conf or *.json)",
        .dir.display()
    )]
    NoConfiguration {
        /// Where one was looked for.
        dir: PathBuf,
    },
    /// A configuration that cannot be understood.
    #[error("network configuration {}: {problem}", .file.display())]
    Configuration {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or directory could not be used.
    #[error("{attempt} {}: {source}", .path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// One plugin of the chain failed, and with it the operation.
    #[error("{verb} of plugin {plugin} in network {network}: {failure}")]
    Plugin {
        /// The operation.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// What went wrong.
        failure: Failure,
    },
    /// All plugins were content, and still the container has nothing.
    #[error("network {network} gave the pod no address")]
    NoAddress {
        /// The network's name.
        network: String,
    },
}

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No program of that name.
    #[error("there is no such program in {dirs}")]
    Missing {
        /// Where it was looked for.
        dirs: String,
    },
    /// The program could not be run.
    #[error("start {}: {source}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Talking to the program failed.
    #[error("talk to it: {0}")]
    Pipe(io::Error),
    /// It did not end in time and was killed.
    #[error("did not end within {seconds} s and was killed")]
    Deadline {
        /// How long it had.
        seconds: u64,
    },
    /// It answered more than anyone needs and was killed.
    #[error("answered more than {limit} bytes and was killed")]
    TooMuch {
        /// How much is read.
        limit: usize,
    },
    /// It said why, in the form of the specification.
    #[error("{message} (code {code}){details}")]
    Refused {
        /// The specification's number, or the plugin's own from 100.
        code: u64,
        /// The plugin's text.
        message: String,
        /// More of it, after a separator; often empty.
        details: String,
    },
    /// It failed without saying why in that form.
    #[error("{status}; it said: {said}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        said: String,
    },
    /// It succeeded, and what it answered cannot be understood.
    #[error("its answer cannot be understood ({problem}): {said}")]
    Rubbish {
        /// Where reading stopped.
        problem: String,
        /// The begin of its answer.
        said: String,
    },
    /// It answered in another version of the specification than can be translated.
    #[error("it speaks version {theirs} of CNI, and the configuration {asked}")]
    Version {
        /// What it speaks.
        theirs: String,
        /// What it was asked in.
        asked: String,
    },
}
