//! Whether the agent can do its work now, and what is in the way if not.
//!
//! Some [`Condition`]s are looked at every few seconds and told in two places: gRPC health (for the
//! controller, or the front) and, if configured, plain HTTP `GET /ready` for the kubelet, whose probes
//! cannot do mutual TLS.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use impound_proto::tls::{Credentials, explain};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::enroll::Trouble;
use crate::methods::Part;
use crate::runtime::ContainerRuntime;

/// How often the conditions are looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long a part may take to say how it is.
const PART_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a probe may take to send its request.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Probes at the same time. The kubelet sends one.
const PROBES: usize = 8;

/// What is in the way, one reason each; empty: ready.
pub(crate) type Pending = Vec<String>;

/// Something that has to be so.
#[tonic::async_trait]
pub(crate) trait Condition: Send + Sync + 'static {
    /// Why it is not so.
    async fn pending(&self) -> Option<String>;
}

/// The container runtime answers.
pub(crate) struct RuntimeAnswers(pub(crate) Arc<dyn ContainerRuntime>);

#[tonic::async_trait]
impl Condition for RuntimeAnswers {
    async fn pending(&self) -> Option<String> {
        self.0.version().await.err().map(|error| explain(&error))
    }
}

#[tonic::async_trait]
impl<C: Send + Sync + 'static> Condition for Credentials<C> {
    async fn pending(&self) -> Option<String> {
        let not_after = self.not_after();
        (SystemTime::now() > SystemTime::from(not_after)).then(|| {
            format!(
                "our own certificate ended at {not_after}: put a new one into the TLS directory"
            )
        })
    }
}

/// Our certificate can be renewed. The former one is in use meanwhile.
#[tonic::async_trait]
impl Condition for watch::Receiver<Trouble> {
    async fn pending(&self) -> Option<String> {
        self.borrow().clone()
    }
}

/// A part serves.
pub(crate) struct PartServes {
    pub(crate) part: Part,
    pub(crate) channel: Channel,
}

#[tonic::async_trait]
impl Condition for PartServes {
    async fn pending(&self) -> Option<String> {
        let part = self.part;
        let mut health = HealthClient::new(self.channel.clone());
        // "" is the server as a whole.
        let asked = health.check(HealthCheckRequest::default());
        match tokio::time::timeout(PART_TIMEOUT, asked).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => None,
            Ok(Ok(_)) => Some(format!("the {part} is not ready: its log says why")),
            Ok(Err(status)) => Some(format!("the {part} does not answer: {}", explain(&status))),
            Err(_) => Some(format!("the {part} did not answer within {PART_TIMEOUT:?}")),
        }
    }
}

/// Looks at the conditions for as long as anybody reads the result.
pub(crate) async fn observe(conditions: Vec<Box<dyn Condition>>, publish: watch::Sender<Pending>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !publish.is_closed() {
        ticks.tick().await;
        let mut pending = Pending::new();
        for condition in &conditions {
            pending.extend(condition.pending().await);
        }
        publish.send_if_modified(|before| {
            let changed = *before != pending;
            if changed && pending.is_empty() {
                tracing::info!("ready");
            } else if changed {
                tracing::warn!(?pending, "not ready");
            }
            *before = pending;
            changed
        });
    }
}

/// Answers `GET /ready` with 200, or with 503 and the reasons.
pub(crate) async fn serve(listener: TcpListener, pending: watch::Receiver<Pending>) {
    let probes = Arc::new(Semaphore::new(PROBES));
    loop {
        let accepted = listener.accept().await;
        let Ok(permit) = Arc::clone(&probes).acquire_owned().await else {
            return;
        };
        match accepted {
            Ok((tcp, _)) => {
                let pending = pending.clone();
                tokio::spawn(async move {
                    probe(tcp, pending).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a readiness probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn probe(tcp: TcpStream, pending: watch::Receiver<Pending>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &pending.borrow());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PROBE_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tcp), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a readiness probe broke off");
    }
}

fn answer(request: &Request<Incoming>, pending: &Pending) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready") if pending.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        (&Method::GET, "/ready") => (StatusCode::SERVICE_UNAVAILABLE, pending.join("\n") + "\n"),
        _ => (StatusCode::NOT_FOUND, "expected GET /ready\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
