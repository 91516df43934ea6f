//! Drives the built binaries from outside, the way a kubelet, an operator and a registry do.
//!
//! Invariant: nothing of ours is linked here but `proto`. What a test sees is what a user sees:
//! the socket, files, the kernel.
//!
//! A test reads: [`Node::start`], a [`pod`] with [`container`]s on it, what must hold,
//! [`Node::finish`]. The last step is the leak oracle: all that the node had of processes,
//! mounts, cgroups, links, firewall objects, descriptors and files must be as before.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::print_stdout, reason = "a failing test shows what it saw")]

pub use client::Cri;
pub use node::{Node, Options};
pub use pod::{Container, Pod};
pub use registry::{Registry, RegistryAuth};
pub use spec::{ContainerSpec, PodSpec, container, pod};
pub use wire::Host;

pub mod archive;
pub mod browser;
pub mod client;
pub mod critest;
pub mod flood;
pub mod guest;
pub mod host;
pub mod http;
pub mod image;
pub mod layer;
pub mod node;
pub mod peer;
pub mod pod;
pub mod registry;
pub mod slot;
pub mod spdy;
pub mod spec;
pub mod terminal;
pub mod tls;
pub mod wait;
pub mod wire;
