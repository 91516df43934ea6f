//! Exec and attach: a process' streams on one side, a client's on the other.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::negotiate::Dialect;
use crate::pipe::Pipe;
use crate::status::Outcome;
use crate::stream::{HEADROOM, Incoming, Outgoing};
use crate::target::{Failure, Process, Stdin, Wanted};

/// One read of the process' output.
const READ: usize = 64 * 1024;
/// A message about the terminal's size is some thirty bytes.
const RESIZE_MAX: usize = 1024;
/// WebSocket's channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// What the client may write to.
pub(crate) const INBOUND: &[u8] = &[STDIN, RESIZE];

/// The client's side of a session.
#[derive(Debug)]
pub(crate) struct Streams {
    stdin: Option<(Incoming, Option<Outgoing>)>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
    error: Outgoing,
    resize: Option<(Incoming, Option<Outgoing>)>,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    #[error("the client went before it had opened its streams")]
    Gone,
    #[error("the client did not open its streams in time")]
    Late,
}

impl Streams {
    /// Waits for the streams that a client has to open; of others it is told that nobody wants them.
    pub(crate) async fn collect(
        connection: &mut Connection,
        wanted: Wanted,
        dialect: Dialect,
        limit: Duration,
    ) -> Result<Self, Missing> {
        match connection {
            Connection::Spdy(streams) => {
                let collecting = Self::collect_spdy(streams, wanted, dialect);
                tokio::time::timeout(limit, collecting).await.unwrap_or(Err(Missing::Late))
            }
            Connection::WebSocket(channels) => {
                let outgoing = |channel| Outgoing::WebSocket(channels.sender(channel));
                let (stdout, stderr) = (outgoing(STDOUT), outgoing(STDERR));
                let mut streams = Self {
                    stdin: None,
                    stdout: wanted.stdout.then_some(stdout),
                    stderr: wanted.has_stderr().then_some(stderr),
                    error: outgoing(ERROR),
                    resize: None,
                };
                let mut incoming =
                    |channel| channels.receiver(channel).map(|it| (Incoming::WebSocket(it), None));
                streams.stdin = incoming(STDIN).filter(|_| wanted.stdin);
                streams.resize = incoming(RESIZE).filter(|_| wanted.tty && dialect.resize);
                streams.greet().await;
                Ok(streams)
            }
        }
    }

    async fn collect_spdy(
        streams: &mut crate::spdy::Streams,
        wanted: Wanted,
        dialect: Dialect,
    ) -> Result<Self, Missing> {
        let (mut stdin, mut stdout, mut stderr, mut error, mut resize) =
            (None, None, None, None, None);
        let mut missing = [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.has_stderr()),
            ("resize", wanted.tty && dialect.resize),
        ];
        while missing.iter().any(|(_, missing)| *missing) {
            let stream = streams.next().await.ok_or(Missing::Gone)?;
            let kind = stream.headers.get("streamtype").unwrap_or_default();
            // Dropping a stream that is not expected, or is there already, resets it.
            let expected = missing.iter_mut().find(|(name, missing)| *name == kind && *missing);
            let Some((name, missing)) = expected else { continue };
            *missing = false;
            let (incoming, outgoing) =
                (Incoming::Spdy(stream.receiver), Outgoing::Spdy(stream.sender));
            match *name {
                "stdin" => stdin = Some((incoming, Some(outgoing))),
                "stdout" => stdout = Some(outgoing),
                "stderr" => stderr = Some(outgoing),
                "resize" => resize = Some((incoming, Some(outgoing))),
                _ => error = Some(outgoing),
            }
        }
        Ok(Self { stdin, stdout, stderr, error: error.ok_or(Missing::Gone)?, resize })
    }

    /// An empty message tells a WebSocket client that the session stands.
    async fn greet(&mut self) {
        let first = self.stdout.as_mut().or(self.stderr.as_mut()).unwrap_or(&mut self.error);
        // A client that is gone already is noticed by whoever reads.
        let _ = first.send(&mut [0; HEADROOM]).await;
    }
}

impl Wanted {
    fn has_stderr(self) -> bool {
        self.stderr && !self.tty
    }
}

/// Moves everything until the process has ended, and tells the client how. Cancelled when the client goes.
pub(crate) async fn serve(
    streams: Streams,
    process: Result<Process, Failure>,
    attached: bool,
    dialect: Dialect,
) {
    let Streams { stdin, stdout, stderr, mut error, resize } = streams;
    // The client's ends of the streams that we only read: finished with the session.
    let mut quiet = Vec::new();
    let (outcome, outputs) = match process {
        Err(failure) => (Outcome::Failed(failure), [stdout, stderr]),
        Ok(process) => {
            let mut inputs = JoinSet::new();
            if let Some((incoming, end)) = stdin {
                quiet.extend(end);
                process.stdin.map(|stdin| inputs.spawn(feed(incoming, stdin)));
            }
            if let Some((incoming, end)) = resize {
                quiet.extend(end);
                process.terminal.map(|terminal| inputs.spawn(size(incoming, terminal)));
            }
            let has_output = process.stdout.is_some() || process.stderr.is_some();
            let ended = CancellationToken::new();
            let waiting = async {
                let code = process.ended.await;
                ended.cancel();
                code
            };
            let outputs = async {
                tokio::join!(
                    drain(process.stdout, stdout, &ended),
                    drain(process.stderr, stderr, &ended)
                )
            };
            let (outcome, (stdout, stderr)) = if attached && has_output {
                // The streams tell the end, of the container or of the patience with a slow client.
                tokio::pin!(waiting);
                tokio::pin!(outputs);
                let outputs = tokio::select! {
                    outputs = &mut outputs => outputs,
                    _ = &mut waiting => outputs.await,
                };
                (Outcome::Detached, outputs)
            } else {
                let (code, outputs) = tokio::join!(waiting, outputs);
                let outcome = match code {
                    Ok(_) if attached => Outcome::Detached,
                    Ok(code) => Outcome::Exited(code),
                    Err(failure) => Outcome::Failed(failure),
                };
                (outcome, outputs)
            };
            drop(process.guard);
            (outcome, [stdout, stderr])
        }
    };
    let text = outcome.to_text(dialect.status);
    // From here on nobody is left who could do something about a client that does not listen.
    if !text.is_empty() {
        let _ = error.send_text(&text).await;
    }
    for mut end in outputs.into_iter().flatten().chain(quiet).chain([error]) {
        let _ = end.finish().await;
    }
}

/// The client's input, as fast as the process takes it.
async fn feed(mut incoming: Incoming, stdin: Stdin) {
    let Stdin { fd, guard, terminal_end } = stdin;
    let Ok(pipe) = Pipe::new(fd) else { return };
    while let Some(bytes) = incoming.next().await {
        if pipe.write_all(&bytes).await.is_err() {
            break;
        }
    }
    if terminal_end {
        pipe.end_terminal().await;
    }
    drop((pipe, guard));
}

/// The process' output, as fast as the client takes it. Gives the client's end back, to be finished.
async fn drain(
    fd: Option<OwnedFd>,
    outgoing: Option<Outgoing>,
    ended: &CancellationToken,
) -> Option<Outgoing> {
    let Some(pipe) = fd.and_then(|fd| Pipe::new(fd).ok()) else { return outgoing };
    let mut buffer = vec![0; HEADROOM + READ];
    let Some(mut outgoing) = outgoing else {
        // A terminal has output whether somebody wants it or not.
        while let Ok(1..) = pipe.read_until(&mut buffer, ended).await {}
        return None;
    };
    let gone = outgoing.gone();
    loop {
        let read = tokio::select! {
            read = pipe.read_until(&mut buffer[HEADROOM..], ended) => read,
            // A client that closes one stream alone wants no more of it; the process gets SIGPIPE.
            () = gone.cancelled() => return Some(outgoing),
        };
        let Ok(length @ 1..) = read else { return Some(outgoing) };
        if outgoing.send(&mut buffer[..HEADROOM + length]).await.is_err() {
            return Some(outgoing);
        }
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// The sizes that the client's terminal takes.
async fn size(mut incoming: Incoming, terminal: OwnedFd) {
    let mut text = Vec::new();
    while let Some(bytes) = incoming.next().await {
        text.extend_from_slice(&bytes);
        if let Some(Size { width, height }) = latest(&mut text) {
            let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            // The terminal may be gone before its client.
            let _ = tcsetwinsize(&terminal, size);
        }
    }
}

/// The last whole size in what has come so far, which is taken away. Messages need not come one by one.
fn latest(text: &mut Vec<u8>) -> Option<Size> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut last, mut taken, mut broken) = (None, 0, false);
    while let Some(size) = sizes.next() {
        match size {
            Ok(size) => (last, taken) = (Some(size), sizes.byte_offset()),
            Err(error) => {
                broken = !error.is_eof();
                break;
            }
        }
    }
    if broken || text.len() - taken > RESIZE_MAX {
        text.clear();
    } else {
        text.drain(..taken);
    }
    last.filter(|size| size.width > 0 && size.height > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[&str], expect: &[(u16, u16)]) {
        let (mut text, mut sizes) = (Vec::new(), Vec::new());
        for piece in pieces {
            text.extend_from_slice(piece.as_bytes());
            sizes.extend(latest(&mut text).map(|size| (size.width, size.height)));
        }
        assert_eq!(sizes, expect, "{pieces:?}");
        assert!(text.len() <= RESIZE_MAX);
    }

    #[test]
    fn sizes_come_whole_in_parts_or_together() {
        let (a, b) = (r#"{"Width":80,"Height":24}"#, r#"{"Width":100,"Height":50}"#);
        check(&[a, b], &[(80, 24), (100, 50)]);
        check(&[&format!("{a}{b}\n")], &[(100, 50)]);
        check(&[&a[..9], &a[9..], b], &[(80, 24), (100, 50)]);
    }

    #[test]
    fn nonsense_about_the_size_is_forgotten() {
        check(&["nonsense", r#"{"Width":80,"Height":24}"#], &[(80, 24)]);
        check(&[r#"{"Width":0,"Height":24}"#], &[]);
        check(&[r#"{"Width":70000,"Height":24}"#], &[]);
        check(&[&format!("{{\"Width\":{}", " ".repeat(2000))], &[]);
    }
}
