//! One direction of one stream, whichever protocol carries it.

use std::io;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{spdy, websocket};

/// Free bytes that a buffer has before what is to be sent, so that no protocol has to copy it to put its header there.
pub(crate) const HEADROOM: usize = spdy::frame::HEADER;

/// What the client sends.
#[derive(Debug)]
pub(crate) enum Incoming {
    Spdy(spdy::Receiver),
    WebSocket(websocket::Receiver),
}

/// What the client is sent. Dropping it unfinished tells the client so, where the protocol can.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Spdy(spdy::Sender),
    WebSocket(websocket::Sender),
}

impl Incoming {
    /// The next piece; `None`: there is no more.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Spdy(receiver) => receiver.next().await,
            Self::WebSocket(receiver) => receiver.next().await,
        }
    }
}

impl Outgoing {
    /// Sends what stands behind the first `HEADROOM` bytes, which may be overwritten.
    pub(crate) async fn send(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.send(buffer).await,
            Self::WebSocket(sender) => sender.send(&buffer[HEADROOM..]).await,
        }
    }

    pub(crate) async fn send_text(&mut self, text: &str) -> io::Result<()> {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(text.as_bytes());
        self.send(&mut buffer).await
    }

    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.finish().await,
            // A channel has no end of its own towards the client.
            Self::WebSocket(_) => Ok(()),
        }
    }

    /// Cancelled when the client wants no more.
    pub(crate) fn gone(&self) -> CancellationToken {
        match self {
            Self::Spdy(sender) => sender.gone(),
            Self::WebSocket(sender) => sender.gone(),
        }
    }
}
