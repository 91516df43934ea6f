//! What can go wrong with a pod's network, in the words an operator needs.

use std::io;
use std::path::PathBuf;

/// An operation on the network that failed: which one, on which object, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot work; every mistake found in it is listed.
    #[error("network configuration: {}", .0.join("; "))]
    Config(Vec<String>),

    /// No address range is known yet: none is configured and the kubelet sent no pod CIDR.
    #[error(
        "no pod address range is known: set network.ranges, or wait for the kubelet's pod CIDR"
    )]
    NoRange,

    /// Every usable address of the ranges of one family is leased.
    #[error("no free address in {ranges}: all {count} usable addresses are leased")]
    Exhausted {
        /// The ranges of the exhausted family, separated by commas.
        ranges: String,
        /// How many addresses they can lease in total.
        count: u128,
    },

    /// A host port is already given to another pod.
    #[error("host port {port} is already taken by {owner}")]
    PortTaken {
        /// The port as `address:port/protocol`.
        port: String,
        /// Who has it, as its request named itself.
        owner: String,
    },

    /// A port mapping that cannot work for this pod.
    #[error("port mapping {port}: {reason}")]
    Port {
        /// The port as `address:port/protocol`.
        port: String,
        /// Why it cannot work.
        reason: String,
    },

    /// The sandbox has a lease; detach it before it is attached again.
    #[error("sandbox {0} is attached already")]
    Attached(String),

    /// A sandbox identifier that cannot be a file name.
    #[error(
        "sandbox id {0:?}: expected 1 to 200 letters, digits, '.', '_' or '-', not starting with '.'"
    )]
    Id(String),

    /// Something a sandbox had is not there any more.
    #[error("network of sandbox {sandbox}: {object} is missing")]
    Missing {
        /// The sandbox.
        sandbox: String,
        /// What it lost.
        object: String,
    },

    /// Somebody else's firewall drops what pods send.
    #[error(
        "forwarded packets of pods are dropped by the policy of {chains}: accept them there, for \
         example with iptables -I FORWARD -i {bridge} -j ACCEPT and -o {bridge} -j ACCEPT"
    )]
    Blocked {
        /// The dropping chains as `family table chain`, separated by commas.
        chains: String,
        /// The bridge to accept.
        bridge: String,
    },

    /// The link named as our bridge is something else.
    #[error("link {name} cannot be the pod bridge: {reason}")]
    Bridge {
        /// Name of the link.
        name: String,
        /// What it is instead.
        reason: String,
    },

    /// Another process holds the leases.
    #[error("lease directory {}: in use by another process for more than {seconds} s", .dir.display())]
    Busy {
        /// The lease directory.
        dir: PathBuf,
        /// How long this process waited.
        seconds: u64,
    },

    /// A file or directory could not be used.
    #[error("{stage} {}: {source}", .path.display())]
    File {
        /// What was attempted.
        stage: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The kernel has nothing to make the daemon's table of.
    #[error(
        "{stage} {object}: {source}; this kernel has no nf_tables, or may not load it: try modprobe \
         nf_tables; pods on the node's own network run without"
    )]
    NoNfTables {
        /// What was attempted.
        stage: &'static str,
        /// On which object.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The kernel refused a network operation.
    #[error("{stage} {object}: {source}{detail}")]
    Kernel {
        /// What was attempted, such as `create link`.
        stage: &'static str,
        /// On which object.
        object: String,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's own explanation and our hint, each after a separator; often empty.
        detail: String,
    },
}

impl Error {
    pub(crate) fn kernel(
        stage: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error::Kernel { stage, object: object.into(), source: source.into(), detail: String::new() }
    }

    pub(crate) fn file(
        stage: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error::File { stage, path: path.into(), source: source.into() }
    }

    /// The same with a hint, if it is this error number.
    pub(crate) fn hint(mut self, errno: i32, hint: &str) -> Error {
        let is_it = self.errno() == Some(errno);
        if let Error::Kernel { detail, .. } = &mut self
            && is_it
        {
            *detail += &format!("; {hint}");
        }
        self
    }

    /// The same, if it is this error number, of a kernel that knows nothing of tables.
    pub(crate) fn without_nf_tables(self, errno: i32) -> Error {
        let is_it = self.errno() == Some(errno);
        match self {
            Error::Kernel { stage, object, source, .. } if is_it => {
                Error::NoNfTables { stage, object, source }
            }
            other => other,
        }
    }

    /// The kernel's error number, for callers that know how to go on.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { source, .. } | Error::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
