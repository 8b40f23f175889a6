//! Pods and pod templates: defaults, what admission adds, which fields may change.

use serde_json::{Value, json};

use super::meta;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::state::{State, random_suffix};

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Defaults and admission of a new pod.
pub(crate) fn prepare_create(state: &State, pod: &mut Value) -> Outcome<()> {
    json::take(pod, &["spec", "ephemeralContainers"]);
    default_pod(pod);
    add_service_account(state, pod)?;
    for key in ["not-ready", "unreachable"] {
        let key = format!("node.kubernetes.io/{key}");
        let tolerates = |toleration: &Value| {
            let found = json::text(toleration, "/key");
            (found == key || found.is_empty())
                && matches!(json::text(toleration, "/effect"), "" | "NoExecute")
        };
        if let Some(list) = json::entry_list(pod, &["spec", "tolerations"])
            && !list.iter().any(tolerates)
        {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    json::fill(pod, &["spec", "priority"], 0);
    json::fill(pod, &["spec", "preemptionPolicy"], "PreemptLowerPriority");
    let quality = quality(pod);
    json::put(
        pod,
        &["status"],
        json!({"phase": "Pending", "qosClass": quality}),
    );
    Ok(())
}

/// The service account and its token volume; a mirror pod gets neither.
fn add_service_account(state: &State, pod: &mut Value) -> Outcome<()> {
    if json::present(pod, "/metadata/annotations/kubernetes.io~1config.mirror") {
        return Ok(());
    }
    let namespace = json::namespace(pod).to_owned();
    json::fill(pod, &["spec", "serviceAccountName"], "default");
    let account = json::text(pod, "/spec/serviceAccountName").to_owned();
    json::put(pod, &["spec", "serviceAccount"], account.as_str());
    let Some(found) = state.store.get("serviceaccounts", &namespace, &account) else {
        let resource = state.resource("pods")?;
        return Err(Refusal::forbidden(
            &resource,
            json::name(pod),
            format!(
                "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
            ),
        ));
    };
    let automount = pod
        .pointer("/spec/automountServiceAccountToken")
        .or_else(|| found.get("automountServiceAccountToken"));
    if automount == Some(&json!(false)) {
        return Ok(());
    }
    let has_volume = json::list(pod, "/spec/volumes")
        .iter()
        .any(|volume| json::text(volume, "/name").starts_with("kube-api-access-"));
    if has_volume {
        return Ok(());
    }
    let volume = format!("kube-api-access-{}", random_suffix(5));
    if let Some(volumes) = json::entry_list(pod, &["spec", "volumes"]) {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            // Some builds of the API server add this one; the recorded one did.
            {"configMap": {"name": "openshift-service-ca.crt",
                           "items": [{"key": "service-ca.crt", "path": "service-ca.crt"}]}},
        ]}}));
    }
    for list in ["containers", "initContainers"] {
        for container in json::list_mut(pod, &format!("/spec/{list}"))
            .into_iter()
            .flatten()
        {
            if let Some(mounts) = json::entry_list(container, &["volumeMounts"])
                && !mounts
                    .iter()
                    .any(|mount| json::text(mount, "/mountPath") == TOKEN_PATH)
            {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            }
        }
    }
    Ok(())
}

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Defaults of a pod that its template doesn't get.
pub(crate) fn default_pod(pod: &mut Value) {
    if let Some(spec) = pod.get_mut("spec") {
        default_spec(spec);
        json::fill(spec, &["enableServiceLinks"], true);
    }
}

/// Defaults that pods and pod templates share.
pub(crate) fn default_spec(spec: &mut Value) {
    json::fill(spec, &["restartPolicy"], "Always");
    json::fill(spec, &["terminationGracePeriodSeconds"], 30);
    json::fill(spec, &["dnsPolicy"], "ClusterFirst");
    json::fill(spec, &["securityContext"], json!({}));
    json::fill(spec, &["schedulerName"], "default-scheduler");
    let account = json::text(spec, "/serviceAccountName").to_owned();
    if !account.is_empty() {
        json::put(spec, &["serviceAccount"], account);
    }
    for list in CONTAINERS {
        if json::present(spec, &format!("/{list}"))
            && json::list(spec, &format!("/{list}")).is_empty()
        {
            json::take(spec, &[list]);
        }
        for container in json::list_mut(spec, &format!("/{list}"))
            .into_iter()
            .flatten()
        {
            default_container(container);
        }
    }
    for volume in json::list_mut(spec, "/volumes").into_iter().flatten() {
        for kind in ["configMap", "secret", "projected", "downwardAPI"] {
            if volume.get(kind).is_some() {
                json::fill(volume, &[kind, "defaultMode"], 420);
            }
        }
        if volume.get("hostPath").is_some() {
            json::fill(volume, &["hostPath", "type"], "");
        }
    }
}

fn default_container(container: &mut Value) {
    json::fill(container, &["resources"], json!({}));
    json::fill(
        container,
        &["terminationMessagePath"],
        "/dev/termination-log",
    );
    json::fill(container, &["terminationMessagePolicy"], "File");
    let image = json::text(container, "/image");
    let last = image.rsplit('/').next().unwrap_or(image);
    let newest = !last.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    json::fill(
        container,
        &["imagePullPolicy"],
        if newest { "Always" } else { "IfNotPresent" },
    );
    for port in json::list_mut(container, "/ports").into_iter().flatten() {
        json::fill(port, &["protocol"], "TCP");
    }
    for variable in json::list_mut(container, "/env").into_iter().flatten() {
        if variable.pointer("/valueFrom/fieldRef").is_some() {
            json::fill(variable, &["valueFrom", "fieldRef", "apiVersion"], "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe) else {
            continue;
        };
        for (field, value) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            json::fill(probe, &[field], value);
        }
        if probe.get("httpGet").is_some() {
            json::fill(probe, &["httpGet", "path"], "/");
            json::fill(probe, &["httpGet", "scheme"], "HTTP");
        }
    }
    // A limit without a request is also the request.
    let limits = json::map(container, "/resources/limits")
        .cloned()
        .unwrap_or_default();
    for (name, quantity) in limits {
        json::fill(container, &["resources", "requests", &name], quantity);
    }
}

fn quality(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["containers", "initContainers"] {
        for container in json::list(pod, &format!("/spec/{list}")) {
            let limits = container.pointer("/resources/limits");
            let requests = container.pointer("/resources/requests");
            any |= limits.is_some() || requests.is_some();
            let both = limits.is_some_and(|l| l.get("cpu").is_some() && l.get("memory").is_some());
            guaranteed &= both && limits == requests;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Field errors of a pod; of an update also forbidden changes.
pub(crate) fn validate(pod: &Value, old: Option<(&Value, &str)>) -> Vec<FieldError> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut errors = validate_spec("spec", spec);
    if let Some((old, subresource)) = old
        && errors.is_empty()
    {
        let before = old.get("spec").unwrap_or(&Value::Null);
        match subresource {
            "ephemeralcontainers" => errors.extend(ephemeral_errors(before, spec)),
            "resize" => errors.extend(resize_error(before, spec)),
            "binding" => {}
            _ => errors.extend(immutable_error(before, spec)),
        }
    }
    errors
}

/// Field errors that pods and templates share.
pub(crate) fn validate_spec(field: &str, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if json::list(spec, "/containers").is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let mut names = Vec::new();
    for list in CONTAINERS {
        for (position, container) in json::list(spec, &format!("/{list}")).iter().enumerate() {
            let place = format!("{field}.{list}[{position}]");
            let name = json::text(container, "/name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{place}.name"), ""));
            } else if let Some(error) = meta::label(&format!("{place}.name"), name) {
                errors.push(error);
            }
            if names.contains(&name) {
                errors.push(FieldError::duplicate(
                    format!("{place}.name"),
                    format!("{name:?}"),
                ));
            }
            names.push(name);
            if json::text(container, "/image").is_empty() {
                errors.push(FieldError::required(format!("{place}.image"), ""));
            }
            let volumes = json::list(spec, "/volumes");
            for (at, mount) in json::list(container, "/volumeMounts").iter().enumerate() {
                let wanted = mount.get("name");
                if !volumes.iter().any(|volume| volume.get("name") == wanted) {
                    errors.push(FieldError {
                        reason: "FieldValueNotFound",
                        field: format!("{place}.volumeMounts[{at}].name"),
                        message: format!("Not found: {}", wanted.unwrap_or(&Value::Null)),
                    });
                }
            }
        }
    }
    let policies = [json!("Always"), json!("OnFailure"), json!("Never")];
    if let Some(policy) = spec.get("restartPolicy")
        && !policies.contains(policy)
    {
        errors.push(FieldError::not_supported(
            format!("{field}.restartPolicy"),
            policy,
            &policies,
        ));
    }
    errors
}

fn ephemeral_errors(old: &Value, new: &Value) -> Vec<FieldError> {
    let fresh = json::list(new, "/ephemeralContainers");
    json::list(old, "/ephemeralContainers")
        .iter()
        .filter_map(|container| {
            let name = json::text(container, "/name");
            let what = match fresh.iter().find(|c| json::text(c, "/name") == name) {
                None => "removed",
                Some(found) if found != container => "changed",
                Some(_) => return None,
            };
            Some(FieldError::forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers {name:?} may not be {what}\n"),
            ))
        })
        .collect()
}

/// A resize changes what containers may use, and nothing else. That the service class stays the same is not
/// asked here.
fn resize_error(old: &Value, new: &Value) -> Option<FieldError> {
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in json::list_mut(&mut spec, &format!("/{list}"))
                .into_iter()
                .flatten()
            {
                json::take(container, &["resources"]);
            }
        }
        spec
    };
    (fixed(old) != fixed(new)).then(|| {
        FieldError::forbidden(
            "spec",
            "only cpu and memory resources are mutable".to_owned(),
        )
    })
}

/// The few fields of a pod's spec that may change. The real message ends with a diff of Go structures.
fn immutable_error(old: &Value, new: &Value) -> Option<FieldError> {
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in json::list_mut(&mut spec, &format!("/{list}"))
                .into_iter()
                .flatten()
            {
                json::take(container, &["image"]);
            }
        }
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
            "schedulingGates",
        ] {
            json::take(&mut spec, &[field]);
        }
        spec
    };
    let grace = |spec| json::number(spec, "/terminationGracePeriodSeconds");
    let kept_tolerations = json::list(old, "/tolerations")
        .iter()
        .all(|toleration| json::list(new, "/tolerations").contains(toleration));
    let grace_ok = grace(old) == grace(new) || (grace(old) < Some(0) && grace(new) == Some(1));
    if fixed(old) == fixed(new) && kept_tolerations && grace_ok {
        return None;
    }
    Some(FieldError::forbidden(
        "spec",
        format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}",
            first_difference("", old, new)
        ),
    ))
}

fn first_difference(path: &str, old: &Value, new: &Value) -> String {
    if let (Some(a), Some(b)) = (old.as_object(), new.as_object()) {
        for key in a.keys().chain(b.keys()) {
            let pair = (
                a.get(key).unwrap_or(&Value::Null),
                b.get(key).unwrap_or(&Value::Null),
            );
            if pair.0 != pair.1 {
                return first_difference(&format!("{path}.{key}"), pair.0, pair.1);
            }
        }
    }
    format!("@@ {path} @@\n- {old}\n+ {new}\n")
}
