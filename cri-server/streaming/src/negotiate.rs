//! Which protocol a client gets, from its request's headers. Pure.

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Both directions of SPDY's own negotiation.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What the streams of a session say, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// The error stream carries a `metav1.Status` (since version 4), not only text.
    pub(crate) status: bool,
    /// There is a stream for the size of the terminal (since version 3).
    pub(crate) resize: bool,
    /// WebSocket alone: text messages with base64 instead of binary ones.
    pub(crate) base64: bool,
    /// WebSocket alone: channel 255 says that a channel has ended (since version 5).
    pub(crate) close: bool,
}

const V1: Dialect = Dialect { status: false, resize: false, base64: false, close: false };
const V3: Dialect = Dialect { resize: true, ..V1 };
const V4: Dialect = Dialect { status: true, ..V3 };
const V5: Dialect = Dialect { close: true, ..V4 };

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Spdy(Dialect),
    WebSocket(Dialect),
    /// SPDY in the messages of a WebSocket.
    Tunnel,
}

/// What is asked for: the two have protocols of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    RemoteCommand,
    PortForward,
}

/// A protocol's name; what it is as a WebSocket subprotocol, and what over SPDY.
type Known = (&'static str, Transport);

const SPDY_COMMAND: &[Known] = &[
    ("v5.channel.k8s.io", Transport::Spdy(V4)),
    ("v4.channel.k8s.io", Transport::Spdy(V4)),
    ("v3.channel.k8s.io", Transport::Spdy(V3)),
    ("v2.channel.k8s.io", Transport::Spdy(V1)),
    ("channel.k8s.io", Transport::Spdy(V1)),
];
const SPDY_FORWARD: &[Known] = &[("portforward.k8s.io", Transport::Spdy(V1))];
const WEBSOCKET_COMMAND: &[Known] = &[
    ("v5.channel.k8s.io", Transport::WebSocket(V5)),
    ("v4.channel.k8s.io", Transport::WebSocket(V4)),
    ("v4.base64.channel.k8s.io", Transport::WebSocket(Dialect { base64: true, ..V4 })),
    ("channel.k8s.io", Transport::WebSocket(V3)),
    ("base64.channel.k8s.io", Transport::WebSocket(Dialect { base64: true, ..V3 })),
];
const WEBSOCKET_FORWARD: &[Known] = &[
    (TUNNEL, Transport::Tunnel),
    ("v4.channel.k8s.io", Transport::WebSocket(V4)),
    ("v4.base64.channel.k8s.io", Transport::WebSocket(Dialect { base64: true, ..V4 })),
];

/// The answer to a request that will be upgraded.
#[derive(Debug)]
pub(crate) struct Agreement {
    pub(crate) transport: Transport,
    pub(crate) headers: HeaderMap,
}

/// Why a request is not upgraded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    /// What would have been understood.
    pub(crate) accepted: Vec<&'static str>,
}

pub(crate) fn negotiate(
    service: Service,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Agreement, Refusal> {
    let asked: Vec<&str> = values(headers, &UPGRADE).collect();
    let upgrades = values(headers, &CONNECTION).any(|it| it.eq_ignore_ascii_case("upgrade"));
    let asks_for = |what: &str| upgrades && asked.iter().any(|it| it.eq_ignore_ascii_case(what));
    if asks_for("websocket") {
        websocket(service, method, headers)
    } else if asks_for(SPDY) {
        spdy(service, headers)
    } else {
        let text = format!("unable to upgrade: ask for {SPDY} or websocket, not for {asked:?}");
        Err(Refusal { status: StatusCode::BAD_REQUEST, text, accepted: Vec::new() })
    }
}

fn spdy(service: Service, headers: &HeaderMap) -> Result<Agreement, Refusal> {
    let known = match service {
        Service::RemoteCommand => SPDY_COMMAND,
        Service::PortForward => SPDY_FORWARD,
    };
    let offered: Vec<&str> = values(headers, &STREAM_PROTOCOL).collect();
    let (name, transport) = match (offered.is_empty(), service) {
        // The first clients did not say.
        (true, Service::RemoteCommand) => ("channel.k8s.io", Transport::Spdy(V1)),
        _ => choose(&offered, known)?,
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static(SPDY));
    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok(Agreement { transport, headers: answer })
}

fn websocket(service: Service, method: &Method, headers: &HeaderMap) -> Result<Agreement, Refusal> {
    let known = match service {
        Service::RemoteCommand => WEBSOCKET_COMMAND,
        Service::PortForward => WEBSOCKET_FORWARD,
    };
    let bad = |text: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        text: format!("unable to upgrade: {text}"),
        accepted: Vec::new(),
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("no Sec-WebSocket-Key"))?;
    if method != Method::GET {
        return Err(bad("a WebSocket begins with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("Sec-WebSocket-Version must be 13"));
    }
    let mut answer = HeaderMap::new();
    let offered: Vec<&str> = values(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let transport = match (offered.is_empty(), service) {
        (true, Service::RemoteCommand) => Transport::WebSocket(V3),
        (true, Service::PortForward) => Transport::WebSocket(V4),
        _ => {
            let (name, transport) = choose(&offered, known)?;
            answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
            transport
        }
    };
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|_| bad("bad Sec-WebSocket-Key"))?);
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    Ok(Agreement { transport, headers: answer })
}

/// The first of the client's protocols that we know.
fn choose(offered: &[&str], known: &[Known]) -> Result<Known, Refusal> {
    let found = offered.iter().find_map(|name| known.iter().find(|(it, _)| it == name));
    found.copied().ok_or_else(|| {
        let accepted: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server \
             accepts {accepted:?}"
        );
        Refusal { status: StatusCode::FORBIDDEN, text, accepted }
    })
}

impl Refusal {
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in &self.accepted {
            headers.append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        headers
    }
}

/// The values of a header that may come several times and hold several, separated by commas.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let texts = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn spdy_request(protocols: &[&str]) -> HeaderMap {
        let mut headers = request(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        for protocol in protocols {
            headers.append(STREAM_PROTOCOL, protocol.parse().unwrap());
        }
        headers
    }

    fn websocket_request(protocols: &[&str]) -> HeaderMap {
        let mut headers = request(&[
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ]);
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        headers
    }

    #[track_caller]
    fn check(service: Service, headers: &HeaderMap, expect: Result<Transport, StatusCode>) {
        let got = negotiate(service, &Method::GET, headers);
        let got = got.map(|it| it.transport).map_err(|refusal| refusal.status);
        assert_eq!(got, expect);
    }

    #[test]
    fn spdy_takes_the_first_version_of_the_client_that_it_knows() {
        let command = |offered: &[&str], expect| {
            check(Service::RemoteCommand, &spdy_request(offered), expect);
        };
        command(&["v5.channel.k8s.io", "v4.channel.k8s.io"], Ok(Transport::Spdy(V4)));
        command(&["v9.channel.k8s.io, v3.channel.k8s.io"], Ok(Transport::Spdy(V3)));
        command(&["v2.channel.k8s.io", "channel.k8s.io"], Ok(Transport::Spdy(V1)));
        command(&[], Ok(Transport::Spdy(V1)));
        command(&["v9.channel.k8s.io"], Err(StatusCode::FORBIDDEN));
        let forward = spdy_request(&["portforward.k8s.io"]);
        check(Service::PortForward, &forward, Ok(Transport::Spdy(V1)));
        check(Service::PortForward, &spdy_request(&[]), Err(StatusCode::FORBIDDEN));
    }

    #[test]
    fn websocket_knows_every_variant() {
        let command = |offered: &[&str], expect: Dialect| {
            let transport = Ok(Transport::WebSocket(expect));
            check(Service::RemoteCommand, &websocket_request(offered), transport);
        };
        command(&["v5.channel.k8s.io"], V5);
        command(&["v4.channel.k8s.io"], V4);
        command(&["v4.base64.channel.k8s.io"], Dialect { base64: true, ..V4 });
        command(&["channel.k8s.io"], V3);
        command(&["base64.channel.k8s.io"], Dialect { base64: true, ..V3 });
        command(&[], V3);
        let forward = |offered: &[&str], expect| {
            check(Service::PortForward, &websocket_request(offered), expect);
        };
        forward(&["SPDY/3.1+portforward.k8s.io"], Ok(Transport::Tunnel));
        forward(&["v4.channel.k8s.io"], Ok(Transport::WebSocket(V4)));
        forward(&["v5.channel.k8s.io"], Err(StatusCode::FORBIDDEN));
    }

    #[test]
    fn the_websocket_key_is_answered_as_its_specification_says() {
        let headers = websocket_request(&[]);
        let agreed = negotiate(Service::RemoteCommand, &Method::GET, &headers).unwrap();
        assert_eq!(agreed.headers[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_without_an_upgrade_is_refused() {
        let bad = Err(StatusCode::BAD_REQUEST);
        check(Service::RemoteCommand, &request(&[]), bad);
        check(Service::RemoteCommand, &request(&[("upgrade", "SPDY/3.1")]), bad);
        check(
            Service::RemoteCommand,
            &request(&[("upgrade", "h2c"), ("connection", "upgrade")]),
            bad,
        );
        let mut old = websocket_request(&[]);
        old.insert(SEC_WEBSOCKET_VERSION, "8".parse().unwrap());
        check(Service::RemoteCommand, &old, bad);
        let post = negotiate(Service::RemoteCommand, &Method::POST, &websocket_request(&[]));
        assert_eq!(post.unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
