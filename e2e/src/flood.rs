//! Much data through one stream of a session and back, with a look at every byte. Blocking, so that the measure is the
//! server and not the client.

use std::io::{Read, Write};
use std::net::TcpStream;

/// What clients send at once: the buffer of Go's `io.Copy`.
pub const PIECE: usize = 32 * 1024;

/// What is read at once.
const CHUNK: usize = 256 * 1024;

/// After so many bytes the data repeats: a prime, so that no lost or doubled piece goes unseen.
const PERIOD: usize = 65_521;

/// Bytes that are known by their place.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Self {
        let mut seed = 1_u32;
        let noise = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        let mut bytes: Vec<u8> = noise.take(PERIOD).collect();
        for at in 0..CHUNK {
            bytes.push(bytes[at]);
        }
        Self(bytes)
    }

    /// At most `CHUNK` bytes from a place on.
    fn at(&self, place: usize, length: usize) -> &[u8] {
        &self.0[place % PERIOD..][..length]
    }
}

/// Sends `total` bytes and the end on stream `to` of a SPDY session, while it reads what comes on `from`; `early` is what
/// was read of the session before. How many came, of those that came as they were sent.
pub fn through(socket: &TcpStream, early: &[u8], (to, from): (u32, u32), total: usize) -> usize {
    let pattern = &Pattern::new();
    std::thread::scope(|scope| {
        scope.spawn(move || send(socket, to, total, pattern));
        let mut count =
            Count { stream: from, pattern, came: 0, head: Vec::new(), left: 0, counts: false };
        count.take(early);
        let (mut socket, mut chunk) = (socket, vec![0; CHUNK]);
        while count.came < total {
            match socket.read(&mut chunk) {
                Ok(length @ 1..) => count.take(&chunk[..length]),
                Ok(0) | Err(_) => break,
            }
        }
        count.came
    })
}

fn send(mut socket: &TcpStream, stream: u32, total: usize, pattern: &Pattern) {
    let mut frame = vec![0; 8 + PIECE];
    let mut sent = 0;
    while sent < total {
        let piece = PIECE.min(total - sent);
        frame[..4].copy_from_slice(&stream.to_be_bytes());
        frame[4..8].copy_from_slice(&(piece as u32).to_be_bytes());
        frame[8..8 + piece].copy_from_slice(pattern.at(sent, piece));
        // The reader tells how far it came.
        if socket.write_all(&frame[..8 + piece]).is_err() {
            return;
        }
        sent += piece;
    }
    let mut end = stream.to_be_bytes().to_vec();
    end.extend([1, 0, 0, 0]);
    let _ = socket.write_all(&end);
}

/// Where the reader stands.
struct Count<'p> {
    stream: u32,
    pattern: &'p Pattern,
    came: usize,
    /// Of a frame whose head has not come whole.
    head: Vec<u8>,
    /// Of the present frame.
    left: usize,
    counts: bool,
}

impl Count<'_> {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let more = bytes.len().min(8 - self.head.len());
                self.head.extend_from_slice(&bytes[..more]);
                bytes = &bytes[more..];
                if self.head.len() == 8 {
                    let word =
                        |at: usize| u32::from_be_bytes(self.head[at..at + 4].try_into().unwrap());
                    (self.counts, self.left) =
                        (word(0) == self.stream, (word(4) & 0x00ff_ffff) as usize);
                    self.head.clear();
                }
                continue;
            }
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            if self.counts {
                let place = self.came;
                for (at, part) in piece.chunks(CHUNK).enumerate() {
                    let sent = self.pattern.at(place + at * CHUNK, part.len());
                    assert!(part == sent, "what came is not what was sent, near byte {place}");
                }
                self.came += piece.len();
            }
            (bytes, self.left) = (rest, self.left - piece.len());
        }
    }
}
