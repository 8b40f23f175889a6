//! The whole installation looked at: what works, what will not, and what to do about it. Nothing is repaired, and
//! nothing kept.

use std::time::Duration;

use futures::{StreamExt, stream};
use impound_proto::controller::v1 as wire;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Service;
use crate::agents::{AgentConnection, AgentError};
use crate::describe::describe;
use crate::leader::LEASE;
use crate::resources::FactState;
use crate::store::WriteOnce;

/// The roles that an installation has: what they grant is what is asked about.
const INSTALLED: &str = include_str!("../../../deploy/kustomize/base/impound.yaml");
const ROLE: &str = "impound-controller";
/// The one of installations that issue agents' certificates.
const REVIEWS: &str = "impound-reviews";
/// The one of installations where callers show tokens, and where it is.
const CALLERS: &str = "impound-callers";
const WITH_TOKENS: &str =
    include_str!("../../../deploy/kustomize/components/kubernetes-tokens/roles.yaml");

/// What is asked about others' tokens here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reviews {
    /// Agents show theirs for a certificate.
    pub issuing: bool,
    /// Callers show theirs with each call.
    pub callers: bool,
}

/// Oldest minor version of Kubernetes 1 that serves what is needed (tokens that name their node).
const OLDEST: u32 = 30;

/// How long one thing that is asked may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions to the Kubernetes API at the same time, and agents.
const QUESTIONS: usize = 8;
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
    let (api, rights, guard, lease, store, nodes) = tokio::join!(
        kubernetes(client),
        rights(client, service.reviews),
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
    let checks = [api, rights, guard, lease].into_iter();
    let checks = checks.chain(certificates).chain(store).chain(nodes);
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

/// Whether the controller has the rights that deploy/ gives it.
async fn rights(client: &Client, reviews: Reviews) -> wire::Check {
    let about = "controller's rights";
    let wanted = match wanted(client.default_namespace(), reviews) {
        Ok(wanted) => wanted,
        Err(why) => return failed(about, why, "this build is broken"),
    };
    let count = wanted.len();
    let asked = stream::iter(wanted).map(|right| async move {
        let words = spelled(&right);
        let review = SelfSubjectAccessReview {
            metadata: ObjectMeta::default(),
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(right),
                non_resource_attributes: None,
            },
            status: None,
        };
        let api = Api::<SelfSubjectAccessReview>::all(client.clone());
        let options = PostParams::default();
        let reviewed = within(api.create(&options, &review)).await?;
        let allowed = reviewed.status.is_some_and(|status| status.allowed);
        Ok::<_, String>((!allowed).then_some(words))
    });
    let answers: Vec<_> = asked.buffer_unordered(QUESTIONS).collect().await;
    let answers: Result<Vec<_>, String> = answers.into_iter().collect();
    let mut missing: Vec<String> = match answers {
        Ok(answers) => answers.into_iter().flatten().collect(),
        Err(why) => {
            return failed(
                about,
                format!("can't be asked for: {why}"),
                "see the Kubernetes API above",
            );
        }
    };
    missing.sort();
    if missing.is_empty() {
        return ok(about, format!("all {count} that deploy/ grants"));
    }
    failed(
        about,
        format!(
            "{} of {count} are missing: {}",
            missing.len(),
            listed(&missing)
        ),
        "apply the roles of this version (deploy/, or `helm upgrade`) and see that the controller runs as the service \
         account impound-controller",
    )
}

/// Every right of the installed roles that is needed here; those of the Role in our own namespace.
fn wanted(namespace: &str, reviews: Reviews) -> Result<Vec<ResourceAttributes>, String> {
    let mut wanted = Vec::new();
    let documents = INSTALLED.split("\n---\n");
    for document in documents.chain(WITH_TOKENS.split("\n---\n")) {
        let object: Value = serde_saphyr::from_str(document).map_err(|error| error.to_string())?;
        let field = |path: &str| object.pointer(path).and_then(Value::as_str);
        let namespace = match field("/kind") {
            Some("ClusterRole") => None,
            Some("Role") => Some(namespace.to_owned()),
            _ => continue,
        };
        let needed = match field("/metadata/name") {
            Some(ROLE) => true,
            // What it grants is in the other as well.
            Some(REVIEWS) => reviews.issuing && !reviews.callers,
            Some(CALLERS) => reviews.callers,
            _ => false,
        };
        if !needed {
            continue;
        }
        let rules = object.get("rules").cloned().unwrap_or_default();
        let rules: Vec<PolicyRule> =
            serde_json::from_value(rules).map_err(|error| error.to_string())?;
        for rule in rules {
            let names = match rule.resource_names {
                Some(names) => names.into_iter().map(Some).collect(),
                None => vec![None],
            };
            for group in rule.api_groups.iter().flatten() {
                let resources = rule.resources.iter().flatten();
                for resource in resources {
                    let (resource, subresource) = match resource.split_once('/') {
                        Some((resource, sub)) => (resource.to_owned(), Some(sub.to_owned())),
                        None => (resource.clone(), None),
                    };
                    for verb in &rule.verbs {
                        wanted.extend(names.iter().map(|name| ResourceAttributes {
                            group: Some(group.clone()),
                            resource: Some(resource.clone()),
                            subresource: subresource.clone(),
                            verb: Some(verb.clone()),
                            name: name.clone(),
                            namespace: namespace.clone(),
                            ..ResourceAttributes::default()
                        }));
                    }
                }
            }
        }
    }
    Ok(wanted)
}

fn spelled(right: &ResourceAttributes) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut words = format!("{} {}", text(&right.verb), text(&right.resource));
    if let Some(sub) = &right.subresource {
        words = format!("{words}/{sub}");
    }
    match right.group.as_deref() {
        None | Some("") => words,
        Some(group) => format!("{words}.{group}"),
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
    fn the_rights_that_are_asked_about_are_those_of_the_installed_roles() {
        let all = Reviews {
            issuing: true,
            callers: true,
        };
        let all_wanted = wanted("impound", all).unwrap();
        let wanted = &all_wanted;
        let has = |verb: &str, resource: &str, namespace: Option<&str>| {
            wanted.iter().any(|right| {
                right.verb.as_deref() == Some(verb)
                    && right.resource.as_deref() == Some(resource)
                    && right.namespace.as_deref() == namespace
            })
        };
        assert!(has("patch", "pods", None) && has("create", "pods", None));
        assert!(has("update", "leases", Some("impound")) && !has("delete", "pods", None));
        assert!(wanted.len() > 60, "{}", wanted.len());
        // And of the reviews, those that are made.
        let reviews = |issuing, callers| {
            let made = super::wanted("impound", Reviews { issuing, callers }).unwrap();
            let resources = made.into_iter().filter_map(|right| right.resource);
            resources
                .filter(|resource| ["tokenreviews", "subjectaccessreviews"].contains(&&**resource))
                .collect::<Vec<_>>()
        };
        assert_eq!(reviews(false, false), [""; 0]);
        assert_eq!(reviews(true, false), ["tokenreviews"]);
        for issuing in [true, false] {
            let both = ["tokenreviews", "subjectaccessreviews"];
            assert_eq!(reviews(issuing, true), both);
        }
    }

    #[test]
    fn a_certificate_is_told_of_before_it_ends() {
        let now = OffsetDateTime::now_utc();
        let state = |left| certificate("c", now + left, OWN_LIFE, "renew").state;
        assert_eq!(state(time::Duration::days(15)), "ok");
        assert_eq!(state(time::Duration::days(13)), "warning");
        assert_eq!(state(time::Duration::minutes(-1)), "failed");
    }
}
