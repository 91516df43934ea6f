//! The channels of exec, attach and port-forward over a WebSocket.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::negotiate::Dialect;
use crate::socket::{Liveness, Socket};

/// Messages that wait for a channel's reader. When they are too many, the socket is no longer read, and TCP brakes the
/// client.
const INBOX: usize = 4;
/// Channel of version 5 that says which other channel has ended.
const CLOSE: u8 = 255;

type Sink = SplitSink<WebSocketStream<Socket>, Message>;

/// A WebSocket with the channels that the client may write to.
#[derive(Debug)]
pub(crate) struct Channels {
    receivers: HashMap<u8, Receiver>,
    shared: Arc<Shared>,
}

/// What the client sends on a channel.
#[derive(Debug)]
pub(crate) struct Receiver(mpsc::Receiver<Bytes>);

/// What we send on a channel.
#[derive(Debug)]
pub(crate) struct Sender {
    channel: u8,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sink: tokio::sync::Mutex<Sink>,
    dialect: Dialect,
    ended: CancellationToken,
    activity: Arc<Activity>,
}

/// Serves a connection by tasks of `tasks`. The client may write to the channels `inbound`.
pub(crate) async fn start(
    (socket, early): (Socket, Bytes),
    dialect: Dialect,
    inbound: &[u8],
    (liveness, activity): (Liveness, Arc<Activity>),
    tasks: &mut JoinSet<()>,
) -> Channels {
    let (sink, source) = super::open(socket, early).await.split();
    let ended = CancellationToken::new();
    let sink = tokio::sync::Mutex::new(sink);
    let shared = Arc::new(Shared { sink, dialect, ended, activity });
    let (mut inboxes, mut receivers) = (HashMap::new(), HashMap::new());
    for channel in inbound {
        let (inbox, receiver) = mpsc::channel(INBOX);
        inboxes.insert(*channel, inbox);
        receivers.insert(*channel, Receiver(receiver));
    }
    tasks.spawn(read(shared.clone(), source, inboxes, liveness));
    Channels { receivers, shared }
}

impl Channels {
    /// The client's side of a channel; each can be had once.
    pub(crate) fn receiver(&mut self, channel: u8) -> Option<Receiver> {
        self.receivers.remove(&channel)
    }

    pub(crate) fn sender(&self, channel: u8) -> Sender {
        Sender { channel, shared: self.shared.clone() }
    }

    /// Ends when the client is gone.
    pub(crate) async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Says good-bye and waits until the client has closed as well.
    pub(crate) async fn close(&self) {
        let sent = self.shared.sink.lock().await.send(super::goodbye()).await;
        if sent.is_ok() {
            self.ended().await;
        }
    }
}

impl Receiver {
    /// The next piece; `None`: the channel was closed, or the client is gone.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl Sender {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let message = encode(self.shared.dialect, self.channel, bytes);
        let sent = self.shared.sink.lock().await.send(message).await;
        self.shared.activity.touch();
        sent.map_err(io::Error::other)
    }

    /// Cancelled when the client is gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.shared.ended.clone()
    }
}

async fn read(
    shared: Arc<Shared>,
    mut source: SplitStream<WebSocketStream<Socket>>,
    mut inboxes: HashMap<u8, mpsc::Sender<Bytes>>,
    liveness: Liveness,
) {
    while let Some(Ok(message)) = source.next().await {
        shared.activity.touch();
        let Some((channel, bytes)) = decode(shared.dialect, message) else { continue };
        if channel == CLOSE && shared.dialect.close {
            if let Some(ended) = bytes.first() {
                inboxes.remove(ended);
            }
            continue;
        }
        let Some(inbox) = inboxes.get(&channel) else { continue };
        // Empty messages only say that the channel is there.
        if !bytes.is_empty() && liveness.while_alive(inbox.send(bytes)).await.is_none() {
            break;
        }
    }
    drop(inboxes);
    shared.ended.cancel();
}

fn encode(dialect: Dialect, channel: u8, bytes: &[u8]) -> Message {
    if dialect.base64 {
        let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
        text.push(char::from(b'0' + channel));
        STANDARD.encode_string(bytes, &mut text);
        return Message::Text(text.into());
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

/// Channel and content; `None` for what is not for a channel.
fn decode(dialect: Dialect, message: Message) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => Bytes::from(text),
        _ => return None,
    };
    let (channel, content) = (*bytes.first()?, bytes.slice(1..));
    if dialect.base64 {
        let content = STANDARD.decode(content).ok()?;
        return Some((channel.checked_sub(b'0')?, content.into()));
    }
    Some((channel, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Dialect = Dialect { status: true, resize: true, base64: false, close: true };
    const BASE64: Dialect = Dialect { base64: true, ..PLAIN };

    #[test]
    fn messages_carry_their_channel_first() {
        assert_eq!(encode(PLAIN, 1, b"hi"), Message::Binary(Bytes::from_static(b"\x01hi")));
        assert_eq!(encode(BASE64, 1, b"hi"), Message::Text("1aGk=".into()));
    }

    #[test]
    fn what_was_encoded_is_decoded_again() {
        for dialect in [PLAIN, BASE64] {
            let message = encode(dialect, 0, b"\xff\0binary");
            assert_eq!(decode(dialect, message), Some((0, Bytes::from_static(b"\xff\0binary"))));
        }
    }

    #[test]
    fn nonsense_is_nothing() {
        assert_eq!(decode(PLAIN, Message::Binary(Bytes::new())), None);
        assert_eq!(decode(BASE64, Message::Text("0***".into())), None);
        assert_eq!(decode(BASE64, Message::Text(" aGk=".into())), None);
        assert_eq!(decode(PLAIN, Message::Ping(Bytes::from_static(b"\x01x"))), None);
    }
}
