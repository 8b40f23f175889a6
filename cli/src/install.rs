//! `impound install` and `uninstall`: the manifests of this version, applied and taken away by kubectl, which knows the
//! user's clusters and how to log in to them. What an overlay or Helm values change is done with those instead.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::arguments::{Cluster, Install, Uninstall};
use crate::failure::{Exit, Failure};
use crate::human;

/// As `deploy/kustomize/base` has them.
const DEFINITIONS: &str = include_str!("../../deploy/kustomize/base/crds.yaml");
const INSTALLED: &str = include_str!("../../deploy/kustomize/base/impound.yaml");
/// The images in there.
const AGENT: &str = "impound/agent:0.1.0";
const CONTROLLER: &str = "impound/controller:0.1.0";

const NAMESPACE: &str = "impound";
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
    kubectl.apply(DEFINITIONS)?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd/quarantines.impound.dev",
        "crd/collections.impound.dev",
    ])?;
    kubectl.apply(&manifests)?;
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
    let definition = kubectl.read(&[
        "get",
        "crd",
        "quarantines.impound.dev",
        "--ignore-not-found",
        "-o",
        "name",
    ])?;
    let in_force = match definition.trim() {
        "" => Vec::new(),
        _ => in_force(&kubectl.read(&["get", "quarantines.impound.dev", "-A", "-o", "json"])?)?,
    };
    if !in_force.is_empty() && !wanted.force {
        return Err(Failure::Failed(format!(
            "in force still, and nobody could release them without a controller:\n{}\nrelease them (`impound release POD -n \
             NAMESPACE --reason TEXT`), or say --force: then pods keep their labels and nodes stay cordoned",
            in_force.join("\n")
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
         quarantines. They go with `kubectl delete namespace {NAMESPACE}` and `kubectl delete crd quarantines.impound.dev\n\
         collections.impound.dev`."
    )?;
    Ok(Exit::Ok)
}

/// The quarantines of a list that changed something and were not released, a line each.
fn in_force(list: &str) -> Result<Vec<String>, Failure> {
    let list: Value = serde_json::from_str(list)
        .map_err(|error| Failure::failed("kubectl's list of quarantines can't be read", &error))?;
    let text = |item: &Value, path: &str| {
        let text = item.pointer(path).and_then(Value::as_str);
        human::clean(text.unwrap_or_default())
    };
    let items = list.get("items").and_then(Value::as_array);
    let items = items.into_iter().flatten();
    let left =
        items.filter(|item| !matches!(&*text(item, "/status/phase"), "Released" | "Refused"));
    let line = |item: &Value| {
        format!(
            "  {}/{} (case {})",
            text(item, "/metadata/namespace"),
            text(item, "/metadata/name"),
            text(item, "/spec/case")
        )
    };
    Ok(left.map(line).collect())
}

/// kubectl, as the user's shell would run it.
struct Kubectl<'a>(&'a Cluster);

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        if let Some(file) = &self.0.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.0.context {
            command.arg("--context").arg(context);
        }
        command.args(arguments);
        command
    }

    /// Server-side: what others set stays theirs, and a conflict with them is an error.
    fn apply(&self, manifests: &str) -> Result<(), Failure> {
        let arguments = [
            "apply",
            "--server-side",
            "--field-manager=impound-install",
            "-f",
            "-",
        ];
        let mut child = self
            .command(&arguments)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(missing)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(manifests.as_bytes())?;
        }
        let status = child.wait()?;
        succeeded(&arguments, status.success())
    }

    fn run(&self, arguments: &[&str]) -> Result<(), Failure> {
        let status = self
            .command(arguments)
            .stdin(Stdio::null())
            .status()
            .map_err(missing)?;
        succeeded(arguments, status.success())
    }

    fn read(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(missing)?;
        succeeded(arguments, output.status.success())?;
        String::from_utf8(output.stdout)
            .map_err(|error| Failure::failed("kubectl's answer is no text", &error))
    }
}

fn missing(error: std::io::Error) -> Failure {
    Failure::Usage(format!(
        "kubectl can't be run: {error}; install it (1.27 or later), or apply what `impound install --print` prints"
    ))
}

/// It said by itself what was wrong.
fn succeeded(arguments: &[&str], success: bool) -> Result<(), Failure> {
    match success {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "`kubectl {}` failed",
            arguments.join(" ")
        ))),
    }
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
    fn only_what_was_released_or_changed_nothing_is_not_in_force() {
        let one = |name: &str, phase: &str| {
            serde_json::json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"case": "INC-7"},
                "status": {"phase": phase}})
        };
        let mut items: Vec<Value> = [("a", "Complete"), ("b", "Released"), ("c", "Refused")]
            .map(|(name, phase)| one(name, phase))
            .into();
        items.push(serde_json::json!({"metadata": {"namespace": "shop", "name": "new"}, "spec": {"case": "INC-8"}}));
        let list = serde_json::json!({ "items": items }).to_string();
        let expected = ["  shop/a (case INC-7)", "  shop/new (case INC-8)"];
        assert_eq!(in_force(&list).unwrap(), expected);
    }
}
