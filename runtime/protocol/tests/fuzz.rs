//! Bytes that no peer of ours would send: the decoder and the receiver take or refuse them, and nothing else.
//! Runs for `FUZZ_SECONDS` (2) from `FUZZ_SEED` (the clock); what was found once is kept in `corpus/`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use protocol::{Packet, pair, receive};

/// The golden messages of every version, and what was found before.
fn seeds() -> Vec<Vec<u8>> {
    let lines = [include_str!("golden/1.txt"), include_str!("golden/2.txt")].concat();
    let bytes = |hex: &str| {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(byte).collect::<Vec<u8>>()
    };
    let golden = lines.lines().map(|l| bytes(l.split_once(": ").expect("a line").1));
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let corpus = std::fs::read_dir(dir).expect("corpus").flatten().map(|entry| {
        let text = std::fs::read_to_string(entry.path()).expect("a hex file");
        bytes(text.trim())
    });
    golden.chain(corpus).collect()
}

/// Panics when the bytes are handled badly.
fn check(bytes: &[u8]) {
    if let Ok(packet) = Packet::decode(bytes) {
        let again = Packet::decode(packet.encode_to_vec().as_slice()).expect("our own bytes");
        assert_eq!(again, packet);
    }
    let (ours, theirs) = pair().expect("pair");
    if rustix::net::send(&theirs, bytes, rustix::net::SendFlags::empty()).is_err() {
        return; // longer than the socket takes
    }
    let mut buffer = vec![0; protocol::wire::INLINE_MAX];
    let received = receive(ours.as_fd(), &mut buffer);
    match (received, Packet::decode(bytes)) {
        (Ok(Some((packet, fds))), Ok(decoded)) => assert_eq!((packet, fds.len()), (decoded, 0)),
        // A spill without its descriptor; nothing at all; longer than any packet.
        (Err(_) | Ok(None), _) => {}
        (Ok(Some(_)), Err(e)) => panic!("received what cannot be decoded: {e}"),
    }
}

/// Xorshift: repeatable, and good enough to choose bytes.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes.insert(at, self.below(256) as u8),
                3 => bytes.truncate(at),
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    bytes.extend_from_slice(&other[from..]);
                }
                // A length that promises too much.
                5 => bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f]).for_each(drop),
                _ => bytes.extend_from_within(at..),
            }
            bytes.truncate(protocol::wire::INLINE_MAX + 10);
        }
        bytes
    }
}

#[test]
fn what_was_found_once_and_the_golden_messages_are_handled_well() {
    for seed in seeds() {
        check(&seed);
        (0..seed.len()).for_each(|end| check(&seed[..end]));
    }
}

#[test]
fn nothing_that_arrives_is_handled_badly() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_nanos() as u64;
    let seed = number("FUZZ_SEED").unwrap_or(clock) | 1;
    let until = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(2));
    let (mut dice, seeds) = (Dice(seed), seeds());
    while Instant::now() < until {
        for _ in 0..100 {
            let bytes = dice.mutate(&seeds);
            let outcome = std::panic::catch_unwind(|| check(&bytes));
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert!(outcome.is_ok(), "FUZZ_SEED={seed}: put this into corpus/: {hex}");
        }
    }
}
