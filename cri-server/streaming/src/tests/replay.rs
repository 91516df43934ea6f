//! What real clients said, recorded on the wire (`tests/captures/`), said again to the server of today; and the same
//! with damage.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::split;
use super::{LIMITS, Running, start};
use crate::spdy::frame::{Decoder, Frame};
use crate::{Errand, Wanted};

/// One recorded connection.
struct Capture {
    name: String,
    facts: BTreeMap<String, String>,
    /// In the order of their time; true: from the client.
    chunks: Vec<(bool, Vec<u8>)>,
}

fn captures() -> Vec<Capture> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let files = std::fs::read_dir(&dir).unwrap().map(|it| it.unwrap().path());
    let mut found: Vec<_> =
        files.filter(|it| it.extension().is_some_and(|it| it == "txt")).map(parse).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// `# key: value`, then `> base64` of the client and `< base64` of the server.
fn parse(path: PathBuf) -> Capture {
    let text = std::fs::read_to_string(&path).unwrap();
    let facts = text.lines().filter_map(|line| line.strip_prefix("# ")?.split_once(": "));
    let chunk = |line: &str| {
        let (mark, text) = line.split_once(' ').unwrap();
        (mark == ">", STANDARD.decode(text).unwrap())
    };
    Capture {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        facts: facts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        chunks: text.lines().filter(|line| !line.starts_with('#')).map(chunk).collect(),
    }
}

/// What one side sent, by stream or channel.
#[derive(Default)]
struct Said {
    head: Option<String>,
    buffer: BytesMut,
    /// What messages of a tunnel carried.
    inner: BytesMut,
    spdy: Decoder,
    streams: BTreeMap<u32, Vec<u8>>,
}

impl Said {
    fn hear(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.head.is_none() {
            let Some(at) = self.buffer.windows(4).position(|it| it == b"\r\n\r\n") else { return };
            let head = self.buffer.split_to(at + 4);
            self.head = Some(String::from_utf8(head.to_vec()).unwrap().to_lowercase());
        }
        let head = self.head.as_deref().unwrap_or_default();
        let (websocket, tunnel) = (head.contains("websocket"), head.contains("spdy/3.1+"));
        if websocket {
            while let Some(message) = message(&mut self.buffer) {
                if tunnel {
                    self.inner.extend_from_slice(&message);
                } else if let Some((channel, content)) = message.split_first() {
                    let stream = self.streams.entry(u32::from(*channel)).or_default();
                    stream.extend_from_slice(content);
                }
            }
        }
        if websocket && !tunnel {
            return;
        }
        let spdy = if tunnel { &mut self.inner } else { &mut self.buffer };
        while let Some(frame) = self.spdy.next(spdy).unwrap() {
            if let Frame::Data { stream, bytes, .. } = frame {
                self.streams.entry(stream).or_default().extend_from_slice(&bytes);
            }
        }
    }

    /// As much as `other` has, or more, on every stream.
    fn covers(&self, other: &Self) -> bool {
        self.head.is_some() == other.head.is_some()
            && other
                .streams
                .iter()
                .all(|(id, bytes)| self.streams.get(id).map_or(0, Vec::len) >= bytes.len())
    }
}

/// The next data message of a server, which does not mask.
fn message(buffer: &mut BytesMut) -> Option<Vec<u8>> {
    loop {
        let (first, second) = (*buffer.first()?, *buffer.get(1)?);
        let (start, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().unwrap()))),
            127 => panic!("no message of the captures is that long"),
            short => (2, usize::from(short)),
        };
        if buffer.len() < start + length {
            return None;
        }
        buffer.advance(start);
        let content = buffer.split_to(length).to_vec();
        if first & 0xf < 8 {
            return Some(content);
        }
    }
}

fn issue(running: &Running, capture: &Capture) -> String {
    let fact = |key: &str| capture.facts.get(key).map_or("", String::as_str);
    let has = |word| fact("streams").split(' ').any(|it| it == word);
    let wanted = Wanted {
        stdin: has("stdin"),
        stdout: has("stdout"),
        stderr: has("stderr"),
        tty: has("tty"),
    };
    let errand = match fact("verb") {
        "exec" => Errand::Exec(wanted),
        "attach" => Errand::Attach(wanted),
        "portforward" => Errand::PortForward(Vec::new()),
        other => panic!("{}: verb {other:?}", capture.name),
    };
    running.server.issue(errand, fact("script").to_owned()).unwrap()
}

#[tokio::test]
async fn real_clients_get_what_they_got() {
    let running = start(LIMITS, None).await;
    let all = captures();
    for capture in &all {
        let url = issue(&running, capture);
        let (mut expect, mut got) = (Said::default(), Said::default());
        let mut socket = TcpStream::connect(split(&url).0).await.unwrap();
        let mut first = true;
        for (from_client, bytes) in &capture.chunks {
            if !from_client {
                expect.hear(bytes);
                continue;
            }
            while !got.covers(&expect) {
                let mut buffer = vec![0; 4096];
                let length = socket.read(&mut buffer).await.unwrap();
                assert!(length > 0, "{}: closed early: {:?}", capture.name, got.streams);
                got.hear(&buffer[..length]);
            }
            let mut bytes = bytes.clone();
            if std::mem::take(&mut first) {
                let head = String::from_utf8(bytes).unwrap();
                let (method, rest) = head.split_once(' ').unwrap();
                let after = rest.split_once(' ').unwrap().1;
                bytes = format!("{method} {} {after}", split(&url).1).into_bytes();
            }
            // The client may say good-bye after the server has.
            if socket.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // A stream may end without a byte.
        while !got.covers(&expect) || got.streams.len() < expect.streams.len() {
            let mut buffer = vec![0; 4096];
            let length = socket.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{}: closed early: {:?}", capture.name, got.streams);
            got.hear(&buffer[..length]);
        }
        assert_eq!(got.streams, expect.streams, "{}", capture.name);
    }
    let verbs: Vec<_> = all.iter().map(|it| &*it.facts["verb"]).collect();
    for verb in ["exec", "attach", "portforward"] {
        assert!(verbs.contains(&verb), "captures of {verb}");
    }
    running.settled().await;
}

/// What the clients of the captures sent after the upgrade, where that is SPDY.
fn corpus() -> Vec<Vec<u8>> {
    let spdy = captures().into_iter().filter(|it| it.facts["transport"] == "spdy");
    spdy.map(|capture| {
        let from_client = capture.chunks.iter().filter(|(from_client, _)| *from_client);
        from_client.skip(1).flat_map(|(_, bytes)| bytes.clone()).collect()
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_clients_do_no_harm(
        which in any::<prop::sample::Index>(),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        step in 1usize..200,
    ) {
        let corpus = corpus();
        let mut bytes = corpus[which.index(corpus.len())].clone();
        for (place, byte) in places {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Ok(Some(_)) = decoder.next(&mut buffer) {}
        }
    }
}
