//! Follows the logs of containers and prints them line by line under the name of their container.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::cli::console;

/// Between two looks at a file that had nothing new: a person does not see the delay, and an idle
/// pod costs next to nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The log of an ended container is read once more after this time, in case its writer is a step
/// behind the news of the end.
const WRITER_DELAY: Duration = Duration::from_millis(100);

/// A line without end is printed in pieces of this size, so that it cannot take all memory.
const LINE_BYTES_MAX: usize = 256 << 10;

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A log that is being printed, on a thread of its own: a terminal that is held (Ctrl-S) blocks
/// whoever writes to it.
#[derive(Debug)]
pub(crate) struct Follower {
    ended: Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Follower {
    /// Prints what is in the file at `path`, which may not be there yet, and what is added to it.
    pub(crate) fn start(path: PathBuf, name: String) -> Self {
        let (ended, of_container) = channel();
        let follow = move || follow(&path, &name, &of_container, console::out_bytes);
        Self { ended, task: tokio::task::spawn_blocking(follow) }
    }

    /// Prints what is left in the log of a container that ended. An error is one of reading the
    /// log or of printing it.
    pub(crate) async fn finish(self) -> io::Result<()> {
        // A follower that failed does not listen any more; its error comes next.
        let _ = self.ended.send(());
        self.task.await.map_err(io::Error::other)?
    }
}

/// Prints the log at `path` until `ended` says that its container did, or that nobody waits.
fn follow(
    path: &Path,
    name: &str,
    ended: &Receiver<()>,
    mut print: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut log = Log { lines: Lines::default(), assembler: Assembler::new(name), file: None };
    while ended.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        log.read(path, &mut print)?;
    }
    log.read(path, &mut print)?;
    std::thread::sleep(WRITER_DELAY);
    log.read(path, &mut print)?;
    print(&log.finish())
}

struct Log {
    lines: Lines,
    assembler: Assembler,
    file: Option<File>,
}

impl Log {
    /// Prints everything up to the present end of the file.
    fn read(
        &mut self,
        path: &Path,
        print: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.file.is_none() {
            self.file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => Some(opened?),
            };
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            let mut printed = Vec::new();
            self.lines.push(&chunk[..count], |line| self.assembler.push(line, &mut printed));
            print(&printed)?;
        }
    }

    /// The line that the end of the container cut off.
    fn finish(mut self) -> Vec<u8> {
        let mut printed = Vec::new();
        self.lines.finish(|line| self.assembler.push(line, &mut printed));
        self.assembler.finish(&mut printed);
        printed
    }
}

/// Cuts a stream of bytes into lines. A line above the bound is cut where it is.
#[derive(Debug, Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if let Some(line) = self.pending.strip_suffix(b"\n") {
                each(line);
                self.pending.clear();
            } else if self.pending.len() >= LINE_BYTES_MAX {
                each(&self.pending);
                self.pending.clear();
            }
        }
    }

    fn finish(self, mut each: impl FnMut(&[u8])) {
        if !self.pending.is_empty() {
            each(&self.pending);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// One line of a CRI log: `<time> <stdout|stderr> <tags> <content>`.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    stream: Stream,
    /// More of the same line follows.
    partial: bool,
    content: &'a [u8],
}

/// `None` for a line of another form.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (_time, stream, tags) = (fields.next()?, fields.next()?, fields.next()?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // More tags may follow the first behind colons.
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { stream, partial, content: fields.next().unwrap_or_default() })
}

/// Joins partial lines, each stream by itself, and prints whole ones with the container's name.
#[derive(Debug)]
struct Assembler {
    prefix: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Assembler {
    fn new(name: &str) -> Self {
        Self { prefix: format!("[{name}] ").into_bytes(), stdout: Vec::new(), stderr: Vec::new() }
    }

    fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        // What is not a log entry is shown as it is rather than lost.
        let entry =
            parse(line).unwrap_or(Entry { stream: Stream::Stdout, partial: false, content: line });
        let joined = match entry.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        joined.extend_from_slice(entry.content);
        if !entry.partial || joined.len() >= LINE_BYTES_MAX {
            print(&self.prefix, joined, out);
        }
    }

    /// A container may end in the middle of a line.
    fn finish(mut self, out: &mut Vec<u8>) {
        for joined in [&mut self.stdout, &mut self.stderr] {
            if !joined.is_empty() {
                print(&self.prefix, joined, out);
            }
        }
    }
}

fn print(prefix: &[u8], line: &mut Vec<u8>, out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    out.append(line);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TIME: &str = "2024-01-02T03:04:05.000000006Z";

    #[test]
    fn a_log_line_is_stream_tag_and_content() {
        for (line, expect) in [
            ("stdout F hello world", Some((Stream::Stdout, false, "hello world"))),
            ("stderr P  two blanks", Some((Stream::Stderr, true, " two blanks"))),
            ("stdout F:x:y tagged", Some((Stream::Stdout, false, "tagged"))),
            ("stdout F ", Some((Stream::Stdout, false, ""))),
            ("stdout F", Some((Stream::Stdout, false, ""))),
            ("stdin F x", None),
            ("stdout Q x", None),
            ("stdout", None),
        ] {
            let text = format!("{TIME} {line}");
            let entry = expect.map(|(stream, partial, content)| Entry {
                stream,
                partial,
                content: content.as_bytes(),
            });
            assert_eq!(parse(text.as_bytes()), entry, "{line}");
        }
    }

    fn printed(chunks: &[&[u8]]) -> String {
        let (mut lines, mut assembler) = (Lines::default(), Assembler::new("web"));
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| assembler.push(line, &mut out));
        }
        lines.finish(|line| assembler.push(line, &mut out));
        assembler.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn partial_lines_are_joined_each_stream_by_itself() {
        let log = format!(
            "{TIME} stdout P one \n{TIME} stderr P ERR\n{TIME} stdout F two\n{TIME} stderr F OR\n"
        );
        assert_eq!(printed(&[log.as_bytes()]), "[web] one two\n[web] ERROR\n");
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let log = format!("{TIME} stdout F first\n{TIME} stdout F sécond\n");
        for cut in 0..log.len() {
            let (left, right) = log.as_bytes().split_at(cut);
            assert_eq!(printed(&[left, right]), "[web] first\n[web] sécond\n", "cut at {cut}");
        }
    }

    #[test]
    fn the_end_of_a_container_ends_its_last_line() {
        let log = format!("{TIME} stdout P unfinished\n");
        assert_eq!(printed(&[log.as_bytes()]), "[web] unfinished\n");
    }

    #[test]
    fn what_is_no_log_entry_is_shown_as_it_is() {
        assert_eq!(printed(&[b"garbage\n"]), "[web] garbage\n");
    }

    #[test]
    fn a_line_without_end_is_printed_in_pieces() {
        let piece = format!("{TIME} stdout P {}\n", "x".repeat(LINE_BYTES_MAX / 2));
        let (mut lines, mut assembler) = (Lines::default(), Assembler::new("web"));
        let mut out = Vec::new();
        for _ in 0..100 {
            lines.push(piece.as_bytes(), |line| assembler.push(line, &mut out));
            assert!(assembler.stdout.len() <= LINE_BYTES_MAX);
            out.clear();
        }
    }

    #[test]
    fn a_log_that_appears_late_is_followed_to_its_end() {
        let path = std::env::temp_dir().join(format!("lapstrake-follow-{}", std::process::id()));
        let (ended, of_container) = channel();
        let (printed, prints) = channel();
        let follower = std::thread::spawn({
            let path = path.clone();
            move || {
                follow(&path, "late", &of_container, |bytes| {
                    printed.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
                    Ok(())
                })
            }
        });
        let log = |text: &str| {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let patience = Duration::from_secs(10);
        log(&format!("{TIME} stdout F first\n"));
        assert_eq!(prints.recv_timeout(patience).unwrap(), "[late] first\n");
        log(&format!("{TIME} stdout F second\n{TIME} stdout P thi"));
        assert_eq!(prints.recv_timeout(patience).unwrap(), "[late] second\n");
        log("rd\n");
        ended.send(()).unwrap();
        follower.join().unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(prints.iter().collect::<String>(), "[late] third\n");
    }
}
