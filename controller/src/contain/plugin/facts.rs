//! What policies of other kinds than NetworkPolicy mean for a contained pod, said as facts.

use super::deny::{State, deny_name, effect, in_force, state, strongest};
use super::foreign::{Findings, judge};
use super::{Family, Kind, Plugin};
use crate::contain::facts::NO_POLICY_ALLOWS;
use crate::contain::proof::NODE_ISOLATED;
use crate::contain::selector::Labels;
use crate::resources::{Fact, FactState, Names};

/// Whether our denials in those kinds are in force.
pub const PLUGIN_DENIES: &str = "PluginDenies";

/// Whether others' policies of those kinds let traffic through.
pub const NO_PLUGIN_POLICY_ALLOWS: &str = "NoPluginPolicyAllows";

/// Adds the facts; none where no such kind is served. What a NetworkPolicy allows and Cilium denies may be
/// denied, if it is Cilium that is at work; definitions outlive the plugin that brought them, so it counts as
/// allowed unless the node drops it, which `facts` say already.
pub fn add(
    facts: &mut Vec<Fact>,
    plugin: &Plugin,
    namespace: &str,
    labels: &Labels,
    names: &Names,
) {
    if plugin.kinds.is_empty() && plugin.unread.is_empty() {
        return;
    }
    let isolated = facts
        .iter()
        .any(|fact| fact.name == NODE_ISOLATED && fact.state == FactState::True);
    let mut cilium = strongest(plugin).filter(|kind| kind.family == Family::Cilium);
    let denied = cilium.any(|kind| state(plugin, kind, namespace, names) == State::InForce);
    let allows = facts
        .iter_mut()
        .find(|fact| fact.name == NO_POLICY_ALLOWS && fact.state == FactState::False);
    if let (true, Some(fact)) = (denied, allows) {
        if isolated {
            fact.state = FactState::Unverified;
        }
        fact.message.push_str(
            "; our CiliumNetworkPolicy denies it, but for what comes from the pod's own node, which counts only if \
             Cilium is the network plugin at work",
        );
    }
    facts.extend(denials(plugin, namespace, names));
    let ours = in_force(plugin, namespace, names);
    facts.push(others(&judge(plugin, namespace, labels, &ours)));
}

/// An extra that is missing makes nothing untrue.
fn denials(plugin: &Plugin, namespace: &str, names: &Names) -> Option<Fact> {
    let said = |kind: &'static Kind| {
        let (title, name) = (kind.title(), deny_name(kind, namespace));
        match state(plugin, kind, namespace, names) {
            State::InForce => (true, format!("our {title} {}", effect(kind))),
            State::Altered => (
                false,
                format!("{title} {name} is not as Impound makes it, so it may let traffic through"),
            ),
            State::Missing => (false, format!("there is no {title} {name}")),
        }
    };
    let (held, open): (Vec<_>, Vec<_>) = strongest(plugin).map(said).partition(|(held, _)| *held);
    let sentences = |all: Vec<(bool, String)>| {
        let texts: Vec<String> = all.into_iter().map(|(_, text)| text).collect();
        texts.join("; ")
    };
    let (state, message) = match (held.is_empty(), open.is_empty()) {
        (true, true) => return None,
        (false, true) => (FactState::True, sentences(held)),
        _ => (
            FactState::Unverified,
            format!(
                "{}; the NetworkPolicy does not depend on it",
                sentences(open)
            ),
        ),
    };
    Some(Fact {
        name: PLUGIN_DENIES.into(),
        state,
        message,
    })
}

fn others(findings: &Findings) -> Fact {
    let Findings { allowing, open } = findings;
    let (state, message) = match (allowing.as_slice(), open.as_slice()) {
        ([], []) => (
            FactState::True,
            "no policy of the network plugin's own kinds allows the pod any traffic".to_owned(),
        ),
        ([], open) => (
            FactState::Unverified,
            open.join(" ").trim_end_matches('.').to_owned(),
        ),
        (allowing, _) => (
            FactState::False,
            format!("{}: change or delete that policy", allowing.join("; ")),
        ),
    };
    Fact {
        name: NO_PLUGIN_POLICY_ALLOWS.into(),
        state,
        message,
    }
}
