//! A stream of bytes to CRI log lines: pure, byte exact, bounded.
//!
//! A line ends at `\n`, which is not part of its content; everything else (`\r`, NUL, broken UTF-8) is. Content
//! longer than the limit is split: all parts but the last carry the tag `P`, the last one `F`. What is left
//! without a newline at the end of the stream is a `P` too: `F` would tell the reader that a newline was there.

/// Content bytes of one log line unless configured: what the kubelet's and crictl's readers are built for.
pub(crate) const DEFAULT_MAX: usize = 16 * 1024;

/// The unfinished line of one stream.
#[derive(Debug)]
pub(crate) struct Lines {
    carry: Vec<u8>,
    max: usize,
    /// Log lines emitted so far.
    emitted: u64,
}

/// What stands before the content: timestamp, stream name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) stamp: &'a [u8],
    pub(crate) stream: &'a str,
}

impl Lines {
    pub(crate) fn new(max: usize) -> Self {
        Self { carry: Vec::new(), max: if max == 0 { DEFAULT_MAX } else { max }, emitted: 0 }
    }

    /// Appends to `out` every log line that `input` completes.
    pub(crate) fn push(&mut self, mut input: &[u8], head: Head<'_>, out: &mut Vec<u8>) {
        while let Some(at) = memchr::memchr(b'\n', input) {
            let line = self.split(&input[..at], head, out);
            // A line that came whole, the usual case, is copied once.
            emit(out, head, b'F', &self.carry, line);
            self.emitted += 1;
            self.carry.clear();
            input = &input[at + 1..];
        }
        let rest = self.split(input, head, out);
        self.carry.extend_from_slice(rest);
    }

    /// What has no newline yet.
    pub(crate) fn unfinished(&self) -> &[u8] {
        &self.carry
    }

    /// The end of the stream: what is left, if anything.
    pub(crate) fn finish(&mut self, head: Head<'_>, out: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            emit(out, head, b'P', &self.carry, &[]);
            self.emitted += 1;
            self.carry = Vec::new();
        }
    }

    /// What follows is left out: the unfinished line ends here, so that it is not joined to another one's rest.
    pub(crate) fn cut(&mut self, head: Head<'_>, out: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            emit(out, head, b'F', &self.carry, &[]);
            self.emitted += 1;
            self.carry.clear();
        }
    }

    /// How many log lines were emitted since the last call.
    pub(crate) fn take_emitted(&mut self) -> u64 {
        std::mem::take(&mut self.emitted)
    }

    /// Emits partial lines until the carry and what is left of `text` fit into one; returns what is left.
    fn split<'t>(&mut self, mut text: &'t [u8], head: Head<'_>, out: &mut Vec<u8>) -> &'t [u8] {
        while self.carry.len() + text.len() > self.max {
            let (now, rest) = text.split_at(self.max - self.carry.len());
            emit(out, head, b'P', &self.carry, now);
            self.emitted += 1;
            self.carry.clear();
            text = rest;
        }
        text
    }
}

fn emit(out: &mut Vec<u8>, head: Head<'_>, tag: u8, first: &[u8], second: &[u8]) {
    out.extend_from_slice(head.stamp);
    out.push(b' ');
    out.extend_from_slice(head.stream.as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(first);
    out.extend_from_slice(second);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: Head<'static> = Head { stamp: b"T", stream: "stdout" };

    fn log(chunks: &[&[u8]], max: usize) -> Vec<u8> {
        let (mut lines, mut out) = (Lines::new(max), Vec::new());
        chunks.iter().for_each(|c| lines.push(c, HEAD, &mut out));
        lines.finish(HEAD, &mut out);
        out
    }

    /// What a reader of the log gets back: contents joined, a newline after each `F`.
    fn decode(log: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in
            log.strip_suffix(b"\n").unwrap_or(log).split(|b| *b == b'\n').filter(|l| !l.is_empty())
        {
            let body = line.strip_prefix(b"T stdout ").expect("head");
            out.extend_from_slice(&body[2..]);
            if body[0] == b'F' {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn a_carriage_return_is_content() {
        assert_eq!(log(&[b"a\r\n"], 100), b"T stdout F a\r\n");
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_not_split() {
        assert_eq!(log(&[b"abcd\n"], 4), b"T stdout F abcd\n");
        assert_eq!(log(&[b"abcde\n"], 4), b"T stdout P abcd\nT stdout F e\n");
    }

    #[test]
    fn an_unfinished_last_line_is_kept_as_partial() {
        assert_eq!(log(&[b"a\nb"], 4), b"T stdout F a\nT stdout P b\n");
    }

    #[test]
    fn an_empty_line_is_a_line() {
        assert_eq!(log(&[b"\n"], 4), b"T stdout F \n");
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_written(
            chunks in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..40), 0..20),
            max in 1usize..20,
        ) {
            let refs: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decode(&log(&refs, max)), chunks.concat());
        }

        #[test]
        fn how_the_stream_was_cut_into_reads_does_not_show(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 0..200),
            cut in 1usize..30,
            max in 1usize..20,
        ) {
            let refs: Vec<_> = text.chunks(cut).collect();
            prop_assert_eq!(log(&refs, max), log(&[&text], max));
        }

        #[test]
        fn no_line_is_longer_than_the_limit(
            text in prop::collection::vec(any::<u8>(), 0..400), max in 1usize..20,
        ) {
            let out = log(&[&text], max);
            for line in out.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                prop_assert!(line.len() <= max + b"T stdout F ".len());
            }
        }
    }
}
