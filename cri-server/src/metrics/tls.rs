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
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::config;

/// A client that connects and says nothing is let go after this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections at once: some scrapers and browsers. More wait in the backlog of the socket.
const CONNECTIONS_MAX: usize = 64;

/// Accepts connections; those with TLS once their handshake is done.
pub(crate) struct Front {
    address: io::Result<SocketAddr>,
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
}

/// A connection, and its place among those there may be.
pub(crate) struct Connection {
    stream: Either<TcpStream, TlsStream<TcpStream>>,
    _place: OwnedSemaphorePermit,
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
        let address = listener.local_addr();
        let (sender, ready) = mpsc::channel(1);
        tokio::spawn(accept_all(listener, tls, sender));
        Self { address, ready }
    }
}

async fn accept_all(
    mut listener: TcpListener,
    tls: Option<TlsAcceptor>,
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
            let _ = ready.send((Connection { stream, _place: place }, address)).await;
        });
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
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
