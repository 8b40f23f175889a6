//! EndpointSlices and Endpoints of services with a selector.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::owned;
use crate::json;
use crate::refusal::Outcome;
use crate::selector::Selector;
use crate::state::{DeleteOptions, State};
use crate::store::Object;

const SLICES: &str = "endpointslices.discovery.k8s.io";
const MANAGER: &str = "kube-controller-manager";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    let pods = state.store.list("pods", namespace);
    for service in state.store.list("services", namespace) {
        if json::map(&service, "/spec/selector").is_none_or(|selector| selector.is_empty())
            || json::terminating(&service)
        {
            continue;
        }
        let selector = Selector::of_map(json::map(&service, "/spec/selector"));
        let chosen: Vec<&Object> = pods
            .iter()
            .filter(|pod| selector.matches(json::labels(pod)))
            .filter(|pod| !json::text(pod, "/status/podIP").is_empty() && !owned::finished(pod))
            .collect();
        slice(state, &service, &chosen)?;
        endpoints(state, &service, &chosen)?;
    }
    let services: BTreeSet<String> = state
        .store
        .list("services", namespace)
        .iter()
        .map(|service| json::name(service).to_owned())
        .collect();
    for old in state.store.list("endpoints", namespace) {
        let made_here = json::text(&old, "/metadata/labels/endpoints.kubernetes.io~1managed-by")
            == "endpoint-controller";
        if made_here && !services.contains(json::name(&old)) {
            state.discard("endpoints", &old, &DeleteOptions::default())?;
        }
    }
    Ok(())
}

/// Ports of a service as its pods have them; a named port is looked up in the first pod.
fn ports(service: &Value, pod: Option<&&Object>) -> Vec<Value> {
    let resolve = |port: &Value| -> Value {
        match port.get("targetPort") {
            Some(Value::String(name)) => pod
                .into_iter()
                .flat_map(|pod| json::list(pod, "/spec/containers"))
                .flat_map(|container| json::list(container, "/ports"))
                .find(|found| json::text(found, "/name") == name)
                .and_then(|found| found.get("containerPort"))
                .cloned()
                .unwrap_or(Value::Null),
            Some(number) => number.clone(),
            None => port.get("port").cloned().unwrap_or(Value::Null),
        }
    };
    json::list(service, "/spec/ports")
        .iter()
        .map(|port| (port, resolve(port)))
        .filter(|(_, target)| !target.is_null())
        .map(|(port, target)| {
            json!({"name": json::text(port, "/name"), "protocol": json::text(port, "/protocol"), "port": target})
        })
        .collect()
}

fn target(pod: &Value) -> Value {
    json!({"kind": "Pod", "namespace": json::namespace(pod), "name": json::name(pod), "uid": json::uid(pod)})
}

fn slice(state: &mut State, service: &Object, pods: &[&Object]) -> Outcome<()> {
    let unready = json::truth(service, "/spec/publishNotReadyAddresses");
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let (serving, terminating) = (owned::ready(pod), json::terminating(pod));
            let ready = (serving && !terminating) || unready;
            json!({
                "addresses": [json::text(pod, "/status/podIP")],
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "targetRef": target(pod), "nodeName": json::text(pod, "/spec/nodeName"),
            })
        })
        .collect();
    let ports = ports(service, pods.first());
    let name = json::name(service);
    let old = state
        .store
        .list(SLICES, json::namespace(service))
        .into_iter()
        .find(|slice| {
            json::text(slice, "/metadata/labels/kubernetes.io~1service-name") == name
                && json::text(
                    slice,
                    "/metadata/labels/endpointslice.kubernetes.io~1managed-by",
                ) == "endpointslice-controller.k8s.io"
        });
    match old {
        Some(old) => {
            if old.get("endpoints") == Some(&json!(endpoints))
                && old.get("ports") == Some(&json!(ports))
            {
                return Ok(());
            }
            state
                .change(SLICES, &old, "", MANAGER, |slice| {
                    json::put(slice, &["endpoints"], endpoints);
                    json::put(slice, &["ports"], ports);
                })
                .map(drop)
        }
        None => {
            let mut labels = json!({
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            });
            if json::text(service, "/spec/clusterIP") == "None" {
                json::put(&mut labels, &["service.kubernetes.io/headless"], "");
            }
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"generateName": format!("{name}-"), "namespace": json::namespace(service),
                             "labels": labels, "ownerReferences": [owned::reference(service)]},
                "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
            });
            state.make(SLICES, slice, MANAGER).map(drop)
        }
    }
}

fn endpoints(state: &mut State, service: &Object, pods: &[&Object]) -> Outcome<()> {
    let addresses = |wanted: bool| -> Vec<Value> {
        pods.iter()
            .filter(|pod| !json::terminating(pod) && owned::ready(pod) == wanted)
            .map(|pod| {
                json!({"ip": json::text(pod, "/status/podIP"), "nodeName": json::text(pod, "/spec/nodeName"),
                       "targetRef": target(pod)})
            })
            .collect()
    };
    let mut subset = json!({"ports": ports(service, pods.first())});
    for (field, list) in [
        ("addresses", addresses(true)),
        ("notReadyAddresses", addresses(false)),
    ] {
        if !list.is_empty() {
            json::put(&mut subset, &[field], list);
        }
    }
    let filled = subset.get("addresses").is_some() || subset.get("notReadyAddresses").is_some();
    let subsets = if filled { json!([subset]) } else { json!([]) };
    match state
        .store
        .get("endpoints", json::namespace(service), json::name(service))
    {
        Some(old)
            if json::list(&old, "/subsets")
                == json::list(&json!({"subsets": subsets}), "/subsets") =>
        {
            Ok(())
        }
        Some(old) => state
            .change("endpoints", &old, "", MANAGER, |endpoints| {
                json::put(endpoints, &["subsets"], subsets)
            })
            .map(drop),
        None => {
            let endpoints = json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": json::name(service), "namespace": json::namespace(service),
                             "labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}},
                "subsets": subsets,
            });
            state.make("endpoints", endpoints, MANAGER).map(drop)
        }
    }
}
