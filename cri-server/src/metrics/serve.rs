//! The listener for Prometheus and for people: the daemon's metrics, those of pods, and a page.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{page, pods, process};
use crate::app::Ctx;
use crate::sandbox::state::Phase;

/// The media type of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Who may ask. `None` means everybody who can connect.
pub(crate) struct Access {
    token: Option<Vec<u8>>,
}

/// A token shorter than this can be guessed.
const TOKEN_MIN: usize = 16;

impl Access {
    /// Reads the token from its file, so that it is on no command line.
    pub(crate) fn open(token_file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = token_file else { return Ok(Self { token: None }) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the token for metrics from {}", path.display()))?;
        let token = text.trim().as_bytes().to_vec();
        anyhow::ensure!(
            token.len() >= TOKEN_MIN,
            "the token in {} is shorter than {TOKEN_MIN} bytes",
            path.display()
        );
        Ok(Self { token: Some(token) })
    }

    /// Prometheus sends `Bearer TOKEN`; a browser asks its user, and sends any name with the token
    /// as the password.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let Some(given) = headers.get(header::AUTHORIZATION) else { return false };
        let given = given.as_bytes();
        let bearer = given.strip_prefix(b"Bearer ").map(<[u8]>::to_vec);
        let password = || {
            let encoded = given.strip_prefix(b"Basic ")?;
            let decoded =
                base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded).ok()?;
            let at = decoded.iter().position(|byte| *byte == b':')?;
            Some(decoded[at + 1..].to_vec())
        };
        bearer.or_else(password).is_some_and(|given| same(&given, token))
    }
}

/// Takes as long for a wrong token as for a right one.
fn same(given: &[u8], token: &[u8]) -> bool {
    let differing = given.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == token.len() && differing == 0
}

/// Serves as long as the daemon lives.
pub(crate) async fn serve<L>(ctx: Arc<Ctx>, listener: L, access: Access)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let router = Router::new()
        .route("/", get(page::html))
        .route("/page.json", get(page::data))
        .route("/metrics", get(daemon))
        .route("/metrics/pods", get(of_pods))
        .with_state(ctx)
        .layer(middleware::from_fn_with_state(Arc::new(access), guard));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the metrics endpoint ended");
    }
}

async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    if access.admits(request.headers()) {
        return next.run(request).await;
    }
    let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"lapstrake\", charset=\"UTF-8\"")];
    (StatusCode::UNAUTHORIZED, ask, "a token is needed\n").into_response()
}

async fn daemon(State(ctx): State<Arc<Ctx>>) -> Response {
    let _timed = process::Scrape(&ctx.metrics, Instant::now());
    process::refresh(&ctx);
    match ctx.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn of_pods(State(ctx): State<Arc<Ctx>>) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], pod_text(&ctx)).into_response()
}

/// The table of pods as text: family by family, as the format wants it.
fn pod_text(ctx: &Ctx) -> String {
    let (world, numbers) = (ctx.world.snapshot(), ctx.stats.numbers());
    let members = world.members();
    let mut blocks: Vec<String> = vec![String::new(); pods::FAMILIES.len()];
    for sandbox in world.sandboxes.values().filter(|sandbox| sandbox.phase == Phase::Ready) {
        pods::subjects(sandbox, members.of(&sandbox.id), &numbers, |_, subject| {
            let labels = text_labels(&pods::LABELS, &subject.labels);
            for (family, block) in pods::FAMILIES.iter().zip(&mut blocks) {
                family.sample(subject, &mut |own, amount| {
                    let more = text_labels(family.labels, own);
                    let comma = if more.is_empty() { "" } else { "," };
                    let value = amount.exact();
                    block.push_str(family.name);
                    block.push_str(&format!("{{{labels}{comma}{more}}} {value}\n"));
                });
            }
        });
    }
    let mut text = String::new();
    for (family, block) in pods::FAMILIES.iter().zip(blocks).filter(|(_, it)| !it.is_empty()) {
        let kind = match family.kind {
            pods::Kind::Counter => "counter",
            pods::Kind::Gauge => "gauge",
        };
        let (name, help) = (family.name, family.help);
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{block}"));
    }
    text
}

fn text_labels(keys: &[&str], values: &[&str]) -> String {
    let pairs = keys.iter().zip(values).map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// Three characters have a meaning inside a value.
fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &str) -> HeaderMap {
        [(header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn only_the_token_opens_the_door() {
        let access = Access { token: Some(b"0123456789abcdef".to_vec()) };
        assert!(access.admits(&given("Bearer 0123456789abcdef")));
        // "x:0123456789abcdef"
        assert!(access.admits(&given("Basic eDowMTIzNDU2Nzg5YWJjZGVm")));
        for wrong in
            ["Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdeX", "Basic !", "x"]
        {
            assert!(!access.admits(&given(wrong)), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(Access { token: None }.admits(&HeaderMap::new()));
    }

    #[test]
    fn a_hostile_label_cannot_leave_its_quotes() {
        let text = text_labels(&["pod"], &["a\"} 1\nevil_total{x=\"\\"]);
        assert_eq!(text, "pod=\"a\\\"} 1\\nevil_total{x=\\\"\\\\\"");
        assert_eq!(text.lines().count(), 1);
    }
}
