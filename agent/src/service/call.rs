//! One call: who asks, for which case, and how it ended. The span made here is on every log line of
//! the call, also of the stream that outlives it.

use std::time::Instant;

use impound_evidence::CaseId;
use impound_proto::CASE_METADATA;
use impound_proto::tls::Peer;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span, field};

pub(super) struct Call {
    span: Span,
    started: Instant,
}

impl Call {
    /// Opens the span of a call. Refuses one that did not come from a verified peer, whatever the
    /// wiring, and one whose case id is malformed.
    pub(super) fn begin<T>(rpc: &'static str, request: &Request<T>) -> Result<Self, Status> {
        let peer = Peer::of(request)
            .ok_or_else(|| Status::unauthenticated("the call did not come from a verified peer"))?;
        let case = case(request)?;
        let span = tracing::info_span!(
            "call",
            rpc,
            case = case.as_ref().map(field::display),
            peer = %peer.id,
            remote = %peer.remote,
            container = field::Empty,
        );
        span.in_scope(|| tracing::info!("called"));
        Ok(Self {
            span,
            started: Instant::now(),
        })
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Notes the container that the call turned out to mean.
    pub(super) fn container(&self, id: &impl std::fmt::Display) {
        self.span.record("container", field::display(id));
    }

    /// Does the work of the call and logs how it ended. Of a stream that is only the beginning.
    pub(super) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let logged = async {
            let result = work.await;
            let elapsed_ms = self.started.elapsed().as_millis();
            match &result {
                Ok(_) => tracing::info!(elapsed_ms, "answered"),
                Err(status) => {
                    tracing::warn!(code = ?status.code(), error = status.message(), elapsed_ms, "failed");
                }
            }
            result
        };
        logged
            .instrument(self.span.clone())
            .await
            .map(Response::new)
    }
}

/// The case id in the metadata; a call about the node as a whole may have none.
fn case<T>(request: &Request<T>) -> Result<Option<CaseId>, Status> {
    let Some(value) = request.metadata().get(CASE_METADATA) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| {
        Status::invalid_argument(format!("metadata {CASE_METADATA} is not ASCII text"))
    })?;
    let case = text
        .parse()
        .map_err(|error| Status::invalid_argument(format!("metadata {CASE_METADATA}: {error}")))?;
    Ok(Some(case))
}
