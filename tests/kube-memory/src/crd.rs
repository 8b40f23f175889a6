//! CustomResourceDefinitions and what they define: schema, rules, printer columns.

pub(crate) mod columns;
mod rules;
mod schema;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::{Registry, Resource, table_name};
use crate::state::{By, State};

use columns::Column;

/// The finalizer that keeps a definition while its objects are deleted.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The resource of definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// What a definition says of one version.
#[derive(Debug)]
pub(crate) struct CustomVersion {
    pub(crate) schema: Value,
    pub(crate) columns: Vec<Column>,
    has_rules: bool,
}

/// Prunes, defaults and checks a custom resource.
pub(crate) fn admit(
    resource: &Resource,
    custom: &CustomVersion,
    object: &mut Value,
    old: Option<&Value>,
    by: &mut By<'_>,
) -> Outcome<()> {
    let mut unknown = Vec::new();
    schema::prune_root(object, &custom.schema, &mut unknown);
    if !unknown.is_empty() {
        let quoted: Vec<String> = unknown
            .iter()
            .map(|field| format!("unknown field \"{field}\""))
            .collect();
        if by.strict {
            return Err(Refusal::bad_request(format!(
                "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: {}",
                resource.version,
                quoted.join(", "),
                kind = resource.kind,
            )));
        }
        by.warnings.extend(quoted);
    }
    schema::default(object, &custom.schema);
    let mut errors = Vec::new();
    schema::validate_root(object, &custom.schema, &mut errors);
    if !errors.is_empty() {
        if custom.has_rules {
            errors.push(FieldError::rule(
                "<nil>",
                "null: some validation rules were not checked because the object was invalid; correct the existing \
                 errors to complete validation",
            ));
        }
        return Err(Refusal::invalid(resource, json::name(object), &errors));
    }
    rules::check(object, old, &custom.schema, "", &mut errors);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid(resource, json::name(object), &errors))
    }
}

/// First status and defaults of a new definition.
pub(crate) fn prepare_definition(definition: &mut Value) -> Outcome<()> {
    check_definition(definition)?;
    let stored: Vec<Value> = json::list(definition, "/spec/versions")
        .iter()
        .filter(|version| json::truth(version, "/storage"))
        .map(|version| json!(json::text(version, "/name")))
        .collect();
    json::put(
        definition,
        &["status"],
        json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}),
    );
    Ok(())
}

/// Defaults and field errors of a definition. Rules that can't be evaluated here are refused here, not ignored.
pub(crate) fn check_definition(definition: &mut Value) -> Outcome<()> {
    json::fill(definition, &["spec", "conversion", "strategy"], "None");
    let kind = json::text(definition, "/spec/names/kind").to_owned();
    json::fill(
        definition,
        &["spec", "names", "singular"],
        kind.to_lowercase(),
    );
    json::fill(
        definition,
        &["spec", "names", "listKind"],
        format!("{kind}List"),
    );
    let mut errors = Vec::new();
    let (plural, group) = (
        json::text(definition, "/spec/names/plural"),
        json::text(definition, "/spec/group"),
    );
    let wanted = format!("{plural}.{group}");
    if json::name(definition) != wanted {
        errors.push(FieldError::invalid_text(
            "metadata.name",
            json::name(definition),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    for (field, value) in [
        ("spec.group", group),
        ("spec.names.plural", plural),
        ("spec.names.kind", kind.as_str()),
    ] {
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        }
    }
    let scope = definition.pointer("/spec/scope").unwrap_or(&Value::Null);
    let scopes = [json!("Cluster"), json!("Namespaced")];
    if !scopes.contains(scope) {
        errors.push(FieldError::not_supported("spec.scope", scope, &scopes));
    }
    let versions = json::list(definition, "/spec/versions");
    if versions
        .iter()
        .filter(|version| json::truth(version, "/storage"))
        .count()
        != 1
    {
        errors.push(FieldError::invalid(
            "spec.versions",
            &Value::from(versions.to_vec()),
            "must have exactly one version marked as storage version",
        ));
    }
    for (at, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{at}].schema.openAPIV3Schema");
        match version.pointer("/schema/openAPIV3Schema") {
            Some(schema) => {
                if json::text(schema, "/type") != "object" {
                    errors.push(FieldError::invalid(
                        format!("{field}.type"),
                        schema.get("type").unwrap_or(&Value::Null),
                        "must be object at the root",
                    ));
                }
                schema::check(schema, &field, &mut errors);
            }
            None => errors.push(FieldError::required(field, "schemas are required")),
        }
        for (column, place) in json::list(version, "/additionalPrinterColumns")
            .iter()
            .zip(0..)
        {
            if Column::parse(column).is_none() {
                errors.push(FieldError::invalid_text(
                    format!("spec.versions[{at}].additionalPrinterColumns[{place}].jsonPath"),
                    json::text(column, "/jsonPath"),
                    "is not a path this server can evaluate",
                ));
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid_kind(
            "CustomResourceDefinition",
            "apiextensions.k8s.io",
            json::name(definition),
            &errors,
        ))
    }
}

/// The conditions and names that say the definition is accepted and served.
pub(crate) fn establish(definition: &mut Value) {
    let now = clock::now();
    let names = definition
        .pointer("/spec/names")
        .cloned()
        .unwrap_or_else(|| json!({}));
    json::put(definition, &["status", "acceptedNames"], names);
    json::put(
        definition,
        &["status", "conditions"],
        json!([
            {"type": "NamesAccepted", "status": "True", "lastTransitionTime": now,
             "reason": "NoConflicts", "message": "no conflicts found"},
            {"type": "Established", "status": "True", "lastTransitionTime": now,
             "reason": "InitialNamesAccepted", "message": "the initial names have been accepted"},
        ]),
    );
}

/// The condition of a definition whose objects are being deleted.
pub(crate) fn mark_terminating(definition: &mut Value) {
    if json::condition(definition, "Terminating") == "True" {
        return;
    }
    if let Some(conditions) = json::entry_list(definition, &["status", "conditions"]) {
        conditions.push(json!({
            "type": "Terminating", "status": "True", "lastTransitionTime": clock::now(),
            "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        }));
    }
}

/// The storage of the objects of a definition.
pub(crate) fn table(definition: &Value) -> Arc<str> {
    table_name(
        json::text(definition, "/spec/group"),
        json::text(definition, "/spec/names/plural"),
    )
    .into()
}

/// Serves all served versions of an established definition, as it is now.
pub(crate) fn serve(state: &mut State, definition: &Value) {
    if json::condition(definition, "Established") != "True" {
        return;
    }
    register(&mut state.registry, definition);
}

fn register(registry: &mut Registry, definition: &Value) {
    let table = table(definition);
    registry.remove(&table);
    let text = |pointer| json::text(definition, pointer).to_owned();
    let strings = |pointer| {
        json::list(definition, pointer)
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    for version in json::list(definition, "/spec/versions") {
        if !json::truth(version, "/served") {
            continue;
        }
        let schema = version
            .pointer("/schema/openAPIV3Schema")
            .cloned()
            .unwrap_or_else(|| json!({}));
        let columns = json::list(version, "/additionalPrinterColumns");
        let custom = CustomVersion {
            has_rules: schema.to_string().contains("\"x-kubernetes-validations\""),
            columns: columns.iter().filter_map(Column::parse).collect(),
            schema,
        };
        registry.add(Resource {
            group: text("/spec/group"),
            version: json::text(version, "/name").to_owned(),
            plural: text("/spec/names/plural"),
            singular: text("/spec/names/singular"),
            kind: text("/spec/names/kind"),
            list_kind: text("/spec/names/listKind"),
            short_names: strings("/spec/names/shortNames"),
            categories: strings("/spec/names/categories"),
            namespaced: json::text(definition, "/spec/scope") == "Namespaced",
            status: version.pointer("/subresources/status").is_some(),
            scale: false,
            generation: true,
            unconditional_update: false,
            stored: true,
            table: table.clone(),
            custom: Some(custom),
        });
    }
}
