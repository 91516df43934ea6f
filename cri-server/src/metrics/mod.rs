//! What the daemon counts of itself, and the endpoint that serves it.
//!
//! Labels are words of this program, never strings of a user: the number of series is bounded by
//! the code. The one exception, metrics of pods, is bounded by the pods there are.

#[cfg(test)]
mod docs;
pub(crate) mod families;
pub(crate) mod logs;
pub(crate) mod page;
pub(crate) mod pods;
pub(crate) mod process;
pub(crate) mod serve;
pub(crate) mod timeline;
pub(crate) mod tls;

use std::time::Duration;

use prometheus::{Encoder, Registry, TextEncoder};

use families::Families;
use timeline::UnderWay;

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) families: Families,
    /// Calls and operations that have begun and not ended.
    pub(crate) under_way: UnderWay,
}

impl Metrics {
    pub(crate) fn new(slow: Option<Duration>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let families = Families::new()?;
        for (collector, _) in families.all() {
            registry.register(collector)?;
        }
        Ok(Self { registry, families, under_way: UnderWay::new(slow) })
    }

    pub(crate) fn begin(&self, method: &'static str) {
        self.families.rpc_in_flight.with_label_values(&[method]).inc();
    }

    pub(crate) fn end(&self, method: &'static str, code: tonic::Code, elapsed: Duration) {
        self.families.rpc_in_flight.with_label_values(&[method]).dec();
        self.families.rpc.with_label_values(&[method, &format!("{code:?}")]).inc();
        self.families.rpc_seconds.with_label_values(&[method]).observe(elapsed.as_secs_f64());
    }

    fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
