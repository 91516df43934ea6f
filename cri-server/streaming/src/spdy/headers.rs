//! Header blocks: name-value pairs, compressed in one zlib stream per direction that lives as long as the connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::dictionary::DICTIONARY;
use super::frame::Fault;

/// A block after decompression: a stream has three headers of a few bytes. Bounds what a small frame can unfold to.
const BLOCK_MAX: usize = 64 * 1024;
const PAIRS_MAX: usize = 64;

/// Name-value pairs in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; names are in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[cfg(test)]
    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn parse(block: &[u8]) -> Result<Self, Fault> {
        let mut rest = block;
        let count = take_word(&mut rest)?;
        if count > PAIRS_MAX {
            return Err(Fault::Block);
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut rest)?;
            let value = take_text(&mut rest)?;
            // The specification wants lower case; Go's client writes it so, older ones did not.
            let name = name.to_ascii_lowercase();
            if name.is_empty() || pairs.iter().any(|(known, _)| *known == name) {
                return Err(Fault::Block);
            }
            pairs.push((name, value));
        }
        if rest.is_empty() { Ok(Self(pairs)) } else { Err(Fault::Block) }
    }

    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        block
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }
}

fn take_word(rest: &mut &[u8]) -> Result<usize, Fault> {
    let (word, after) = rest.split_first_chunk::<4>().ok_or(Fault::Block)?;
    *rest = after;
    Ok(u32::from_be_bytes(*word) as usize)
}

fn take_text(rest: &mut &[u8]) -> Result<String, Fault> {
    let length = take_word(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Fault::Block)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| Fault::Block)
}

/// The receiving side of the zlib stream.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// One block; the stream is synchronised at its end.
    pub(crate) fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut rest = block;
        let mut text = Vec::new();
        let mut chunk = [0; 2048];
        loop {
            let before = (self.0.total_in(), self.0.total_out());
            let step = self.0.decompress(rest, &mut chunk, FlushDecompress::Sync);
            let used = (self.0.total_in() - before.0) as usize;
            let made = (self.0.total_out() - before.1) as usize;
            rest = &rest[used..];
            text.extend_from_slice(&chunk[..made]);
            if text.len() > BLOCK_MAX {
                return Err(Fault::BlockTooLong(BLOCK_MAX));
            }
            match step {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| Fault::Compression)?;
                }
                Err(_) => return Err(Fault::Compression),
                // A chunk that was not filled means that there is no more.
                Ok(_) if rest.is_empty() && made < chunk.len() => return Ok(text),
                Ok(_) if used == 0 && made == 0 => return Err(Fault::Compression),
                Ok(_) => {}
            }
        }
    }
}

/// The sending side of the zlib stream.
#[derive(Debug)]
pub(crate) struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        // Only refuses a stream that has begun already.
        let _ = zlib.set_dictionary(DICTIONARY);
        Self(zlib)
    }
}

impl Deflater {
    pub(crate) fn deflate(&mut self, text: &[u8]) -> Vec<u8> {
        // Stored blocks are the worst case: five bytes each, and the marks of the flush.
        let mut block = Vec::with_capacity(text.len() + text.len() / 16 + 64);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let room = block.capacity() - block.len();
            let step = self.0.compress_vec(&text[used..], &mut block, FlushCompress::Sync);
            let done = (self.0.total_in() - start) as usize == text.len();
            if step.is_err() || done && block.capacity() - block.len() > 0 || room == 0 {
                return block;
            }
            block.reserve(64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        // The Adler-32 that every SPDY/3 peer writes into the head of its zlib stream.
        let mut zlib = Compress::new(Compression::fast(), true);
        assert_eq!(zlib.set_dictionary(DICTIONARY).unwrap(), 0xe3c6_a7c2);
        assert_eq!(DICTIONARY.len(), 1423);
    }

    #[test]
    fn blocks_go_through_one_zlib_stream_in_their_order() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for port in ["80", "443", "80"] {
            let headers = Headers::from([("streamtype", "data"), ("port", port)]);
            let block = deflater.deflate(&headers.to_block());
            assert_eq!(Headers::parse(&inflater.inflate(&block).unwrap()).unwrap(), headers);
        }
    }

    #[test]
    fn a_stream_without_the_dictionary_is_understood_as_well() {
        let headers = Headers::from([("streamtype", "stdin")]);
        let mut zlib = Compress::new(Compression::none(), true);
        let mut block = Vec::with_capacity(256);
        zlib.compress_vec(&headers.to_block(), &mut block, FlushCompress::Sync).unwrap();
        let text = Inflater::default().inflate(&block).unwrap();
        assert_eq!(Headers::parse(&text).unwrap(), headers);
    }

    #[test]
    fn a_block_that_unfolds_without_end_is_refused() {
        let mut zlib = Compress::new(Compression::best(), true);
        let mut block = Vec::with_capacity(64 * 1024);
        zlib.compress_vec(&vec![0; 8 << 20], &mut block, FlushCompress::Sync).unwrap();
        assert_eq!(Inflater::default().inflate(&block), Err(Fault::BlockTooLong(BLOCK_MAX)));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let long = Headers::from([("a", "b")]).to_block();
        let twice = Headers::from([("a", "b"), ("A", "c")]).to_block();
        let unnamed = Headers::from([("", "b")]).to_block();
        let mut trailing = long.clone();
        trailing.push(0);
        let cases: [&[u8]; 7] = [
            b"",
            b"\0\0\0\x01",
            b"\xff\xff\xff\xff",
            &long[..long.len() - 1],
            &twice,
            &unnamed,
            &trailing,
        ];
        for block in cases {
            assert_eq!(Headers::parse(block), Err(Fault::Block), "{block:?}");
        }
    }
}
