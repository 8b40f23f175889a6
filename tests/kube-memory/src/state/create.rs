//! Create: names, namespace, defaults, validation, then the store.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{By, State, random_suffix, shapes};
use crate::admission::Question;
use crate::clock;
use crate::crd;
use crate::json;
use crate::kinds;
use crate::managed::{self, Writer};
use crate::refusal::{Outcome, Refusal};
use crate::registry::Resource;
use crate::store::Object;

impl State {
    /// Stores a new object.
    pub(crate) fn create(
        &mut self,
        resource: &Arc<Resource>,
        namespace: &str,
        mut object: Value,
        by: &mut By<'_>,
    ) -> Outcome<Object> {
        check_type(resource, &mut object)?;
        let namespace = if resource.namespaced { namespace } else { "" };
        place_in_namespace(resource, &mut object, namespace)?;
        if resource.namespaced {
            self.check_namespace(resource, namespace, json::name(&object))?;
        }
        let generated = json::text(&object, "/metadata/generateName").to_owned();
        if json::name(&object).is_empty() && !generated.is_empty() {
            json::put(
                &mut object,
                &["metadata", "name"],
                format!("{generated}{}", random_suffix(5)),
            );
        }
        if json::present(&object, "/metadata/resourceVersion")
            && !json::text(&object, "/metadata/resourceVersion").is_empty()
        {
            return Err(Refusal::internal(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        json::put(
            &mut object,
            &["metadata", "uid"],
            Uuid::new_v4().to_string(),
        );
        json::put(
            &mut object,
            &["metadata", "creationTimestamp"],
            clock::now(),
        );
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "resourceVersion",
            "generation",
        ] {
            json::take(&mut object, &["metadata", field]);
        }
        if resource.generation {
            json::put(&mut object, &["metadata", "generation"], 1);
        }
        let mut errors = kinds::meta::decode(&object)?;
        if !by.applied {
            json::take(&mut object, &["metadata", "managedFields"]);
        }
        match &resource.custom {
            Some(custom) => {
                if resource.status {
                    json::take(&mut object, &["status"]);
                }
                crd::admit(resource, custom, &mut object, None, by)?;
            }
            None => {
                kinds::prepare_create(self, resource, &mut object)?;
                errors.extend(kinds::validate(resource, &object, None));
            }
        }
        errors.extend(kinds::meta::validate(resource, &object, None));
        let name = json::name(&object).to_owned();
        if !errors.is_empty() {
            return Err(Refusal::invalid(resource, &name, &errors));
        }
        if let Some(actor) = &by.actor {
            kinds::pod_certificate::admit(self, resource, &object, actor)?;
            let question = Question {
                operation: "CREATE",
                resource,
                subresource: "",
                namespace,
                name: &name,
                object: &object,
                old: &Value::Null,
                actor,
                dry_run: by.dry_run,
            };
            by.warnings.extend(question.ask(self)?);
        }
        if self.store.get(&resource.table, namespace, &name).is_some() {
            return Err(Refusal::already_exists(resource, &name));
        }
        if !by.applied {
            managed::record(
                None,
                &mut object,
                Writer {
                    manager: by.manager,
                    api_version: &resource.api_version(),
                    subresource: "",
                    shapes: shapes(resource),
                },
            );
        }
        if by.dry_run {
            return Ok(Arc::new(object));
        }
        let stored = self.store.put(&resource.table, object);
        if resource.is("namespaces") {
            self.furnish_namespace(&name)?;
        }
        Ok(stored)
    }

    fn check_namespace(&self, resource: &Resource, namespace: &str, name: &str) -> Outcome<()> {
        let namespaces = self.resource("namespaces")?;
        let found = self.get(&namespaces, "", namespace)?;
        if json::terminating(&found) {
            let mut refusal = Refusal::forbidden(
                resource,
                name,
                format!(
                    "unable to create new content in namespace {namespace} because it is being terminated"
                ),
            );
            if let Some(details) = &mut refusal.details {
                json::put(
                    details,
                    &["causes"],
                    json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                            "message": format!("namespace {namespace} is being terminated")}]),
                );
            }
            return Err(refusal);
        }
        Ok(())
    }

    /// What controllers put into every namespace. Here it is there at once: a pod can follow in the next request.
    fn furnish_namespace(&mut self, namespace: &str) -> Outcome<()> {
        let meta = |name: &str| json!({"name": name, "namespace": namespace});
        let ca = self.ca_pem.clone();
        self.make(
            "serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("default")}),
            "kube-controller-manager",
        )?;
        self.make(
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("kube-root-ca.crt"),
                   "data": {"ca.crt": ca}}),
            "kube-controller-manager",
        )?;
        Ok(())
    }
}

/// Fills in or checks apiVersion and kind.
pub(super) fn check_type(resource: &Resource, object: &mut Value) -> Outcome<()> {
    if !object.is_object() {
        return Err(Refusal::bad_request(
            "the object provided is unrecognized (must be of type object)",
        ));
    }
    for (field, wanted) in [
        ("apiVersion", resource.api_version()),
        ("kind", resource.kind.clone()),
    ] {
        let given = json::text(object, &format!("/{field}")).to_owned();
        if given.is_empty() {
            json::put(object, &[field], wanted);
        } else if given != wanted {
            let what = if field == "kind" {
                "kind"
            } else {
                "API version"
            };
            return Err(Refusal::bad_request(format!(
                "the {what} in the data ({given}) does not match the expected {what} ({wanted})"
            )));
        }
    }
    Ok(())
}

/// The namespace of the path is that of the object.
pub(super) fn place_in_namespace(
    resource: &Resource,
    object: &mut Value,
    namespace: &str,
) -> Outcome<()> {
    if !resource.namespaced {
        json::take(object, &["metadata", "namespace"]);
        return Ok(());
    }
    let given = json::namespace(object);
    if !given.is_empty() && given != namespace {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    json::put(object, &["metadata", "namespace"], namespace);
    Ok(())
}
