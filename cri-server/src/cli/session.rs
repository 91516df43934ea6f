//! A client of the streaming server, over WebSocket: what the command says goes to this process' output, what comes in
//! on its input goes to the command.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};

use super::terminal;

/// The version that can say that the input has ended.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// Channels, numbered by the first byte of each message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// One read of the input, as other clients have it.
const READ: usize = 32 * 1024;

/// A status is some hundred bytes, with the text of an error in it.
const STATUS_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("connect to the streaming server at {at}: {source}")]
    Connect { at: String, source: io::Error },
    #[error(
        "the daemon's streaming server is at {0}, and this command speaks no TLS: kubectl and crictl do"
    )]
    Tls(String),
    #[error("begin the session: {0}")]
    Begin(Box<tungstenite::Error>),
    #[error("the session broke off: {0}")]
    Broken(Box<tungstenite::Error>),
    #[error("the session ended without telling how the command did")]
    NoStatus,
    #[error("{0}")]
    Failed(String),
    #[error("read the terminal's size: {0}")]
    Size(io::Error),
    #[error("write the command's output: {0}")]
    Output(io::Error),
}

/// Which of this process' streams take part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Sink = SplitSink<WebSocketStream<Box<dyn Wire>>, Message>;
type Source = SplitStream<WebSocketStream<Box<dyn Wire>>>;

/// Runs the session that a URL stands for; the exit code of its command.
pub(super) async fn run(url: &str, ends: Ends) -> Result<i32, Error> {
    let place = Place::of(url).ok_or_else(|| Error::Tls(url.to_owned()))?;
    let wire = place.dial().await?;
    let begin = |error| Error::Begin(Box::new(error));
    let request = format!("ws://localhost{}", place.path).into_client_request();
    let mut request = request.map_err(begin)?;
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
    let (socket, _) = tokio_tungstenite::client_async(request, wire).await.map_err(begin)?;
    let (sink, source) = socket.split();
    let resized = ends.tty.then(|| signal(SignalKind::window_change())).transpose();
    let resized = resized.map_err(Error::Size)?;
    let sending = async {
        input(sink, ends, resized).await;
        // How the command did is still to come.
        std::future::pending().await
    };
    tokio::select! {
        status = output(source) => status?.code(),
        never = sending => never,
    }
}

/// Where a URL leads.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    at: At,
    path: String,
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    Tcp(String),
    Unix(PathBuf),
}

impl Place {
    /// `None` for what needs TLS.
    fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (host, path) = rest.split_at(rest.find('/')?);
        let at = match scheme {
            "http" => At::Tcp(host.to_owned()),
            "http+unix" => At::Unix(unescaped(host)?.into()),
            _ => return None,
        };
        Some(Self { at, path: path.to_owned() })
    }

    async fn dial(&self) -> Result<Box<dyn Wire>, Error> {
        let (at, wire) = match &self.at {
            At::Tcp(host) => {
                let socket = TcpStream::connect(host).await;
                // A key must not wait for the next one.
                let tuned = socket.and_then(|it| it.set_nodelay(true).map(|()| it));
                (host.clone(), tuned.map(|it| Box::new(it) as Box<dyn Wire>))
            }
            At::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                (path.display().to_string(), socket.map(|it| Box::new(it) as Box<dyn Wire>))
            }
        };
        wire.map_err(|source| Error::Connect { at, source })
    }
}

/// The path in the host of a URL, where it is escaped.
fn unescaped(host: &str) -> Option<String> {
    let mut parts = host.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// What the user types and how large the terminal is, until the session ends.
async fn input(mut sink: Sink, ends: Ends, mut resized: Option<Signal>) {
    let mut send = async |channel: u8, bytes: &[u8]| {
        let message = [&[channel], bytes].concat();
        sink.send(Message::Binary(message.into())).await
    };
    let mut buffer = vec![0; READ];
    // One that cannot be copied is not open: there is nothing to read.
    let mut stdin = own(io::stdin()).ok().filter(|_| ends.stdin);
    let mut tells = ends.tty;
    loop {
        if std::mem::take(&mut tells)
            && let Some((columns, rows)) = terminal::size()
        {
            let size = format!(r#"{{"Width":{columns},"Height":{rows}}}"#);
            if send(RESIZE, size.as_bytes()).await.is_err() {
                return;
            }
        }
        let sent = tokio::select! {
            () = changed(&mut resized) => { tells = true; Ok(()) }
            read = next(&mut stdin, &mut buffer) => match read {
                0 => { stdin = None; send(CLOSE, &[STDIN]).await }
                length => send(STDIN, &buffer[..length]).await,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A stream of this process, to be waited for.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from_std(stream.as_fd().try_clone_to_owned()?.into()))
}

/// The next piece of the input, once; 0: its end. Never, without one.
async fn next(stdin: &mut Option<File>, buffer: &mut [u8]) -> usize {
    match stdin {
        // What cannot be read any more has ended.
        Some(stdin) => stdin.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Ends when the terminal has another size; never without one.
async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}

/// What the command says, until it is told how it ended.
async fn output(mut source: Source) -> Result<Status, Error> {
    let mut stdout = own(io::stdout()).map_err(Error::Output)?;
    let mut stderr = own(io::stderr()).map_err(Error::Output)?;
    let mut status = Vec::new();
    while let Some(message) = source.next().await {
        let message = message.map_err(|error| Error::Broken(Box::new(error)))?;
        let Message::Binary(bytes) = message else { continue };
        let Some((channel, content)) = bytes.split_first() else { continue };
        let written = match *channel {
            STDOUT => put(&mut stdout, content).await,
            STDERR => put(&mut stderr, content).await,
            STATUS if status.len() < STATUS_MAX => {
                status.extend_from_slice(content);
                Ok(())
            }
            _ => Ok(()),
        };
        written.map_err(Error::Output)?;
    }
    serde_json::from_slice(&status).map_err(|_| Error::NoStatus)
}

async fn put(end: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    end.write_all(bytes).await?;
    end.flush().await
}

/// Kubernetes' `metav1.Status`, as far as it is about a command.
#[derive(Debug, Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Status {
    fn code(self) -> Result<i32, Error> {
        if self.status == "Success" {
            return Ok(0);
        }
        let causes = self.details.map(|details| details.causes).unwrap_or_default();
        let code = causes.iter().find(|cause| cause.reason == "ExitCode");
        let code = code.and_then(|cause| cause.message.parse().ok());
        code.ok_or(Error::Failed(self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_an_address_or_a_socket() {
        let place = |at, path: &str| Some(Place { at, path: path.to_owned() });
        let tcp = At::Tcp("127.0.0.1:81".to_owned());
        assert_eq!(Place::of("http://127.0.0.1:81/exec/x"), place(tcp, "/exec/x"));
        let unix = At::Unix("/run/a b.sock".into());
        assert_eq!(Place::of("http+unix://%2Frun%2Fa%20b.sock/exec/x"), place(unix, "/exec/x"));
        for other in ["https://node/exec/x", "http+unix://%2/exec", "http://host", ""] {
            assert_eq!(Place::of(other), None, "{other}");
        }
    }

    #[test]
    fn a_status_is_an_exit_code_or_a_failure() {
        let code = |text: &str| serde_json::from_str::<Status>(text).unwrap().code();
        assert_eq!(code(r#"{"status":"Success"}"#).unwrap(), 0);
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode","message":"ended with 7",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(code(failed).unwrap(), 7);
        let broken = r#"{"status":"Failure","reason":"InternalError","message":"no such file"}"#;
        assert_eq!(code(broken).unwrap_err().to_string(), "no such file");
    }
}
