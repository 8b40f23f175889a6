//! `/live`, `/ready` and `/metrics` over plain HTTP, for the kubelet and Prometheus, and the same as gRPC
//! health for platforms.
//!
//! Live: the process answers; a part that ends by itself ends the process. Ready: nothing is pending;
//! what is pending is named, one line each. A replica that waits for the lease is ready: it serves calls. So
//! is one that the evidence guard refuses what it does (`degraded`): taken out of its Service it could tell
//! nobody.

use std::sync::Arc;
use std::time::Duration;

use impound_proto::controller::v1::controller_server::SERVICE_NAME;
use impound_proto::probe::{self, Page, Pages};
use impound_proto::tls::Credentials;
use kube::Client;
use rustls::{ClientConfig, ServerConfig};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::contain::guard;
use crate::describe::describe;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::store::Store;

/// How long one thing that is asked may take; a kubelet's probe gives up after some seconds as well.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often gRPC health follows readiness, as a kubelet's probe would by default.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What readiness depends on.
pub struct Health {
    /// The Kubernetes API, without which nothing can be contained.
    pub client: Client,
    /// What is known of the evidence guard, which may refuse the controller's own steps.
    pub guard: Arc<guard::Known>,
    /// The store, without which nothing can be kept.
    pub store: Arc<dyn Store>,
    /// Our certificate towards agents.
    pub agents: Credentials<ClientConfig>,
    /// Our certificate towards responders.
    pub responders: Credentials<ServerConfig>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
}

impl Health {
    /// Answers for as long as the process lives.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let health = self;
        let pages: Pages = Arc::new(move |path| {
            let health = Arc::clone(&health);
            Box::pin(async move { health.page(&path).await })
        });
        probe::serve(listener, pages).await;
    }

    /// Tells gRPC health again and again whether anything is pending, for as long as the process lives.
    pub async fn report(&self, reporter: &HealthReporter) {
        let mut looks = tokio::time::interval(REPORT_EVERY);
        loop {
            looks.tick().await;
            let status = if self.pending().await.is_empty() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            // "" is the server as a whole.
            reporter.set_service_status("", status).await;
            reporter.set_service_status(SERVICE_NAME, status).await;
        }
    }

    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/live" => Some(Page::plain(true, "live\n")),
            "/ready" => {
                let pending = self.pending().await;
                let degraded = self.guard.hindrance().await;
                let text = match (pending.as_slice(), degraded) {
                    ([], None) => "ready\n".to_owned(),
                    ([], Some(why)) => format!("ready\ndegraded: {why}\n"),
                    (pending, _) => pending.join("\n") + "\n",
                };
                Some(Page::plain(pending.is_empty(), text))
            }
            "/metrics" => Some(Page {
                content_type: CONTENT_TYPE,
                ..Page::plain(true, self.metrics().await)
            }),
            _ => None,
        }
    }

    async fn metrics(&self) -> String {
        if let Ok(Ok(free)) = tokio::time::timeout(PATIENCE, self.store.free_bytes()).await {
            self.metrics.store_free(free);
        }
        self.metrics.certificate("agents", self.agents.not_after());
        self.metrics
            .certificate("responders", self.responders.not_after());
        self.metrics.text()
    }

    async fn pending(&self) -> Vec<String> {
        let (kubernetes, store) = tokio::join!(self.kubernetes(), self.store());
        let certificates = [
            ("agents", self.agents.not_after()),
            ("responders", self.responders.not_after()),
        ];
        let now = OffsetDateTime::now_utc();
        let ended = certificates
            .into_iter()
            .filter(|(_, not_after)| now > *not_after)
            .map(|(towards, not_after)| {
                format!(
                    "certificate: ours towards {towards} ended at {not_after}: put a new one into the TLS directory"
                )
            });
        kubernetes.into_iter().chain(store).chain(ended).collect()
    }

    async fn kubernetes(&self) -> Option<String> {
        match tokio::time::timeout(PATIENCE, self.client.apiserver_version()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("kubernetes: {}", describe(&error))),
            Err(_) => Some(format!("kubernetes: no answer within {PATIENCE:?}")),
        }
    }

    async fn store(&self) -> Option<String> {
        match tokio::time::timeout(PATIENCE, self.store.free_bytes()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("store: {}", describe(&error))),
            Err(_) => Some(format!("store: no answer within {PATIENCE:?}")),
        }
    }
}
