//! The front: calls of verified peers, forwarded to the part that may do the work.
//!
//! It holds the agent's key and faces the network, so it can do nothing else: no runtime, no host, no
//! capability. A request is forwarded by its path alone ([`methods`](crate::methods)), its message is
//! never parsed, and of its metadata only what is named here goes on. Answers are passed on frame by
//! frame as fast as the peer takes them, so memory stays bounded by HTTP/2's windows.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use impound_proto::tls::{Peer, explain, http2};
use impound_proto::{CASE_METADATA, ISOLATION_OFF, NodeName};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use tonic::codegen::http::{HeaderMap, Method, Request, Response};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

use crate::local::{SocketPath, name_peer};
use crate::methods::{Part, part_of};
use crate::serve::REQUEST_LIMIT;

/// Calls at the same time, of all connections together. One collection needs a few.
const CALLS: usize = 64;

/// How long a peer may take to send its request, which is one small message.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// How long a part may take until it begins to answer: a commit of a large container is the longest,
/// and the runtime's own limit is the same.
const ANSWER_TIME: Duration = Duration::from_secs(3600);

/// gRPC puts five bytes before a message.
const PREFIX: usize = 5;

/// Metadata that goes on to a part. The peer is added by us; everything else stays here.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static(CASE_METADATA),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Forwards the agent's service. Cheap to clone; clones share everything.
#[derive(Clone)]
pub(crate) struct Forward {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeName,
    collector: Channel,
    /// `None`: isolation was not chosen at installation.
    isolator: Option<Channel>,
    calls: Arc<Semaphore>,
}

impl Forward {
    pub(crate) fn new(node: NodeName, collector: Channel, isolator: Option<Channel>) -> Self {
        Self {
            shared: Arc::new(Shared {
                node,
                collector,
                isolator,
                calls: Arc::new(Semaphore::new(CALLS)),
            }),
        }
    }
}

/// A channel to a part, opened at the first call and again whenever the part was restarted.
pub(crate) fn channel(socket: &SocketPath) -> Channel {
    let path: PathBuf = socket.as_path().to_owned();
    let connect = move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    // The name is never resolved: the connector knows where to go.
    http2::endpoint(Endpoint::from_static("http://part.impound.internal"))
        .connect_with_connector_lazy(tower::service_fn(connect))
}

impl NamedService for Forward {
    const NAME: &'static str = impound_proto::agent::v1::agent_server::SERVICE_NAME;
}

impl Service<Request<Body>> for Forward {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let peer = head.extensions.get::<Peer>().cloned();
            let forwarded = shared.forward(
                &head.method,
                head.uri.path(),
                &head.headers,
                peer.as_ref(),
                body,
            );
            Ok(forwarded.await.unwrap_or_else(|status| {
                tracing::warn!(
                    path = shown(head.uri.path()),
                    peer = peer.as_ref().map(|peer| tracing::field::display(&peer.id)),
                    remote = peer.as_ref().map(|peer| tracing::field::display(&peer.remote)),
                    case = head.headers.get(CASE_METADATA).and_then(|case| case.to_str().ok()).map(shown),
                    code = ?status.code(),
                    error = status.message(),
                    "not forwarded"
                );
                status.into_http()
            }))
        })
    }
}

impl Shared {
    async fn forward(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let peer = peer
            .ok_or_else(|| Status::unauthenticated("the call did not come from a verified peer"))?;
        let (part, channel) = self.route(path)?;
        if method != Method::POST {
            return Err(Status::unimplemented(format!(
                "expected POST, found {method}"
            )));
        }
        let call = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "at most {CALLS} calls run at the same time on a node: try again when one has ended"
            ))
        })?;
        let request = onward(path, headers, peer, message(body).await?)?;
        let answer = tokio::time::timeout(ANSWER_TIME, channel.clone().oneshot(request))
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "the {part} did not answer within {ANSWER_TIME:?}"
                ))
            })?
            .map_err(|error| {
                Status::unavailable(format!(
                    "the {part} of node {} does not answer, look at the log of that container: {}",
                    self.node,
                    explain(&error)
                ))
            })?;
        // The call lasts until its answer has been sent.
        Ok(answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _running = &call;
                frame
            }))
        }))
    }

    fn route(&self, path: &str) -> Result<(Part, &Channel), Status> {
        match part_of(path) {
            Some(part @ Part::Collector) => Ok((part, &self.collector)),
            Some(part @ Part::Isolator) => match &self.isolator {
                Some(isolator) => Ok((part, isolator)),
                None => Err(Status::failed_precondition(format!(
                    "{ISOLATION_OFF} on {}: install the agent with its isolator (chart value \
                     isolation.enabled=true, or the kustomize component isolation)",
                    self.node
                ))),
            },
            None => Err(Status::unimplemented(format!(
                "{:?} is no call of the agent",
                shown(path)
            ))),
        }
    }
}

/// The request's message as it came, whole: a part is not kept waiting by a slow peer.
async fn message(body: Body) -> Result<Bytes, Status> {
    let whole = Limited::new(body, REQUEST_LIMIT + PREFIX).collect();
    match tokio::time::timeout(REQUEST_TIME, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Status::out_of_range(format!(
                "expected a request of at most {REQUEST_LIMIT} bytes, it is larger"
            )))
        }
        Ok(Err(error)) => Err(Status::cancelled(format!("the request broke off: {error}"))),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "the request did not come within {REQUEST_TIME:?}"
        ))),
    }
}

/// A new request with what is to go on; nothing of the old one is in it by accident.
fn onward(
    path: &str,
    headers: &HeaderMap,
    peer: &Peer,
    message: Bytes,
) -> Result<Request<Body>, Status> {
    let mut request = Request::new(Body::new(Full::from(message)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path
        .parse()
        .map_err(|_| Status::internal("the path of a call is no path"))?;
    let onward = request.headers_mut();
    onward.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    onward.insert(TE, HeaderValue::from_static("trailers"));
    for name in FORWARDED {
        let mut values = headers.get_all(&name).iter();
        if let Some(value) = values.next() {
            if values.next().is_some() {
                return Err(Status::invalid_argument(format!(
                    "expected the metadata {name} once"
                )));
            }
            onward.insert(name, value.clone());
        }
    }
    name_peer(onward, peer)?;
    Ok(request)
}

/// What a stranger wrote, cut to a length fit for a log.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use impound_proto::PeerId;

    use super::*;

    #[test]
    fn of_the_metadata_only_what_is_known_goes_on_and_the_peer_is_the_verified_one() {
        let peer = Peer {
            id: PeerId::Controller,
            certificate_sha256: [1; 32],
            expires: None,
            remote: "10.0.0.9:40000".parse().unwrap(),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("impound-case", "INC-1"),
            ("grpc-timeout", "5S"),
            (
                "impound-peer",
                "spiffe://impound.dev/responder/custodian/mallory",
            ),
            ("impound-peer-remote", "127.0.0.1:1"),
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("grpc-encoding", "gzip"),
            ("user-agent", "curl"),
            ("content-type", "text/html"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let path = "/impound.agent.v1.Agent/Export";
        let request = onward(path, &headers, &peer, Bytes::from_static(b"\0\0\0\0\0")).unwrap();
        let mut found: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        found.sort_unstable();
        let certificate = "01".repeat(32);
        assert_eq!(
            found,
            [
                ("content-type", "application/grpc"),
                ("grpc-timeout", "5S"),
                ("impound-case", "INC-1"),
                ("impound-peer", "spiffe://impound.dev/controller"),
                ("impound-peer-certificate", certificate.as_str()),
                ("impound-peer-remote", "10.0.0.9:40000"),
                ("te", "trailers"),
            ]
        );
        headers.append("impound-case", "INC-2".parse().unwrap());
        let refused = onward(path, &headers, &peer, Bytes::new()).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
