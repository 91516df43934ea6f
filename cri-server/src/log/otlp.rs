//! Spans for an OpenTelemetry collector, in the trace of the caller. Only with the cargo feature
//! `otlp`, and only when the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`).

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

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
pub(super) fn start<S: Spans>() -> Option<(Box<dyn Layer<S> + Send + Sync>, Export)> {
    let endpoint = ENDPOINTS.iter().find_map(|name| std::env::var(name).ok())?;
    to(&endpoint)
}

/// What a layer that knows spans can stand on.
pub(super) trait Spans:
    tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync
{
}

impl<S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync> Spans for S {}

fn to<S: Spans>(endpoint: &str) -> Option<(Box<dyn Layer<S> + Send + Sync>, Export)> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().ok()?;
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// A collector that keeps what it is sent.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.lock().unwrap().push(request.into_inner());
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_reaches_the_collector_in_the_trace_of_its_caller() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Collector::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let (layer, export) = to(&endpoint).expect("an exporter");
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", method = "RunPodSandbox");
            continue_trace(&span, trace, "00f067aa0ba902b7");
            span.in_scope(|| drop(tracing::info_span!("stage", stage = "network")));
        });
        let sent = tokio::task::spawn_blocking(move || drop(export));
        tokio::time::timeout(Duration::from_secs(20), sent).await.unwrap().unwrap();
        let requests = collector.0.lock().unwrap().clone();
        let spans: Vec<_> = requests
            .iter()
            .flat_map(|request| &request.resource_spans)
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans)
            .collect();
        let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
        let named = |name| spans.iter().find(|span| span.name == name).expect(name);
        let (call, stage) = (named("call"), named("stage"));
        assert_eq!(hex(&call.trace_id), trace);
        assert_eq!(hex(&call.parent_span_id), "00f067aa0ba902b7");
        assert_eq!(stage.parent_span_id, call.span_id);
    }
}
