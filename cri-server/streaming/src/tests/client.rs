//! A SPDY client that can do less than a real one, and things that a real one would not.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::spdy::frame::{self, Decoder, Frame};
use crate::spdy::frame_tests::syn_stream;
use crate::spdy::headers::{Deflater, Headers};

pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

pub(super) struct Client {
    wire: Box<dyn Wire>,
    decoder: Decoder,
    deflater: Deflater,
    buffer: BytesMut,
    /// The head of the server's answer.
    pub(super) answer: String,
}

/// What a stream brought until the connection closed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) bytes: Vec<u8>,
    pub(super) finished: bool,
    pub(super) reset: bool,
}

impl Got {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }
}

/// Host with port, and path.
pub(super) fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    rest.split_at(rest.find('/').unwrap())
}

impl Client {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let socket = TcpStream::connect(split(url).0).await.unwrap();
        Self::upgrade(Box::new(socket), url, protocol).await
    }

    pub(super) async fn upgrade(mut wire: Box<dyn Wire>, url: &str, protocol: &str) -> Self {
        let (host, path) = split(url);
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n"
        );
        wire.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            if wire.read_buf(&mut buffer).await.unwrap() == 0 {
                break buffer.len();
            }
        };
        let answer = String::from_utf8(buffer.split_to(end).to_vec()).unwrap();
        Self::new(wire, buffer, answer)
    }

    pub(super) fn new(wire: Box<dyn Wire>, buffer: BytesMut, answer: String) -> Self {
        Self { wire, decoder: Decoder::default(), deflater: Deflater::default(), buffer, answer }
    }

    pub(super) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut pairs = Headers::default();
        headers.iter().for_each(|(name, value)| pairs.push(name, value));
        let bytes = syn_stream(id, &pairs, false, &mut self.deflater);
        self.raw(&bytes).await;
    }

    /// The streams of an exec: error 1, stdin 3, stdout 5, stderr 7.
    pub(super) async fn open_exec(&mut self) {
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            self.open(id, &[("streamtype", kind)]).await;
        }
    }

    /// The streams of a connection to a port: error `id`, data `id + 2`.
    pub(super) async fn open_port(&mut self, id: u32, port: u16) {
        let (request, port) = (id.to_string(), port.to_string());
        for (id, kind) in [(id, "error"), (id + 2, "data")] {
            let headers = [("streamtype", kind), ("port", &port), ("requestid", &request)];
            self.open(id, &headers).await;
        }
    }

    pub(super) async fn send(&mut self, id: u32, bytes: &[u8]) {
        self.raw(&frame::data_header(id, false, bytes.len())).await;
        self.raw(bytes).await;
    }

    pub(super) async fn finish(&mut self, id: u32) {
        self.raw(&frame::data_header(id, true, 0)).await;
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).await.unwrap();
    }

    /// `None`: the server has closed.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            match self.wire.read_buf(&mut self.buffer).await {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// Everything that comes until the server closes, by stream.
    pub(super) async fn rest(&mut self) -> BTreeMap<u32, Got> {
        let mut streams: BTreeMap<u32, Got> = BTreeMap::new();
        while let Some(frame) = self.next().await {
            take(&mut streams, frame);
        }
        streams
    }

    /// As `rest`, until these streams are finished or reset.
    pub(super) async fn until_over(&mut self, ids: &[u32]) -> BTreeMap<u32, Got> {
        let mut streams: BTreeMap<u32, Got> = BTreeMap::new();
        let over = |got: &Got| got.finished || got.reset;
        while !ids.iter().all(|id| streams.get(id).is_some_and(over)) {
            take(&mut streams, self.next().await.unwrap());
        }
        streams
    }
}

fn take(streams: &mut BTreeMap<u32, Got>, frame: Frame) {
    match frame {
        Frame::Data { stream, fin, bytes } => {
            let got = streams.entry(stream).or_default();
            got.bytes.extend_from_slice(&bytes);
            got.finished |= fin;
        }
        Frame::RstStream { stream, .. } => streams.entry(stream).or_default().reset = true,
        _ => {}
    }
}
