//! Gives a pod its network from inside the calling process: a namespace, a veth on a bridge, leased
//! addresses, masquerade and host ports, all by netlink and without running a program.
//!
//! The crate is synchronous and knows neither pods nor the CRI: a *sandbox* is an opaque identifier.
//! [`Network`] is the whole interface; call it from a blocking thread. It never changes the network
//! namespace of the calling thread.

mod apply;
mod bandwidth;
pub mod cni;
mod config;
mod conntrack;
mod error;
mod facts;
mod ipam;
mod leases;
mod loopback;
mod netlink;
mod netns;
mod network;
mod nft;
mod plan;
mod ports;
mod survey;
mod sys;
mod teardown;
mod verify;

pub use bandwidth::{Bandwidth, Rate};
pub use config::Config;
pub use error::Error;
pub use network::{AttachRequest, Attachment, LinkOptions, Network};
pub use ports::{PortMapping, Protocol};
pub use survey::{Pool, Survey};
