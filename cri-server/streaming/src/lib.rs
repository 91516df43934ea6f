//! The streaming server: exec, attach and port-forward for clients that speak SPDY/3.1 or WebSocket. It knows tickets,
//! streams and sockets, and no pod: what they are about is behind [`Backend`].

mod activity;
mod connection;
mod listen;
mod negotiate;
mod pipe;
mod port_forward;
mod remote_command;
mod server;
mod socket;
mod spdy;
mod status;
mod stream;
mod sys;
mod target;
#[cfg(test)]
mod tests;
mod tickets;
mod tls;
mod websocket;

pub use listen::{Address, Listen, ListenError};
pub use server::{Server, Timeouts};
pub use target::{Backend, Errand, Failure, Process, Stdin, Wanted};
pub use tickets::Refused;
pub use tls::{MinVersion, Tls, TlsError};
