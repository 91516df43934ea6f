//! A client's connection after the upgrade, whichever protocol it speaks.

use crate::spdy;
use crate::websocket::Channels;

#[derive(Debug)]
pub(crate) enum Connection {
    Spdy(spdy::Streams),
    WebSocket(Channels),
}

impl Connection {
    /// Ends when the client is gone. Streams that it opens and nobody expects are reset meanwhile.
    pub(crate) async fn ended(&mut self) {
        match self {
            Self::Spdy(streams) => while streams.next().await.is_some() {},
            Self::WebSocket(channels) => channels.ended().await,
        }
    }

    /// Says good-bye and waits for the client's.
    pub(crate) async fn close(&mut self) {
        match self {
            Self::Spdy(streams) => streams.close().await,
            Self::WebSocket(channels) => channels.close().await,
        }
    }
}
