//! Port-forward: each connection of the client's is one of ours to the pod, with an error stream beside.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::spdy;
use crate::stream::{HEADROOM, Incoming, Outgoing};
use crate::target::Backend;
use crate::websocket::Channels;

/// One read of the pod's answer.
const READ: usize = 64 * 1024;
/// Ports in one WebSocket's URL: a data and an error channel each, numbered by a byte.
pub(crate) const PORTS_MAX: usize = 100;

/// Which ports of which pod.
pub(crate) struct Ports<T> {
    pub(crate) backend: Arc<dyn Backend<T>>,
    pub(crate) target: Arc<T>,
    /// Empty: any.
    pub(crate) allowed: Vec<u16>,
}

/// One connection.
struct Forward {
    port: u16,
    from_client: Incoming,
    to_client: Outgoing,
    error: Outgoing,
}

/// Streams of a connection that are there already.
struct Pair {
    since: Instant,
    data: Option<spdy::Stream>,
    error: Option<spdy::Stream>,
}

/// Pairs the client's streams until it is gone. Connections end with it.
pub(crate) async fn serve_spdy<T: Send + Sync + 'static>(
    streams: &mut spdy::Streams,
    ports: Ports<T>,
    pairing: Duration,
) {
    let ports = Arc::new(ports);
    let mut forwards = JoinSet::new();
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut sweep = tokio::time::interval(pairing);
    loop {
        let stream = tokio::select! {
            stream = streams.next() => stream,
            _ = sweep.tick() => {
                // Letting go of a stream resets it.
                pairs.retain(|_, pair| pair.since.elapsed() < pairing);
                continue;
            }
            Some(_) = forwards.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        let Some(id) = connection_of(&stream) else { continue };
        let since = Instant::now();
        let pair = pairs.entry(id.clone()).or_insert(Pair { since, data: None, error: None });
        match stream.headers.get("streamtype") {
            Some("data") if pair.data.is_none() => pair.data = Some(stream),
            Some("error") if pair.error.is_none() => pair.error = Some(stream),
            _ => {}
        }
        if let Pair { data: Some(_), error: Some(_), .. } = pair
            && let Some(Pair { data: Some(data), error: Some(error), .. }) = pairs.remove(&id)
            && let Some(port) = port_of(&data)
        {
            let forward = Forward {
                port,
                from_client: Incoming::Spdy(data.receiver),
                to_client: Outgoing::Spdy(data.sender),
                error: Outgoing::Spdy(error.sender),
            };
            forwards.spawn(run(ports.clone(), forward));
        }
    }
}

/// The ports are known from the start, and each is one connection.
pub(crate) async fn serve_websocket<T: Send + Sync + 'static>(
    channels: &mut Channels,
    ports: Ports<T>,
    asked: &[u16],
) {
    let ports = Arc::new(ports);
    let mut forwards = JoinSet::new();
    for (channel, port) in (0..).step_by(2).zip(asked.iter().copied()) {
        let Some(from_client) = channels.receiver(channel) else { continue };
        let mut to_client = Outgoing::WebSocket(channels.sender(channel));
        let mut error = Outgoing::WebSocket(channels.sender(channel + 1));
        for stream in [&mut to_client, &mut error] {
            let mut hello = [0; HEADROOM + 2];
            hello[HEADROOM..].copy_from_slice(&port.to_le_bytes());
            if stream.send(&mut hello).await.is_err() {
                return;
            }
        }
        let from_client = Incoming::WebSocket(from_client);
        forwards.spawn(run(ports.clone(), Forward { port, from_client, to_client, error }));
    }
    tokio::select! {
        () = channels.ended() => {}
        // A channel has no end, so the client learns from the end of all.
        () = async { while forwards.join_next().await.is_some() {} } => {}
    }
}

/// The channels that a client may write to.
pub(crate) fn inbound(ports: usize) -> Vec<u8> {
    (0..).step_by(2).take(ports).collect()
}

/// The streams of a connection have the same number, or, of clients that give none, ids that follow each other.
fn connection_of(stream: &spdy::Stream) -> Option<String> {
    match (stream.headers.get("requestid"), stream.headers.get("streamtype")) {
        (Some(id), _) if !id.is_empty() => Some(id.to_owned()),
        (_, Some("error")) => Some(format!("stream {}", stream.id)),
        (_, Some("data")) => Some(format!("stream {}", stream.id.checked_sub(2)?)),
        _ => None,
    }
}

fn port_of(stream: &spdy::Stream) -> Option<u16> {
    stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// One connection from dial to end. What goes wrong is said on its own error stream and touches no other.
async fn run<T: Send + Sync + 'static>(ports: Arc<Ports<T>>, mut forward: Forward) {
    let port = forward.port;
    let dialled = match ports.allowed.is_empty() || ports.allowed.contains(&port) {
        true => ports.backend.dial(&ports.target, port).await.map_err(|failure| failure.message),
        false => Err("this port was not asked for".to_owned()),
    };
    let problem = match dialled {
        Ok(socket) => relay(socket, &mut forward).await.err().map(|error| error.to_string()),
        Err(problem) => Some(problem),
    };
    // A client that is gone cannot be told.
    if let Some(problem) = problem {
        let _ = forward.error.send_text(&format!("error forwarding port {port}: {problem}")).await;
    }
    let _ = forward.error.finish().await;
    let _ = forward.to_client.finish().await;
}

/// Both directions until both have ended, each on its own: a half-closed connection works.
async fn relay(socket: TcpStream, forward: &mut Forward) -> io::Result<()> {
    // Small answers must not wait for the next ones.
    socket.set_nodelay(true)?;
    let (read, write) = socket.into_split();
    let gone = forward.to_client.gone();
    let up = upward(&mut forward.from_client, write);
    let down = downward(read, &mut forward.to_client);
    tokio::select! {
        result = async { tokio::try_join!(up, down) } => result.map(|_| ()),
        // The client has reset the connection.
        () = gone.cancelled() => Ok(()),
    }
}

async fn upward(from_client: &mut Incoming, mut pod: OwnedWriteHalf) -> io::Result<()> {
    while let Some(bytes) = from_client.next().await {
        match pod.write_all(&bytes).await {
            // The pod's side has closed and wants no more; what it said is still on its way down.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    // The pod may have closed already.
    let _ = pod.shutdown().await;
    Ok(())
}

async fn downward(mut pod: OwnedReadHalf, to_client: &mut Outgoing) -> io::Result<()> {
    let mut buffer = vec![0; HEADROOM + READ];
    loop {
        match pod.read(&mut buffer[HEADROOM..]).await? {
            0 => return to_client.finish().await,
            length => to_client.send(&mut buffer[..HEADROOM + length]).await?,
        }
    }
}
