//! Options of the isolation at the node, and how a rule is written.

use clap::Args;
use impound_proto::controller::v1::AllowRule;

/// What the node's agent lets through. By default it drops everything in and out in the pod's network
/// namespace, established connections too, but what the kubelet's probes need.
#[derive(Debug, Args)]
#[command(next_help_heading = "Isolation at the node")]
pub(crate) struct Isolation {
    /// Let these connections pass: egress or ingress, tcp or udp, the other end, and the port that is
    /// connected to, e.g. egress,tcp,10.1.2.0/24,443; without a port, any. May be given several times
    #[arg(long, value_name = "RULE", value_parser = allow_rule, conflicts_with = "no_isolation")]
    pub(crate) allow: Vec<AllowRule>,
    /// Drop also what the kubelet's probes send: it will restart the container when they fail
    #[arg(long, conflicts_with = "no_isolation")]
    pub(crate) drop_probes: bool,
    /// Drop traffic inside the pod (loopback) as well
    #[arg(long, conflicts_with = "no_isolation")]
    pub(crate) drop_loopback: bool,
    /// Isolate the pod also where the controller was started not to
    #[arg(long, conflicts_with = "no_isolation")]
    pub(crate) isolate: bool,
    /// Contain at the Kubernetes API only: what exists goes on as far as the network plugin lets it
    #[arg(long)]
    pub(crate) no_isolation: bool,
}

/// "DIRECTION,PROTOCOL,CIDR[,PORT]". Commas, because an IPv6 address has colons.
fn allow_rule(text: &str) -> Result<AllowRule, String> {
    let expected = || {
        format!(
            "expected DIRECTION,PROTOCOL,CIDR[,PORT], e.g. egress,tcp,10.1.2.0/24,443, came {text:?}"
        )
    };
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let (direction, protocol, cidr, port) = match parts.as_slice() {
        [direction, protocol, cidr] => (direction, protocol, cidr, None),
        [direction, protocol, cidr, port] => (direction, protocol, cidr, Some(port)),
        _ => return Err(expected()),
    };
    let direction = match direction.to_ascii_lowercase().as_str() {
        "egress" => "Egress",
        "ingress" => "Ingress",
        _ => {
            return Err(format!(
                "{}: the direction is egress or ingress",
                expected()
            ));
        }
    };
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => "TCP",
        "udp" => "UDP",
        _ => return Err(format!("{}: the protocol is tcp or udp", expected())),
    };
    let port: u16 = match port {
        None => 0,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{}: a port is from 1 to 65535", expected()))?,
    };
    Ok(AllowRule {
        direction: direction.to_owned(),
        cidr: (*cidr).to_owned(),
        protocol: protocol.to_owned(),
        port: port.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_written_with_commas_and_an_optional_port() {
        let rule = allow_rule("egress,tcp,10.1.2.0/24,443").unwrap();
        assert_eq!(
            (
                rule.direction.as_str(),
                rule.cidr.as_str(),
                rule.protocol.as_str(),
                rule.port
            ),
            ("Egress", "10.1.2.0/24", "TCP", 443)
        );
        assert_eq!(allow_rule("Ingress, UDP, fd00::1").unwrap().port, 0);
        for wrong in [
            "egress,tcp",
            "out,tcp,10.0.0.1",
            "egress,icmp,10.0.0.1",
            "egress,tcp,10.0.0.1,0",
            "egress,tcp,10.0.0.1,x",
        ] {
            assert!(allow_rule(wrong).is_err(), "{wrong}");
        }
    }
}
