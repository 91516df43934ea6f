//! The listener of metrics, plain or with TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::config;

/// A client that connects and says nothing is let go after this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes under way; more wait in the backlog of the socket.
const HANDSHAKES_MAX: usize = 32;

/// Accepts connections; those with TLS once their handshake is done.
pub(crate) struct Front {
    address: std::io::Result<SocketAddr>,
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
}

type Connection = Either<TcpStream, TlsStream<TcpStream>>;

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
        let (sender, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept_all(listener, tls, sender));
        Self { address, ready }
    }
}

async fn accept_all(
    mut listener: TcpListener,
    tls: Option<TlsAcceptor>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    loop {
        // Waits while too many handshakes are under way.
        let Ok(permit) = ready.clone().reserve_owned().await else { return };
        let (stream, address) = axum::serve::Listener::accept(&mut listener).await;
        let Some(tls) = tls.clone() else {
            permit.send((Either::Left(stream), address));
            continue;
        };
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                permit.send((Either::Right(stream), address));
            }
        });
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

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}
