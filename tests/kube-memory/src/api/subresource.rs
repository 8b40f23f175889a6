//! Sub-resources that aren't the object itself: binding, scale, token, log, proxy, finalize.

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Call, Reply, evict};
use crate::admission::Question;
use crate::clock;
use crate::json;
use crate::patch;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::selector::Selector;
use crate::state::{By, State};
use crate::store::Object;
use crate::tokens::{BoundPod, Token};

pub(super) fn answer(call: &Call<'_>) -> Outcome<Reply> {
    let table = &*call.resource.table;
    match (table, call.target.subresource.as_str()) {
        ("pods", "eviction") => evict::answer(call),
        ("pods", "binding") => bind(call),
        ("pods", "exec" | "attach" | "portforward") => {
            call.core.shared.with(|state| {
                state.get(&call.resource, &call.target.namespace, &call.target.name)?;
                ask(state, call, "CONNECT", &Value::Null, false)
            })?;
            Ok(Reply::text(501, "this server has no way to the kubelets\n"))
        }
        ("pods", "log") => {
            call.core.shared.with(|state| {
                state.get(&call.resource, &call.target.namespace, &call.target.name)
            })?;
            // Nothing runs here, so nothing was written.
            Ok(Reply::bytes(200, "text/plain", Vec::new()))
        }
        ("serviceaccounts", "token") => token(call),
        ("namespaces", "finalize") => finalize(call),
        ("nodes" | "pods", "proxy") => {
            Ok(Reply::text(501, "this server has no way to the kubelets\n"))
        }
        (_, "scale") if call.resource.scale => scale(call),
        _ => Err(Refusal::not_served()),
    }
}

/// Asks the admission policies about a sub-resource that is no part of the object.
pub(super) fn ask(
    state: &State,
    call: &Call<'_>,
    operation: &'static str,
    object: &Value,
    dry_run: bool,
) -> Outcome<()> {
    let question = Question {
        operation,
        resource: &call.resource,
        subresource: &call.target.subresource,
        namespace: &call.target.namespace,
        name: &call.target.name,
        object,
        old: &Value::Null,
        actor: &call.actor(),
        dry_run,
    };
    question.ask(state).map(drop)
}

fn created() -> Reply {
    Reply::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}

fn bind(call: &Call<'_>) -> Outcome<Reply> {
    if call.request.method != Method::POST {
        return Err(Refusal::method_not_allowed());
    }
    let node = json::text(&call.request.json()?, "/target/name").to_owned();
    call.core.shared.with(|state| {
        let pod = state.get(&call.resource, &call.target.namespace, &call.target.name)?;
        let bound = json::text(&pod, "/spec/nodeName");
        if !bound.is_empty() {
            return Err(Refusal::storage_conflict(
                &call.resource,
                &call.target.name,
                format!(
                    "pod {} is already assigned to node {bound:?}",
                    call.target.name
                ),
            ));
        }
        crate::controllers::scheduler::bind(state, &pod, &node)
    })?;
    Ok(created())
}

fn finalize(call: &Call<'_>) -> Outcome<Reply> {
    let body = call.request.json()?;
    let mut by = By::controller(call.request.manager());
    by.actor = Some(call.actor());
    let updated = call.core.shared.with(|state| {
        state.update(
            &call.resource,
            "",
            &call.target.name,
            "finalize",
            &mut by,
            |old| {
                let mut new = old.clone();
                let finalizers = json::list(&body, "/spec/finalizers").to_vec();
                json::put(&mut new, &["spec", "finalizers"], finalizers);
                Ok(new)
            },
        )
    })?;
    Ok(Reply::json(200, &updated))
}

fn as_scale(object: &Object) -> Value {
    let selector = Selector::of_object(object.pointer("/spec/selector")).unwrap_or_default();
    let meta = |field: &str| {
        object
            .pointer(&format!("/metadata/{field}"))
            .cloned()
            .unwrap_or(Value::Null)
    };
    // Go leaves a zero out.
    let spec = match json::number(object, "/spec/replicas").unwrap_or(0) {
        0 => json!({}),
        replicas => json!({ "replicas": replicas }),
    };
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid"),
                     "resourceVersion": meta("resourceVersion"), "creationTimestamp": meta("creationTimestamp")},
        "spec": spec,
        "status": {"replicas": json::number(object, "/status/replicas").unwrap_or(0), "selector": selector.to_text()},
    })
}

fn scale(call: &Call<'_>) -> Outcome<Reply> {
    let target = &call.target;
    let body = call.request.json()?;
    let mut by = By::controller(call.request.manager());
    by.actor = Some(call.actor());
    by.dry_run = call.request.dry_run();
    let object = call.core.shared.with(|state| match call.request.method {
        Method::GET => state.get(&call.resource, &target.namespace, &target.name),
        Method::PUT | Method::PATCH => state.update(
            &call.resource,
            &target.namespace,
            &target.name,
            "",
            &mut by,
            |old| {
                let mut scale = as_scale(&old.clone().into());
                match call.request.content_type.as_str() {
                    "application/json-patch+json" => {
                        scale = patch::json_patch::apply(&scale, &body)
                            .ok_or_else(Refusal::unprocessable)?;
                    }
                    _ => patch::merge(&mut scale, &body),
                }
                let mut new = old.clone();
                json::put(
                    &mut new,
                    &["spec", "replicas"],
                    json::number(&scale, "/spec/replicas").unwrap_or(0),
                );
                let version = json::text(&scale, "/metadata/resourceVersion");
                json::put(&mut new, &["metadata", "resourceVersion"], version);
                Ok(new)
            },
        ),
        _ => Err(Refusal::method_not_allowed()),
    })?;
    Ok(Reply::json(200, &as_scale(&object)))
}

/// A token of a service account. It says nothing by itself: this server knows what it stands for.
fn token(call: &Call<'_>) -> Outcome<Reply> {
    let mut request = call.request.json()?;
    let seconds = json::number(&request, "/spec/expirationSeconds").unwrap_or(3600);
    if seconds < 600 {
        let error = FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        );
        return Err(Refusal::invalid_kind(
            "TokenRequest",
            "authentication.k8s.io",
            "",
            &[error],
        ));
    }
    let target = &call.target;
    let bearer = Uuid::new_v4().simple().to_string();
    let mut token = Token::of(&format!(
        "system:serviceaccount:{}:{}",
        target.namespace, target.name
    ));
    let audiences = json::list(&request, "/spec/audiences");
    if !audiences.is_empty() {
        let texts = audiences.iter().filter_map(serde_json::Value::as_str);
        token.audiences = texts.map(str::to_owned).collect();
    }
    let audiences = token.audiences.clone();
    let account = call.core.shared.with(|state| {
        let account = state.get(&call.resource, &target.namespace, &target.name)?;
        token.uid = json::uid(&account).to_owned();
        token.pod = bound_pod(state, &target.namespace, &request)?;
        state.tokens.insert(bearer.clone(), token);
        Ok::<_, Refusal>(account)
    })?;
    json::put(&mut request, &["kind"], "TokenRequest");
    json::put(&mut request, &["apiVersion"], "authentication.k8s.io/v1");
    json::put(&mut request, &["spec", "audiences"], json!(audiences));
    json::put(
        &mut request,
        &["metadata"],
        json!({"name": target.name, "namespace": target.namespace, "uid": json::uid(&account),
               "creationTimestamp": clock::now()}),
    );
    json::put(
        &mut request,
        &["status"],
        json!({"token": bearer, "expirationTimestamp": clock::after(seconds)}),
    );
    Ok(Reply::json(201, &request))
}

/// The pod that the token is to be bound to, if there is one.
fn bound_pod(state: &State, namespace: &str, request: &Value) -> Outcome<Option<BoundPod>> {
    let reference = |field: &str| json::text(request, &format!("/spec/boundObjectRef/{field}"));
    if reference("kind") != "Pod" {
        return Ok(None);
    }
    let pods = state.resource("pods")?;
    let pod = state.get(&pods, namespace, reference("name"))?;
    let (wanted, found) = (reference("uid"), json::uid(&pod));
    if !wanted.is_empty() && wanted != found {
        return Err(Refusal::precondition(
            &pods,
            reference("name"),
            format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            ),
        ));
    }
    let node = json::text(&pod, "/spec/nodeName").to_owned();
    let node_uid = state
        .store
        .get("nodes", "", &node)
        .map(|node| json::uid(&node).to_owned())
        .unwrap_or_default();
    Ok(Some(BoundPod {
        namespace: namespace.to_owned(),
        name: json::name(&pod).to_owned(),
        uid: found.to_owned(),
        node,
        node_uid,
    }))
}
