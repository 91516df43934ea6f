//! Images for the neighbours: what this node has, read-only, over the distribution API, to whoever
//! has a certificate of the cluster's authority. Only digests are served: what a tag means is the
//! registry's to say.

use std::io::SeekFrom;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::io::ReaderStream;

use crate::config;

/// A neighbour pulls three layers at once; forty of them may come together.
const CONNECTIONS_MAX: usize = 128;
/// A handshake takes a few round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Read from the disk at once.
const CHUNK: usize = 128 << 10;

/// The listener, ready to be served.
pub(crate) struct Share {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    images: image::ImageService,
}

impl Share {
    pub(crate) async fn open(
        config: &config::Share,
        images: image::ImageService,
    ) -> anyhow::Result<Self> {
        let tls = tls(config)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("listen on {} to share images", config.listen))?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(tls)), images })
    }

    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves as long as the daemon lives.
    pub(crate) async fn serve(self) {
        let Self { listener, acceptor, images } = self;
        let (sender, ready) = mpsc::channel(1);
        tokio::spawn(shake_hands(listener, acceptor, sender));
        let router = Router::new()
            .route("/v2/", get(|| async { StatusCode::OK }))
            .route("/v2/{*rest}", get(content).head(content))
            .with_state(images);
        if let Err(error) = axum::serve(Shaken { ready }, router).await {
            tracing::error!(%error, "sharing images ended");
        }
    }
}

/// Who may come is whoever the authority has signed; nobody else gets as far as HTTP.
fn tls(config: &config::Share) -> anyhow::Result<rustls::ServerConfig> {
    let certificates = |path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.with_context(|| format!("read certificates from {}", path.display()))
    };
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&config.client_ca)? {
        roots.add(authority).with_context(|| format!("use {}", config.client_ca.display()))?;
    }
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .with_context(|| format!("read the key {}", config.key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build().context("trust the clients' authority")?)
        .with_single_cert(certificates(&config.certificate)?, key)
        .with_context(|| format!("use the certificate {}", config.certificate.display()))
}

/// Handshakes run beside each other, so that a slow client keeps nobody waiting.
async fn shake_hands(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let handshakes = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a neighbour's connection failed");
                // Out of descriptors, most likely: trying at once would only burn time.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            drop(permit);
            match shaken {
                Ok(Ok(stream)) => drop(ready.send((stream, address)).await),
                Ok(Err(error)) => tracing::info!(%address, %error, "a neighbour is not let in"),
                Err(_) => tracing::info!(%address, "a neighbour's handshake took too long"),
            }
        });
    }
}

/// Connections whose handshake is done.
struct Shaken {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl axum::serve::Listener for Shaken {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The other side lives as long as the daemon.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

/// `…/manifests/DIGEST` and `…/blobs/DIGEST`, under any repository: content is what its digest says.
async fn content(
    State(images): State<image::ImageService>,
    UrlPath(rest): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let mut parts = rest.rsplitn(3, '/');
    let (Some(digest), Some(kind @ ("manifests" | "blobs"))) = (parts.next(), parts.next()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let found = match image::Digest::parse(digest) {
        Ok(digest) => images.content(&digest),
        Err(_) => None,
    };
    let Some(found) = found.filter(|found| (kind == "manifests") == found.is_manifest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match send(found, digest, &method, &headers).await {
        Ok(response) => response,
        // It went away between the look and the read.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            StatusCode::NOT_FOUND.into_response()
        }
        Err(error) => {
            tracing::warn!(digest, %error, "content cannot be read for a neighbour");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn send(
    found: image::Content,
    digest: &str,
    method: &Method,
    headers: &HeaderMap,
) -> std::io::Result<Response> {
    let mut file = tokio::fs::File::open(&found.path).await?;
    let whole = file.metadata().await?.len();
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let start =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start: u64 = start.filter(|start| *start < whole).unwrap_or(0);
    file.seek(SeekFrom::Start(start)).await?;
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, found.media_type)
        .header(header::CONTENT_LENGTH, whole - start)
        .header(header::ACCEPT_RANGES, "bytes")
        .header("docker-content-digest", digest);
    if start > 0 {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{whole}", whole - 1));
    }
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from_stream(ReaderStream::with_capacity(file.take(whole - start), CHUNK))
    };
    response.body(body).map_err(std::io::Error::other)
}
