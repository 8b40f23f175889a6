//! Liveness, readiness and startup probes of one running container: a task that ends when the
//! container does, and what it found last.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::runtime::Runtime;
use crate::status::Health;

/// Kubernetes' own values for what a probe leaves out.
const DEFAULT_PERIOD_SECONDS: i32 = 10;
const DEFAULT_TIMEOUT_SECONDS: i32 = 1;
const DEFAULT_FAILURES: i32 = 3;
/// Enough for a status line; the rest of the answer is not read.
const STATUS_LINE_MAX: usize = 64;

/// The probes of a pod's containers, by container id.
pub(crate) struct Probes {
    runtime: Runtime,
    found: Arc<Mutex<HashMap<String, Found>>>,
    changed: Arc<Notify>,
    tasks: JoinSet<()>,
    handles: HashMap<String, tokio::task::AbortHandle>,
}

#[derive(Clone, Copy)]
struct Found {
    started: bool,
    ready: bool,
    live: bool,
}

impl Probes {
    /// `changed` is notified when a result changes.
    pub(crate) fn new(runtime: Runtime, changed: Arc<Notify>) -> Self {
        Self {
            runtime,
            found: Arc::default(),
            changed,
            tasks: JoinSet::new(),
            handles: HashMap::new(),
        }
    }

    /// Starts the probes of containers that are new, ends those of containers that are gone.
    pub(crate) fn follow(&mut self, running: &[(&Container, String)], pod_address: &str) {
        let ids: HashSet<&str> = running.iter().map(|(_, id)| id.as_str()).collect();
        self.handles.retain(|id, handle| {
            let keep = ids.contains(id.as_str());
            if !keep {
                handle.abort();
                lock(&self.found).remove(id);
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        for (container, id) in running {
            let probed = container.liveness_probe.is_some()
                || container.readiness_probe.is_some()
                || container.startup_probe.is_some();
            if probed && !self.handles.contains_key(id) {
                let started = container.startup_probe.is_none();
                let ready = started && container.readiness_probe.is_none();
                lock(&self.found).insert(
                    id.clone(),
                    Found {
                        started,
                        ready,
                        live: true,
                    },
                );
                let watched = Watched {
                    runtime: self.runtime.clone(),
                    id: id.clone(),
                    address: pod_address.to_owned(),
                    found: self.found.clone(),
                    changed: self.changed.clone(),
                };
                let handle = self.tasks.spawn(watched.run((*container).clone()));
                self.handles.insert(id.clone(), handle);
            }
        }
    }

    /// A container without probes is started and ready as soon as it runs.
    pub(crate) fn health(&self, id: &str) -> Health {
        lock(&self.found).get(id).map_or(
            Health {
                started: true,
                ready: true,
            },
            |found| Health {
                started: found.started,
                ready: found.started && found.ready,
            },
        )
    }

    /// Containers whose liveness or startup probe has failed for good.
    pub(crate) fn unhealthy(&self) -> HashSet<String> {
        let found = lock(&self.found);
        found
            .iter()
            .filter(|(_, found)| !found.live)
            .map(|(id, _)| id.clone())
            .collect()
    }
}

struct Watched {
    runtime: Runtime,
    id: String,
    address: String,
    found: Arc<Mutex<HashMap<String, Found>>>,
    changed: Arc<Notify>,
}

impl Watched {
    /// Ends only by being aborted, or when there is nothing to probe any more.
    async fn run(self, container: Container) {
        if let Some(startup) = &container.startup_probe {
            self.repeat(startup, true, |found, passed| {
                found.started |= passed;
                found.ready |= passed && container.readiness_probe.is_none();
                found.live = passed;
            })
            .await;
        }
        let live = async {
            if let Some(probe) = &container.liveness_probe {
                self.repeat(probe, false, |found, passed| found.live = passed)
                    .await;
            }
        };
        let ready = async {
            if let Some(probe) = &container.readiness_probe {
                self.repeat(probe, false, |found, passed| found.ready = passed)
                    .await;
            }
        };
        tokio::join!(live, ready);
    }

    /// Probes at the probe's period and applies each result that has passed its threshold;
    /// `until_passed` ends with the first success.
    async fn repeat(&self, probe: &Probe, until_passed: bool, apply: impl Fn(&mut Found, bool)) {
        let delay = probe.initial_delay_seconds.unwrap_or(0);
        tokio::time::sleep(seconds(delay)).await;
        let mut period = tokio::time::interval(seconds(
            probe
                .period_seconds
                .unwrap_or(DEFAULT_PERIOD_SECONDS)
                .max(1),
        ));
        let (mut passes, mut failures) = (0, 0);
        loop {
            period.tick().await;
            let limit = seconds(
                probe
                    .timeout_seconds
                    .unwrap_or(DEFAULT_TIMEOUT_SECONDS)
                    .max(1),
            );
            let passed = tokio::time::timeout(limit, self.once(probe))
                .await
                .unwrap_or(false);
            (passes, failures) = if passed {
                (passes + 1, 0)
            } else {
                (0, failures + 1)
            };
            let decided = if passed {
                passes >= probe.success_threshold.unwrap_or(1)
            } else {
                failures >= probe.failure_threshold.unwrap_or(DEFAULT_FAILURES)
            };
            if decided && let Some(found) = lock(&self.found).get_mut(&self.id) {
                apply(found, passed);
                self.changed.notify_one();
            }
            if decided && passed && until_passed {
                return;
            }
        }
    }

    async fn once(&self, probe: &Probe) -> bool {
        if let Some(exec) = &probe.exec {
            let command = exec.command.as_deref().unwrap_or_default();
            return matches!(self.runtime.exec(&self.id, command).await, Ok(0));
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().unwrap_or(&self.address);
            return TcpStream::connect((host, port(&tcp.port))).await.is_ok();
        }
        if let Some(http) = &probe.http_get {
            let host = http.host.as_deref().unwrap_or(&self.address);
            let path = http.path.as_deref().unwrap_or("/");
            return http_status(host, port(&http.port), path)
                .await
                .is_some_and(|status| (200..400).contains(&status));
        }
        false
    }
}

async fn http_status(host: &str, port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((host, port)).await.ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut line = Vec::new();
    stream
        .take(STATUS_LINE_MAX as u64)
        .read_to_end(&mut line)
        .await
        .ok()?;
    String::from_utf8_lossy(&line)
        .split(' ')
        .nth(1)?
        .parse()
        .ok()
}

/// Named ports are not resolved: such a probe fails, which shows.
fn port(port: &IntOrString) -> u16 {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => text.parse().unwrap_or(0),
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn lock(
    found: &Mutex<HashMap<String, Found>>,
) -> std::sync::MutexGuard<'_, HashMap<String, Found>> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}
