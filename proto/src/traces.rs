//! Traces for an OpenTelemetry collector: which spans leave a process, where they go, and how both ends' join; and the
//! log beside them.
//!
//! Off unless a collector is named. Only spans of [`TARGET`] are exported, with the attributes that the code gives them:
//! names, ids, lengths, codes. No line of the log is, so no text of a container's making and no error's text. They
//! wait in a queue that is bounded; what a collector is too slow for is dropped, counted in the log, and nothing else
//! waits for it.
//!
//! ```text
//! controller: quarantine step, collection -> artifact -> agent call --traceparent--> agent: call
//! ```

mod calls;
mod export;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::transport::Endpoint;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{FromEnvError, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use calls::{Served, Traced, call, of_object, sent};
use export::Later;

/// Target of the spans that are exported. Log filters leave it out.
pub const TARGET: &str = "impound::trace";

/// Starts the process's log: `lines` are written as the filter in RUST_LOG lets them, "info" without one, and as
/// `always` says besides, e.g. "hyper=warn". Spans of [`TARGET`] are no lines of it; they go to `traces`, if there are any.
///
/// # Errors
/// If RUST_LOG or `always` is no filter, or the process has a log already.
pub fn start_log(
    lines: impl Layer<Registry> + Send + Sync,
    always: &[&str],
    traces: Option<&Traces>,
) -> Result<(), LogError> {
    let mut filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()
        .map_err(LogError::Environment)?;
    let spans = format!("{TARGET}=off");
    for directive in always.iter().copied().chain([spans.as_str()]) {
        filter = filter.add_directive(directive.parse()?);
    }
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces.map(Traces::layer))
        .try_init()?;
    Ok(())
}

/// The log can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// What the environment says of it.
    #[error("RUST_LOG is malformed")]
    Environment(#[source] FromEnvError),
    /// What the program says of it.
    #[error("a directive of the log is malformed")]
    Directive(#[from] ParseError),
    /// There is one.
    #[error("the process has a log already")]
    Twice(#[from] TryInitError),
}

/// How long the last spans may take at the end of the process.
const LAST: Duration = Duration::from_secs(3);

/// Where a collector takes OTLP over gRPC: `http://HOST:PORT`. Without TLS, so it belongs into the cluster.
#[derive(Clone, Debug)]
pub struct OtlpEndpoint(Endpoint);

impl FromStr for OtlpEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected http://HOST:PORT of a collector that takes OTLP over gRPC, e.g. \
                 http://otel-collector.monitoring.svc:4317, found {text:?}"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let fits = uri.scheme_str() == Some("http")
            && uri.port_u16().is_some()
            && !authority.as_str().contains('@')
            && matches!(
                uri.path_and_query().map(|path| path.as_str()),
                None | Some("/")
            );
        match fits {
            true => Ok(Self(Endpoint::from(uri))),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.uri().fmt(f)
    }
}

/// A process's traces.
pub struct Traces {
    to: OtlpEndpoint,
    resource: Resource,
    exporting: Later,
    provider: SdkTracerProvider,
}

impl Traces {
    /// Those of `service`, e.g. "impound-agent", with what else tells the process from others of it. Nothing is
    /// exported before [`Traces::start`], and no thread is begun.
    #[must_use]
    pub fn new(
        service: &'static str,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
        to: OtlpEndpoint,
    ) -> Self {
        let known = [
            KeyValue::new("service.name", service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ];
        let attributes = attributes
            .into_iter()
            .map(|(name, value)| KeyValue::new(name, value));
        let resource = Resource::builder_empty()
            .with_attributes(known)
            .with_attributes(attributes)
            .build();
        let exporting = Later::default();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_processor(exporting.clone())
            .build();
        Self {
            to,
            resource,
            exporting,
            provider,
        }
    }

    /// For the process's subscriber: takes spans of [`TARGET`] and nothing else.
    #[must_use]
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TARGET;
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("impound"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
    }

    /// Begins to export, from a thread of its own. Call it in the runtime, once.
    ///
    /// # Errors
    /// If no exporter can be made; that nobody answers is none, and is logged when it is seen.
    pub fn start(&self) -> Result<(), TracesError> {
        self.exporting.start(&self.to.0, &self.resource)?;
        tracing::info!(otlp = %self.to, "exporting traces");
        Ok(())
    }

    /// Exports what is left, for a bounded time.
    pub async fn finish(self) {
        let exporting = self.exporting.clone();
        // It blocks.
        let last = tokio::task::spawn_blocking(move || exporting.finish(LAST));
        if let Ok(Err(error)) = last.await {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// Traces can't be exported.
#[derive(Debug, thiserror::Error)]
#[error("traces can't be exported")]
pub struct TracesError(#[from] opentelemetry_otlp::ExporterBuildError);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Instant;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_collector_that_never_answers_holds_nobody_up_and_takes_no_more_than_the_queue() {
        // It accepts, and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}", silent.local_addr().unwrap());
        let traces = Traces::new("test", [], to.parse().unwrap());
        traces.start().unwrap();
        let began = Instant::now();
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(traces.layer()),
            || {
                for number in 0..100_000_u64 {
                    tracing::info_span!(target: TARGET, "work", number).in_scope(|| {});
                    tracing::info_span!("of another target", secret = "s").in_scope(|| {});
                }
            },
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        let began = Instant::now();
        traces.finish().await;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_collector_is_named_by_host_and_port_and_nothing_else() {
        for right in [
            "http://otel:4317",
            "http://[::1]:4317",
            "http://10.0.0.1:1/",
        ] {
            right.parse::<OtlpEndpoint>().unwrap();
        }
        for wrong in [
            "otel:4317",
            "https://otel:4317",
            "http://otel",
            "http://user:secret@otel:4317",
            "http://otel:4317/v1/traces",
            "http://otel:4317/?token=secret",
            "",
        ] {
            assert!(wrong.parse::<OtlpEndpoint>().is_err(), "{wrong}");
        }
    }
}
