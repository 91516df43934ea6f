//! What the daemon and a pod's shim say to each other: closed messages, one packet per SOCK_SEQPACKET datagram.
//!
//! The rules of the format: tags are only ever added, never changed nor reused; a peer ignores fields it does not
//! know and answers a call it does not know with `UNSUPPORTED`. So every daemon drives every shim since 1.0, and
//! an older daemon drives a newer shim. File descriptors travel beside the packet by SCM_RIGHTS, in the order that
//! the message documents. A packet that would not fit in a datagram travels in a memfd (`Spilled`).

pub mod message;
pub mod wire;

pub use message::*;
pub use wire::{Received, WireError, pair, receive, send};

/// The version this code speaks; each side says its own in `Hello` and both use the smaller. 2 added sessions, sockets,
/// pausing and the scope of an OOM kill; 3 an init of ours, mounts by descriptor and a filter for pause; 4 what a shim remembers;
/// 5 an end that nobody could tell; 6 mounts to start from.
pub const VERSION: u32 = 6;
