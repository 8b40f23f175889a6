//! `impound install` and `uninstall`: the manifests of this version, applied and taken away by kubectl, which knows the
//! user's clusters and how to log in to them. What an overlay or Helm values change is done with those instead.

use std::io::Write as _;

use serde_json::Value;

use crate::arguments::{Install, Uninstall};
use crate::cluster::Kubectl;
use crate::failure::{Exit, Failure};
use crate::human;

/// As `deploy/kustomize/base` has them.
const DEFINITIONS: &str = include_str!("../../deploy/kustomize/base/crds.yaml");
const INSTALLED: &str = include_str!("../../deploy/kustomize/base/impound.yaml");
/// The images in there.
const AGENT: &str = "impound/agent:0.1.0";
const CONTROLLER: &str = "impound/controller:0.1.0";

const NAMESPACE: &str = "impound";
/// Who has set what is set, in the objects' managedFields.
const MANAGER: &str = "impound-install";
/// Everything of ours has it.
const OURS: &str = "app.kubernetes.io/part-of=impound";
/// What `impound pki init` wrote and the pods mount: kind, name, and how it is made.
const NEEDED: [(&str, &str, &str); 4] = [
    (
        "secret",
        "impound-controller-tls",
        "kubectl -n impound create secret generic impound-controller-tls --from-file=pki/controller",
    ),
    (
        "secret",
        "impound-signing-key",
        "kubectl -n impound create secret generic impound-signing-key --from-file=pki/signing/evidence.key",
    ),
    (
        "secret",
        "impound-agent-ca",
        "kubectl -n impound create secret generic impound-agent-ca --from-file=ca.crt=pki/ca/agent-ca.crt --from-file=ca.key=pki/ca/agent-ca.key",
    ),
    (
        "configmap",
        "impound-controller-ca",
        "kubectl -n impound create configmap impound-controller-ca --from-file=ca.crt=pki/ca/controller-ca.crt",
    ),
];

/// Deleted in this order. The policies first: without the controller nobody gets past them. The namespace, the
/// evidence's claim, Secrets, and the definitions with the records of all quarantines stay.
const TAKEN_AWAY: [&str; 3] = [
    "validatingadmissionpolicybindings,validatingadmissionpolicies",
    "deployments,daemonsets,services,poddisruptionbudgets,networkpolicies,serviceaccounts,resourcequotas,roles,rolebindings",
    "clusterroles,clusterrolebindings",
];

pub(crate) fn install(wanted: &Install) -> Result<Exit, Failure> {
    let manifests = INSTALLED
        .replace(AGENT, &wanted.agent_image)
        .replace(CONTROLLER, &wanted.controller_image);
    if wanted.print {
        let mut out = std::io::stdout().lock();
        out.write_all(DEFINITIONS.as_bytes())?;
        out.write_all(manifests.as_bytes())?;
        return Ok(Exit::Ok);
    }
    let kubectl = Kubectl(&wanted.cluster);
    kubectl.apply(DEFINITIONS, MANAGER)?;
    let definitions: Vec<String> = defined().map(|name| format!("crd/{name}")).collect();
    let mut wait = vec!["wait", "--for=condition=Established", "--timeout=60s"];
    wait.extend(definitions.iter().map(String::as_str));
    kubectl.run(&wait)?;
    kubectl.apply(&manifests, MANAGER)?;
    let mut missing = Vec::new();
    for (kind, name, how) in NEEDED {
        let found = kubectl.read(&[
            "get",
            kind,
            name,
            "-n",
            NAMESPACE,
            "--ignore-not-found",
            "-o",
            "name",
        ])?;
        if found.trim().is_empty() {
            missing.push(format!("  {kind} {name}\n      {how}"));
        }
    }
    let mut out = std::io::stdout().lock();
    if missing.is_empty() {
        writeln!(
            out,
            "\nInstalled. When it runs, look at it:\n  kubectl -n impound rollout status daemonset/impound-agent deployment/impound-controller\n  impound doctor"
        )?;
        return Ok(Exit::Ok);
    }
    writeln!(
        out,
        "\nInstalled. The pods wait for what `impound pki init pki` makes, from a machine that is no node:\n{}",
        missing.join("\n")
    )?;
    Ok(Exit::Partial)
}

pub(crate) fn uninstall(wanted: &Uninstall) -> Result<Exit, Failure> {
    let kubectl = Kubectl(&wanted.cluster);
    let mut running = Vec::new();
    for kind in &RUNNING {
        let definition = kubectl.read(&[
            "get",
            "crd",
            kind.definition,
            "--ignore-not-found",
            "-o",
            "name",
        ])?;
        if !definition.trim().is_empty() {
            let list = kubectl.read(&["get", kind.definition, "-A", "-o", "json"])?;
            running.extend(kind.running(&list)?);
        }
    }
    if !running.is_empty() && !wanted.force {
        return Err(Failure::Failed(format!(
            "without a controller nobody could end what is in force or under way still:\n{}\nrelease quarantines (`impound \
             release POD -n NAMESPACE --reason TEXT`), wait for collections, cancel sweeps (`impound sweep cancel NAME`), \
             or say --force: then pods keep their labels, nodes stay cordoned, and evidence that is on its way gets no seal",
            running.join("\n")
        )));
    }
    for kinds in TAKEN_AWAY {
        let everywhere = ["delete", kinds, "-l", OURS, "--ignore-not-found"];
        let here = [&everywhere[..], &["-n", NAMESPACE]].concat();
        kubectl.run(&here)?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nTaken away. What stays: the namespace {NAMESPACE} with the evidence's volume and the Secrets, and the records of all\n\
         quarantines. They go with `kubectl delete namespace {NAMESPACE}` and `kubectl delete crd {}`.",
        defined().collect::<Vec<_>>().join(" ")
    )?;
    Ok(Exit::Ok)
}

/// What there may be of ours that only a controller ends.
struct Kind {
    definition: &'static str,
    /// In words, for a line.
    name: &'static str,
    /// Phases in which nothing of it is left to do.
    over: &'static [&'static str],
}

const RUNNING: [Kind; 3] = [
    Kind {
        definition: "quarantines.impound.dev",
        name: "quarantine",
        // In all others something is changed in the cluster.
        over: &["Released", "Refused"],
    },
    Kind {
        definition: "collections.impound.dev",
        name: "collection",
        over: &["Sealed", "Partial", "Failed"],
    },
    Kind {
        definition: "sweeps.impound.dev",
        name: "sweep",
        over: &["Complete", "Partial", "Cancelled", "Refused"],
    },
];

impl Kind {
    /// Those of a list that are not over, a line each.
    fn running(&self, list: &str) -> Result<Vec<String>, Failure> {
        let list: Value = serde_json::from_str(list).map_err(|error| {
            Failure::failed(
                &format!("kubectl's list of {} can't be read", self.definition),
                &error,
            )
        })?;
        let text = |item: &Value, path: &str| {
            let text = item.pointer(path).and_then(Value::as_str);
            human::clean(text.unwrap_or_default())
        };
        let items = list.get("items").and_then(Value::as_array);
        let left = items
            .into_iter()
            .flatten()
            .filter(|item| !self.over.contains(&&*text(item, "/status/phase")));
        let line = |item: &Value| {
            let (namespace, name) = (
                text(item, "/metadata/namespace"),
                text(item, "/metadata/name"),
            );
            let place = if namespace.is_empty() { "" } else { "/" };
            let case = text(item, "/spec/case");
            format!("  {} {namespace}{place}{name} (case {case})", self.name)
        };
        Ok(left.map(line).collect())
    }
}

/// The names of our definitions, as the manifest has them.
fn defined() -> impl Iterator<Item = &'static str> {
    let names = DEFINITIONS
        .lines()
        .filter_map(|line| line.strip_prefix("  name: "));
    names.filter(|name| name.ends_with(".impound.dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_those_of_the_manifests() {
        assert!(INSTALLED.contains(&format!("image: {AGENT}")));
        assert!(INSTALLED.contains(&format!("image: {CONTROLLER}")));
    }

    #[test]
    fn all_definitions_are_waited_for() {
        let names: Vec<&str> = defined().collect();
        assert_eq!(
            names.len(),
            DEFINITIONS
                .matches("kind: CustomResourceDefinition")
                .count()
        );
        for kind in &RUNNING {
            assert!(names.contains(&kind.definition), "{names:?}");
        }
    }

    #[test]
    fn only_what_is_over_lets_an_installation_go() {
        let one = |name: &str, phase: &str| {
            serde_json::json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"case": "INC-7"},
                "status": {"phase": phase}})
        };
        let new = serde_json::json!({"metadata": {"name": "new"}, "spec": {"case": "INC-8"}});
        let [quarantine, collection, sweep] = &RUNNING;
        for (kind, left, over) in [
            (
                quarantine,
                &["Complete", "Failed", "Containing"][..],
                &["Released", "Refused"][..],
            ),
            (
                collection,
                &["Pending", "Collecting"],
                &["Sealed", "Partial", "Failed"],
            ),
            (
                sweep,
                &["Running", "Paused"],
                &["Complete", "Partial", "Cancelled", "Refused"],
            ),
        ] {
            let named = |phases: &[&str]| phases.iter().map(|phase| one(phase, phase)).collect();
            let mut items: Vec<Value> = named(left);
            let over: Vec<Value> = named(over);
            items.extend(over);
            items.push(new.clone());
            let list = serde_json::json!({ "items": items }).to_string();
            let mut expected: Vec<String> = left
                .iter()
                .map(|name| format!("  {} shop/{name} (case INC-7)", kind.name))
                .collect();
            expected.push(format!("  {} new (case INC-8)", kind.name));
            assert_eq!(kind.running(&list).unwrap(), expected);
        }
    }
}
