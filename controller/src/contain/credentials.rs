//! What the suspect could act with: its service account and the account's rights, mounted tokens and
//! secrets, each with the command that revokes it. Impound revokes nothing on its own: taking a
//! right away can break what is healthy, and it tells an intruder that he was seen.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use kube::Client;

use super::observe::{ObserveError, list};
use crate::resources::Credential;

/// Lists the credentials of a pod. Bindings that can't be read become an entry that says so.
pub async fn report(client: &Client, pod: &Pod) -> Vec<Credential> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = account(pod);
    let mut found = tokens(pod, namespace, &account);
    match bindings(client, namespace, &account).await {
        Ok(bindings) => found.extend(bindings),
        Err(error) => found.push(Credential {
            kind: "Bindings".into(),
            name: format!("{namespace}/{account}"),
            grants: format!("could not be read: {}", crate::describe::describe(&error)),
            revoke: format!(
                "kubectl get rolebindings,clusterrolebindings -A -o wide | grep {namespace}/{account}"
            ),
        }),
    }
    found.extend(secrets(pod, namespace));
    found
}

fn account(pod: &Pod) -> String {
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone());
    account
        .filter(|account| !account.is_empty())
        .unwrap_or_else(|| "default".into())
}

/// Tokens are projected into volumes; each names its audience and life.
fn tokens(pod: &Pod, namespace: &str, account: &str) -> Vec<Credential> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| {
        let projected = volume.projected.as_ref()?;
        let tokens = projected.sources.iter().flatten();
        Some(tokens.filter_map(|source| source.service_account_token.as_ref()))
    });
    sources
        .flatten()
        .map(|token| Credential {
            kind: "Token".into(),
            name: format!("{namespace}/{account}"),
            grants: format!(
                "token for {}, renewed by the kubelet, each valid for {} s",
                token.audience.as_deref().map_or_else(
                    || "the Kubernetes API".to_owned(),
                    |audience| format!("audience {audience}")
                ),
                token.expiration_seconds.unwrap_or(3600)
            ),
            // A bound token ends with its pod or its account, and with nothing else.
            revoke: format!("kubectl delete serviceaccount {account} -n {namespace}"),
        })
        .collect()
}

async fn bindings(
    client: &Client,
    namespace: &str,
    account: &str,
) -> Result<Vec<Credential>, ObserveError> {
    let path = "/apis/rbac.authorization.k8s.io/v1";
    let local = format!("{path}/namespaces/{namespace}/rolebindings");
    let global = format!("{path}/clusterrolebindings");
    let (local, global) = futures::try_join!(
        list::<RoleBinding>(client, &local),
        list::<ClusterRoleBinding>(client, &global)
    )?;
    let local = local
        .iter()
        .filter(|binding| names(binding.subjects.as_ref(), namespace, account))
        .map(|binding| {
            let name = binding.metadata.name.clone().unwrap_or_default();
            Credential {
                kind: "RoleBinding".into(),
                grants: format!("{} in namespace {namespace}", role(&binding.role_ref)),
                revoke: format!("kubectl delete rolebinding {name} -n {namespace}"),
                name,
            }
        });
    let global = global
        .iter()
        .filter(|binding| names(binding.subjects.as_ref(), namespace, account))
        .map(|binding| {
            let name = binding.metadata.name.clone().unwrap_or_default();
            Credential {
                kind: "ClusterRoleBinding".into(),
                grants: format!("{} in the whole cluster", role(&binding.role_ref)),
                revoke: format!("kubectl delete clusterrolebinding {name}"),
                name,
            }
        });
    Ok(local.chain(global).collect())
}

/// Whether the subjects name the account itself or a group that it is in. Groups that every
/// account or user is in are left out: revoking them would hit everybody.
fn names(subjects: Option<&Vec<Subject>>, namespace: &str, account: &str) -> bool {
    let group = format!("system:serviceaccounts:{namespace}");
    let user = format!("system:serviceaccount:{namespace}:{account}");
    subjects
        .into_iter()
        .flatten()
        .any(|subject| match subject.kind.as_str() {
            "ServiceAccount" => {
                subject.name == account
                    && subject.namespace.as_deref().unwrap_or(namespace) == namespace
            }
            "Group" => subject.name == group,
            "User" => subject.name == user,
            _ => false,
        })
}

fn role(reference: &RoleRef) -> String {
    format!("{} {}", reference.kind, reference.name)
}

fn secrets(pod: &Pod, namespace: &str) -> Vec<Credential> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mounted = spec.volumes.iter().flatten().flat_map(|volume| {
        let whole = volume
            .secret
            .as_ref()
            .and_then(|secret| secret.secret_name.clone());
        let projected = volume.projected.iter().flat_map(|projected| {
            let sources = projected.sources.iter().flatten();
            sources.filter_map(|source| Some(source.secret.as_ref()?.name.clone()))
        });
        whole.into_iter().chain(projected)
    });
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let mut found: BTreeSet<(String, &str)> =
        mounted.map(|name| (name, "mounted as files")).collect();
    found.extend(
        containers
            .flat_map(from_environment)
            .map(|name| (name, "in the environment")),
    );
    found.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .map(|secret| (secret.name.clone(), "used to pull images")),
    );
    found
        .into_iter()
        .map(|(name, how)| Credential {
            kind: "Secret".into(),
            grants: format!("what it is a key to; {how}, so the suspect has read it"),
            revoke: format!(
                "revoke it where it was issued, then: kubectl delete secret {name} -n {namespace}"
            ),
            name,
        })
        .collect()
}

fn from_environment(container: &Container) -> Vec<String> {
    let single = container.env.iter().flatten().filter_map(|variable| {
        Some(
            variable
                .value_from
                .as_ref()?
                .secret_key_ref
                .as_ref()?
                .name
                .clone(),
        )
    });
    let whole = container
        .env_from
        .iter()
        .flatten()
        .filter_map(|source| Some(source.secret_ref.as_ref()?.name.clone()));
    single.chain(whole).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_a_secret_reaches_a_container_is_reported_once() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "shop" },
            "spec": {
                "volumes": [
                    { "name": "a", "secret": { "secretName": "tls" } },
                    { "name": "b", "projected": { "sources": [
                        { "secret": { "name": "api-key" } },
                        { "serviceAccountToken": { "path": "token", "audience": "vault", "expirationSeconds": 600 } } ] } },
                ],
                "imagePullSecrets": [{ "name": "registry" }],
                "initContainers": [{ "name": "i", "envFrom": [{ "secretRef": { "name": "bulk" } }] }],
                "containers": [{ "name": "c", "env": [
                    { "name": "P", "valueFrom": { "secretKeyRef": { "name": "db", "key": "password" } } },
                    { "name": "Q", "valueFrom": { "secretKeyRef": { "name": "db", "key": "user" } } } ] }],
            },
        }))
        .unwrap();
        let names: Vec<String> = secrets(&pod, "shop")
            .into_iter()
            .map(|secret| secret.name)
            .collect();
        assert_eq!(names, ["api-key", "bulk", "db", "registry", "tls"]);
        let tokens = tokens(&pod, "shop", &account(&pod));
        assert_eq!(tokens.len(), 1);
        assert!(tokens[0].grants.contains("audience vault") && tokens[0].grants.contains("600 s"));
    }

    #[test]
    fn a_binding_counts_for_the_account_its_user_name_and_its_namespaces_group() {
        let subject = |kind: &str, name: &str, namespace: Option<&str>| {
            vec![Subject {
                kind: kind.into(),
                name: name.into(),
                namespace: namespace.map(Into::into),
                ..Subject::default()
            }]
        };
        for (subjects, expected) in [
            (subject("ServiceAccount", "web", Some("shop")), true),
            (subject("ServiceAccount", "web", Some("other")), false),
            (subject("ServiceAccount", "other", Some("shop")), false),
            (subject("Group", "system:serviceaccounts:shop", None), true),
            (subject("Group", "system:serviceaccounts", None), false),
            (
                subject("User", "system:serviceaccount:shop:web", None),
                true,
            ),
        ] {
            assert_eq!(
                names(Some(&subjects), "shop", "web"),
                expected,
                "{subjects:?}"
            );
        }
    }
}
