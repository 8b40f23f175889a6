//! The table that isolates a pod, what tells it from any other, and both as text.
//!
//! No rule looks at connection tracking: at this priority no packet belongs to a connection yet, and
//! that is the point, because then an established one has no better rights than a new one. So answers
//! to a permitted connection are rules of their own. Of TCP they take no first packet (SYN without
//! ACK), hence nobody can use them to open a connection the other way round.

use std::net::IpAddr;

use super::allow::{Allow, Direction, Protocol};
use super::nft::expression::{Base, Expression, Meta, Verdict};
use super::nft::{BaseChain, Chain, Rule, Table};

/// The table's name, in the family inet.
pub(super) const TABLE: &str = "impound";

/// After -400, where fragments are put together again, so that a permitted packet is judged whole.
/// Before -300 ("raw"), the first place where other rules of the pod (a mesh's redirection, say)
/// could take the packet elsewhere.
const PRIORITY: i32 = -350;

/// `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`, `NF_INET_LOCAL_OUT`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;

/// `NF_DROP`.
const DROP: u32 = 0;

/// `LOOPBACK_IFINDEX`: the number of "lo" in every namespace. Its name could be another's tomorrow.
const LOOPBACK: u32 = 1;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// ICMPv6, and its neighbour solicitation and advertisement: IPv6's ARP.
const ICMPV6: u8 = 58;
const NEIGHBOUR: [u8; 2] = [135, 136];

/// Flags of TCP, the byte they are in, and the bits of a connection's first packet.
const TCP_FLAGS: u32 = 13;
const SYN_ACK: u8 = 0x12;
const SYN: u8 = 0x02;

/// Lines of text about a table. Ours has at most some 140; an answer has to stay below 4 MiB.
const LINES: usize = 1000;

/// What an isolation lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exceptions {
    /// Connections to or from outside.
    pub(crate) allow: Vec<Allow>,
    /// Drop traffic inside the pod, too.
    pub(crate) drop_loopback: bool,
}

/// The table for these exceptions.
pub(super) fn table(exceptions: &Exceptions, comment: String) -> Table {
    Table {
        name: TABLE.to_owned(),
        flags: 0,
        comment: Some(comment),
        chains: vec![
            chain("input", INPUT, exceptions),
            chain("forward", FORWARD, exceptions),
            chain("output", OUTPUT, exceptions),
        ],
    }
}

fn chain(name: &str, hook: u32, exceptions: &Exceptions) -> Chain {
    let interface = match hook {
        INPUT => Some(Meta::InInterface),
        OUTPUT => Some(Meta::OutInterface),
        _ => None,
    };
    let mut rules = Vec::new();
    if let Some(interface) = interface {
        if !exceptions.drop_loopback {
            rules.push(loopback(interface));
        }
        let ipv6 = |allow: &Allow| allow.cidr.address().is_ipv6();
        if exceptions.allow.iter().any(ipv6) {
            rules.extend(NEIGHBOUR.map(neighbour));
        }
        rules.extend(exceptions.allow.iter().map(|allow| permit(allow, hook)));
    }
    rules.push(Rule {
        expressions: vec![Expression::counter(), Expression::Verdict(Verdict::Drop)],
        comment: Some("everything else".to_owned()),
    });
    Chain {
        name: name.to_owned(),
        base: Some(BaseChain {
            kind: "filter".to_owned(),
            hook,
            priority: PRIORITY,
            policy: DROP,
        }),
        flags: 0,
        rules,
    }
}

fn loopback(interface: Meta) -> Rule {
    Rule {
        expressions: vec![
            Expression::Meta(interface),
            // An interface's number is in the machine's byte order.
            Expression::Equal(LOOPBACK.to_ne_bytes().to_vec()),
            Expression::Verdict(Verdict::Accept),
        ],
        comment: Some("inside the pod".to_owned()),
    }
}

fn neighbour(kind: u8) -> Rule {
    Rule {
        expressions: [
            is(Meta::Family, IPV6).as_slice(),
            &is(Meta::Transport, ICMPV6),
            &transport(0, vec![kind]),
            &[Expression::counter(), Expression::Verdict(Verdict::Accept)],
        ]
        .concat(),
        comment: Some("neighbour discovery".to_owned()),
    }
}

/// What `allow` means for packets in (`INPUT`) or out (`OUTPUT`).
fn permit(allow: &Allow, hook: u32) -> Rule {
    let incoming = hook == INPUT;
    let answers = incoming == (allow.direction == Direction::Egress);
    let family = match allow.cidr.address() {
        IpAddr::V4(_) => IPV4,
        IpAddr::V6(_) => IPV6,
    };
    let mut expressions = is(Meta::Family, family).to_vec();
    expressions.extend(address(allow, incoming));
    expressions.extend(is(Meta::Transport, allow.protocol.number()));
    if let Some(port) = allow.port {
        // An answer comes from the port that was connected to: the source port comes first.
        let offset = if answers { 0 } else { 2 };
        expressions.extend(transport(offset, port.to_be_bytes().to_vec()));
    }
    if answers && allow.protocol == Protocol::Tcp {
        expressions.extend([
            Expression::Payload {
                base: Base::Transport,
                offset: TCP_FLAGS,
                length: 1,
            },
            Expression::Mask(vec![SYN_ACK]),
            Expression::NotEqual(vec![SYN]),
        ]);
    }
    expressions.extend([Expression::counter(), Expression::Verdict(Verdict::Accept)]);
    let what = if answers { "answers of " } else { "" };
    Rule {
        expressions,
        comment: Some(format!("{what}{allow}")),
    }
}

/// The other end's address: the source of what comes in, the destination of what goes out.
fn address(allow: &Allow, incoming: bool) -> Vec<Expression> {
    let (address, mask) = allow.cidr.bytes();
    let (first, length) = match allow.cidr.address() {
        IpAddr::V4(_) => (12, 4),
        IpAddr::V6(_) => (8, 16),
    };
    if allow.cidr.prefix() == 0 {
        return Vec::new();
    }
    vec![
        Expression::Payload {
            base: Base::Network,
            offset: if incoming { first } else { first + length },
            length,
        },
        Expression::Mask(mask),
        Expression::Equal(address),
    ]
}

fn is(what: Meta, value: u8) -> [Expression; 2] {
    [Expression::Meta(what), Expression::Equal(vec![value])]
}

fn transport(offset: u32, value: Vec<u8>) -> [Expression; 2] {
    [
        Expression::Payload {
            base: Base::Transport,
            offset,
            length: u32::try_from(value.len()).unwrap_or(u32::MAX),
        },
        Expression::Equal(value),
    ]
}

/// How `found` differs from `wanted` in what it does. Comments and counts do nothing.
pub(super) fn differences(wanted: &Table, found: &Table) -> Vec<String> {
    let mut differences = Vec::new();
    if found.flags != wanted.flags {
        let dormant = if found.flags & 1 == 1 {
            " (dormant: the kernel does not look at it)"
        } else {
            ""
        };
        differences.push(format!(
            "the table has flags {}{dormant}, expected {}",
            found.flags, wanted.flags
        ));
    }
    for chain in &found.chains {
        if !wanted.chains.iter().any(|one| one.name == chain.name) {
            differences.push(format!("chain {} is not ours", shown(&chain.name)));
        }
    }
    for chain in &wanted.chains {
        match found.chains.iter().find(|one| one.name == chain.name) {
            None => differences.push(format!("chain {} is missing", chain.name)),
            Some(found) => compare(chain, found, &mut differences),
        }
    }
    differences
}

fn compare(wanted: &Chain, found: &Chain, differences: &mut Vec<String>) {
    let name = &wanted.name;
    if found.base != wanted.base || found.flags != wanted.flags {
        differences.push(format!(
            "chain {name} is {}, expected {}",
            head(found),
            head(wanted)
        ));
    }
    if found.rules.len() != wanted.rules.len() {
        differences.push(format!(
            "chain {name} has {} rules, expected {}",
            found.rules.len(),
            wanted.rules.len()
        ));
    }
    let pairs = wanted.rules.iter().zip(&found.rules).enumerate();
    for (number, (wanted, found)) in pairs {
        let same = wanted.expressions.len() == found.expressions.len()
            && wanted
                .expressions
                .iter()
                .zip(&found.expressions)
                .all(|(wanted, found)| wanted.same(found));
        if !same {
            differences.push(format!(
                "rule {} of chain {name} is \"{}\", expected \"{}\"",
                number + 1,
                steps(found),
                steps(wanted)
            ));
            return;
        }
    }
}

/// Packets and bytes that the last rule of a chain counted.
pub(super) fn dropped(table: &Table, chain: &str) -> (u64, u64) {
    let last = table
        .chains
        .iter()
        .find(|one| one.name == chain)
        .and_then(|chain| chain.rules.last());
    let counter = last
        .into_iter()
        .flat_map(|rule| &rule.expressions)
        .find_map(|expression| match expression {
            Expression::Counter { packets, bytes } => Some((*packets, *bytes)),
            _ => None,
        });
    counter.unwrap_or_default()
}

/// Table, chains and rules, a line each. What the pod may have written is shown escaped and cut.
/// More lines than a table of ours can have are only counted.
pub(super) fn text(table: &Table) -> Vec<String> {
    let noted = |comment: &Option<String>| match comment {
        Some(comment) => format!(" # {}", shown(comment)),
        None => String::new(),
    };
    let mut lines = vec![format!(
        "table inet {} flags {}{}",
        table.name,
        table.flags,
        noted(&table.comment)
    )];
    for chain in &table.chains {
        lines.push(format!("chain {}: {}", shown(&chain.name), head(chain)));
        let rules = chain.rules.iter();
        lines.extend(rules.map(|rule| format!("  {}{}", steps(rule), noted(&rule.comment))));
    }
    if let Some(more) = lines.len().checked_sub(LINES).filter(|more| *more > 0) {
        lines.truncate(LINES);
        lines.push(format!("and {more} lines more"));
    }
    lines
}

fn head(chain: &Chain) -> String {
    let flags = match chain.flags {
        0 => String::new(),
        flags => format!(" flags {flags}"),
    };
    match &chain.base {
        None => format!("without a hook{flags}"),
        Some(base) => {
            let hook = match base.hook {
                INPUT => "input".to_owned(),
                FORWARD => "forward".to_owned(),
                OUTPUT => "output".to_owned(),
                other => other.to_string(),
            };
            let policy = match base.policy {
                DROP => "drop",
                1 => "accept",
                _ => "unknown",
            };
            format!(
                "type {} hook {hook} priority {} policy {policy}{flags}",
                shown(&base.kind),
                base.priority
            )
        }
    }
}

fn steps(rule: &Rule) -> String {
    let steps: Vec<String> = rule.expressions.iter().map(ToString::to_string).collect();
    steps.join(" ")
}

fn shown(text: &str) -> String {
    text.chars()
        .take(255)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests;
