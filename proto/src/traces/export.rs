//! The bounded queue between spans that end and the collector.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tonic::transport::Endpoint;

use super::TracesError;

/// Spans that wait at most, each of about 1 KiB. A collection of a large pod makes a few hundred.
const QUEUE: usize = 1024;

/// Spans of one request.
const BATCH: usize = 256;

/// Pause between two requests.
const EVERY: Duration = Duration::from_secs(2);

/// Longest time for a request.
const EXPORT: Duration = Duration::from_secs(5);

/// Exports from when it is started on; before, spans are dropped. The subscriber is made before a process is confined,
/// and a thread that began then would not be.
#[derive(Clone, Debug, Default)]
pub(super) struct Later(Arc<OnceLock<BatchSpanProcessor>>);

impl Later {
    pub(super) fn start(&self, to: &Endpoint, resource: &Resource) -> Result<(), TracesError> {
        let to = to.clone().connect_timeout(EXPORT).timeout(EXPORT);
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(to.connect_lazy())
            .with_timeout(EXPORT)
            // What could not be sent is lost: the next spans are worth more than those.
            .with_retry_policy(RetryPolicy::disabled())
            .build()?;
        exporter.set_resource(resource);
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(EVERY)
            .build();
        self.0
            .get_or_init(|| BatchSpanProcessor::new(exporter, config));
        Ok(())
    }

    pub(super) fn finish(&self, limit: Duration) -> OTelSdkResult {
        self.shutdown_with_timeout(limit)
    }
}

impl SpanProcessor for Later {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if let Some(started) = self.0.get() {
            started.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.get().map_or(Ok(()), SpanProcessor::force_flush)
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        let started = self.0.get();
        started.map_or(Ok(()), |started| started.shutdown_with_timeout(limit))
    }
}
