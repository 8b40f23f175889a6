//! NetworkPolicy rules in the words of a responder: who, and on which ports.

use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Rules, and peers or ports of one rule, that are spelled out; the rest is counted.
const SPELLED: usize = 6;

/// E.g. "from pods with app=web of this namespace on TCP 80; from everywhere on TCP 443".
pub(super) fn ingress(rules: &[NetworkPolicyIngressRule]) -> String {
    let rules = rules
        .iter()
        .map(|rule| rule_words("from", rule.from.as_deref(), rule.ports.as_deref()));
    some_of(rules.collect(), "; ")
}

/// E.g. "to 10.0.0.0/8 without 10.1.0.0/16 on every port".
pub(super) fn egress(rules: &[NetworkPolicyEgressRule]) -> String {
    let rules = rules
        .iter()
        .map(|rule| rule_words("to", rule.to.as_deref(), rule.ports.as_deref()));
    some_of(rules.collect(), "; ")
}

/// E.g. "app=web, tier in (a, b)"; empty for a selector that selects everything.
pub(super) fn selector(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    let mut parts: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.extend(selector.match_expressions.iter().flatten().map(|part| {
        let values = part.values.as_deref().unwrap_or_default().join(", ");
        match part.operator.as_str() {
            "In" => format!("{} in ({values})", part.key),
            "NotIn" => format!("{} not in ({values})", part.key),
            "Exists" => part.key.clone(),
            "DoesNotExist" => format!("no {}", part.key),
            other => format!("{} {other} ({values})", part.key),
        }
    }));
    parts.join(", ")
}

fn rule_words(
    word: &str,
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
) -> String {
    // No peers, no ports: all of them (API reference).
    let peers = match peers.unwrap_or_default() {
        [] => "everywhere".to_owned(),
        peers => some_of(peers.iter().map(peer).collect(), " or "),
    };
    let ports = match ports.unwrap_or_default() {
        [] => "every port".to_owned(),
        ports => some_of(ports.iter().map(port).collect(), ", "),
    };
    format!("{word} {peers} on {ports}")
}

fn peer(peer: &NetworkPolicyPeer) -> String {
    if let Some(block) = &peer.ip_block {
        return match block.except.as_deref().unwrap_or_default() {
            [] => block.cidr.clone(),
            except => format!("{} without {}", block.cidr, except.join(", ")),
        };
    }
    let pods = match peer.pod_selector.as_ref().map(selector).as_deref() {
        None | Some("") => "every pod".to_owned(),
        Some(labels) => format!("pods with {labels}"),
    };
    let namespaces = match peer.namespace_selector.as_ref().map(selector).as_deref() {
        None => "this namespace".to_owned(),
        Some("") => "every namespace".to_owned(),
        Some(labels) => format!("namespaces with {labels}"),
    };
    format!("{pods} of {namespaces}")
}

fn port(port: &NetworkPolicyPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match (&port.port, port.end_port) {
        (None, _) => format!("every {protocol} port"),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{protocol} {first}-{last}"),
        (Some(IntOrString::Int(number)), None) => format!("{protocol} {number}"),
        (Some(IntOrString::String(name)), _) => format!("{protocol} {name}"),
    }
}

fn some_of(mut parts: Vec<String>, between: &str) -> String {
    let more = parts.len().saturating_sub(SPELLED);
    if more > 0 {
        parts.truncate(SPELLED);
        parts.push(format!("{more} more"));
    }
    parts.join(between)
}
