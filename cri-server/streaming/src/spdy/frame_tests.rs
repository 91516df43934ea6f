//! The codec against hand-made bytes, its own output, and noise.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{self, Decoder, Fault, Frame, Goodbye, Reset};
use super::headers::{Deflater, Headers};

/// A client's SYN_STREAM, which only tests have to write.
pub(crate) fn syn_stream(
    id: u32,
    headers: &Headers,
    fin: bool,
    deflater: &mut Deflater,
) -> Vec<u8> {
    let block = deflater.deflate(&headers.to_block());
    let mut bytes = vec![0x80, 3, 0, 1];
    bytes.extend((10 + block.len() as u32).to_be_bytes());
    bytes[4] = u8::from(fin);
    bytes.extend(id.to_be_bytes());
    bytes.extend([0; 6]);
    bytes.extend(block);
    bytes
}

/// All frames in `bytes`, which come in pieces of `step`.
fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>, Fault> {
    let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.next(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn conversation() -> Vec<u8> {
    let mut deflater = Deflater::default();
    let mut bytes = Vec::new();
    for (id, kind) in [(1, "error"), (3, "stdin")] {
        bytes.extend(syn_stream(id, &Headers::from([("streamtype", kind)]), false, &mut deflater));
    }
    frame::syn_reply(1, &mut deflater, &mut bytes);
    bytes.extend(frame::data_header(3, true, 5));
    bytes.extend(b"hello");
    frame::ping(7, &mut bytes);
    frame::window_update(3, 500, &mut bytes);
    frame::rst_stream(3, Reset::Cancel, &mut bytes);
    frame::go_away(3, Goodbye::Ok, &mut bytes);
    bytes
}

#[test]
fn frames_are_understood_however_they_arrive() {
    let bytes = conversation();
    let whole = decode(&bytes, bytes.len()).unwrap();
    let headers = |kind| Headers::from([("streamtype", kind)]);
    let opened = |stream, kind| Frame::SynStream {
        stream,
        fin: false,
        unidirectional: false,
        headers: headers(kind),
    };
    assert_eq!(
        whole,
        [
            opened(1, "error"),
            opened(3, "stdin"),
            Frame::SynReply { stream: 1, fin: false, headers: Headers::default() },
            Frame::Data { stream: 3, fin: true, bytes: Bytes::from_static(b"hello") },
            Frame::Ping { id: 7 },
            Frame::WindowUpdate { stream: 3, delta: 500 },
            Frame::RstStream { stream: 3, status: 5 },
            Frame::GoAway { last: 3 },
        ]
    );
    let split = decode(&bytes, 1).unwrap();
    let data = split.iter().filter(|it| matches!(it, Frame::Data { .. })).count();
    assert_eq!((split.len() - data, data), (whole.len() - 1, 5), "data comes as it arrives");
}

#[test]
fn only_the_last_piece_of_a_frame_ends_its_stream() {
    let mut bytes = frame::data_header(1, true, 3).to_vec();
    bytes.extend(b"abc");
    let ends: Vec<bool> = decode(&bytes, 9)
        .unwrap()
        .iter()
        .map(|it| matches!(it, Frame::Data { fin: true, .. }))
        .collect();
    assert_eq!(ends, [false, true]);
}

#[test]
fn what_spdy_does_not_have_is_refused() {
    let check = |bytes: &[u8], fault| assert_eq!(decode(bytes, 64), Err(fault), "{bytes:?}");
    check(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], Fault::Version(2));
    check(&[0x80, 3, 0, 99, 0, 0, 0, 0], Fault::Unknown(99));
    check(&[0x80, 3, 0, 6, 0, 0, 0, 0], Fault::Length { kind: 6, length: 0 });
    check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], Fault::Length { kind: 1, length: 0xff_ffff });
    check(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1], Fault::StreamZero(3));
    check(&[0, 0, 0, 0, 0, 0, 0, 0], Fault::StreamZero(0));
    let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
    check(&settings, Fault::Length { kind: 4, length: 4 });
    let garbage = [0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xde, 0xad];
    check(&garbage, Fault::Compression);
}

#[test]
fn settings_give_the_window() {
    let head = [0x80, 3, 0, 4, 0, 0, 0, 20, 0, 0, 0, 2];
    let entries = [0, 0, 0, 4, 0, 0, 0, 100, 1, 0, 0, 7, 0, 1, 0, 0];
    let bytes: Vec<u8> = head.into_iter().chain(entries).collect();
    assert_eq!(decode(&bytes, 64), Ok(vec![Frame::Settings { initial_window: Some(65536) }]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Never a panic, and never more out than a small multiple of what went in.
    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), step in 1usize..64) {
        let _ = decode(&bytes, step);
    }

    /// As above, but noise that gets past the first checks.
    #[test]
    fn a_damaged_conversation_does_no_harm(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        step in 1usize..64,
    ) {
        let mut bytes = conversation();
        for (place, byte) in places {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes, step);
    }
}
