//! The network on a real kernel: every test has a host of its own, a fresh network namespace, and
//! asks `ip`, `nft` and plain sockets what came of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod attach;
mod bandwidth;
mod cni;
mod dual_stack;
mod faults;
mod floor;
mod host;
mod measure;
mod pool;
mod ports;
mod sctp;
mod survey;
mod table;
