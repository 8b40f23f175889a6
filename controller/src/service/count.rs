//! Counts the calls that were answered, by method and gRPC code, around the whole service: refused ones too.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::metrics::Metrics;

/// Counts what `S` answers. A stream counts when it begins: `Ok` then means that it was let begin.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Counted<S> {
    /// `inner` with its answers counted.
    pub fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = method(request.uri().path());
        let metrics = Arc::clone(&self.metrics);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let code = tonic::Status::from_header_map(answer.headers())
                .map_or(tonic::Code::Ok, |status| status.code());
            let method = if code == tonic::Code::Unimplemented {
                // Anybody may ask for any name; a label must have few values.
                "unknown".to_owned()
            } else {
                method
            };
            metrics.answered(&method, &format!("{code:?}"));
            Ok(answer)
        })
    }
}

/// "/package.Service/Method" -> "Method"
fn method(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}
