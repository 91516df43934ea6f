//! SPDY/3.1 on the wire: bytes to frames and back. Pure; every length is checked before it is believed.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// Both control and data frames begin with two words.
pub(crate) const HEADER: usize = 8;
/// The longest control frame taken: a handful of short headers fit a hundred times.
const CONTROL_MAX: usize = 16 * 1024;
const VERSION: u16 = 3;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
/// SETTINGS: the window that streams begin with.
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream was reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reset {
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// Why a connection is ended (section 2.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Goodbye {
    Ok = 0,
    Protocol = 1,
}

/// What the peer did wrong; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("control frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("control frame of type {0}, which SPDY/3.1 does not have")]
    Unknown(u16),
    #[error("control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("header block that cannot be decompressed")]
    Compression,
    #[error("header block longer than {0} bytes")]
    BlockTooLong(usize),
    #[error("malformed header block")]
    Block,
    #[error("stream 0 in a frame of type {0}")]
    StreamZero(u16),
    #[error("stream id {0} was used before or is not the client's")]
    StreamOrder(u32),
    #[error("the window of stream {0} grew over what is possible")]
    Window(u32),
    #[error("more control frames than the peer takes answers for")]
    Flood,
}

/// One thing the peer said. Data comes in pieces as it arrives: a frame may be 16 MiB long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// The window for new streams, if the peer says one.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
}

/// Where a data frame stands that has not arrived whole.
#[derive(Debug, Clone, Copy)]
struct Partial {
    stream: u32,
    fin: bool,
    left: usize,
}

/// Takes frames from a buffer that is filled elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    inflater: Inflater,
    partial: Option<Partial>,
}

impl Decoder {
    /// The next frame or piece of one; `None`: the buffer has to be filled first.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Fault> {
        if let Some(partial) = self.partial {
            return Ok(self.piece(partial, buffer));
        }
        let Some(head) = buffer.get(..HEADER) else { return Ok(None) };
        let (first, second) = (word(&head[..4]), word(&head[4..]));
        let (flags, length) = (head[4], (second & 0x00ff_ffff) as usize);
        if first & 0x8000_0000 == 0 {
            buffer.advance(HEADER);
            let partial = Partial { stream: first, fin: flags & FIN != 0, left: length };
            if first == 0 {
                return Err(Fault::StreamZero(0));
            }
            if length == 0 {
                let Partial { stream, fin, .. } = partial;
                return Ok(Some(Frame::Data { stream, fin, bytes: Bytes::new() }));
            }
            self.partial = Some(partial);
            return Ok(self.piece(partial, buffer));
        }
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        if length > CONTROL_MAX {
            return Err(Fault::Length { kind, length });
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let body = buffer.split_to(length);
        self.control(kind, flags, &body).map(Some)
    }

    fn piece(&mut self, partial: Partial, buffer: &mut BytesMut) -> Option<Frame> {
        if buffer.is_empty() {
            return None;
        }
        let bytes = buffer.split_to(partial.left.min(buffer.len())).freeze();
        let left = partial.left - bytes.len();
        self.partial = (left > 0).then_some(Partial { left, ..partial });
        Some(Frame::Data { stream: partial.stream, fin: partial.fin && left == 0, bytes })
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, Fault> {
        let wrong = Fault::Length { kind, length: body.len() };
        let at = |offset: usize| body.get(offset..offset + 4).map(word).ok_or(wrong);
        let id = |offset: usize| at(offset).map(|word| word & 0x7fff_ffff);
        let fin = flags & FIN != 0;
        let frame = match kind {
            1 => {
                let stream = id(0)?;
                let block = body.get(10..).ok_or(wrong)?;
                let headers = Headers::parse(&self.inflater.inflate(block)?)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                Frame::SynStream { stream, fin, unidirectional, headers }
            }
            2 | 8 => {
                let stream = id(0)?;
                let block = body.get(4..).ok_or(wrong)?;
                let headers = Headers::parse(&self.inflater.inflate(block)?)?;
                match kind {
                    2 => Frame::SynReply { stream, fin, headers },
                    _ => Frame::Headers { stream, fin, headers },
                }
            }
            3 => Frame::RstStream { stream: id(0)?, status: at(4)? },
            4 => Frame::Settings { initial_window: settings(body).ok_or(wrong)? },
            6 => Frame::Ping { id: at(0)? },
            7 => Frame::GoAway { last: id(0)? },
            9 => Frame::WindowUpdate { stream: id(0)?, delta: id(4)? },
            _ => return Err(Fault::Unknown(kind)),
        };
        match frame {
            Frame::SynStream { stream: 0, .. }
            | Frame::SynReply { stream: 0, .. }
            | Frame::Headers { stream: 0, .. }
            | Frame::RstStream { stream: 0, .. } => Err(Fault::StreamZero(kind)),
            frame => Ok(frame),
        }
    }
}

/// `None`: the count does not fit the length. Of all settings only one matters here.
fn settings(body: &[u8]) -> Option<Option<u32>> {
    let count = word(body.get(..4)?) as usize;
    let entries = &body[4..];
    if count.checked_mul(8)? != entries.len() {
        return None;
    }
    let mut entries =
        entries.chunks_exact(8).map(|it| (word(&it[..4]) & 0x00ff_ffff, word(&it[4..])));
    Some(entries.find(|(id, _)| *id == INITIAL_WINDOW_SIZE).map(|(_, value)| value))
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// The header of a data frame, to be written before its payload.
pub(crate) fn data_header(stream: u32, fin: bool, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&stream.to_be_bytes());
    header[4..].copy_from_slice(&(length as u32).to_be_bytes());
    header[4] = if fin { FIN } else { 0 };
    header
}

pub(crate) fn syn_reply(stream: u32, deflater: &mut Deflater, into: &mut Vec<u8>) {
    let block = deflater.deflate(&Headers::default().to_block());
    control_header(2, 4 + block.len(), into);
    into.extend(stream.to_be_bytes());
    into.extend(block);
}

pub(crate) fn rst_stream(stream: u32, reset: Reset, into: &mut Vec<u8>) {
    control_header(3, 8, into);
    into.extend(stream.to_be_bytes());
    into.extend((reset as u32).to_be_bytes());
}

pub(crate) fn ping(id: u32, into: &mut Vec<u8>) {
    control_header(6, 4, into);
    into.extend(id.to_be_bytes());
}

pub(crate) fn go_away(last: u32, goodbye: Goodbye, into: &mut Vec<u8>) {
    control_header(7, 8, into);
    into.extend(last.to_be_bytes());
    into.extend((goodbye as u32).to_be_bytes());
}

pub(crate) fn window_update(stream: u32, delta: u32, into: &mut Vec<u8>) {
    control_header(9, 8, into);
    into.extend(stream.to_be_bytes());
    into.extend(delta.to_be_bytes());
}

fn control_header(kind: u16, length: usize, into: &mut Vec<u8>) {
    into.extend((0x8000 | VERSION).to_be_bytes());
    into.extend(kind.to_be_bytes());
    into.extend((length as u32).to_be_bytes());
}
