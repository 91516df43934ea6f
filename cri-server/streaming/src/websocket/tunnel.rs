//! SPDY inside the binary messages of a WebSocket: both directions as plain streams of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::socket::{BoxRead, BoxWrite, Socket};

/// What a message carries at most.
const PIECE: usize = 64 * 1024;

/// The bytes in a WebSocket's messages, each direction for a task of its own.
pub(crate) async fn tunnel(socket: Socket, early: Bytes) -> (BoxRead, BoxWrite) {
    let (sink, source) = super::open(socket, early).await.split();
    (Box::new(Source { source, rest: Bytes::new() }), Box::new(Drain { sink, closing: false }))
}

struct Source {
    source: SplitStream<WebSocketStream<Socket>>,
    rest: Bytes,
}

struct Drain {
    sink: SplitSink<WebSocketStream<Socket>, Message>,
    closing: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.source).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let take = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Drain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sink = Pin::new(&mut self.sink);
        let sent = ready!(sink.poll_ready(context)).and_then(|()| {
            let piece = &bytes[..bytes.len().min(PIECE)];
            let message = Message::Binary(Bytes::copy_from_slice(piece));
            Pin::new(&mut self.sink).start_send(message).map(|()| piece.len())
        });
        Poll::Ready(sent.map_err(io::Error::other))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sink).poll_flush(context).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(Pin::new(&mut self.sink).poll_ready(context)).map_err(io::Error::other)?;
            Pin::new(&mut self.sink).start_send(super::goodbye()).map_err(io::Error::other)?;
            self.closing = true;
        }
        self.poll_flush(context)
    }
}
