//! Recognizes how a layer is compressed by its first bytes and inflates it on a thread of its own,
//! a few buffers ahead of the thread that writes the files.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::digest::{Digest, Hasher};

/// Read from the source at once: large enough that locks and system calls do not count.
const SOURCE_BUFFER: usize = 256 << 10;
/// Handed to the writer at once.
const CHUNK: usize = 256 << 10;
/// Chunks between the threads: enough to smooth, few enough that three layers take 4 MiB.
const CHUNKS_AHEAD: usize = 4;
/// Largest zstd window accepted, as a power of two: what `zstd --long` makes, 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The compressed stream as it was read.
pub(crate) struct Compressed {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// Sending half: runs on its own thread until the source ends or the receiver is gone.
pub(crate) struct Inflater {
    chunks: SyncSender<io::Result<Vec<u8>>>,
    spare: Receiver<Vec<u8>>,
}

/// Receiving half: the uncompressed bytes, hashed as they pass.
pub(crate) struct Inflated {
    chunks: Receiver<io::Result<Vec<u8>>>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
    total: u64,
    limit: u64,
}

/// The uncompressed stream went over its limit.
#[derive(Debug, thiserror::Error)]
#[error("it inflates to more than {0} bytes, the limit of this node")]
pub(crate) struct TooLarge(pub(crate) u64);

/// The two halves of one inflation. `limit`: uncompressed bytes; `like`: whose algorithm to hash with.
pub(crate) fn pair(limit: u64, like: &Digest) -> (Inflater, Inflated) {
    let (chunks_in, chunks_out) = sync_channel(CHUNKS_AHEAD);
    let (spare_in, spare_out) = sync_channel(CHUNKS_AHEAD + 2);
    let inflated = Inflated {
        chunks: chunks_out,
        spare: spare_in,
        current: Vec::new(),
        at: 0,
        hasher: like.hasher(),
        total: 0,
        limit,
    };
    (Inflater { chunks: chunks_in, spare: spare_out }, inflated)
}

impl Inflater {
    /// Inflates `source` to its end. The result tells what the compressed bytes were, also when
    /// they could not be inflated: only the digest says whose fault that is.
    /// `frame`: the source is a file, this comes before and after it.
    pub(crate) fn run(
        self,
        source: impl Read,
        like: &Digest,
        frame: Option<(Vec<u8>, Vec<u8>)>,
    ) -> io::Result<Compressed> {
        let mut source =
            BufReader::with_capacity(SOURCE_BUFFER, Hashed::new(source, like.hasher()));
        let outcome = match frame {
            None => self.inflate(&mut source),
            Some((head, tail)) => {
                self.forward(head.as_slice().chain(&mut source).chain(tail.as_slice()))
            }
        };
        if let Err(e) = outcome
            && self.chunks.send(Err(e)).is_err()
        {
            return Err(io::Error::other("the writer gave up"));
        }
        // What follows the compressed data belongs to the digest too.
        let mut hashed = source.into_inner();
        io::copy(&mut hashed, &mut io::sink())?;
        Ok(hashed.finish())
    }

    fn inflate(&self, source: &mut impl BufRead) -> io::Result<()> {
        self.forward(plain(source)?)
    }

    fn forward(&self, mut plain: impl Read) -> io::Result<()> {
        loop {
            let mut chunk = self.spare.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let mut filled = 0;
            while filled < CHUNK {
                match plain.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            if self.chunks.send(Ok(chunk)).is_err() {
                return Err(io::Error::other("the writer gave up"));
            }
        }
    }
}

/// What makes an archive of a file: its header, and what follows its last byte.
pub(crate) fn frame(title: &str, size: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    const BLOCK: u64 = 512;
    let mut head = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    let field = &mut header.as_old_mut().name;
    if title.len() < field.len() {
        field[..title.len()].copy_from_slice(title.as_bytes());
    } else {
        head.append_pax_extensions([("path", title.as_bytes())])?;
    }
    header.set_cksum();
    head.append(&header, io::empty())?;
    let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
    Ok((head.get_ref().clone(), vec![0; padding + 2 * 512]))
}

/// The uncompressed bytes of a gzip, zstd or plain stream; its first bytes tell which.
pub(crate) fn plain<'a>(source: &'a mut impl BufRead) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let head = source.fill_buf()?;
    let length = head.len().min(4);
    magic[..length].copy_from_slice(&head[..length]);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        // A zstd frame, or a skippable one in front of it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => Box::new(source),
    })
}

impl Inflated {
    /// Reads to the end; what follows the archive's end marker belongs to the diff id too.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok((self.hasher.finish(), self.total));
            }
            self.consume(length);
        }
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() {
            // Full or gone: then the buffer is simply freed.
            let _ = self.spare.try_send(std::mem::take(&mut self.current));
            self.at = 0;
            if let Ok(chunk) = self.chunks.recv() {
                self.current = chunk?;
                self.total += self.current.len() as u64;
                if self.total > self.limit {
                    return Err(io::Error::other(TooLarge(self.limit)));
                }
                self.hasher.update(&self.current);
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

/// Hashes what is read through it.
struct Hashed<R> {
    source: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    fn new(source: R, hasher: Hasher) -> Hashed<R> {
        Hashed { source, hasher, bytes: 0 }
    }

    fn finish(self) -> Compressed {
        Compressed { digest: self.hasher.finish(), bytes: self.bytes }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}
