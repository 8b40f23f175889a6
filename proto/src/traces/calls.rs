//! Spans of gRPC calls: begun where the call is, continued where it is answered (W3C Trace Context, in the
//! metadata `traceparent` and `tracestate`).

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TARGET;
use crate::CASE_METADATA;

/// Services whose calls are traced: ours, and not health or reflection.
const OURS: &str = "/impound.";

/// Longest text of a peer's making in an attribute, in characters.
const TEXT: usize = 100;

/// The span of a call to `peer` about to be made; [`sent`] puts it into the request.
#[must_use]
pub fn call(path: &str, peer: &impl std::fmt::Display) -> Span {
    let method = method(path);
    tracing::info_span!(
        target: TARGET,
        "agent call",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = field::Empty,
        rpc.system = "grpc",
        rpc.method = method,
        rpc.grpc.status_code = field::Empty,
        peer = %peer,
    )
}

/// Makes the call of `span`: its context goes with the request, and it ends with the answer's last byte.
pub async fn sent<E, F>(
    span: Span,
    mut request: Request<Body>,
    call: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, E>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    if span.is_disabled() {
        return call(request).await;
    }
    TraceContextPropagator::new()
        .inject_context(&span.context(), &mut Written(request.headers_mut()));
    answered(&span, call(request).instrument(span.clone()).await)
}

/// Makes `span` part of the trace of a Kubernetes object: an object's uid is the trace's id, so that what several
/// replicas do for it, over restarts, is found by it. A uid that is no UUID leaves the span as it is.
pub fn of_object(span: &Span, uid: &str) {
    let digits: String = uid.chars().filter(|digit| *digit != '-').collect();
    let Ok(trace) = TraceId::from_hex(&digits) else {
        return;
    };
    let half = digits.get(16..).unwrap_or_default();
    let Ok(parent) = SpanId::from_hex(half) else {
        return;
    };
    let context = SpanContext::new(
        trace,
        parent,
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    // Fails where traces are off.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(context));
}

/// Gives each call to our services its span, as the continuation of the caller's. For servers of verified peers: a
/// stranger's would be believed as well.
#[derive(Clone, Copy, Debug)]
pub struct Served;

impl<S> Layer<S> for Served {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// `S`, with spans.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if !path.starts_with(OURS) {
            return Box::pin(self.inner.call(request));
        }
        let span = served(path, request.headers());
        let answer = self.inner.call(request);
        if span.is_disabled() {
            return Box::pin(answer);
        }
        Box::pin(async move { answered(&span, answer.instrument(span.clone()).await) })
    }
}

fn served(path: &str, headers: &HeaderMap) -> Span {
    let method = method(path);
    let case = headers
        .get(CASE_METADATA)
        .and_then(|case| case.to_str().ok());
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system = "grpc",
        rpc.method = method,
        rpc.grpc.status_code = field::Empty,
        case = case.map(short),
    );
    if !span.is_disabled() {
        let caller = TraceContextPropagator::new().extract(&Read(headers));
        // Fails only where traces are off.
        let _ = span.set_parent(caller);
    }
    span
}

/// Notes how the call of `span` ended, now or when its stream does.
fn answered<E>(span: &Span, answer: Result<Response<Body>, E>) -> Result<Response<Body>, E> {
    let answer = answer.inspect_err(|_| failed(span, Code::Unavailable))?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        failed(span, status.code());
    }
    let span = span.clone();
    Ok(answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                failed(&span, status.code());
            }
            frame
        }))
    }))
}

fn failed(span: &Span, code: Code) {
    span.record("rpc.grpc.status_code", i32::from(code));
    if code != Code::Ok {
        span.record("otel.status_code", "ERROR");
    }
}

/// "impound.agent.v1.Agent/Export"
fn method(path: &str) -> String {
    short(path.trim_start_matches('/'))
}

fn short(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

struct Written<'h>(&'h mut HeaderMap);

impl Injector for Written<'_> {
    fn set(&mut self, key: &str, value: String) {
        let pair = (HeaderName::try_from(key), HeaderValue::try_from(value));
        if let (Ok(key), Ok(value)) = pair {
            self.0.insert(key, value);
        }
    }
}

struct Read<'h>(&'h HeaderMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_trace_context_any_headers_are_a_trace_or_none_and_the_case_is_short() {
        let seed = format!(
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=b,c=d\n{CASE_METADATA}: INC-7"
        );
        impound_fuzz::run("trace-context", &[seed.into()], |_, bytes| {
            let mut headers = HeaderMap::new();
            for (name, value) in impound_fuzz::fields(&bytes) {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
                {
                    headers.append(name, value);
                }
            }
            let context = TraceContextPropagator::new().extract(&Read(&headers));
            let parent = context.span().span_context().clone();
            assert!(!parent.is_valid() || headers.contains_key("traceparent"));
            let _ = served("/impound.agent.v1.Agent/Export", &headers);
            assert!(method(&String::from_utf8_lossy(&bytes)).chars().count() <= TEXT);
        });
    }
}
