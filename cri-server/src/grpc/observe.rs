//! What every call goes through: a task of its own, a log line, a metric, an error code.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::{Instrument, Span};

use super::status;
use crate::app::Ctx;
use crate::error::Error;
use crate::metrics::timeline;

/// The service behind all gRPC services of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(super) ctx: Arc<Ctx>,
}

impl Service {
    pub(super) fn new(ctx: Arc<Ctx>) -> Self {
        Self { ctx }
    }

    /// Runs a call that changes something. It outlives its caller: tonic drops the handler when
    /// the kubelet's deadline passes, and an operation must not end half-way.
    pub(super) async fn detached<T, F>(
        &self,
        method: &'static str,
        object: String,
        work: impl FnOnce(Arc<Ctx>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let call = Call::begin(self.ctx.clone(), method, object);
        let work = work(self.ctx.clone());
        let work = async move { call.end(work.await) }.instrument(Span::current());
        let done = tokio::spawn(work).await;
        done.unwrap_or_else(|_| Err(status::status(&Error::Panicked { operation: method })))
    }

    /// Runs a call that ends with its caller: reads, and pulls, which the caller may cancel.
    pub(super) async fn attended<T>(
        &self,
        method: &'static str,
        object: String,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        let call = Call::begin(self.ctx.clone(), method, object);
        let result = work.await;
        call.end(result)
    }

    /// Runs a call that answers with a stream; what is measured is the time to its first message.
    pub(super) async fn streamed<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Response<T>>,
    ) -> Result<Response<T>, Status> {
        let call = Call::begin(self.ctx.clone(), method, String::new());
        let stream = work.await.into_inner();
        call.end(Ok(stream))
    }
}

/// One call from its begin to its end, also when the caller goes away in between.
struct Call {
    ctx: Arc<Ctx>,
    method: &'static str,
    object: String,
    begun: Instant,
    code: Code,
    number: u64,
}

impl Call {
    fn begin(ctx: Arc<Ctx>, method: &'static str, object: String) -> Self {
        Span::current().record("method", method).record("object", &*object);
        ctx.metrics.begin(method);
        let number = ctx.metrics.under_way.begin(method, object.clone());
        ctx.calls.send_modify(|calls| *calls += 1);
        Self { ctx, method, object, begun: Instant::now(), code: Code::Cancelled, number }
    }

    fn end<T>(mut self, result: Result<T, Error>) -> Result<Response<T>, Status> {
        match result {
            Ok(reply) => {
                self.code = Code::Ok;
                Ok(Response::new(reply))
            }
            Err(error) => {
                let status = status::status(&error);
                self.code = status.code();
                Err(status)
            }
        }
        .inspect_err(|status: &Status| {
            tracing::warn!(
                method = self.method,
                object = %self.object,
                code = ?status.code(),
                error = status.message(),
                "failed"
            );
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.code = Code::Internal;
        }
        let elapsed = self.begun.elapsed();
        self.ctx.metrics.end(self.method, self.code, elapsed);
        if let Some(slow) = self.ctx.metrics.under_way.end(self.number, Vec::new()) {
            timeline::tell(&self.ctx, &slow);
        }
        self.ctx.calls.send_modify(|calls| *calls -= 1);
        tracing::debug!(
            method = self.method,
            object = %self.object,
            code = ?self.code,
            elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "done"
        );
    }
}
