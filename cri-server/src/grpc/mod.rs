//! The gRPC front: wire types stop here.

mod admin_service;
mod deadline;
mod event_stream;
mod from_proto;
mod image_service;
mod observe;
mod runtime_service;
mod stats_service;
mod status;
mod stream;
mod to_proto;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use proto::admin::v1::admin_server::AdminServer;
use proto::cri::v1::image_service_server::ImageServiceServer;
use proto::cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tracing::Instrument;

use crate::app::Ctx;

/// Largest message either way: what the kubelet allows.
const MESSAGE_MAX: usize = 16 << 20;

/// What every line of the log about a call carries: a number of its own and, when the caller is in
/// a trace (the kubelet sends one), that trace.
fn span(number: u64, request: &Request) -> tracing::Span {
    let header = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let span = tracing::info_span!(
        "call",
        request = number,
        method = tracing::field::Empty,
        object = tracing::field::Empty,
        trace_id = tracing::field::Empty,
        parent_id = tracing::field::Empty,
    );
    if let Some((trace, parent)) = header.and_then(crate::log::trace_of) {
        span.record("trace_id", trace).record("parent_id", parent);
        #[cfg(feature = "otlp")]
        crate::log::otlp::continue_trace(&span, trace, parent);
    }
    span
}

/// Serves until `stop` turns true, then until the calls under way have ended.
pub(crate) async fn serve(
    ctx: Arc<Ctx>,
    listener: UnixListener,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let service = observe::Service::new(ctx);
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let images = ImageServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let admin = AdminServer::new(service).max_decoding_message_size(MESSAGE_MAX);
    let calls = Arc::new(AtomicU64::new(1));
    // Not tonic's own server: it answers a passed deadline as a cancelled call.
    let routes = Routes::new(runtime)
        .add_service(images)
        .add_service(admin)
        .into_axum_router()
        .layer(from_fn(deadline::keep))
        .layer(from_fn(move |request: Request, next: Next| {
            let span = span(calls.fetch_add(1, Ordering::Relaxed), &request);
            next.run(request).instrument(span)
        }));
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}
