//! OpenAPI v3, as little as kubectl needs: it asks only whether the server validates fields itself.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Reply;
use crate::core::Core;
use crate::refusal::{Outcome, Refusal};
use crate::registry::Resource;

pub(super) fn answer(core: &Arc<Core>, path: &str) -> Outcome<Reply> {
    let resources: Vec<Arc<Resource>> = core.shared.with(|state| state.registry.all().to_vec());
    match path {
        "/openapi/v3" => {
            let mut paths = Map::new();
            for resource in &resources {
                let root = root(resource);
                let url = format!("/openapi/v3/{root}");
                paths.insert(root, json!({"serverRelativeURL": url}));
            }
            Ok(Reply::json(200, &json!({"paths": paths})))
        }
        // The old document is only served as protobuf to those who ask for it; kubectl does without.
        "/openapi/v2" => Err(Refusal::new(
            406,
            "NotAcceptable",
            "only OpenAPI v3 is served",
        )),
        _ => {
            let root_wanted = path.trim_start_matches("/openapi/v3/");
            let of_version: Vec<&Arc<Resource>> = resources
                .iter()
                .filter(|resource| root(resource) == root_wanted)
                .collect();
            if of_version.is_empty() {
                return Err(Refusal::not_served());
            }
            Ok(Reply::json(200, &document(&of_version)))
        }
    }
}

/// `api/v1` or `apis/group/version`.
fn root(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}", resource.api_version())
    }
}

fn document(resources: &[&Arc<Resource>]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        let scope = if resource.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let collection = format!("/{}{scope}/{}", root(resource), resource.plural);
        let kind =
            json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let operation = |action: &str| {
            let parameter =
                |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
            json!({
                "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
            })
        };
        paths.insert(collection.clone(), json!({"post": operation("post")}));
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({"patch": operation("patch"), "put": operation("put")}),
        );
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"},
           "paths": paths, "components": {"schemas": {}}})
}
