//! What policies of other kinds than NetworkPolicy mean for a contained pod, said as facts.

use super::deny::{is_in_force, strongest};
use super::foreign::{Findings, in_force, judge};
use super::{Family, Plugin};
use crate::contain::facts::NO_POLICY_ALLOWS;
use crate::contain::proof::NODE_ISOLATED;
use crate::contain::selector::Labels;
use crate::contain::settings::Settings;
use crate::resources::{Fact, FactState};

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
    settings: &Settings,
) {
    if plugin.kinds.is_empty() && plugin.unread.is_empty() {
        return;
    }
    let isolated = facts
        .iter()
        .any(|fact| fact.name == NODE_ISOLATED && fact.state == FactState::True);
    let denied = is_in_force(plugin, Family::Cilium, namespace, settings);
    let allows = facts
        .iter_mut()
        .find(|fact| fact.name == NO_POLICY_ALLOWS && fact.state == FactState::False);
    if let (true, Some(fact)) = (denied, allows) {
        if isolated {
            fact.state = FactState::Unverified;
        }
        fact.message.push_str(
            "; our CiliumNetworkPolicy denies it, which counts only if Cilium is the network plugin at work",
        );
    }
    facts.extend(denials(plugin, namespace, settings));
    facts.push(others(&judge(
        plugin,
        namespace,
        labels,
        in_force(plugin, namespace, settings),
    )));
}

fn denials(plugin: &Plugin, namespace: &str, settings: &Settings) -> Option<Fact> {
    let (held, missing): (Vec<_>, Vec<_>) =
        strongest(plugin).partition(|kind| is_in_force(plugin, kind.family, namespace, settings));
    let names = |kinds: &[&super::Kind]| {
        let titles: Vec<String> = kinds.iter().map(|kind| kind.title()).collect();
        titles.join(" and ")
    };
    if held.is_empty() && missing.is_empty() {
        return None;
    }
    let (state, message) = if missing.is_empty() {
        (
            FactState::True,
            format!(
                "a {} of ours denies all traffic of the pod too",
                names(&held)
            ),
        )
    } else {
        let message = format!(
            "no {} of ours denies the pod's traffic; the NetworkPolicy does not depend on it",
            names(&missing)
        );
        // An extra that is missing makes nothing untrue.
        (FactState::Unverified, message)
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
