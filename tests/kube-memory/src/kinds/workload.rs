//! Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs: defaults, selectors, first status.

use serde_json::{Value, json};

use super::pod;
use crate::json;
use crate::refusal::FieldError;
use crate::registry::Resource;
use crate::selector::Selector;

/// Defaults and the first status.
pub(crate) fn prepare_create(resource: &Resource, object: &mut Value) {
    if resource.is("jobs.batch") {
        label_job(object);
    }
    default_spec(resource, object);
    let status = match &*resource.table {
        "replicasets.apps" | "replicationcontrollers" => json!({"replicas": 0}),
        "statefulsets.apps" => json!({"replicas": 0, "availableReplicas": 0}),
        "daemonsets.apps" => json!({"currentNumberScheduled": 0, "numberMisscheduled": 0,
                                    "desiredNumberScheduled": 0, "numberReady": 0}),
        _ => json!({}),
    };
    json::put(object, &["status"], status);
    if resource.is("daemonsets.apps") {
        json::put(
            object,
            &[
                "metadata",
                "annotations",
                "deprecated.daemonset.template.generation",
            ],
            "1",
        );
    }
}

/// The selector of a Job is its own uid: no pod of another job can match.
fn label_job(job: &mut Value) {
    let (uid, name) = (json::uid(job).to_owned(), json::name(job).to_owned());
    if json::truth(job, "/spec/manualSelector") {
        return;
    }
    json::put(job, &["spec", "manualSelector"], false);
    json::put(
        job,
        &["spec", "selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}),
    );
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        json::put(
            job,
            &["spec", "template", "metadata", "labels", key],
            value.as_str(),
        );
    }
    if !json::present(job, "/metadata/labels") {
        let labels = job
            .pointer("/spec/template/metadata/labels")
            .cloned()
            .unwrap_or(Value::Null);
        json::put(job, &["metadata", "labels"], labels);
    }
}

/// Defaults of the spec, by kind.
pub(crate) fn default_spec(resource: &Resource, object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else {
        return;
    };
    match &*resource.table {
        "deployments.apps" => {
            json::fill(spec, &["replicas"], 1);
            json::fill(spec, &["strategy", "type"], "RollingUpdate");
            if json::text(spec, "/strategy/type") == "RollingUpdate" {
                json::fill(
                    spec,
                    &["strategy", "rollingUpdate", "maxUnavailable"],
                    "25%",
                );
                json::fill(spec, &["strategy", "rollingUpdate", "maxSurge"], "25%");
            }
            json::fill(spec, &["revisionHistoryLimit"], 10);
            json::fill(spec, &["progressDeadlineSeconds"], 600);
        }
        "replicasets.apps" | "replicationcontrollers" => json::fill(spec, &["replicas"], 1),
        "statefulsets.apps" => {
            json::fill(spec, &["replicas"], 1);
            json::fill(spec, &["podManagementPolicy"], "OrderedReady");
            json::fill(spec, &["updateStrategy", "type"], "RollingUpdate");
            if json::text(spec, "/updateStrategy/type") == "RollingUpdate" {
                json::fill(spec, &["updateStrategy", "rollingUpdate", "partition"], 0);
            }
            json::fill(spec, &["revisionHistoryLimit"], 10);
            json::fill(
                spec,
                &["persistentVolumeClaimRetentionPolicy"],
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            );
        }
        "daemonsets.apps" => {
            json::fill(spec, &["updateStrategy", "type"], "RollingUpdate");
            if json::text(spec, "/updateStrategy/type") == "RollingUpdate" {
                json::fill(
                    spec,
                    &["updateStrategy", "rollingUpdate", "maxUnavailable"],
                    1,
                );
                json::fill(spec, &["updateStrategy", "rollingUpdate", "maxSurge"], 0);
            }
            json::fill(spec, &["revisionHistoryLimit"], 10);
        }
        "jobs.batch" => default_job(spec),
        "cronjobs.batch" => {
            json::fill(spec, &["concurrencyPolicy"], "Allow");
            json::fill(spec, &["suspend"], false);
            json::fill(spec, &["successfulJobsHistoryLimit"], 3);
            json::fill(spec, &["failedJobsHistoryLimit"], 1);
        }
        _ => {}
    }
    if let Some(template) = spec.get_mut("template")
        && let Some(template) = template.get_mut("spec")
    {
        pod::default_spec(template);
    }
}

fn default_job(spec: &mut Value) {
    if !json::present(spec, "/completions") && !json::present(spec, "/parallelism") {
        json::fill(spec, &["completions"], 1);
    }
    json::fill(spec, &["parallelism"], 1);
    json::fill(spec, &["backoffLimit"], 6);
    json::fill(spec, &["completionMode"], "NonIndexed");
    json::fill(spec, &["suspend"], false);
    let replacement = if json::present(spec, "/podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    json::fill(spec, &["podReplacementPolicy"], replacement);
}

/// Selector and template belong together, and the selector never changes.
pub(crate) fn validate(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Vec<FieldError> {
    if resource.is("cronjobs.batch") {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let selector = object.pointer("/spec/selector");
    let labels = json::map(object, "/spec/template/metadata/labels");
    match Selector::of_object(selector) {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(parsed) if parsed.is_empty() => errors.push(FieldError::invalid(
            "spec.selector",
            selector.unwrap_or(&Value::Null),
            "empty selector is invalid for deployment",
        )),
        Some(parsed) if !parsed.matches(labels) => errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            &labels.map_or(json!({}), |labels| Value::Object(labels.clone())),
            "`selector` does not match template `labels`",
        )),
        Some(_) => {}
    }
    if let Some(old) = old
        && old.pointer("/spec/selector") != selector
    {
        errors.push(FieldError::invalid(
            "spec.selector",
            selector.unwrap_or(&Value::Null),
            "field is immutable",
        ));
    }
    let template = object
        .pointer("/spec/template/spec")
        .unwrap_or(&Value::Null);
    errors.extend(pod::validate_spec("spec.template.spec", template));
    let policy = template.get("restartPolicy").unwrap_or(&Value::Null);
    let job = resource.is("jobs.batch");
    if job && policy == "Always" {
        errors.push(FieldError {
            reason: "FieldValueRequired",
            field: "spec.template.spec.restartPolicy".to_owned(),
            message: "Required value: valid values: \"OnFailure\", \"Never\"".to_owned(),
        });
    } else if !job && policy != "Always" && policy.is_string() {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &[json!("Always")],
        ));
    }
    if json::number(object, "/spec/replicas").is_some_and(|replicas| replicas < 0) {
        errors.push(FieldError::invalid(
            "spec.replicas",
            object.pointer("/spec/replicas").unwrap_or(&Value::Null),
            "must be greater than or equal to 0",
        ));
    }
    errors
}
