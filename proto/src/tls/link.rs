//! The controller's way to an agent: a channel on which no call begins once a certificate of it has ended.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use time::OffsetDateTime;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::connect::{ConnectError, Connector, ShownCertificate, endpoint};
use crate::traces;

/// Connects now.
///
/// # Errors
/// If `address` is malformed, or the peer cannot be reached, is not who it should be, or refuses us.
pub async fn link(
    address: &str,
    connector: Connector,
) -> Result<(Link, ShownCertificate), ConnectError> {
    let endpoint = endpoint(address)?;
    let shown = connector.shown.clone();
    let connected = endpoint.connect_with_connector(connector.clone()).await;
    let channel = connected.map_err(|source| ConnectError::Channel {
        peer: connector.expected().clone(),
        address: address.to_owned(),
        source,
    })?;
    let link = Link(Arc::new(Shared {
        endpoint,
        connector,
        shown: shown.clone(),
        current: Mutex::new(Current {
            channel,
            left: None,
        }),
    }));
    Ok((link, shown))
}

/// A channel for gRPC clients. Once the certificate of either end has ended, or the peer says that it takes ours no
/// more, the next call goes over a new connection with the certificates of then; what runs may end on the old one.
/// Clones share the connection.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    endpoint: Endpoint,
    connector: Connector,
    shown: ShownCertificate,
    current: Mutex<Current>,
}

struct Current {
    channel: Channel,
    /// How many handshakes there had been when the former channel was left.
    left: Option<u64>,
}

impl Shared {
    /// The channel for the next call, and how many handshakes there were.
    fn channel(&self) -> (Channel, u64) {
        let handshakes = self.shown.handshakes();
        let ended = |end| end <= OffsetDateTime::now_utc();
        if self.shown.both_until().is_some_and(ended) {
            self.leave(handshakes);
        }
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.channel.clone(), handshakes)
    }

    /// Leaves the channel of that handshake, once, however many calls find it ended.
    fn leave(&self, handshakes: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.left.is_none_or(|left| left < handshakes) {
            let connector = self.connector.clone();
            current.channel = self.endpoint.connect_with_connector_lazy(connector);
            current.left = Some(handshakes);
            tracing::info!(
                peer = %self.connector.expected(),
                "a certificate of the connection has ended: the next call opens a new one"
            );
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let span = traces::call(request.uri().path(), shared.connector.expected());
        Box::pin(traces::sent(span, request, async move |request| {
            let (channel, handshakes) = shared.channel();
            let answer = channel.oneshot(request).await?;
            // By the peer's clock, which may be ahead of ours.
            if is_unauthenticated(answer.headers()) {
                shared.leave(handshakes);
            }
            Ok(answer)
        }))
    }
}

fn is_unauthenticated(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_some_and(|status| status.code() == Code::Unauthenticated)
}
