//! What can go wrong between a profile and its program, told with the profile's name.

use std::io;
use std::path::PathBuf;

/// A profile that did not become a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("keep seccomp programs in {}: {what}: {source}", path.display())]
    Store { path: PathBuf, what: &'static str, source: io::Error },
    #[error(
        "keep seccomp programs in {}: it must be a directory that only its owner, this user, can \
         write, for its files are loaded into containers as they are (chmod go-w, chown)",
        path.display()
    )]
    Exposed { path: PathBuf },
    #[error("seccomp profile {}: {source}", path.display())]
    File { path: PathBuf, source: FileError },
    #[error("compile seccomp profile {}: {source}", path.display())]
    Profile { path: PathBuf, source: CompileError },
    #[error("compile the RuntimeDefault seccomp profile: {source}")]
    Default { source: CompileError },
    #[error("compile linux.seccomp: {source}")]
    Spec { source: CompileError },
}

/// A Localhost profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(
        "no such file; a Localhost profile belongs on every node under the kubelet's seccomp \
         directory (/var/lib/kubelet/seccomp, or seccomp/ in its --root-dir)"
    )]
    Missing,
    #[error("cannot be read: {0}")]
    Read(io::Error),
    #[error("is not a regular file")]
    NotRegular,
    #[error("is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("is not a profile: {0}")]
    Syntax(serde_json::Error),
    #[error("\"{field}\" is refused: {why}")]
    Refused { field: &'static str, why: &'static str },
    #[error("names both \"{one}\" and \"{other}\" where one must be chosen")]
    Both { one: &'static str, other: &'static str },
    #[error("syscalls[{index}] names no system call")]
    Nameless { index: usize },
    #[error("\"minKernel\": \"{text}\" is not a version like \"5.10\"")]
    Kernel { text: String },
    #[error("errno \"{text}\" is not a name this runtime knows; give the number as errnoRet")]
    Errno { text: String },
}

/// A filter that libseccomp or the kernel cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("errno {errno} is above 4095, the highest that the kernel can return")]
    Errno { errno: u32 },
    #[error("a condition on argument {index} of {name}: system calls have arguments 0 to 5")]
    Argument { name: String, index: usize },
    #[error(
        "the rule against {name}: neither libseccomp {version} nor this runtime knows the call, \
         and the default action would let it through"
    )]
    Unknown { name: String, version: String },
    #[error("the rule for {name}: {source}")]
    Rule { name: String, source: libseccomp::error::SeccompError },
    #[error("{stage}: {source}")]
    Library { stage: &'static str, source: libseccomp::error::SeccompError },
    #[error("take the program out of libseccomp: {0}")]
    Export(io::Error),
    #[error("the program has {instructions} instructions, the kernel takes at most {limit}")]
    TooLong { instructions: usize, limit: usize },
}
