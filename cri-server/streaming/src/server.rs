//! The HTTP server: a ticket in the path, an upgrade, and then a session until its client or its process ends.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::connection::Connection;
use crate::listen::{Arrival, Listen, ListenError, Listener};
use crate::negotiate::{Refusal, Service, Transport, negotiate};
use crate::port_forward::{self, Ports};
use crate::remote_command::{self, Streams};
use crate::socket::Socket;
use crate::target::{Backend, Errand, Failure, Wanted};
use crate::tickets::{Refused, Tickets};
use crate::{spdy, websocket};

/// A request's head has to come in this time.
const HEAD: Duration = Duration::from_secs(10);
/// Clients that have not been upgraded yet.
const ARRIVALS_MAX: usize = 256;
/// Sessions at once; each may cost a few hundred KiB.
const SESSIONS_MAX: usize = 4096;
/// What a client may take to close after we have said good-bye: until then what we sent is still on its way.
const GOODBYE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, as when there are no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Nothing moves for so long: the session ends.
    pub idle: Duration,
    /// From the upgrade until all streams are open.
    pub creation: Duration,
}

/// The streaming server, for errands on targets `T`. Cheap to clone.
pub struct Server<T> {
    inner: Arc<Inner<T>>,
}

struct Inner<T> {
    /// The beginning of every URL.
    base: String,
    /// Until it runs; closed when it stops.
    listener: Mutex<Option<Listener>>,
    backend: Arc<dyn Backend<T>>,
    timeouts: Timeouts,
    tickets: Mutex<Tickets<(Errand, T)>>,
    arrivals: Arc<Semaphore>,
    sessions: watch::Sender<usize>,
}

impl<T> Clone for Server<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T> std::fmt::Debug for Server<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("base", &self.inner.base).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Server<T> {
    pub async fn bind(
        listen: &Listen,
        timeouts: Timeouts,
        backend: Arc<dyn Backend<T>>,
    ) -> Result<Self, ListenError> {
        let listener = Listener::bind(listen).await?;
        let inner = Inner {
            base: listener.base.clone(),
            listener: Mutex::new(Some(listener)),
            backend,
            timeouts,
            tickets: Mutex::default(),
            arrivals: Arc::new(Semaphore::new(ARRIVALS_MAX)),
            sessions: watch::Sender::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The URL by which a client may do this, once, within a minute.
    pub fn issue(&self, errand: Errand, target: T) -> Result<String, Refused> {
        let verb = verb(&errand);
        let secret = self.tickets().issue((errand, target), Instant::now())?;
        Ok(format!("{}/{verb}/{secret}", self.inner.base))
    }

    /// How many sessions there are, now and whenever that changes.
    pub fn sessions(&self) -> watch::Receiver<usize> {
        self.inner.sessions.subscribe()
    }

    /// How many tickets wait for their clients.
    pub fn waiting(&self) -> usize {
        self.tickets().waiting(Instant::now())
    }

    /// Lets clients in until `stop`, which frees the address; sessions go on after that.
    pub async fn run(&self, stop: CancellationToken) {
        let listener = self.inner.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = listener else { return };
        loop {
            let arrival = tokio::select! {
                arrival = listener.accept() => arrival,
                () = stop.cancelled() => return,
            };
            match (arrival, self.inner.arrivals.clone().try_acquire_owned()) {
                (Ok(arrival), Ok(turn)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.receive(arrival).await;
                        drop(turn);
                    });
                }
                // A client beyond the bound is hung up on: those before it leave within seconds.
                (Ok(_), Err(_)) => {}
                (Err(error), _) => {
                    tracing::warn!(%error, "accept a streaming client");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    fn tickets(&self) -> std::sync::MutexGuard<'_, Tickets<(Errand, T)>> {
        self.inner.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection up to its upgrade.
    async fn receive(&self, arrival: Arrival) {
        let socket = match arrival.handshake().await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "TLS handshake with a streaming client"),
        };
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(self.answer(request).unwrap_or_else(|refusal| refusal.response()))
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "streaming client");
        }
    }

    fn answer(&self, mut request: Request<Body>) -> Result<Response<Full<Bytes>>, Refusal> {
        if ![Method::GET, Method::POST].contains(request.method()) {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST"));
        }
        let mut path = request.uri().path().trim_start_matches('/').split('/');
        let (asked, secret) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
        // Spent from here on, whatever happens next.
        let ticket = self.tickets().redeem(secret, Instant::now());
        let ticket = ticket.filter(|(errand, _)| verb(errand) == asked && path.next().is_none());
        let Some((errand, target)) = ticket else {
            let text = "no such streaming request; each URL works once, within a minute";
            return Err(refusal(StatusCode::NOT_FOUND, text));
        };
        let service = match errand {
            Errand::Exec(_) | Errand::Attach(_) => Service::RemoteCommand,
            Errand::PortForward(_) => Service::PortForward,
        };
        let agreed = negotiate(service, request.method(), request.headers())?;
        let Some(seat) = Seat::take(&self.inner.sessions) else {
            let text = format!("{SESSIONS_MAX} streaming sessions are open already");
            return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, &text));
        };
        let asked = asked_ports(request.uri().query().unwrap_or_default());
        let (upgrade, server) = (hyper::upgrade::on(&mut request), self.clone());
        tokio::spawn(async move {
            // A client that hangs up here has nothing coming.
            let Ok(upgraded) = upgrade.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<Socket>>() else { return };
            let (socket, early) = (parts.io.into_inner(), parts.read_buf);
            server.session(socket, early, agreed.transport, (errand, target, asked)).await;
            drop(seat);
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = agreed.headers;
        Ok(response)
    }

    /// Everything that a session starts is in `tasks` or in this future, and ends with them.
    async fn session(
        &self,
        socket: Socket,
        early: Bytes,
        transport: Transport,
        (errand, target, asked): (Errand, T, Vec<u16>),
    ) {
        let activity = Arc::new(Activity::new());
        let mut tasks = JoinSet::new();
        let Ok(liveness) = socket.liveness() else { return };
        let ports = match &errand {
            Errand::PortForward(ports) if asked.is_empty() => ports.clone(),
            _ => asked,
        };
        let mut connection = match transport {
            Transport::Spdy(_) => Connection::Spdy(spdy::start(
                socket.split(),
                early,
                liveness,
                activity.clone(),
                &mut tasks,
            )),
            Transport::Tunnel => {
                let halves = websocket::tunnel(socket, early).await;
                let streams =
                    spdy::start(halves, Bytes::new(), liveness, activity.clone(), &mut tasks);
                Connection::Spdy(streams)
            }
            Transport::WebSocket(dialect) => {
                let inbound = match &errand {
                    Errand::PortForward(_) => port_forward::inbound(ports.len()),
                    _ => remote_command::INBOUND.to_vec(),
                };
                let both = (liveness, activity.clone());
                let opened = (socket, early);
                let channels = websocket::start(opened, dialect, &inbound, both, &mut tasks).await;
                Connection::WebSocket(channels)
            }
        };
        let work = async {
            match errand {
                Errand::Exec(wanted) | Errand::Attach(wanted) => {
                    let attach = matches!(errand, Errand::Attach(_));
                    self.remote_command(&mut connection, transport, (wanted, attach), &target)
                        .await;
                }
                Errand::PortForward(allowed) => {
                    let backend = self.inner.backend.clone();
                    let given = Ports { backend, target: Arc::new(target), allowed };
                    self.port_forward(&mut connection, given, &ports).await;
                }
            }
        };
        let idle = tokio::select! {
            () = work => false,
            () = activity.idle(self.inner.timeouts.idle) => true,
        };
        if idle {
            tracing::info!(seconds = self.inner.timeouts.idle.as_secs(), "idle session ended");
        }
        let _ = tokio::time::timeout(GOODBYE, connection.close()).await;
    }

    async fn remote_command(
        &self,
        connection: &mut Connection,
        transport: Transport,
        (wanted, attach): (Wanted, bool),
        target: &T,
    ) {
        let dialect = match transport {
            Transport::Spdy(dialect) | Transport::WebSocket(dialect) => dialect,
            Transport::Tunnel => return, // is negotiated for port-forward alone
        };
        let limit = self.inner.timeouts.creation;
        let streams = match Streams::collect(connection, wanted, dialect, limit).await {
            Ok(streams) => streams,
            Err(missing) => return tracing::debug!(%missing, "no session"),
        };
        let backend = &self.inner.backend;
        let serving = async {
            let (process, what) = match attach {
                true => (backend.attach(target, wanted).await, "attaching to container"),
                false => (backend.exec(target, wanted).await, "executing command in container"),
            };
            let process =
                process.map_err(|failure| Failure::new(format!("error {what}: {failure}")));
            remote_command::serve(streams, process, attach, dialect).await;
        };
        tokio::select! {
            () = serving => {}
            // Dropping the process ends it.
            () = connection.ended() => {}
        }
    }

    async fn port_forward(&self, connection: &mut Connection, given: Ports<T>, asked: &[u16]) {
        match connection {
            Connection::Spdy(streams) => {
                port_forward::serve_spdy(streams, given, self.inner.timeouts.creation).await;
            }
            Connection::WebSocket(channels) => {
                port_forward::serve_websocket(channels, given, asked).await;
            }
        }
    }
}

/// The RPC's word in the URL.
fn verb(errand: &Errand) -> &'static str {
    match errand {
        Errand::Exec(_) => "exec",
        Errand::Attach(_) => "attach",
        Errand::PortForward(_) => "portforward",
    }
}

/// `port=1&port=2,3`, as a WebSocket port-forward names them.
fn asked_ports(query: &str) -> Vec<u16> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let ports = values.flat_map(|value| value.split([',', ' ', '+']));
    let ports = ports.filter_map(|port| port.parse().ok());
    ports.filter(|port| *port > 0).take(port_forward::PORTS_MAX).collect()
}

/// A session's place among all; given back when dropped.
struct Seat(watch::Sender<usize>);

impl Seat {
    fn take(sessions: &watch::Sender<usize>) -> Option<Self> {
        let free = sessions.send_if_modified(|count| {
            let free = *count < SESSIONS_MAX;
            *count += usize::from(free);
            free
        });
        free.then(|| Self(sessions.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

fn refusal(status: StatusCode, text: &str) -> Refusal {
    Refusal { status, text: text.to_owned(), accepted: Vec::new() }
}

impl Refusal {
    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers();
        let headers = response.headers_mut();
        // Without a ticket there is nothing more to say.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("60"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_query() {
        assert_eq!(asked_ports("port=80&port=81,82&x=1&port=0&port=x&port=70000"), [80, 81, 82]);
        assert!(asked_ports("").is_empty());
    }
}
