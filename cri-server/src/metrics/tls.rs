//! The listener of metrics, plain or with TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::config;

/// A client that connects and says nothing is let go after this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections at once: some scrapers and browsers. More wait in the backlog of the socket.
const CONNECTIONS_MAX: usize = 64;

/// A connection on which nothing moves for so long is closed, and its place free. Prometheus asks once a minute if it is
/// not told otherwise.
const IDLE: Duration = Duration::from_secs(150);

/// Accepts connections; those with TLS once their handshake is done.
pub(crate) struct Front {
    address: io::Result<SocketAddr>,
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
}

/// A connection, and its place among those there may be.
pub(crate) struct Connection {
    stream: Either<TcpStream, TlsStream<TcpStream>>,
    idle: Idle,
    _place: OwnedSemaphorePermit,
}

/// How long nothing may move, and when that is over.
struct Idle {
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

/// Reads certificate and key.
pub(crate) fn acceptor(tls: &config::Tls) -> anyhow::Result<TlsAcceptor> {
    let shown = |path: &Path| format!("read {} for metrics", path.display());
    let chain = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| shown(&tls.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).with_context(|| shown(&tls.key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the certificate and the key for metrics")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Front {
    pub(crate) fn new(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        Self::patient(listener, tls, IDLE)
    }

    fn patient(listener: TcpListener, tls: Option<TlsAcceptor>, idle: Duration) -> Self {
        let address = listener.local_addr();
        let (sender, ready) = mpsc::channel(1);
        tokio::spawn(accept_all(listener, tls, idle, sender));
        Self { address, ready }
    }
}

async fn accept_all(
    mut listener: TcpListener,
    tls: Option<TlsAcceptor>,
    idle: Duration,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, address) = axum::serve::Listener::accept(&mut listener).await;
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let stream = match tls {
                None => Either::Left(stream),
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Either::Right(stream),
                    Ok(Err(_)) | Err(_) => return,
                },
            };
            // Fails only when nobody serves any more.
            let connection = Connection { stream, idle: Idle::new(idle), _place: place };
            let _ = ready.send((connection, address)).await;
        });
    }
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, end: Box::pin(tokio::time::sleep(limit)) }
    }

    /// What moved moves the end; what waits may have waited too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.end.as_mut().reset(Instant::now() + self.limit);
            return moved;
        }
        self.end.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.idle.watch(context, moved)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.idle.watch(context, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl axum::serve::Listener for Front {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The task above ends only with this value.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener;
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn front(idle: Duration) -> (Front, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Front::patient(listener, None, idle), address)
    }

    #[tokio::test]
    async fn there_are_only_so_many_connections_at_once_and_the_next_waits_for_a_place() {
        let (mut front, address) = front(IDLE).await;
        let (mut clients, mut served) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS_MAX {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(front.accept().await.0);
        }
        let late = TcpStream::connect(address).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), front.accept()).await;
        assert!(early.is_err(), "one more than there may be");
        served.pop();
        let (_, from) = front.accept().await;
        assert_eq!(from, late.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_does_not_keep_its_place() {
        let (mut front, address) = front(Duration::from_millis(20)).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = front.accept().await;
        let read = connection.read(&mut [0]).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
