//! What the suspect could act with: its service account and the account's rights, mounted tokens and
//! secrets, each with the command that revokes it. Impound revokes nothing on its own: taking a
//! right away can break what is healthy, and it tells an intruder that he was seen.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod, Volume};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use kube::Client;

use super::observe::{ObserveError, list};
use crate::resources::Credential;

/// Lists the credentials of a pod. Bindings that can't be read become an entry that says so.
pub async fn report(client: &Client, pod: &Pod) -> Vec<Credential> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = account(pod);
    let mut found = tokens(pod, namespace, &account);
    if found.is_empty() {
        found.push(without_token(namespace, &account));
    }
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

/// The account of a pod into which no token of it is projected: its rights are reported all the same.
fn without_token(namespace: &str, account: &str) -> Credential {
    Credential {
        kind: "ServiceAccount".into(),
        name: format!("{namespace}/{account}"),
        grants: "whom the pod is at the Kubernetes API; no token of it is projected into the pod, so its rights are the \
                 suspect's only if it got one elsewhere"
            .into(),
        revoke: format!("kubectl delete serviceaccount {account} -n {namespace}"),
    }
}

async fn bindings(
    client: &Client,
    namespace: &str,
    account: &str,
) -> Result<Vec<Credential>, ObserveError> {
    let path = "/apis/rbac.authorization.k8s.io/v1";
    // Any namespace can give the account rights in itself.
    let local = format!("{path}/rolebindings");
    let global = format!("{path}/clusterrolebindings");
    let (local, global) = futures::try_join!(
        list::<RoleBinding>(client, &local),
        list::<ClusterRoleBinding>(client, &global)
    )?;
    let local = local.iter().filter_map(|binding| {
        let own = binding.metadata.namespace.as_deref().unwrap_or_default();
        let held = Held::of(binding.subjects.as_ref(), own, namespace, account)?;
        let name = binding.metadata.name.clone().unwrap_or_default();
        Some(Credential {
            kind: "RoleBinding".into(),
            grants: format!("{} in namespace {own}", role(&binding.role_ref)),
            revoke: held.revoke(&format!("kubectl delete rolebinding {name} -n {own}")),
            name,
        })
    });
    let global = global.iter().filter_map(|binding| {
        let held = Held::of(binding.subjects.as_ref(), "", namespace, account)?;
        let name = binding.metadata.name.clone().unwrap_or_default();
        Some(Credential {
            kind: "ClusterRoleBinding".into(),
            grants: format!("{} in the whole cluster", role(&binding.role_ref)),
            revoke: held.revoke(&format!("kubectl delete clusterrolebinding {name}")),
            name,
        })
    });
    Ok(local.chain(global).collect())
}

/// How an account comes by what a binding gives.
#[derive(Debug, PartialEq)]
struct Held {
    /// The group through which alone it does: one that others are in too.
    group: Option<String>,
    /// Who else has it by the same binding.
    others: Vec<String>,
}

impl Held {
    /// `None` if no subject is the account or a group that it is in. A subject without a namespace is of
    /// the binding's.
    fn of(
        subjects: Option<&Vec<Subject>>,
        binding_namespace: &str,
        namespace: &str,
        account: &str,
    ) -> Option<Self> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let wide = [
            format!("system:serviceaccounts:{namespace}"),
            "system:serviceaccounts".into(),
            "system:authenticated".into(),
            // Also who shows no token.
            "system:unauthenticated".into(),
        ];
        let (mut itself, mut group, mut others) = (false, None, Vec::new());
        for subject in subjects.into_iter().flatten() {
            let of = subject.namespace.as_deref().unwrap_or(binding_namespace);
            match subject.kind.as_str() {
                "ServiceAccount" if subject.name == account && of == namespace => itself = true,
                "User" if subject.name == user => itself = true,
                "Group" if wide.contains(&subject.name) => {
                    group.get_or_insert_with(|| subject.name.clone());
                    others.push(format!("group {}", subject.name));
                }
                "ServiceAccount" => others.push(format!("service account {of}/{}", subject.name)),
                kind => others.push(format!("{} {}", kind.to_lowercase(), subject.name)),
            }
        }
        if itself {
            return Some(Self {
                group: None,
                others,
            });
        }
        group.map(|group| Self {
            group: Some(group),
            others,
        })
    }

    /// The command that takes it away, with what else that does. What a whole group has is not taken away for
    /// one account: it would hit everybody.
    fn revoke(&self, command: &str) -> String {
        match &self.group {
            Some(group) => format!(
                "no command: the right is that of group {group}, and deleting the binding would take it from \
                 all who are in it; give them it by other bindings first"
            ),
            None if self.others.is_empty() => command.to_owned(),
            None => format!("{command}  # takes it from {} too", self.others.join(", ")),
        }
    }
}

fn role(reference: &RoleRef) -> String {
    format!("{} {}", reference.kind, reference.name)
}

fn secrets(pod: &Pod, namespace: &str) -> Vec<Credential> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mounted = spec.volumes.iter().flatten().flat_map(|volume| {
        let secret = volume.secret.as_ref();
        let whole = secret.and_then(|secret| secret.secret_name.clone());
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
        .chain(&spec.containers)
        .map(|container| (&container.env, &container.env_from));
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| (&container.env, &container.env_from));
    let mut found: BTreeSet<(String, &str)> =
        mounted.map(|name| (name, "mounted as files")).collect();
    found.extend(
        containers
            .chain(ephemeral)
            .flat_map(|(single, whole)| from_environment(single.as_ref(), whole.as_ref()))
            .map(|name| (name, "in the environment")),
    );
    found.extend(
        spec.volumes
            .iter()
            .flatten()
            .filter_map(to_mount)
            .map(|name| (name, "used to mount a volume")),
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
            grants: format!("what it is a key to; {how}, so {}", whose(how)),
            revoke: format!(
                "revoke it where it was issued, then: kubectl delete secret {name} -n {namespace}"
            ),
            name,
        })
        .collect()
}

/// What the kubelet uses on the pod's behalf is on the node, not in the pod.
fn whose(how: &str) -> &'static str {
    match how {
        "mounted as files" | "in the environment" => "the suspect has read it",
        _ => "its node has it",
    }
}

/// The secret by which the kubelet mounts a volume.
fn to_mount(volume: &Volume) -> Option<String> {
    let local = [
        volume
            .csi
            .as_ref()
            .and_then(|csi| csi.node_publish_secret_ref.as_ref()),
        volume
            .cephfs
            .as_ref()
            .and_then(|ceph| ceph.secret_ref.as_ref()),
        volume
            .cinder
            .as_ref()
            .and_then(|cinder| cinder.secret_ref.as_ref()),
        volume
            .flex_volume
            .as_ref()
            .and_then(|flex| flex.secret_ref.as_ref()),
        volume
            .iscsi
            .as_ref()
            .and_then(|iscsi| iscsi.secret_ref.as_ref()),
        volume.rbd.as_ref().and_then(|rbd| rbd.secret_ref.as_ref()),
        volume.scale_io.as_ref().map(|scale| &scale.secret_ref),
        volume
            .storageos
            .as_ref()
            .and_then(|storage| storage.secret_ref.as_ref()),
    ];
    let azure = volume.azure_file.as_ref();
    let local = local.into_iter().flatten().next();
    local
        .map(|secret| secret.name.clone())
        .or_else(|| azure.map(|azure| azure.secret_name.clone()))
}

fn from_environment(
    single: Option<&Vec<EnvVar>>,
    whole: Option<&Vec<EnvFromSource>>,
) -> Vec<String> {
    let single = single.into_iter().flatten().filter_map(|variable| {
        let source = variable.value_from.as_ref()?;
        Some(source.secret_key_ref.as_ref()?.name.clone())
    });
    let whole = whole
        .into_iter()
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
                    { "name": "e", "csi": { "driver": "d", "nodePublishSecretRef": { "name": "csi" } } },
                    { "name": "f", "azureFile": { "secretName": "azure", "shareName": "s" } },
                ],
                "imagePullSecrets": [{ "name": "registry" }],
                "initContainers": [{ "name": "i", "envFrom": [{ "secretRef": { "name": "bulk" } }] }],
                "containers": [{ "name": "c", "env": [
                    { "name": "P", "valueFrom": { "secretKeyRef": { "name": "db", "key": "password" } } },
                    { "name": "Q", "valueFrom": { "secretKeyRef": { "name": "db", "key": "user" } } } ] }],
                "ephemeralContainers": [
                    { "name": "d", "envFrom": [{ "secretRef": { "name": "debug" } }],
                        "env": [{ "name": "R", "valueFrom": { "secretKeyRef": { "name": "db", "key": "root" } } }] }],
            },
        }))
        .unwrap();
        let found = secrets(&pod, "shop");
        let names: Vec<&str> = found.iter().map(|secret| secret.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "api-key", "azure", "bulk", "csi", "db", "debug", "registry", "tls"
            ]
        );
        let read = found
            .iter()
            .filter(|one| one.grants.ends_with("the suspect has read it"));
        assert_eq!(read.count(), 5, "{found:#?}");
        let tokens = tokens(&pod, "shop", &account(&pod));
        assert_eq!(tokens.len(), 1);
        assert!(tokens[0].grants.contains("audience vault") && tokens[0].grants.contains("600 s"));
    }

    fn subject(kind: &str, name: &str, namespace: Option<&str>) -> Subject {
        Subject {
            kind: kind.into(),
            name: name.into(),
            namespace: namespace.map(Into::into),
            ..Subject::default()
        }
    }

    fn held(subjects: Vec<Subject>) -> Option<String> {
        let held = Held::of(Some(&subjects), "prod", "shop", "web")?;
        Some(held.revoke("kubectl delete rolebinding b -n prod"))
    }

    #[test]
    fn a_binding_counts_for_the_account_and_its_user_name_wherever_it_is() {
        let delete = "kubectl delete rolebinding b -n prod".to_owned();
        for (subject, expected) in [
            (subject("ServiceAccount", "web", Some("shop")), true),
            (subject("ServiceAccount", "web", Some("other")), false),
            // Without a namespace it is one of the binding's own.
            (subject("ServiceAccount", "web", None), false),
            (subject("ServiceAccount", "other", Some("shop")), false),
            (
                subject("User", "system:serviceaccount:shop:web", None),
                true,
            ),
            (subject("User", "system:serviceaccount:shop:x", None), false),
            (subject("Group", "system:serviceaccounts:x", None), false),
            (subject("Group", "admins", None), false),
        ] {
            let found = held(vec![subject.clone()]);
            assert_eq!(found, expected.then(|| delete.clone()), "{subject:?}");
        }
        let here = vec![subject("ServiceAccount", "web", None)];
        assert!(Held::of(Some(&here), "shop", "shop", "web").is_some());
    }

    #[test]
    fn what_a_whole_group_has_is_reported_without_a_command_that_would_take_it_from_everybody() {
        for group in [
            "system:serviceaccounts:shop",
            "system:serviceaccounts",
            "system:authenticated",
            "system:unauthenticated",
        ] {
            let said = held(vec![subject("Group", group, None)]).unwrap();
            assert!(said.contains(group) && !said.contains("kubectl"), "{said}");
        }
    }

    #[test]
    fn a_command_says_who_else_loses_the_right() {
        let said = held(vec![
            subject("ServiceAccount", "web", Some("shop")),
            subject("ServiceAccount", "db", Some("shop")),
            subject("ServiceAccount", "job", None),
            subject("User", "jane", None),
            subject("Group", "system:authenticated", None),
        ]);
        assert_eq!(
            said.unwrap(),
            "kubectl delete rolebinding b -n prod  # takes it from service account shop/db, service account \
             prod/job, user jane, group system:authenticated too"
        );
    }
}
