//! Whether the controller has the rights that it was installed with, one by one.

use futures::{StreamExt, stream};
use impound_proto::controller::v1 as wire;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::Value;

use super::{Reviews, failed, listed, ok, within};

/// The roles that an installation has: what they grant is what is asked about.
const INSTALLED: &str = include_str!("../../../../deploy/kustomize/base/impound.yaml");
const ROLE: &str = "impound-controller";
/// The one of installations that issue agents' certificates.
const REVIEWS: &str = "impound-reviews";
/// The one of installations where callers show tokens, and where it is.
const CALLERS: &str = "impound-callers";
const WITH_TOKENS: &str =
    include_str!("../../../../deploy/kustomize/components/kubernetes-tokens/roles.yaml");
/// Those of installations where kubelets ask for the agents' certificates, and where they are.
const SIGNING: &str = "impound-pod-certificates";
const WITH_POD_CERTIFICATES: &str =
    include_str!("../../../../deploy/kustomize/overlays/pod-certificates/roles.yaml");

/// Questions to the Kubernetes API at the same time.
const QUESTIONS: usize = 8;

/// Whether the controller has the rights that deploy/ gives it.
pub(super) async fn rights(client: &Client, reviews: Reviews) -> wire::Check {
    let about = "controller's rights";
    let wanted = match wanted(client.default_namespace(), reviews) {
        Ok(wanted) => wanted,
        Err(why) => return failed(about, why, "this build is broken"),
    };
    let count = wanted.len();
    let asked = stream::iter(wanted).map(|right| async move {
        let words = spelled(&right);
        let review = SelfSubjectAccessReview {
            metadata: ObjectMeta::default(),
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(right),
                non_resource_attributes: None,
            },
            status: None,
        };
        let api = Api::<SelfSubjectAccessReview>::all(client.clone());
        let options = PostParams::default();
        let reviewed = within(api.create(&options, &review)).await?;
        let allowed = reviewed.status.is_some_and(|status| status.allowed);
        Ok::<_, String>((!allowed).then_some(words))
    });
    let answers: Vec<_> = asked.buffer_unordered(QUESTIONS).collect().await;
    let answers: Result<Vec<_>, String> = answers.into_iter().collect();
    let mut missing: Vec<String> = match answers {
        Ok(answers) => answers.into_iter().flatten().collect(),
        Err(why) => {
            return failed(
                about,
                format!("can't be asked for: {why}"),
                "see the Kubernetes API above",
            );
        }
    };
    missing.sort();
    if missing.is_empty() {
        return ok(about, format!("all {count} that deploy/ grants"));
    }
    failed(
        about,
        format!(
            "{} of {count} are missing: {}",
            missing.len(),
            listed(&missing)
        ),
        "apply the roles of this version (deploy/, or `helm upgrade`) and see that the controller runs as the service \
         account impound-controller",
    )
}

/// Every right of the installed roles that is needed here; those of the Role in our own namespace.
fn wanted(namespace: &str, reviews: Reviews) -> Result<Vec<ResourceAttributes>, String> {
    let mut wanted = Vec::new();
    let documents = INSTALLED.split("\n---\n");
    let documents = documents.chain(WITH_TOKENS.split("\n---\n"));
    for document in documents.chain(WITH_POD_CERTIFICATES.split("\n---\n")) {
        let object: Value = serde_saphyr::from_str(document).map_err(|error| error.to_string())?;
        let field = |path: &str| object.pointer(path).and_then(Value::as_str);
        let namespace = match field("/kind") {
            Some("ClusterRole") => None,
            Some("Role") => Some(namespace.to_owned()),
            _ => continue,
        };
        let needed = match field("/metadata/name") {
            Some(ROLE) => true,
            // What it grants is in the other as well.
            Some(REVIEWS) => reviews.issuing && !reviews.callers,
            Some(CALLERS) => reviews.callers,
            Some(SIGNING) => reviews.pod_certificates,
            _ => false,
        };
        if !needed {
            continue;
        }
        let rules = object.get("rules").cloned().unwrap_or_default();
        let rules: Vec<PolicyRule> =
            serde_json::from_value(rules).map_err(|error| error.to_string())?;
        for rule in rules {
            let names = match rule.resource_names {
                Some(names) => names.into_iter().map(Some).collect(),
                None => vec![None],
            };
            for group in rule.api_groups.iter().flatten() {
                let resources = rule.resources.iter().flatten();
                for resource in resources {
                    let (resource, subresource) = match resource.split_once('/') {
                        Some((resource, sub)) => (resource.to_owned(), Some(sub.to_owned())),
                        None => (resource.clone(), None),
                    };
                    for verb in &rule.verbs {
                        wanted.extend(names.iter().map(|name| ResourceAttributes {
                            group: Some(group.clone()),
                            resource: Some(resource.clone()),
                            subresource: subresource.clone(),
                            verb: Some(verb.clone()),
                            name: name.clone(),
                            namespace: namespace.clone(),
                            ..ResourceAttributes::default()
                        }));
                    }
                }
            }
        }
    }
    Ok(wanted)
}

fn spelled(right: &ResourceAttributes) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut words = format!("{} {}", text(&right.verb), text(&right.resource));
    if let Some(sub) = &right.subresource {
        words = format!("{words}/{sub}");
    }
    match right.group.as_deref() {
        None | Some("") => words,
        Some(group) => format!("{words}.{group}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::SIGNER;

    #[test]
    fn the_rights_that_are_asked_about_are_those_of_the_installed_roles() {
        let all = Reviews {
            issuing: true,
            pod_certificates: true,
            callers: true,
        };
        let all_wanted = wanted("impound", all).unwrap();
        let wanted = &all_wanted;
        let has = |verb: &str, resource: &str, namespace: Option<&str>| {
            wanted.iter().any(|right| {
                right.verb.as_deref() == Some(verb)
                    && right.resource.as_deref() == Some(resource)
                    && right.namespace.as_deref() == namespace
            })
        };
        assert!(has("patch", "pods", None) && has("create", "pods", None));
        assert!(has("update", "leases", Some("impound")) && !has("delete", "pods", None));
        assert!(wanted.len() > 60, "{}", wanted.len());
        let signing = wanted
            .iter()
            .find(|right| right.verb.as_deref() == Some("sign"));
        assert_eq!(signing.unwrap().name.as_deref(), Some(SIGNER));
        assert!(has("watch", "podcertificaterequests", Some("impound")));
        // And of the reviews, those that are made.
        let reviews = |issuing, callers| {
            let made = Reviews {
                issuing,
                pod_certificates: false,
                callers,
            };
            let made = super::wanted("impound", made).unwrap();
            let resources = made.into_iter().filter_map(|right| right.resource);
            resources
                .filter(|resource| ["tokenreviews", "subjectaccessreviews"].contains(&&**resource))
                .collect::<Vec<_>>()
        };
        assert_eq!(reviews(false, false), [""; 0]);
        assert_eq!(reviews(true, false), ["tokenreviews"]);
        for issuing in [true, false] {
            let both = ["tokenreviews", "subjectaccessreviews"];
            assert_eq!(reviews(issuing, true), both);
        }
    }
}
