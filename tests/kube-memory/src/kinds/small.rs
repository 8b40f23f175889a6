//! The kinds that need only a few rules: services, nodes, network policies, leases, budgets, secrets, events.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::clock;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::selector::Selector;
use crate::state::State;

/// Ports, IP families and the cluster IP.
pub(crate) fn prepare_service(state: &mut State, service: &mut Value, old: Option<&Value>) {
    for port in json::list_mut(service, "/spec/ports").into_iter().flatten() {
        json::fill(port, &["protocol"], "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        json::fill(port, &["targetPort"], number);
    }
    json::fill(service, &["spec", "type"], "ClusterIP");
    json::fill(service, &["spec", "sessionAffinity"], "None");
    if json::text(service, "/spec/type") != "ExternalName" {
        let before = old
            .map_or("", |old| json::text(old, "/spec/clusterIP"))
            .to_owned();
        if json::text(service, "/spec/clusterIP").is_empty() {
            let address = if before.is_empty() {
                state.service_ip()
            } else {
                before
            };
            json::put(service, &["spec", "clusterIP"], address);
        }
        let address = json::text(service, "/spec/clusterIP").to_owned();
        json::put(service, &["spec", "clusterIPs"], json!([address]));
        json::fill(service, &["spec", "ipFamilies"], json!(["IPv4"]));
        json::fill(service, &["spec", "ipFamilyPolicy"], "SingleStack");
        json::fill(service, &["spec", "internalTrafficPolicy"], "Cluster");
    }
    if old.is_none() {
        json::put(service, &["status"], json!({"loadBalancer": {}}));
    }
}

pub(crate) fn validate_service(service: &Value) -> Vec<FieldError> {
    let headless = json::text(service, "/spec/clusterIP") == "None";
    let external = json::text(service, "/spec/type") == "ExternalName";
    if json::list(service, "/spec/ports").is_empty() && !headless && !external {
        return vec![FieldError::required("spec.ports", "")];
    }
    Vec::new()
}

/// A policy that names no types is for ingress, and for egress if it has egress rules.
pub(crate) fn prepare_policy(policy: &mut Value) {
    json::fill(policy, &["spec", "podSelector"], json!({}));
    if json::list(policy, "/spec/policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !json::list(policy, "/spec/egress").is_empty() {
            types.push("Egress");
        }
        json::put(policy, &["spec", "policyTypes"], types);
    }
    for direction in ["ingress", "egress"] {
        for rule in json::list_mut(policy, &format!("/spec/{direction}"))
            .into_iter()
            .flatten()
        {
            for port in json::list_mut(rule, "/ports").into_iter().flatten() {
                json::fill(port, &["protocol"], "TCP");
            }
        }
    }
}

pub(crate) fn validate_policy(policy: &Value) -> Vec<FieldError> {
    let allowed = [json!("Ingress"), json!("Egress")];
    json::list(policy, "/spec/policyTypes")
        .iter()
        .enumerate()
        .filter(|(_, found)| !allowed.contains(found))
        .map(|(at, found)| {
            FieldError::not_supported(format!("spec.policyTypes[{at}]"), found, &allowed)
        })
        .collect()
}

/// Taints are one list; a key and effect may be in it once.
pub(crate) fn validate_node(node: &Value) -> Vec<FieldError> {
    let taints = json::list(node, "/spec/taints");
    let mut errors = Vec::new();
    for (at, taint) in taints.iter().enumerate() {
        let same = |other: &&Value| {
            other.get("key") == taint.get("key") && other.get("effect") == taint.get("effect")
        };
        if taints.iter().take(at).any(|other| same(&other)) {
            let text = |field: &str| Value::from(json::text(taint, field));
            let shown = format!(
                "{{\"Key\":{},\"Value\":{},\"Effect\":{},\"TimeAdded\":{}}}: taints must be unique by key and effect pair",
                text("/key"),
                text("/value"),
                text("/effect"),
                taint.get("timeAdded").unwrap_or(&Value::Null),
            );
            let error = FieldError::duplicate(format!("metadata.taints[{at}]"), shown);
            errors.push(error);
        }
        let effects = [
            json!("NoSchedule"),
            json!("PreferNoSchedule"),
            json!("NoExecute"),
        ];
        let effect = taint.get("effect").unwrap_or(&Value::Null);
        if !effects.contains(effect) {
            errors.push(FieldError::not_supported(
                format!("spec.taints[{at}].effect"),
                effect,
                &effects,
            ));
        }
    }
    errors
}

pub(crate) fn validate_lease(lease: &Value) -> Vec<FieldError> {
    ["leaseDurationSeconds", "leaseTransitions"]
        .into_iter()
        .filter_map(|field| {
            let value = json::number(lease, &format!("/spec/{field}"))?;
            let (least, words) = match field {
                "leaseDurationSeconds" => (1, "must be greater than 0"),
                _ => (0, "must be greater than or equal to 0"),
            };
            (value < least)
                .then(|| FieldError::invalid(format!("spec.{field}"), &Value::from(value), words))
        })
        .collect()
}

pub(crate) fn validate_budget(budget: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if json::present(budget, "/spec/minAvailable") && json::present(budget, "/spec/maxUnavailable")
    {
        errors.push(FieldError::invalid(
            "spec",
            budget.get("spec").unwrap_or(&Value::Null),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    let selector = budget.pointer("/spec/selector");
    if selector.is_some() && Selector::of_object(selector).is_none() {
        errors.push(FieldError::invalid(
            "spec.selector",
            selector.unwrap_or(&Value::Null),
            "not a valid selector",
        ));
    }
    errors
}

/// A binding's role never changes.
pub(crate) fn validate_binding(binding: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let role = binding.get("roleRef").unwrap_or(&Value::Null);
    match old {
        Some(old) if old.get("roleRef") != Some(role) => {
            vec![FieldError::invalid(
                "roleRef",
                role,
                "cannot change roleRef",
            )]
        }
        _ => Vec::new(),
    }
}

/// `immutable: true` can be neither taken back nor gone round.
pub(crate) fn validate_immutable(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let Some(old) = old.filter(|old| json::truth(old, "/immutable")) else {
        return Vec::new();
    };
    ["immutable", "data", "binaryData", "stringData"]
        .into_iter()
        .filter(|field| old.get(*field) != object.get(*field))
        .map(|field| FieldError::forbidden(field, "field is immutable when `immutable` is set"))
        .collect()
}

/// `stringData` is written into `data`.
pub(crate) fn prepare_secret(secret: &mut Value) {
    if let Some(Value::Object(plain)) = json::take(secret, &["stringData"]) {
        for (key, value) in plain {
            let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
            json::put(secret, &["data", &key], encoded);
        }
    }
    json::fill(secret, &["type"], "Opaque");
}

/// An event is stored in the shape of the core API.
pub(crate) fn prepare_event(event: &mut Value) {
    json::put(event, &["apiVersion"], "v1");
    for (new, old) in [
        ("note", "message"),
        ("regarding", "involvedObject"),
        ("reportingController", "reportingComponent"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
    ] {
        if let Some(value) = json::take(event, &[new]) {
            json::put(event, &[old], value);
        }
    }
    if json::text(event, "/involvedObject/namespace").is_empty()
        && !json::namespace(event).is_empty()
    {
        let namespace = json::namespace(event).to_owned();
        if json::text(event, "/involvedObject/kind") != "Node" {
            json::fill(event, &["involvedObject", "namespace"], namespace);
        }
    }
    json::fill(event, &["source"], json!({}));
}

/// An event as `events.k8s.io/v1` shows it.
pub(crate) fn event_as_new(event: &Value) -> Value {
    let mut event = event.clone();
    json::put(&mut event, &["apiVersion"], "events.k8s.io/v1");
    for (old, new) in [
        ("message", "note"),
        ("involvedObject", "regarding"),
        ("reportingComponent", "reportingController"),
        ("source", "deprecatedSource"),
        ("firstTimestamp", "deprecatedFirstTimestamp"),
        ("lastTimestamp", "deprecatedLastTimestamp"),
        ("count", "deprecatedCount"),
    ] {
        if let Some(value) = json::take(&mut event, &[old]) {
            json::put(&mut event, &[new], value);
        }
    }
    event
}

/// Lease times need microseconds: Go's decoder refuses others. In a patch the refusal shows the whole object.
pub(crate) fn check_times(resource: &Resource, object: &Value, patched: bool) -> Outcome<()> {
    if !resource.is("leases.coordination.k8s.io") {
        return Ok(());
    }
    for field in ["acquireTime", "renewTime"] {
        let Some(given) = object
            .pointer(&format!("/spec/{field}"))
            .and_then(Value::as_str)
        else {
            continue;
        };
        let Some(part) = micro_time_error(given) else {
            continue;
        };
        let error = format!(
            "parsing time \"{given}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse {part}"
        );
        return Err(if patched {
            Refusal::invalid_kind(
                "",
                "",
                "",
                &[FieldError::invalid_text(
                    "patch",
                    &object.to_string(),
                    error,
                )],
            )
        } else {
            Refusal::bad_request(format!(
                "Lease in version \"v1\" cannot be handled as a Lease: {error}"
            ))
        });
    }
    Ok(())
}

fn micro_time_error(given: &str) -> Option<String> {
    if !given.bytes().take(4).all(|byte| byte.is_ascii_digit()) || given.len() < 4 {
        return Some(format!("\"{given}\" as \"2006\""));
    }
    let rest = given.get(19..).unwrap_or("");
    if clock::parse(given).is_some() && !rest.starts_with('.') {
        return Some(format!("\"{rest}\" as \".000000\""));
    }
    clock::parse(given)
        .is_none()
        .then(|| format!("\"{rest}\" as \"Z07:00\""))
}
