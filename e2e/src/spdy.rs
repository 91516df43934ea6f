//! A client of the streaming server that speaks SPDY/3.1, written for the tests alone: it shares no line with the
//! server. Its header blocks are stored, not compressed, and need no dictionary.

use std::collections::BTreeMap;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::wait;

/// Output that has not come by then does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came on a stream so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Got {
    pub bytes: Vec<u8>,
    /// The server has finished the stream, or reset it.
    pub finished: bool,
    pub reset: bool,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[derive(Debug)]
pub struct Spdy {
    pub writer: Writer,
    pub reader: Reader,
}

#[derive(Debug)]
pub struct Writer {
    socket: OwnedWriteHalf,
    zlib: Compress,
    next: u32,
}

#[derive(Debug)]
pub struct Reader {
    socket: OwnedReadHalf,
    buffer: Vec<u8>,
    streams: BTreeMap<u32, Got>,
    closed: bool,
}

impl Spdy {
    /// Upgrades a connection to the URL that the daemon gave; otherwise what the server said.
    pub async fn dial(url: &str, protocol: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").expect("a plain URL");
        let (host, path) = rest.split_at(rest.find('/').unwrap());
        let mut socket = TcpStream::connect(host).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = Vec::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut buffer).await.map_err(|error| error.to_string())? == 0 {
                return Err(String::from_utf8_lossy(&buffer).into_owned());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(head);
        }
        buffer.drain(..end);
        let (read, write) = socket.into_split();
        let zlib = Compress::new(Compression::none(), true);
        Ok(Self {
            writer: Writer { socket: write, zlib, next: 1 },
            reader: Reader { socket: read, buffer, streams: BTreeMap::new(), closed: false },
        })
    }
}

impl Spdy {
    /// The socket for blocking use, and what was read of it and not understood yet.
    pub fn into_std(self) -> (std::net::TcpStream, Vec<u8>) {
        let socket = self.reader.socket.reunite(self.writer.socket).unwrap().into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        (socket, self.reader.buffer)
    }
}

impl Writer {
    /// Opens a stream; its id.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend((word.len() as u32).to_be_bytes());
            text.extend(word.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 64);
        self.zlib.compress_vec(&text, &mut block, FlushCompress::Sync).unwrap();
        let id = self.next;
        self.next += 2;
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend((10 + block.len() as u32).to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.raw(&frame).await;
        id
    }

    pub async fn send(&mut self, id: u32, bytes: &[u8]) {
        for piece in bytes.chunks(32 * 1024) {
            let mut frame = id.to_be_bytes().to_vec();
            frame.extend((piece.len() as u32).to_be_bytes());
            frame.extend_from_slice(piece);
            self.raw(&frame).await;
        }
    }

    /// Half-closes a stream.
    pub async fn finish(&mut self, id: u32) {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend([1, 0, 0, 0]);
        self.raw(&frame).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("the server reads");
    }
}

impl Reader {
    /// Until `enough` says so of what has come, or the server has closed.
    pub async fn until(
        &mut self,
        mut enough: impl FnMut(&BTreeMap<u32, Got>) -> bool,
    ) -> &BTreeMap<u32, Got> {
        while !enough(&self.streams) && !self.closed {
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(n) if n > 0 => self.parse(),
                Ok(_) | Err(_) => self.closed = true,
            }
        }
        &self.streams
    }

    pub async fn to_end(&mut self) -> &BTreeMap<u32, Got> {
        self.until(|_| false).await
    }

    fn parse(&mut self) {
        let mut rest = &self.buffer[..];
        while rest.len() >= 8 {
            let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
            let length = (word(4) & 0x00ff_ffff) as usize;
            if rest.len() < 8 + length {
                break;
            }
            let body = &rest[8..8 + length];
            match word(0) {
                0x8003_0003 => {
                    let id = u32::from_be_bytes(body[..4].try_into().unwrap());
                    self.streams.entry(id).or_default().reset = true;
                }
                control if control & 0x8000_0000 != 0 => {}
                id => {
                    let got = self.streams.entry(id).or_default();
                    got.bytes.extend_from_slice(body);
                    got.finished |= rest[4] & 1 != 0;
                }
            }
            rest = &rest[8 + length..];
        }
        let used = self.buffer.len() - rest.len();
        self.buffer.drain(..used);
    }
}

/// Which streams a command has; `error` always.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A client of exec or attach.
#[derive(Debug)]
pub struct Command {
    pub spdy: Spdy,
    pub error: u32,
    pub stdin: u32,
    pub stdout: u32,
    pub stderr: u32,
    pub resize: u32,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub stdout: String,
    pub stderr: String,
    /// The `metav1.Status`.
    pub status: serde_json::Value,
}

impl End {
    /// The exit code that the status tells.
    pub fn code(&self) -> i32 {
        if self.status["status"] == "Success" {
            return 0;
        }
        let cause = &self.status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{self:?}");
        cause["message"].as_str().unwrap().parse().unwrap()
    }
}

impl Command {
    pub async fn dial(url: &str, asked: Asked) -> Self {
        let mut spdy = Spdy::dial(url, "v4.channel.k8s.io").await.expect("an upgrade");
        let mut ids = [0; 5];
        let kinds = ["error", "stdin", "stdout", "stderr", "resize"];
        let wanted = [true, asked.stdin, asked.stdout, asked.stderr, asked.tty];
        for ((id, kind), wanted) in ids.iter_mut().zip(kinds).zip(wanted) {
            if wanted {
                *id = spdy.writer.open(&[("streamtype", kind)]).await;
            }
        }
        let [error, stdin, stdout, stderr, resize] = ids;
        Self { spdy, error, stdin, stdout, stderr, resize }
    }

    pub async fn send(&mut self, text: &str) {
        self.spdy.writer.send(self.stdin, text.as_bytes()).await;
    }

    pub async fn finish_input(&mut self) {
        self.spdy.writer.finish(self.stdin).await;
    }

    pub async fn resize(&mut self, width: u16, height: u16) {
        let text = format!(r#"{{"Width":{width},"Height":{height}}}"#);
        self.spdy.writer.send(self.resize, text.as_bytes()).await;
    }

    /// Waits until standard output holds `text`; all of it so far.
    pub async fn until(&mut self, text: &str) -> String {
        let stdout = self.stdout;
        let so_far =
            |streams: &BTreeMap<u32, Got>| streams.get(&stdout).map(Got::text).unwrap_or_default();
        let come = self.spdy.reader.until(|streams| so_far(streams).contains(text));
        let in_time = tokio::time::timeout(wait::scaled(PATIENCE), come).await.is_ok();
        let all = so_far(&self.spdy.reader.streams);
        assert!(in_time && all.contains(text), "{text:?} did not come: {all:?}");
        all
    }

    /// Everything until the server has closed.
    pub async fn end(mut self) -> End {
        let streams = self.spdy.reader.to_end().await;
        let text = |id| streams.get(&id).map(Got::text).unwrap_or_default();
        let status = serde_json::from_str(&text(self.error));
        let status = status.unwrap_or_else(|error| panic!("{error}: {streams:?}"));
        End { stdout: text(self.stdout), stderr: text(self.stderr), status }
    }
}
