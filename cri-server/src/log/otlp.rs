//! Spans for an OpenTelemetry collector, in the trace of the caller. Only with the cargo feature
//! `otlp`, and only when the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`).

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;

/// What the specification of OpenTelemetry calls the two.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Sends what is left when it goes.
#[derive(Debug)]
pub(crate) struct Export(SdkTracerProvider);

impl Drop for Export {
    fn drop(&mut self) {
        // A collector that is gone must not keep the daemon from ending.
        let _ = self.0.shutdown();
    }
}

/// Needs to be called inside the async runtime, where the connection lives.
pub(super) fn start<S>() -> Option<(Box<dyn Layer<S> + Send + Sync>, Export)>
where
    S: tracing::Subscriber
        + for<'span> tracing_subscriber::registry::LookupSpan<'span>
        + Send
        + Sync,
{
    ENDPOINTS.iter().find(|name| std::env::var_os(name).is_some())?;
    let exporter = SpanExporter::builder().with_tonic().build().ok()?;
    let resource = Resource::builder().with_service_name("lapstrake").build();
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("lapstrake"));
    Some((Box::new(layer), Export(provider)))
}

/// Makes a span a part of the trace that its caller is in.
pub(crate) fn continue_trace(span: &tracing::Span, trace: &str, parent: &str) {
    let (Ok(trace), Ok(parent)) = (TraceId::from_hex(trace), SpanId::from_hex(parent)) else {
        return;
    };
    let remote = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::default());
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
}
