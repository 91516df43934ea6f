//! The daemon's nftables table: what is in it, how that is written for the kernel, and loading it.
//!
//! The table has a fixed set of rules over sets and maps. A pod is one element in a set, a host port
//! one element in a map, so that the thousandth costs what the first did; they come and go in one
//! transaction of one datagram.

mod abi;
mod encode;
mod foreign;
pub(crate) mod load;
mod ruleset;

pub(crate) use load::Nft;
pub(crate) use ruleset::{Pod, Settings};
