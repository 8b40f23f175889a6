//! Sends recorded requests to a live server and compares the answers.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Request;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kube_memory::{Cluster, ClusterConfig};
use serde_json::{Value, json};

use super::compare::{Comparison, Mapping, essence_of_events};
use super::exceptions::Exception;
use super::{setup, watches};

/// How long a recorded state may take to come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Controllers are taken to be done when nothing changed for this long.
const QUIET: Duration = Duration::from_millis(60);

pub(crate) fn recording(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recordings")
        .join(format!("{name}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An answer of the live server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

pub(crate) struct Run {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    pub(crate) mapping: Mapping,
}

impl Run {
    pub(crate) async fn start(name: &str) -> Self {
        // Long enough to see a pod terminate, as with a real kubelet.
        let nodes = [
            "k8s-worker1=10.77.0.11",
            "k8s-worker2=10.77.0.12",
            "k8s-worker3=10.77.0.13",
        ]
        .map(str::to_owned);
        let config = ClusterConfig {
            nodes: nodes.to_vec(),
            termination: Duration::from_millis(700),
            ..ClusterConfig::default()
        };
        let cluster = Cluster::start(config).await.unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let mut run = Self {
            cluster,
            client,
            mapping: Mapping::default(),
        };
        let namespace = format!("rec-{}", &name[..2]);
        run.ask(
            "POST",
            "/api/v1/namespaces",
            json!({"metadata": {"name": namespace}}),
        )
        .await;
        setup::prepare(&mut run, name).await;
        run
    }

    pub(crate) async fn stop(self) {
        drop(self.client);
        self.cluster.shutdown().await;
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Vec<u8>,
    ) -> Answer {
        self.send_as(method, path, content_type, accept, body, &Value::Null)
            .await
    }

    /// As somebody else, if there are recorded impersonation headers.
    async fn send_as(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Vec<u8>,
        headers: &Value,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("user-agent", "impound/replay");
        for name in ["Impersonate-User", "Impersonate-Group"] {
            if let Some(value) = headers[name].as_str() {
                request = request.header(name, value);
            }
        }
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        request = request.header(
            "accept",
            if accept.is_empty() {
                "application/json"
            } else {
                accept
            },
        );
        let response = self
            .client
            .send(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// An unrecorded request that must succeed.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let answer = self.send(method, path, kind, "", body).await;
        assert!(
            answer.status < 300,
            "{method} {path}: {} {}",
            answer.status,
            answer.text
        );
        answer.json()
    }

    /// Waits until the controllers have nothing left to do.
    pub(crate) async fn settle(&self) {
        let start = Instant::now();
        let mut last = (String::new(), Instant::now());
        while last.1.elapsed() < QUIET && start.elapsed() < PATIENCE {
            let list = self.ask("GET", "/api/v1/limitranges", Value::Null).await;
            let version = list["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .to_owned();
            if version != last.0 {
                last = (version, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends one exchange and compares; a GET again until the recorded state has come.
    pub(crate) async fn exchange(
        &mut self,
        name: &str,
        at: usize,
        exchange: &Value,
        special: Option<Exception>,
    ) -> Result<(), Vec<String>> {
        if matches!(special, Some(Exception::Watch)) {
            return watches::exchange(self, at, exchange).await;
        }
        let without = match special {
            Some(Exception::Without(paths, _)) => paths,
            _ => &[],
        };
        let request = &exchange["request"];
        if setup::settles(name, at) {
            self.settle().await;
        }
        let start = Instant::now();
        loop {
            let answer = self.send_recorded(request).await;
            let mut comparison = Comparison {
                mapping: self.mapping.clone(),
                without,
                kind: String::new(),
                differences: Vec::new(),
            };
            compare_answers(&exchange["response"], &answer, &mut comparison);
            setup::after(
                name,
                at,
                &answer,
                &comparison.mapping,
                &mut comparison.differences,
            );
            if comparison.differences.is_empty() {
                self.mapping = comparison.mapping;
                return Ok(());
            }
            if request["method"] != "GET" || start.elapsed() > PATIENCE {
                // Later exchanges still need what could be learned.
                self.mapping = comparison.mapping;
                return Err(comparison.differences);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub(crate) async fn send_recorded(&self, request: &Value) -> Answer {
        let text = |key: &str| request[key].as_str().unwrap_or("").to_owned();
        let body = match &request["body"] {
            Value::Null => Vec::new(),
            // A body that isn't JSON was recorded as text.
            Value::String(text) => text.clone().into_bytes(),
            body => self.mapping.translate_value(body).to_string().into_bytes(),
        };
        let accept = request["headers"]["Accept"].as_str().unwrap_or("");
        let path = self.mapping.translate(&text("path"));
        let headers = &request["headers"];
        self.send_as(
            &text("method"),
            &path,
            &text("contentType"),
            accept,
            body,
            headers,
        )
        .await
    }
}

fn compare_answers(recorded: &Value, answer: &Answer, comparison: &mut Comparison<'_>) {
    let live = answer.json();
    if recorded["status"] != answer.status {
        let text = answer.text.chars().take(600).collect::<String>();
        comparison.differences.push(format!(
            "status: recorded {}, live {} {text}",
            recorded["status"], answer.status
        ));
        return;
    }
    for name in ["Content-Type", "Retry-After", "Warning"] {
        let found = answer
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned());
        let wanted = recorded["headers"][name].as_str().map(str::to_owned);
        if found != wanted {
            comparison.differences.push(format!(
                "header {name}: recorded {wanted:?}, live {found:?}"
            ));
        }
    }
    // A refused watch was recorded as its only line.
    let line = &recorded["watchLines"][0]["line"];
    let body = if line["kind"] == "Status" {
        line
    } else {
        &recorded["body"]
    };
    if body.is_null() {
        let text = recorded["text"].as_str().unwrap_or("");
        if text != answer.text {
            comparison
                .differences
                .push(format!("text: recorded {text:?}, live {:?}", answer.text));
        }
        return;
    }
    comparison.kind = body["kind"].as_str().unwrap_or("").to_owned();
    if comparison.kind == "EventList" {
        comparison.compare("", &essence_of_events(body), &essence_of_events(&live));
    } else {
        comparison.compare("", body, &live);
    }
}
