//! One pull's conversation with the registry: every request tries the endpoints in order, logs in
//! where asked, follows redirects without carrying secrets along, and waits where told to.

use std::collections::HashMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::{Auth, Challenge};
use super::client::Clients;
use super::hosts::{self, Endpoint};
use super::registries::Registries;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Attempt, Attempts, Error};
use crate::manifest;
use crate::reference::Reference;

/// Talks to the registry of one reference.
pub(crate) struct Session {
    pub(super) clients: Arc<Clients>,
    pub(crate) reference: Reference,
    pub(super) auth: Option<Auth>,
    /// Asked for credentials where the caller has none.
    pub(super) auth_files: Vec<PathBuf>,
    pub(super) endpoints: Vec<Endpoint>,
    /// Authorization that worked, by endpoint.
    tokens: Mutex<HashMap<usize, HeaderValue>>,
    /// The registry went away in the middle: what has arrived is worth keeping for the next pull.
    gone: AtomicBool,
}

/// What was being done, for error messages.
pub(crate) type Stage = &'static str;

/// A manifest as a registry sent it, its digest computed here.
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// A blob that is about to arrive.
pub(crate) struct Arriving {
    pub(crate) response: Response,
    /// Where in the blob the response begins.
    pub(crate) offset: u64,
    /// The endpoint it comes from, for error messages.
    pub(crate) url: String,
}

impl Arriving {
    /// The answer to a request for what begins at `wanted`.
    fn new(response: Response, wanted: u64, url: String) -> Arriving {
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(&response).unwrap_or(wanted),
            _ => 0,
        };
        Arriving { response, offset, url }
    }
}

/// One endpoint's failure.
pub(crate) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) attempt: Attempt,
    /// The connection was there and broke before an answer.
    broken: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum FaultKind {
    NotFound,
    Unauthorized,
    Unavailable,
    Verification,
    Unsupported,
}

/// containerd's bound; a manifest of 127 layers takes 20 kB.
pub(crate) const MANIFEST_MAX: usize = 4 << 20;
/// Error pages are quoted in part; more is not read.
const ERROR_BODY_MAX: usize = 8 << 10;
/// Tokens are signed JSON of some kB.
pub(super) const TOKEN_MAX: usize = 256 << 10;
/// Until the head of an answer; registries that check storage first take seconds.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Addresses of a foreign layer that are tried; publishers name one or two.
const ELSEWHERE_MAX: usize = 8;
/// Registries chain at most two (storage front end, then region).
const REDIRECTS_MAX: usize = 10;
/// With the pauses below, a busy registry gets about six seconds to recover.
const TRIES: u32 = 5;
/// A connection that breaks before the answer is most often an idle one that went stale.
const TRIES_BROKEN: u32 = 2;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The kubelet has a back-off of its own; a pull that sleeps longer only blocks it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

impl Session {
    pub(crate) fn new(
        clients: Arc<Clients>,
        (config, registries): (&Config, &Registries),
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Session, Error> {
        let endpoints = hosts::endpoints(&config.certs_d, registries, reference)?;
        Ok(Session {
            clients,
            reference: reference.clone(),
            auth,
            auth_files: config.auth_files.clone(),
            endpoints,
            tokens: Mutex::default(),
            gone: AtomicBool::new(false),
        })
    }

    /// Notes that the registry went away in the middle.
    pub(crate) fn give_up(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// What the tag stands for now, if the registry tells without sending the manifest.
    pub(crate) async fn resolve(&self, tag: &str) -> Result<Option<Digest>, Error> {
        // What a digest stands for, anybody may say.
        let by_digest = Digest::parse(tag).is_ok();
        let told = self.each(
            "resolution of the tag",
            |e| e.resolve || (by_digest && e.pull),
            |at, endpoint| {
                Box::pin(async move {
                    let url = self.url(endpoint, &["manifests", tag]);
                    let response =
                        self.request(at, &Method::HEAD, url, &accept_manifests()).await?;
                    let told = response.headers().get("docker-content-digest");
                    Ok(told.and_then(|d| d.to_str().ok()).and_then(|d| Digest::parse(d).ok()))
                })
            },
        );
        match told.await {
            // A server that does not know HEAD is asked for the manifest itself.
            Err(Error::Unsupported { .. }) => Ok(None),
            told => told,
        }
    }

    /// A manifest by tag or digest. What comes back under a digest has that digest.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<Fetched, Error> {
        let promised = &Digest::parse(wanted).ok();
        let able = |e: &Endpoint| e.resolve || (promised.is_some() && e.pull);
        self.each("fetch of the manifest", able, |at, endpoint| {
            Box::pin(async move {
                let url = self.url(endpoint, &["manifests", wanted]);
                let shown = shown(&url);
                let response = self.request(at, &Method::GET, url, &accept_manifests()).await?;
                let header = |name: &str| {
                    let value = response.headers().get(name).and_then(|v| v.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let media_type = header(CONTENT_TYPE.as_str());
                let told = Digest::parse(&header("docker-content-digest")).ok();
                let bytes = body(response, MANIFEST_MAX).await.map_err(|e| e.at(&shown))?;
                for promised in promised.iter().chain(&told) {
                    let mut hasher = promised.hasher();
                    hasher.update(&bytes);
                    let found = hasher.finish();
                    if found != *promised {
                        let cause = format!("the manifest's digest is {found}, not {promised}");
                        return Err(fault(FaultKind::Verification, &shown, cause));
                    }
                }
                let digest = promised.clone().unwrap_or_else(|| Digest::of(&bytes));
                Ok(Fetched { digest, media_type, bytes })
            })
        })
        .await
    }

    /// A small blob, whole and verified.
    pub(crate) async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
        self.each(
            "fetch of the image configuration",
            |e| e.pull,
            |at, endpoint| {
                Box::pin(async move {
                    let url = self.url(endpoint, &["blobs", digest.as_str()]);
                    let shown = shown(&url);
                    if size > MANIFEST_MAX as u64 {
                        let cause =
                            format!("its size of {size} bytes is over the limit of {MANIFEST_MAX}");
                        return Err(fault(FaultKind::Unsupported, &shown, cause));
                    }
                    let response = self.request(at, &Method::GET, url, &HeaderMap::new()).await?;
                    let bytes = body(response, MANIFEST_MAX).await.map_err(|e| e.at(&shown))?;
                    let mut hasher = digest.hasher();
                    hasher.update(&bytes);
                    let found = hasher.finish();
                    if found == *digest {
                        Ok(bytes)
                    } else {
                        let cause = format!("the blob's digest is {found}, not {digest}");
                        Err(fault(FaultKind::Verification, &shown, cause))
                    }
                })
            },
        )
        .await
    }

    /// Begins to receive a blob at `offset`; a server that cannot continue begins at 0.
    /// `elsewhere`: addresses to try where no endpoint has it.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
        elsewhere: &[String],
    ) -> Result<Arriving, Error> {
        const STAGE: Stage = "fetch of a layer";
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|v| (RANGE, v)));
        }
        let headers = &headers;
        let asked = self.ask_each(
            |e| e.pull,
            |at, endpoint| {
                Box::pin(async move {
                    let url = self.url(endpoint, &["blobs", digest.as_str()]);
                    let shown = shown(&url);
                    let response = self.request(at, &Method::GET, url, headers).await?;
                    Ok(Arriving::new(response, offset, shown))
                })
            },
        );
        let mut faults = match asked.await {
            Ok(arriving) => return Ok(arriving),
            Err(faults) => faults,
        };
        for address in elsewhere.iter().take(ELSEWHERE_MAX) {
            match self.ask_stranger(address, headers).await {
                Ok((response, shown)) => return Ok(Arriving::new(response, offset, shown)),
                Err(fault) => faults.push(fault),
            }
        }
        Err(self.failed(STAGE, faults))
    }

    /// Asks a server that a manifest names. It gets nothing of ours: no credentials, no certificate.
    async fn ask_stranger(
        &self,
        address: &str,
        headers: &HeaderMap,
    ) -> Result<(Response, String), Fault> {
        let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(url) = url else {
            let cause = "the manifest names an address that is none".into();
            return Err(fault(FaultKind::Unsupported, "a foreign layer", cause));
        };
        let shown = shown(&url);
        let stranger = Endpoint::stranger(&url);
        let response = self.send((&stranger, None), &Method::GET, &url, headers).await?;
        if response.status().is_success() {
            Ok((response, shown))
        } else {
            Err(refusal(response, &Method::GET, &shown).await)
        }
    }

    /// The failure of `stage` by what the endpoints answered.
    pub(crate) fn failed(&self, stage: Stage, faults: Vec<Fault>) -> Error {
        let reference = self.reference.to_string();
        // The last endpoint is the registry itself: its word decides.
        let kind = faults.last().map_or(FaultKind::Unavailable, |f| f.kind);
        let tried = Attempts(faults.into_iter().map(|f| f.attempt).collect());
        match kind {
            FaultKind::NotFound => Error::NotInRegistry { reference, tried },
            FaultKind::Unauthorized => Error::Unauthorized { reference, tried },
            FaultKind::Unavailable => Error::RegistryUnavailable { reference, stage, tried },
            FaultKind::Verification => {
                Error::Verification { reference, object: stage.into(), reason: tried.to_string() }
            }
            FaultKind::Unsupported => {
                Error::Unsupported { reference, object: stage.into(), reason: tried.to_string() }
            }
        }
    }

    /// The registry broke off or was too slow while sending.
    pub(crate) fn broke_off(&self, stage: Stage, url: String, cause: String) -> Error {
        let reference = self.reference.to_string();
        let tried = Attempts(vec![Attempt { url, cause }]);
        Error::RegistryUnavailable { reference, stage, tried }
    }

    async fn each<'s, T>(
        &'s self,
        stage: Stage,
        able: impl Fn(&Endpoint) -> bool,
        ask: impl Fn(usize, &'s Endpoint) -> BoxFuture<'s, Result<T, Fault>>,
    ) -> Result<T, Error> {
        self.ask_each(able, ask).await.map_err(|faults| self.failed(stage, faults))
    }

    async fn ask_each<'s, 'a, T>(
        &'s self,
        able: impl Fn(&Endpoint) -> bool,
        ask: impl Fn(usize, &'s Endpoint) -> BoxFuture<'a, Result<T, Fault>>,
    ) -> Result<T, Vec<Fault>> {
        let mut faults = Vec::new();
        for (at, endpoint) in self.endpoints.iter().enumerate().filter(|(_, e)| able(e)) {
            match ask(at, endpoint).await {
                Ok(value) => return Ok(value),
                Err(fault) => faults.push(fault),
            }
        }
        Err(faults)
    }

    pub(super) fn url(&self, endpoint: &Endpoint, last: &[&str]) -> Url {
        let mut url = endpoint.base.clone();
        let path = [url.path().trim_end_matches('/'), &endpoint.repository]
            .iter()
            .chain(last)
            .copied()
            .collect::<Vec<_>>()
            .join("/");
        url.set_path(&path);
        if let Some(registry) = &endpoint.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// Sends until there is an answer worth returning: a success, or a fault that more tries will
    /// not mend.
    pub(super) async fn request(
        &self,
        at: usize,
        method: &Method,
        url: Url,
        headers: &HeaderMap,
    ) -> Result<Response, Fault> {
        let shown = shown(&url);
        let mut pause = PAUSE_FIRST;
        let mut asked_again = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let to = (&self.endpoints[at], self.token(at));
            let response = match self.send(to, method, &url, headers).await {
                Ok(response) => response,
                // A server that is there and hung up may do better at once.
                Err(fault) if fault.broken && tries < TRIES_BROKEN => {
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !asked_again {
                asked_again = true; // a token that expired on the way is renewed once
                if let Some(challenge) = Challenge::of(response.headers()) {
                    let token = self.answer(at, challenge, &shown).await?;
                    self.remember(at, token);
                    continue;
                }
            }
            let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if busy && tries < TRIES {
                let told = retry_after(response.headers(), SystemTime::now());
                if told.is_none_or(|told| told <= RETRY_AFTER_MAX) {
                    tokio::time::sleep(told.unwrap_or(pause)).await;
                    pause *= 2;
                    continue;
                }
            }
            return Err(refusal(response, method, &shown).await);
        }
    }

    /// Sends once, following redirects.
    async fn send(
        &self,
        (endpoint, token): (&Endpoint, Option<HeaderValue>),
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, Fault> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let shown = shown(&url);
            let at_home = same_origin(&url, &endpoint.base);
            let client = if at_home {
                self.clients.client(endpoint)
            } else {
                self.clients.client(&Endpoint { base: url.clone(), ..endpoint.clone() })
            };
            let client =
                client.map_err(|e| fault(FaultKind::Unavailable, &shown, e.to_string()))?;
            let mut request = client.request(method.clone(), url.clone()).headers(headers.clone());
            if at_home {
                request = request.headers(endpoint.headers.clone());
                if let Some(token) = &token {
                    request = request.header(AUTHORIZATION, token);
                }
            }
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
            let response = match answer {
                Err(_) => {
                    let cause = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(fault(FaultKind::Unavailable, &shown, cause));
                }
                Ok(Err(e)) => {
                    let broken = !e.is_connect() && !e.is_builder();
                    let fault = fault(FaultKind::Unavailable, &shown, describe(&e));
                    return Err(Fault { broken, ..fault });
                }
                Ok(Ok(response)) => response,
            };
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED
            {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let target = target.and_then(|l| url.join(l).ok());
            url = target
                .filter(|t| matches!(t.scheme(), "http" | "https"))
                .filter(|t| url.scheme() == "http" || t.scheme() == "https")
                .ok_or_else(|| {
                    let cause = "it redirects to nowhere, or to an unencrypted address";
                    fault(FaultKind::Unavailable, &shown, cause.into())
                })?;
        }
        Err(fault(FaultKind::Unavailable, &shown(&url), "it redirects in circles".into()))
    }

    fn token(&self, at: usize) -> Option<HeaderValue> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned()
    }

    fn remember(&self, at: usize, token: Option<HeaderValue>) {
        if let Some(token) = token {
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(at, token);
        }
    }
}

/// Why a body could not be had.
pub(super) enum BodyFault {
    TooLarge(usize),
    Broken(String),
}

impl BodyFault {
    pub(super) fn at(self, shown: &str) -> Fault {
        match self {
            BodyFault::TooLarge(limit) => {
                let cause = format!("the answer is larger than {limit} bytes");
                fault(FaultKind::Unsupported, shown, cause)
            }
            BodyFault::Broken(cause) => fault(FaultKind::Unavailable, shown, cause),
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, BodyFault> {
    let mut bytes = Vec::new();
    loop {
        let chunk = tokio::time::timeout(ANSWER_TIMEOUT, response.chunk())
            .await
            .map_err(|_| BodyFault::Broken("the answer stopped half way".into()))?
            .map_err(|e| BodyFault::Broken(describe(&e)))?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if bytes.len() + chunk.len() > limit {
            return Err(BodyFault::TooLarge(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// A fault out of an unsuccessful answer, with the registry's own words where they are safe.
pub(super) async fn refusal(response: Response, method: &Method, shown: &str) -> Fault {
    let status = response.status();
    let kind = match status {
        StatusCode::NOT_FOUND => FaultKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FaultKind::Unauthorized,
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => FaultKind::Unsupported,
        _ => FaultKind::Unavailable,
    };
    let mut cause = status.to_string();
    if *method != Method::HEAD
        && let Ok(bytes) = body(response, ERROR_BODY_MAX).await
        && let Some(words) = words(&bytes)
    {
        cause = format!("{cause}: {words}");
    }
    fault(kind, shown, cause)
}

/// The codes and messages of a registry's error answer; nothing else of it, since a page of a
/// stranger may repeat what was sent to it.
fn words(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    /// Enough for what registries say.
    const WORDS_MAX: usize = 200;
    if bytes.trim_ascii_start().starts_with(b"<") {
        return Some("an HTML page; is this address a registry?".into());
    }
    let first = serde_json::from_slice::<Errors>(bytes).ok()?.errors.into_iter().next()?;
    let text = format!("{} ({})", first.code, first.message);
    Some(text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect())
}

pub(super) fn fault(kind: FaultKind, shown: &str, cause: String) -> Fault {
    Fault { kind, attempt: Attempt { url: shown.to_owned(), cause }, broken: false }
}

pub(super) fn accept_manifests() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::ACCEPT))])
}

/// Seconds from now, or a date; one in the past means at once.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = || text.parse().ok().map(Duration::from_secs);
    let date = || httpdate::parse_http_date(text).ok();
    seconds().or_else(|| Some(date()?.duration_since(now).unwrap_or_default()))
}

fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// An address without what may be secret: no user, no query, no fragment.
pub(crate) fn shown(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// An HTTP client's error in words, without the address it repeats.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        // Outer errors often repeat the inner ones.
        parts.retain(|part| !part.contains(&text) || text.is_empty());
        parts.push(text);
        next = source.source();
    }
    if parts.is_empty() {
        if error.is_timeout() { "timed out".into() } else { "the request failed".into() }
    } else {
        parts.join(": ")
    }
}
