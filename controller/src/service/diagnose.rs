//! The whole installation looked at: what works, what will not, and what to do about it. Nothing is repaired, and
//! nothing kept.

mod pod_certificates;
mod rights;

use std::time::Duration;

use futures::{StreamExt, stream};
use impound_proto::controller::v1 as wire;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Service;
use crate::agents::{AgentConnection, AgentError};
use crate::describe::describe;
use crate::leader::LEASE;
use crate::resources::FactState;
use crate::store::WriteOnce;

/// What is asked about others here, beyond what every installation asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reviews {
    /// Agents show their tokens for a certificate.
    pub issuing: bool,
    /// Kubelets ask for agents' certificates, which is no review, but a right that is needed in the same way.
    pub pod_certificates: bool,
    /// Callers show their tokens with each call.
    pub callers: bool,
}

/// Oldest minor version of Kubernetes 1 that serves what is needed (tokens that name their node).
const OLDEST: u32 = 30;

/// How long one thing that is asked may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Agents asked at the same time.
const AGENTS: usize = 32;

/// A certificate that an issuer gives lives for hours and is renewed at two thirds; one that has less left was not.
const AGENT_LIFE: time::Duration = time::Duration::hours(1);
/// People put ours into its Secret: time enough to find somebody who does.
const OWN_LIFE: time::Duration = time::Duration::days(14);

/// Clocks that differ by less are as good as the same: entries of different machines are put in order by them.
const OFFSET_MS: u64 = 2_000;
/// Certificates begin five minutes before they are issued; more than that, and fresh ones are refused.
const LARGE_OFFSET_MS: u64 = 240_000;

/// Longest list of names in one finding.
const NAMED: usize = 10;

/// How long what was found is told again: whoever has mended something looks again soon.
const LATELY: Duration = Duration::from_secs(2);

/// What was last found, and when. One look at a time.
#[derive(Default)]
pub struct Diagnosed(Mutex<Option<(Instant, wire::DiagnoseResponse)>>);

impl Diagnosed {
    /// What was found within the last seconds, or is found now.
    pub(super) async fn lately(&self, service: &Service) -> wire::DiagnoseResponse {
        let mut last = self.0.lock().await;
        if let Some((when, found)) = last.as_ref()
            && when.elapsed() < LATELY
        {
            return found.clone();
        }
        let found = diagnose(service).await;
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

async fn diagnose(service: &Service) -> wire::DiagnoseResponse {
    let client = &service.context.client;
    let (api, rights, signing, guard, lease, store, nodes) = tokio::join!(
        kubernetes(client),
        rights::rights(client, service.reviews),
        pod_certificates::look(client, service.reviews.pod_certificates),
        guard(service),
        lease(client),
        store(service),
        agents(service),
    );
    let certificates = [
        ("agents", service.health.agents.not_after()),
        ("responders", service.health.responders.not_after()),
    ];
    let certificates = certificates.map(|(towards, end)| {
        let about = format!("controller's certificate towards {towards}");
        certificate(
            &about,
            end,
            OWN_LIFE,
            "put a new one into its Secret or directory",
        )
    });
    let checks = [api, rights].into_iter().chain(signing);
    let checks = checks
        .chain([guard, lease])
        .chain(certificates)
        .chain(store)
        .chain(nodes);
    let now = OffsetDateTime::now_utc();
    wire::DiagnoseResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        now: Some(prost_types::Timestamp {
            seconds: now.unix_timestamp(),
            nanos: now.nanosecond().try_into().unwrap_or_default(),
        }),
        checks: checks.collect(),
    }
}

async fn kubernetes(client: &Client) -> wire::Check {
    let about = "Kubernetes API";
    match within(client.apiserver_version()).await {
        Ok(version) => {
            let digits: String = version
                .minor
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            let found = format!("version {}.{}", version.major, version.minor);
            match digits.parse::<u32>() {
                Ok(minor) if version.major == "1" && minor < OLDEST => failed(
                    about,
                    found,
                    format!("expected 1.{OLDEST} or later: upgrade the cluster"),
                ),
                _ => ok(about, found),
            }
        }
        Err(why) => failed(
            about,
            why,
            "see that the API server can be reached from the controller's pod",
        ),
    }
}

async fn guard(service: &Service) -> wire::Check {
    let about = "admission policies";
    let (client, settings) = (&service.context.client, &service.context.settings);
    let fact = service.health.guard.look(client, settings).await.fact();
    match fact.state {
        FactState::True => ok(about, fact.message),
        FactState::False => failed(about, fact.message, "apply the policies as said"),
        FactState::Unverified => warning(
            about,
            fact.message,
            "apply deploy/admission, or set admission.enabled with Helm",
        ),
    }
}

async fn lease(client: &Client) -> wire::Check {
    let about = "working replica";
    let api = Api::<Lease>::namespaced(client.clone(), client.default_namespace());
    let remedy = "see the controllers' logs; a replica takes the lease within seconds";
    let spec = match within(api.get_opt(LEASE)).await {
        Ok(Some(lease)) => lease.spec.unwrap_or_default(),
        Ok(None) => return failed(about, "nobody holds the lease".into(), remedy),
        Err(why) => return failed(about, why, "see the Kubernetes API above"),
    };
    let holder = spec.holder_identity.unwrap_or_default();
    let renewed = spec.renew_time.map(|time| time.0);
    let age = renewed.map(|time| Timestamp::now().as_second() - time.as_second());
    match age {
        Some(age) if age.abs() <= 15 && !holder.is_empty() => ok(
            about,
            format!("{holder} holds the lease, renewed {age} s ago"),
        ),
        Some(age) => failed(
            about,
            format!("the lease of {holder:?} was renewed {age} s ago"),
            remedy,
        ),
        None => failed(about, "nobody holds the lease".into(), remedy),
    }
}

async fn store(service: &Service) -> Vec<wire::Check> {
    let store = &service.store;
    let writing = match within(store.try_writing()).await {
        Ok(()) => ok("store", "can be written".into()),
        Err(why) => failed(
            "store",
            why,
            "nothing can be collected until that is put right",
        ),
    };
    let free = match within(store.free_bytes()).await {
        Ok(u64::MAX) => ok("store's space", "no limit known".into()),
        Ok(free) => {
            let gib = free >> 30;
            let found = format!("{gib} GiB free");
            match gib {
                0..5 => warning(
                    "store's space",
                    found,
                    "one container's evidence may take more: make room",
                ),
                _ => ok("store's space", found),
            }
        }
        Err(why) => failed("store's space", why, "see the store above"),
    };
    let write_once = match store.write_once() {
        proven @ WriteOnce::Proven => ok("store's memory", proven.to_string()),
        not @ WriteOnce::NotProven(_) => warning(
            "store's memory",
            not.to_string(),
            "use an object store with Object Lock (--store-lock) where evidence must stand against who runs the store",
        ),
    };
    vec![writing, free, write_once]
}

async fn agents(service: &Service) -> Vec<wire::Check> {
    let api = Api::<Node>::all(service.context.client.clone());
    let linux = ListParams::default().labels("kubernetes.io/os=linux");
    let mut nodes = match within(api.list(&linux)).await {
        Ok(nodes) => nodes.items,
        Err(why) => return vec![failed("nodes", why, "see the Kubernetes API above")],
    };
    nodes.sort_by_key(|node| node.name_any());
    if nodes.is_empty() {
        let remedy = "see that nodes have the label kubernetes.io/os=linux, which kubelets set";
        return vec![failed("nodes", "there is none".into(), remedy)];
    }
    let asked = stream::iter(nodes).map(|node| async move {
        let name = node.name_any();
        match service.context.agents.connect(&name).await {
            Ok(connection) => agent(&name, &connection),
            Err(error) => vec![unreachable(&node, &error)],
        }
    });
    let checks: Vec<_> = asked.buffered(AGENTS).collect().await;
    checks.into_iter().flatten().collect()
}

fn agent(node: &str, connection: &AgentConnection) -> Vec<wire::Check> {
    let about = format!("agent {node}");
    let described = connection.described();
    let found = format!(
        "version {}, {} {}",
        described.version, described.runtime, described.runtime_version
    );
    let mut checks = Vec::new();
    checks.push(match described.version == env!("CARGO_PKG_VERSION") {
        _ if described.runtime_version.is_empty() => failed(
            &about,
            format!("{found}: the container runtime does not answer"),
            "see the agent's log; the runtime's socket must be where the agent was told (runtime.socket)",
        ),
        true => ok(&about, found),
        false => warning(
            &about,
            found,
            format!("the controller has {}: finish the upgrade", env!("CARGO_PKG_VERSION")),
        ),
    });
    let offset = connection.clock_offset_ms;
    let clock = format!("{about}, clock");
    let ntp = "see that the node's clock is set by NTP";
    let found = format!("{offset:+} ms");
    checks.push(match offset.unsigned_abs() {
        0..OFFSET_MS => ok(&clock, found),
        OFFSET_MS..LARGE_OFFSET_MS => warning(&clock, found, ntp),
        _ => failed(&clock, found, ntp),
    });
    let renewal = "see the agent's log: its certificate is not renewed";
    if let Some(end) = connection.certificate_not_after() {
        checks.push(certificate(
            &format!("{about}, certificate"),
            end,
            AGENT_LIFE,
            renewal,
        ));
    }
    checks
}

fn unreachable(node: &Node, error: &AgentError) -> wire::Check {
    let about = format!("agent {}", node.name_any());
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True");
    match error {
        AgentError::Revoked { .. } => warning(&about, describe(error), "nothing, if that is meant"),
        _ if !ready => warning(
            &about,
            describe(error),
            "the node itself is not ready: see `kubectl get nodes`",
        ),
        _ => failed(
            &about,
            describe(error),
            "see `kubectl get pods -o wide` of the DaemonSet impound-agent, and that network policies and firewalls let \
             the controller connect to the agents' port",
        ),
    }
}

fn certificate(
    about: &str,
    end: OffsetDateTime,
    enough: time::Duration,
    remedy: &str,
) -> wire::Check {
    let left = end - OffsetDateTime::now_utc();
    let found = match left.whole_days() {
        days @ 2.. => format!("ends in {days} days"),
        _ => format!("ends in {} minutes", left.whole_minutes()),
    };
    if left.is_negative() {
        failed(about, format!("ended at {end}"), remedy)
    } else if left < enough {
        warning(about, found, remedy)
    } else {
        ok(about, found)
    }
}

/// The answer, or in words why there is none.
async fn within<T, E: std::error::Error + 'static>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn listed(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    let more = names.len().saturating_sub(NAMED);
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn ok(about: &str, found: String) -> wire::Check {
    check(about, "ok", found, String::new())
}

fn warning(about: &str, found: String, remedy: impl Into<String>) -> wire::Check {
    check(about, "warning", found, remedy.into())
}

fn failed(about: &str, found: String, remedy: impl Into<String>) -> wire::Check {
    check(about, "failed", found, remedy.into())
}

fn check(about: &str, state: &str, found: String, remedy: String) -> wire::Check {
    wire::Check {
        about: about.to_owned(),
        state: state.to_owned(),
        found,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_before_it_ends() {
        let now = OffsetDateTime::now_utc();
        let state = |left| certificate("c", now + left, OWN_LIFE, "renew").state;
        assert_eq!(state(time::Duration::days(15)), "ok");
        assert_eq!(state(time::Duration::days(13)), "warning");
        assert_eq!(state(time::Duration::minutes(-1)), "failed");
    }
}
