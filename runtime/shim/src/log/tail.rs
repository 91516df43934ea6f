//! The last of what a container has said, read back from its log: pure but for one read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The most that is ever given again: it fits into a reader's empty pipe.
pub(super) const REPLAY_MAX: u64 = 256 * 1024;
/// Timestamp, stream name and tag stand before short lines: so many times the wanted content is looked at.
const OVERHEAD: u64 = 4;

/// The last `bytes` of content of each stream, oldest first. What cannot be read counts as nothing said.
pub(super) fn replay(path: &Path, bytes: u64) -> [Vec<u8>; 2] {
    let wanted = bytes.min(REPLAY_MAX);
    let mut text = Vec::new();
    let mut read = || -> std::io::Result<bool> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        let from = len.saturating_sub(wanted * OVERHEAD);
        file.seek(SeekFrom::Start(from))?;
        file.take(wanted * OVERHEAD).read_to_end(&mut text)?;
        Ok(from > 0)
    };
    let Ok(cut) = read() else { return Default::default() };
    contents(&text, cut, wanted as usize)
}

/// `cut`: the text begins inside a line, which is left out.
fn contents(log: &[u8], cut: bool, wanted: usize) -> [Vec<u8>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for line in log.split_inclusive(|b| *b == b'\n').skip(usize::from(cut)) {
        let Some(line) = line.strip_suffix(b"\n") else { continue };
        let mut fields = line.splitn(4, |b| *b == b' ').skip(1);
        let (stream, tag, content) = (fields.next(), fields.next(), fields.next());
        let stream = match stream {
            Some(b"stdout") => &mut streams[0],
            Some(b"stderr") => &mut streams[1],
            _ => continue,
        };
        stream.extend_from_slice(content.unwrap_or_default());
        if tag == Some(b"F") {
            stream.push(b'\n');
        }
    }
    for stream in &mut streams {
        stream.drain(..stream.len().saturating_sub(wanted));
    }
    streams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_comes_back_byte_for_byte_and_stream_by_stream() {
        let log = b"T stdout F one\r\nT stderr F err\nT stdout P two \nT stdout F and three\nT stdout F \n";
        let [out, err] = contents(log, false, 1000);
        assert_eq!(out, b"one\r\ntwo and three\n\n");
        assert_eq!(err, b"err\n");
    }

    #[test]
    fn only_the_last_bytes_are_given_and_no_torn_line() {
        let log = b"ut F torn\nT stdout F 0123456789\nT stdout F half a li";
        assert_eq!(contents(log, true, 4)[0], b"789\n");
        assert_eq!(contents(log, true, 400)[0], b"0123456789\n");
    }

    #[test]
    fn no_log_is_no_history() {
        assert_eq!(replay(Path::new("/no/such/log"), 100), [b"".to_vec(), b"".to_vec()]);
    }
}
