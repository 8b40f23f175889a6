//! Whether the agent can do its work now, and what is in the way if not.
//!
//! Some [`Condition`]s are looked at every few seconds and told in two places: gRPC health (for the
//! controller, or the front) and, if configured, plain HTTP `GET /ready` for the kubelet, whose probes
//! cannot do mutual TLS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use impound_proto::probe::{self, Page, Pages};
use impound_proto::tls::{Credentials, explain};
use tokio::net::TcpListener;
use tokio::sync::watch;
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
    let pages: Pages = Arc::new(move |path| {
        let pending = pending.borrow().clone();
        Box::pin(async move { (path == "/ready").then(|| page(&pending)) })
    });
    probe::serve(listener, pages).await;
}

fn page(pending: &Pending) -> Page {
    if pending.is_empty() {
        Page::plain(true, "ready\n")
    } else {
        Page::plain(false, pending.join("\n") + "\n")
    }
}
