//! WebSocket: channels numbered by the first byte of each message, and the tunnel for SPDY.

mod channels;
mod tunnel;

use bytes::Bytes;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::socket::Socket;

pub(crate) use channels::{Channels, Receiver, Sender, start};
pub(crate) use tunnel::tunnel;

/// The longest message taken; clients send 32 KiB, or what they read at once.
const MESSAGE_MAX: usize = 1 << 20;

/// A socket after the upgrade; `early` is what was read of it already.
async fn open(socket: Socket, early: Bytes) -> WebSocketStream<Socket> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    WebSocketStream::from_partially_read(socket, early.to_vec(), Role::Server, Some(config)).await
}

/// Clients take a close without this code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}
