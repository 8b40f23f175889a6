//! Isolation at the node: whether it is wanted, what may pass, what is asked of the node's agent. Pure.
//!
//! The agent sets an nftables table in the pod's own network namespace that drops everything in and
//! out. It needs no network plugin, and also stops what a NetworkPolicy leaves alone: connections that
//! exist, traffic to and from the pod's own node, other policies that allow.

use std::collections::BTreeSet;
use std::net::IpAddr;

use impound_proto::agent::v1 as wire;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::owner::runtime_uid;
use super::plan::uses_node_network;
use super::refusal::Refusal;
use super::settings::Settings;
use crate::resources::{
    AllowDirection, AllowProtocol, AllowRule, ApiCall, IsolationSpec, QuarantineSpec, StepName,
};

/// Ports and addresses that the agent takes in one `NodeAccess`.
const PORTS: usize = 16;
const ADDRESSES: usize = 8;

/// Whether the pod is to be isolated at its node.
#[must_use]
pub fn is_wanted(spec: &QuarantineSpec, settings: &Settings) -> bool {
    spec.isolation.enabled.unwrap_or(settings.isolate)
}

/// Why a pod can't be isolated at its node, whatever the agent.
#[must_use]
pub fn hindrance(pod: &Pod) -> Option<&'static str> {
    uses_node_network(pod).then_some(
        "the pod uses its node's network (hostNetwork): its traffic can't be told from the node's, so it \
         is not isolated here. Cut the node off at the network",
    )
}

/// What is asked of the agent.
#[must_use]
pub fn request(pod: &Pod, quarantine: &str, spec: &QuarantineSpec) -> wire::IsolateRequest {
    wire::IsolateRequest {
        pod: Some(selector(pod)),
        case_id: spec.case.clone(),
        quarantine: quarantine.to_owned(),
        allow: spec.isolation.allow.iter().map(rule).collect(),
        drop_loopback: spec.isolation.drop_loopback,
        node_access: Some(node_access(pod, &spec.isolation)),
    }
}

/// The pod as an agent knows it.
#[must_use]
pub fn selector(pod: &Pod) -> wire::PodSelector {
    wire::PodSelector {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: runtime_uid(pod),
    }
}

/// The same as a line of the plan.
#[must_use]
pub fn call(node: &str, request: &wire::IsolateRequest) -> ApiCall {
    let pod = request.pod.clone().unwrap_or_default();
    let access = request.node_access.clone().unwrap_or_default();
    let allow: Vec<_> = request
        .allow
        .iter()
        .map(|rule| {
            json!({
                "direction": rule.direction().as_str_name(),
                "cidr": rule.cidr,
                "protocol": rule.protocol().as_str_name(),
                "port": rule.port,
            })
        })
        .collect();
    let body = json!({
        "pod": { "namespace": pod.namespace, "name": pod.name, "uid": pod.uid },
        "caseId": request.case_id,
        "quarantine": request.quarantine,
        "allow": allow,
        "dropLoopback": request.drop_loopback,
        "nodeAccess": { "podAddresses": access.pod_addresses, "ports": access.ports },
    });
    let purpose = match access.ports.as_slice() {
        [] => "the node's agent drops everything in and out in the pod's own network namespace, established connections too".to_owned(),
        ports => format!(
            "the node's agent drops everything in and out in the pod's own network namespace, established \
             connections too; TCP port {} stays open to the node itself for the kubelet's probes",
            listed(ports)
        ),
    };
    ApiCall {
        step: StepName::Isolate,
        method: "gRPC".into(),
        path: format!("{node}/impound.agent.v1.Agent/Isolate"),
        content_type: String::new(),
        body: body.to_string(),
        purpose,
    }
}

/// Refuses rules that the agent would refuse, before anything is changed.
///
/// # Errors
/// [`Refusal::BadAllowRule`] with what was expected and what came.
pub fn check_rules(spec: &IsolationSpec) -> Result<(), Refusal> {
    for rule in &spec.allow {
        let reason = match block(&rule.cidr) {
            None => {
                "expected an address block, e.g. 10.0.0.0/8, whose bits after the prefix are zero"
            }
            Some(_) if rule.port > u32::from(u16::MAX) => "expected a port from 0 (any) to 65535",
            Some(_) => continue,
        };
        return Err(Refusal::BadAllowRule {
            rule: describe(rule),
            reason,
        });
    }
    Ok(())
}

/// A rule in words.
#[must_use]
pub fn describe(rule: &AllowRule) -> String {
    let way = match rule.direction {
        AllowDirection::Egress => "to",
        AllowDirection::Ingress => "from",
    };
    let protocol = match rule.protocol {
        AllowProtocol::Tcp => "TCP",
        AllowProtocol::Udp => "UDP",
    };
    match rule.port {
        0 => format!("{protocol} {way} {}, any port", rule.cidr),
        port => format!("{protocol} {way} {}, port {port}", rule.cidr),
    }
}

/// Whether a rule lets a TCP connection with this other end pass.
#[must_use]
pub fn permits(rule: &AllowRule, direction: AllowDirection, other: IpAddr, port: u16) -> bool {
    rule.direction == direction
        && rule.protocol == AllowProtocol::Tcp
        && (rule.port == 0 || rule.port == u32::from(port))
        && block(&rule.cidr).is_some_and(|block| contains(block, other))
}

/// TCP ports of the pod that the kubelet's probes connect to. Probes that name another host don't
/// concern the pod, and those that run a command need no network.
#[must_use]
pub fn probe_ports(pod: &Pod) -> BTreeSet<u16> {
    containers(pod)
        .flat_map(|container| {
            let probes = [
                &container.liveness_probe,
                &container.readiness_probe,
                &container.startup_probe,
            ];
            probes
                .into_iter()
                .flatten()
                .filter_map(|probe| probe_port(probe, container))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// TCP ports that the pod's containers declare.
#[must_use]
pub fn declared_ports(pod: &Pod) -> BTreeSet<u16> {
    containers(pod)
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| {
            port.protocol
                .as_deref()
                .is_none_or(|protocol| protocol == "TCP")
        })
        .filter_map(|port| u16::try_from(port.container_port).ok())
        .collect()
}

/// The pod's addresses.
#[must_use]
pub fn addresses(pod: &Pod) -> BTreeSet<IpAddr> {
    pod.status
        .iter()
        .flat_map(|status| {
            let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
            all.chain(status.pod_ip.as_deref())
        })
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// Numbers for people.
#[must_use]
pub fn listed(ports: &[u32]) -> String {
    let ports: Vec<String> = ports.iter().map(u32::to_string).collect();
    ports.join(", ")
}

fn node_access(pod: &Pod, spec: &IsolationSpec) -> wire::NodeAccess {
    let ports = if spec.drop_probes {
        BTreeSet::new()
    } else {
        probe_ports(pod)
    };
    wire::NodeAccess {
        pod_addresses: addresses(pod)
            .iter()
            .take(ADDRESSES)
            .map(IpAddr::to_string)
            .collect(),
        ports: ports.into_iter().take(PORTS).map(u32::from).collect(),
    }
}

/// Init containers are among them: those that go on running have probes, too.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    })
}

fn probe_port(probe: &Probe, container: &Container) -> Option<u16> {
    if let Some(http) = &probe.http_get {
        return own(http.host.as_deref()).and_then(|()| number(&http.port, container));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return own(tcp.host.as_deref()).and_then(|()| number(&tcp.port, container));
    }
    let grpc = probe.grpc.as_ref()?;
    u16::try_from(grpc.port).ok()
}

/// Without a host a probe goes to the pod.
fn own(host: Option<&str>) -> Option<()> {
    host.is_none_or(str::is_empty).then_some(())
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let named = |name: &str| {
        let mut ports = container.ports.iter().flatten();
        let found = ports.find(|port| port.name.as_deref() == Some(name))?;
        u16::try_from(found.container_port).ok()
    };
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => named(name).or_else(|| name.parse().ok()),
    }
}

fn rule(rule: &AllowRule) -> wire::AllowRule {
    let direction = match rule.direction {
        AllowDirection::Egress => wire::AllowDirection::Egress,
        AllowDirection::Ingress => wire::AllowDirection::Ingress,
    };
    let protocol = match rule.protocol {
        AllowProtocol::Tcp => wire::AllowProtocol::Tcp,
        AllowProtocol::Udp => wire::AllowProtocol::Udp,
    };
    wire::AllowRule {
        direction: direction.into(),
        cidr: rule.cidr.clone(),
        protocol: protocol.into(),
        port: rule.port,
    }
}

/// First address and prefix of a block; `None` if it is none, or has bits after the prefix.
fn block(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address.parse().ok()?, Some(prefix)),
        None => (text.parse().ok()?, None),
    };
    let bits = width(address);
    let prefix = match prefix {
        Some(text) => text
            .parse()
            .ok()
            .filter(|prefix: &u32| *prefix <= bits && prefix.to_string() == text)?,
        None => bits,
    };
    (masked(address, prefix) == masked(address, bits)).then_some((address, prefix))
}

fn contains((address, prefix): (IpAddr, u32), other: IpAddr) -> bool {
    address.is_ipv4() == other.is_ipv4() && masked(address, prefix) == masked(other, prefix)
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first `prefix` bits, as a number whose other bits are zero.
fn masked(address: IpAddr, prefix: u32) -> u128 {
    let (number, bits) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let rest = bits - prefix.min(bits);
    number
        .checked_shr(rest)
        .unwrap_or(0)
        .checked_shl(rest)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "web", "uid": "u" },
            "spec": {
                "initContainers": [{ "name": "mesh", "restartPolicy": "Always",
                    "startupProbe": { "grpc": { "port": 15021 } } }],
                "containers": [{
                    "name": "web",
                    "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "dns", "containerPort": 53, "protocol": "UDP" }],
                    "livenessProbe": { "httpGet": { "port": "http" } },
                    "readinessProbe": { "tcpSocket": { "port": 9090, "host": "192.0.2.1" } },
                    "startupProbe": { "exec": { "command": ["true"] } },
                }],
            },
            "status": { "podIP": "10.1.2.3", "podIPs": [{ "ip": "10.1.2.3" }, { "ip": "fd00::3" }] },
        }))
        .unwrap()
    }

    #[test]
    fn ports_that_probes_connect_to_are_found_by_number_name_and_sidecar() {
        assert_eq!(probe_ports(&pod()), BTreeSet::from([8080, 15021]));
        assert_eq!(declared_ports(&pod()), BTreeSet::from([8080]));
    }

    #[test]
    fn the_request_names_the_pod_exactly_and_what_its_probes_need() {
        let mut spec = QuarantineSpec {
            case: "INC-1".into(),
            ..Default::default()
        };
        let asked = request(&pod(), "web-u", &spec);
        let access = asked.node_access.clone().unwrap();
        assert_eq!(access.pod_addresses, ["10.1.2.3", "fd00::3"]);
        assert_eq!(access.ports, [8080, 15021]);
        let call = call("worker", &asked);
        assert_eq!(call.path, "worker/impound.agent.v1.Agent/Isolate");
        assert!(call.purpose.contains("8080, 15021"), "{}", call.purpose);
        spec.isolation.drop_probes = true;
        let asked = request(&pod(), "web-u", &spec);
        assert_eq!(asked.node_access.unwrap().ports, Vec::<u32>::new());
    }

    #[test]
    fn a_rule_permits_its_own_block_direction_and_port_alone() {
        let rule = |cidr: &str, port| AllowRule {
            direction: AllowDirection::Egress,
            cidr: cidr.into(),
            protocol: AllowProtocol::Tcp,
            port,
        };
        let at = |text: &str| text.parse().unwrap();
        let out = AllowDirection::Egress;
        assert!(permits(&rule("10.0.0.0/8", 0), out, at("10.9.9.9"), 1));
        assert!(!permits(&rule("10.0.0.0/8", 0), out, at("11.9.9.9"), 1));
        assert!(!permits(&rule("10.0.0.0/8", 443), out, at("10.9.9.9"), 80));
        assert!(!permits(
            &rule("10.0.0.0/8", 0),
            AllowDirection::Ingress,
            at("10.9.9.9"),
            1
        ));
        assert!(permits(&rule("0.0.0.0/0", 0), out, at("10.9.9.9"), 1));
        assert!(!permits(&rule("::/0", 0), out, at("10.9.9.9"), 1));
        assert!(permits(&rule("fd00::1", 0), out, at("fd00::1"), 1));
    }

    #[test]
    fn a_rule_that_the_agent_would_refuse_is_refused_before_anything_is_changed() {
        for bad in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "example.org",
            "::/129",
        ] {
            let spec = IsolationSpec {
                allow: vec![AllowRule {
                    direction: AllowDirection::Egress,
                    cidr: bad.into(),
                    protocol: AllowProtocol::Udp,
                    port: 53,
                }],
                ..Default::default()
            };
            assert!(check_rules(&spec).is_err(), "{bad}");
        }
    }
}
