//! HTTP clients, one for each way of trusting a server, kept as long as the certificate files on
//! disk stay the same: reading the system's authorities takes longer than a whole re-pull.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::hosts::{Endpoint, is_loopback};
use crate::error::Error;

/// All clients of the service.
#[derive(Default)]
pub(crate) struct Clients {
    known: Mutex<HashMap<Key, reqwest::Client>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    files: Vec<Seen>,
    skip_verify: bool,
    encrypted: bool,
    loopback: bool,
    dial_timeout: Duration,
}

/// One version of a certificate file.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Seen {
    path: PathBuf,
    inode: u64,
    changed: (i64, i64),
}

/// More than a node's registries; beyond it certificates rotate, and the old ones may go.
const CLIENTS_MAX: usize = 32;
/// Sent with every request, so that operators of registries know who asks.
const USER_AGENT: &str = concat!("lapstrake/", env!("CARGO_PKG_VERSION"));

impl Clients {
    /// The client for one endpoint.
    pub(crate) fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
        let key = Key {
            files: files(endpoint)?,
            skip_verify: endpoint.tls.skip_verify,
            encrypted: endpoint.base.scheme() == "https",
            loopback: is_loopback(&endpoint.base),
            dial_timeout: endpoint.dial_timeout,
        };
        let known =
            |key: &Key| self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        if let Some(client) = known(&key) {
            return Ok(client);
        }
        let client = build(endpoint)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CLIENTS_MAX {
            known.clear();
        }
        known.insert(key, client.clone());
        Ok(client)
    }
}

fn files(endpoint: &Endpoint) -> Result<Vec<Seen>, Error> {
    let tls = &endpoint.tls;
    let clients = tls.client.iter().flat_map(|(cert, key)| std::iter::once(cert).chain(key));
    tls.ca
        .iter()
        .chain(clients)
        .map(|path| {
            let meta = std::fs::metadata(path).map_err(|e| Error::io("stat", path, e))?;
            let changed = (meta.ctime(), meta.ctime_nsec());
            Ok(Seen { path: path.clone(), inode: meta.ino(), changed })
        })
        .collect()
}

fn build(endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
    let tls = &endpoint.tls;
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        // Redirects are followed by hand: authorization must not go along.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(endpoint.dial_timeout);
    if is_loopback(&endpoint.base) {
        builder = builder.no_proxy();
    }
    if endpoint.base.scheme() == "http" {
        // No authorities are needed, and a machine may have none.
        builder = builder.tls_certs_only([]);
    }
    for path in &tls.ca {
        let pem = read(path)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|_| bad(path, "holds no certificate in PEM form"))?;
        if certificates.is_empty() {
            return Err(bad(path, "holds no certificate in PEM form"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    // One connection presents one identity.
    if let Some((certificate, key)) = tls.client.first() {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.extend_from_slice(&read(key)?);
        }
        let identity = reqwest::Identity::from_pem(&pem)
            .map_err(|_| bad(certificate, "with its key is no client certificate in PEM form"))?;
        builder = builder.identity(identity);
    }
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(|e| Error::HostsFile {
        path: tls.ca.first().cloned().unwrap_or_default(),
        reason: super::session::describe(&e),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| Error::io("read", path, e))
}

fn bad(path: &Path, reason: &str) -> Error {
    Error::HostsFile { path: path.to_owned(), reason: reason.to_owned() }
}
