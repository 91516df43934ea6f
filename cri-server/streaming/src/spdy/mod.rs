//! A SPDY/3.1 server: what the kubelet and `crictl` speak after the upgrade.

mod connection;
mod dictionary;
mod flow;
pub(crate) mod frame;
#[cfg(test)]
pub(crate) mod frame_tests;
pub(crate) mod headers;

pub(crate) use connection::{Receiver, Sender, Stream, Streams, start};
