//! Where clients come in: a TCP address or a unix socket, with or without TLS.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::socket::Socket;
use crate::tls::{Reloading, Tls, TlsError};

/// A TLS client has to come to the point; the same bound as for a request's head.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client whose machine has vanished is noticed after a silence of about a minute.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 3;
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);

/// Where to listen, and what clients are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    pub address: Address,
    /// `host` or `host:port` for the URLs, when it is not the address itself.
    pub advertise: Option<String>,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on {address} for streaming: {source}")]
    Bind { address: String, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A bound listener.
#[derive(Debug)]
pub(crate) struct Listener {
    kind: Kind,
    tls: Option<Reloading>,
    /// The beginning of every URL.
    pub(crate) base: String,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    /// With the inode of the socket file: a successor may have put another in its place.
    Unix(UnixListener, PathBuf, u64),
}

/// A connection before its TLS handshake, which must not hold up the next one.
pub(crate) enum Arrival {
    Ready(Socket),
    Tls(TcpStream, Box<tokio_rustls::TlsAcceptor>),
}

impl Listener {
    pub(crate) async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        let tls = listen.tls.clone().map(Reloading::load).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        match &listen.address {
            Address::Tcp(address) => {
                let fail = |source| ListenError::Bind { address: address.to_string(), source };
                let listener = TcpListener::bind(address).await.map_err(fail)?;
                let bound = listener.local_addr().map_err(fail)?;
                let host = host(bound, listen.advertise.as_deref());
                let base = format!("{scheme}://{host}");
                Ok(Self { kind: Kind::Tcp(listener), tls, base })
            }
            Address::Unix(path) => {
                let fail =
                    |source| ListenError::Bind { address: path.display().to_string(), source };
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(fail(error));
                    }
                    _ => {}
                }
                let listener = UnixListener::bind(path).map_err(fail)?;
                let base = format!("http+unix://{}", escaped(&path.to_string_lossy()));
                let inode = std::fs::metadata(path).map_err(fail)?.ino();
                Ok(Self { kind: Kind::Unix(listener, path.clone(), inode), tls: None, base })
            }
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Arrival> {
        match &self.kind {
            Kind::Unix(listener, ..) => {
                let (socket, _) = listener.accept().await?;
                Ok(Arrival::Ready(Socket::Unix(socket)))
            }
            Kind::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                tune(&socket)?;
                Ok(match &self.tls {
                    None => Arrival::Ready(Socket::Tcp(socket)),
                    Some(tls) => Arrival::Tls(socket, Box::new(tls.acceptor())),
                })
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix(_, path, inode) = &self.kind
            && std::fs::metadata(path).is_ok_and(|file| file.ino() == *inode)
        {
            let _ = std::fs::remove_file(path); // a leftover is replaced by the next one
        }
    }
}

impl Arrival {
    pub(crate) async fn handshake(self) -> io::Result<Socket> {
        match self {
            Self::Ready(socket) => Ok(socket),
            Self::Tls(socket, acceptor) => {
                let accepted = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await;
                let accepted = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                Ok(Socket::Tls(Box::new(accepted?)))
            }
        }
    }
}

/// Keystrokes must not wait for each other, and a vanished client must not stay.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Host and port for URLs. Nobody can connect to "any address", but this machine's clients can to loopback.
fn host(bound: SocketAddr, advertise: Option<&str>) -> String {
    let port = bound.port();
    match advertise {
        Some(name)
            if name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            name.to_owned()
        }
        Some(name) => format!("{name}:{port}"),
        None if bound.ip().is_unspecified() && bound.is_ipv4() => format!("127.0.0.1:{port}"),
        None if bound.ip().is_unspecified() => format!("[::1]:{port}"),
        None => bound.to_string(),
    }
}

/// A path as the host of a URL.
fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_an_address_that_can_be_reached() {
        let check = |bound: &str, advertise, expect| {
            assert_eq!(host(bound.parse().unwrap(), advertise), expect);
        };
        check("127.0.0.1:10010", None, "127.0.0.1:10010");
        check("0.0.0.0:10010", None, "127.0.0.1:10010");
        check("[::]:10010", None, "[::1]:10010");
        check("0.0.0.0:10010", Some("node1"), "node1:10010");
        check("0.0.0.0:10010", Some("node1:443"), "node1:443");
        check("[::]:10010", Some("[2001:db8::1]"), "[2001:db8::1]:10010");
    }

    #[test]
    fn a_path_becomes_a_host() {
        assert_eq!(escaped("/run/a b.sock"), "%2Frun%2Fa%20b.sock");
    }
}
