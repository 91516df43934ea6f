//! The daemon's own Prometheus families, and the endpoint that serves them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::app::Ctx;

/// From a list call (well below a millisecond) to a slow pull.
const BUCKETS: [f64; 14] =
    [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGaugeVec,
    sandboxes: IntGauge,
    containers: IntGauge,
    images: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            calls: IntCounterVec::new(
                Opts::new("lapstrake_rpc_total", "CRI calls answered, by method and gRPC code."),
                &["method", "code"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new("lapstrake_rpc_seconds", "Time to answer a CRI call.")
                    .buckets(BUCKETS.to_vec()),
                &["method"],
            )?,
            in_flight: IntGaugeVec::new(
                Opts::new("lapstrake_rpc_in_flight", "CRI calls being answered."),
                &["method"],
            )?,
            sandboxes: IntGauge::new("lapstrake_sandboxes", "Pod sandboxes on record.")?,
            containers: IntGauge::new("lapstrake_containers", "Containers on record.")?,
            images: IntGauge::new("lapstrake_images", "Images on disk.")?,
            registry,
        };
        let families: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(metrics.calls.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.in_flight.clone()),
            Box::new(metrics.sandboxes.clone()),
            Box::new(metrics.containers.clone()),
            Box::new(metrics.images.clone()),
        ];
        for family in families {
            metrics.registry.register(family)?;
        }
        Ok(metrics)
    }

    /// Families that somebody else counts.
    pub(crate) fn add(
        &self,
        families: impl IntoIterator<Item = Box<dyn prometheus::core::Collector>>,
    ) -> prometheus::Result<()> {
        families.into_iter().try_for_each(|family| self.registry.register(family))
    }

    pub(crate) fn begin(&self, method: &'static str) {
        self.in_flight.with_label_values(&[method]).inc();
    }

    pub(crate) fn end(&self, method: &'static str, code: tonic::Code, elapsed: Duration) {
        self.in_flight.with_label_values(&[method]).dec();
        self.calls.with_label_values(&[method, &format!("{code:?}")]).inc();
        self.seconds.with_label_values(&[method]).observe(elapsed.as_secs_f64());
    }

    fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Serves `GET /metrics` as long as the daemon lives.
pub(crate) async fn serve(ctx: Arc<Ctx>, listener: tokio::net::TcpListener) {
    let router = Router::new().route("/metrics", get(scrape)).with_state(ctx);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the metrics endpoint ended");
    }
}

async fn scrape(State(ctx): State<Arc<Ctx>>) -> Response {
    let snapshot = ctx.world.snapshot();
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    ctx.metrics.sandboxes.set(count(snapshot.sandboxes.len()));
    ctx.metrics.containers.set(count(snapshot.containers.len()));
    ctx.metrics.images.set(count(ctx.images.list().len()));
    match ctx.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
