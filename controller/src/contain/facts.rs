//! Verification: what is true after the steps, read from the API and said as facts.
//!
//! Nothing here believes that a call had its effect because it answered 200.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;

use super::observe::{self, ObserveError, controller_of};
use super::owner::{dependence, is_same};
use super::plan::{full_name, is_labelled, uses_node_network};
use super::refusal::Refusal;
use super::selector::{Labels, selects};
use super::{node, policy};
use crate::resources::{Fact, FactState, Names};

/// What the facts are read off, as far as the watch over a contained pod reads it anyway.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The pod of the suspect's name.
    pub pod: Pod,
    /// The suspect's node, if it exists.
    pub node: Option<Node>,
    /// NetworkPolicies of the namespace.
    pub policies: Vec<NetworkPolicy>,
}

impl Seen {
    async fn read(
        client: &Client,
        namespace: &str,
        pod: &str,
        node: &str,
    ) -> Result<Self, ObserveError> {
        let ((_, pod), node, policies) = futures::try_join!(
            observe::suspect(client, namespace, pod),
            observe::node(client, node),
            observe::policies(client, namespace),
        )?;
        Ok(Self {
            pod,
            node,
            policies,
        })
    }
}

/// Reads everything again, but for what was `seen` just now, and states the facts about the pod that `suspect` was
/// before it was contained. `untouched`: why it is not changed, if so. `orphan`: its controller was gone by then.
///
/// # Errors
/// If the API does not answer, or the pod is gone or another one has its name.
pub async fn check(
    client: &Client,
    suspect: &Pod,
    node: &str,
    quarantine: &str,
    (untouched, orphan): (Option<&str>, bool),
    seen: Option<Seen>,
    names: &Names,
) -> Result<Vec<Fact>, ObserveError> {
    let namespace = suspect.metadata.namespace.as_deref().unwrap_or_default();
    let name = suspect.metadata.name.as_deref().unwrap_or_default();
    let slices_path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let seen = async {
        match seen {
            Some(seen) => Ok(seen),
            None => Seen::read(client, namespace, name, node).await,
        }
    };
    let (seen, slices) =
        futures::try_join!(seen, observe::list::<EndpointSlice>(client, &slices_path))?;
    let Seen {
        pod,
        node,
        policies,
    } = seen;
    if !is_same(suspect, &pod) {
        return Err(Refusal::OtherUid {
            pod: full_name(&pod),
            expected: suspect.metadata.uid.clone().unwrap_or_default(),
            found: pod.metadata.uid.unwrap_or_default(),
        }
        .into());
    }
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let mut facts = match untouched {
        Some(why) => vec![
            pod_unchanged(why),
            endpoints_kept(no_endpoints(&pod, &slices)),
        ],
        None => vec![
            labelled(&pod, quarantine),
            owner_released(&pod, Some(suspect).filter(|_| orphan)),
            no_endpoints(&pod, &slices),
            policy_selects(&pod, &policies, names),
        ],
    };
    // To a pod on its node's network no policy applies, whatever it says.
    if untouched.is_none() && !uses_node_network(&pod) {
        facts.push(no_policy_allows(&labels, &policies));
    }
    facts.push(node_cordoned(node.as_ref()));
    facts.extend(traffic_flows(&pod));
    Ok(facts)
}

/// Whether the API still has to catch up with what was sent: its own controllers release the pod
/// and rewrite the EndpointSlices within about 100 ms on an idle cluster. What else is untrue lasts.
#[must_use]
pub fn settling(facts: &[Fact]) -> bool {
    facts
        .iter()
        .any(|fact| fact.state == FactState::False && SETTLE.contains(&fact.name.as_str()))
}

/// The facts that become true by themselves a moment after the calls.
const SETTLE: [&str; 4] = [
    "Labelled",
    "OwnerReleased",
    "NoEndpoints",
    "PolicySelectsPod",
];

/// Stated, alone, of a pod that is not there any more.
pub const POD_PRESENT: &str = "PodPresent";
/// Stated of a pod whose traffic nothing can stop.
pub const TRAFFIC_BLOCKED: &str = "TrafficBlocked";
/// No other policy allows the pod traffic.
pub const NO_POLICY_ALLOWS: &str = "NoPolicyAllows";

/// All that can be said of a pod that is gone, or whose name another pod has.
#[must_use]
pub fn gone() -> Vec<Fact> {
    vec![fact(
        POD_PRESENT,
        false,
        "the suspect pod is gone: nothing of it is left to contain or to collect",
    )]
}

/// Whether the facts are those of a pod that is gone.
#[must_use]
pub fn is_gone(facts: &[Fact]) -> bool {
    facts
        .iter()
        .any(|fact| fact.name == POD_PRESENT && fact.state == FactState::False)
}

fn pod_unchanged(why: &str) -> Fact {
    let message = format!(
        "nothing of the pod is changed at the Kubernetes API, because {why}; what can hold it is its node's table alone"
    );
    fact("PodUnchanged", true, &message)
}

fn labelled(pod: &Pod, quarantine: &str) -> Fact {
    let held = is_labelled(pod, quarantine);
    fact(
        "Labelled",
        held,
        if held {
            "the pod carries the suspect label"
        } else {
            "the pod does not carry the suspect label"
        },
    )
}

/// `orphan`: the pod as it was contained, if its controller was gone by then and can take nothing back.
fn owner_released(pod: &Pod, orphan: Option<&Pod>) -> Fact {
    let name = "OwnerReleased";
    let owners = pod.metadata.owner_references.as_ref();
    let gone = orphan.and_then(|pod| controller_of(pod.metadata.owner_references.as_ref()));
    match controller_of(owners) {
        None => match owners.map(Vec::as_slice).and_then(dependence) {
            None => fact(name, true, "no controller owns the pod"),
            Some(what) => fact(name, true, &format!("no controller owns the pod; {what}")),
        },
        Some(owner) if gone.is_some_and(|gone| gone.uid == owner.uid) => {
            let message = format!(
                "{} {}, which owned the pod, does not exist any more, so nothing takes it back; garbage collection \
                 deletes it unless the evidence guard keeps it from that",
                owner.kind, owner.name
            );
            fact(name, true, &message)
        }
        Some(owner) => fact(
            name,
            false,
            &format!(
                "{} {} still owns the pod and may delete it",
                owner.kind, owner.name
            ),
        ),
    }
}

fn no_endpoints(pod: &Pod, slices: &[EndpointSlice]) -> Fact {
    let uid = pod.metadata.uid.as_deref();
    let addresses: Vec<&str> = pod
        .status
        .iter()
        .flat_map(|status| {
            status
                .pod_ips
                .iter()
                .flatten()
                .map(|ip| ip.ip.as_str())
                .chain(status.pod_ip.as_deref())
        })
        .collect();
    let holding: Vec<&str> = slices
        .iter()
        .filter(|slice| {
            slice.endpoints.iter().flatten().any(|endpoint| {
                let target = endpoint
                    .target_ref
                    .as_ref()
                    .and_then(|target| target.uid.as_deref());
                (uid.is_some() && target == uid)
                    || endpoint
                        .addresses
                        .iter()
                        .any(|address| addresses.contains(&address.as_str()))
            })
        })
        .filter_map(|slice| slice.metadata.name.as_deref())
        .collect();
    if holding.is_empty() {
        fact(
            "NoEndpoints",
            true,
            "no EndpointSlice of its namespace holds the pod: no Service there sends it traffic",
        )
    } else {
        fact(
            "NoEndpoints",
            false,
            &format!("EndpointSlice {} still holds the pod", holding.join(", ")),
        )
    }
}

/// What Services send a pod that keeps its labels is dropped at the node, or nowhere: there is nothing to
/// wait for.
fn endpoints_kept(fact: Fact) -> Fact {
    match fact.state {
        FactState::False => Fact {
            state: FactState::Unverified,
            ..fact
        },
        _ => fact,
    }
}

fn policy_selects(pod: &Pod, policies: &[NetworkPolicy], names: &Names) -> Fact {
    let labels = &pod.metadata.labels.clone().unwrap_or_default();
    let found = policies.iter().any(|policy| {
        policy.metadata.name.as_deref() == Some(&names.policy)
            && policy::denies_all(policy, names)
            && policy
                .spec
                .as_ref()
                .is_some_and(|spec| selects(&spec.pod_selector.clone().unwrap_or_default(), labels))
    });
    let name = &names.policy;
    if found && uses_node_network(pod) {
        let message = format!(
            "NetworkPolicy {name} selects the pod, and does not apply to its node's network"
        );
        fact("PolicySelectsPod", true, &message)
    } else if found {
        fact(
            "PolicySelectsPod",
            true,
            &format!("NetworkPolicy {name} denies all traffic of the pod"),
        )
    } else {
        fact(
            "PolicySelectsPod",
            false,
            &format!("no NetworkPolicy {name} selects the pod"),
        )
    }
}

fn no_policy_allows(labels: &Labels, policies: &[NetworkPolicy]) -> Fact {
    let allowing = policy::still_allowing(policies, labels);
    if allowing.is_empty() {
        fact(
            NO_POLICY_ALLOWS,
            true,
            "no other NetworkPolicy allows the pod any traffic",
        )
    } else {
        fact(
            NO_POLICY_ALLOWS,
            false,
            &format!(
                "{}; policies add up, so this traffic flows: quarantine with --exclude-from-policies, or change that policy",
                allowing.join("; ")
            ),
        )
    }
}

fn node_cordoned(node: Option<&Node>) -> Fact {
    match node {
        Some(node) if node::is_cordoned(node) => fact(
            "NodeCordoned",
            true,
            "the node is unschedulable and tainted",
        ),
        Some(_) => fact(
            "NodeCordoned",
            false,
            "new pods can be scheduled to the node",
        ),
        None => fact("NodeCordoned", false, "the node object is gone"),
    }
}

/// Of every other pod [`super::proof`] says whether its traffic is blocked.
fn traffic_flows(pod: &Pod) -> Option<Fact> {
    uses_node_network(pod).then(|| {
        fact(
            TRAFFIC_BLOCKED,
            false,
            "the pod uses its node's network (hostNetwork), to which no NetworkPolicy applies and which can't be \
             isolated at the node: cut the node off",
        )
    })
}

fn fact(name: &str, held: bool, message: &str) -> Fact {
    Fact {
        name: name.into(),
        state: if held {
            FactState::True
        } else {
            FactState::False
        },
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_of_either_address_family_holds_the_pod_also_without_a_word_of_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "uid": "u" },
            "status": { "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }] },
        }))
        .unwrap();
        let slice = |family: &str, endpoint: serde_json::Value| -> Vec<EndpointSlice> {
            let slice = json!({
                "metadata": { "name": "by-hand" }, "addressType": family, "endpoints": [endpoint],
            });
            vec![serde_json::from_value(slice).unwrap()]
        };
        for (held, family, endpoint) in [
            (true, "IPv4", json!({ "addresses": ["10.0.0.7"] })),
            (true, "IPv6", json!({ "addresses": ["fd00::7"] })),
            (
                true,
                "IPv6",
                json!({ "addresses": ["fd00::9"], "targetRef": { "uid": "u" } }),
            ),
            (false, "IPv4", json!({ "addresses": ["10.0.0.8"] })),
        ] {
            let fact = no_endpoints(&pod, &slice(family, endpoint.clone()));
            assert_eq!(fact.state == FactState::False, held, "{endpoint}: {fact:?}");
            assert_eq!(fact.message.contains("by-hand"), held, "{fact:?}");
        }
    }

    #[test]
    fn only_what_the_api_itself_makes_true_is_waited_for() {
        for settles in SETTLE {
            assert!(settling(&[fact(settles, false, "")]), "{settles}");
            assert!(!settling(&[fact(settles, true, "")]), "{settles}");
        }
        for lasts in [
            NO_POLICY_ALLOWS,
            TRAFFIC_BLOCKED,
            "NodeCordoned",
            "NodeIsolated",
            "NoWayPast",
            "OutgoingBlocked",
            "IncomingBlocked",
        ] {
            assert!(!settling(&[fact(lasts, false, "")]), "{lasts}");
        }
    }
}
