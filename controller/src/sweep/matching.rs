//! Whether a selection fits a pod. Labels are the API server's business; this is about the rest.

use std::collections::BTreeSet;

use impound_evidence::Sha256;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ObjectMeta;

use crate::contain::evict;
use crate::contain::settings::Settings;
use crate::resources::Selection;

/// Longest description of a selection, in bytes: it goes into a line of the custody log.
const WORDS: usize = 512;

/// What a pod must have beyond its labels.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Names of the nodes that it may be on; `None`: any, or none.
    pub nodes: Option<BTreeSet<String>>,
    images: Vec<String>,
    /// Its owner.
    pub owner: Option<Owner>,
}

/// Kind and name of an owner, and what it owns that owns pods.
#[derive(Debug)]
pub struct Owner {
    /// E.g. `Deployment`, in upper or lower case.
    pub kind: String,
    name: String,
    /// uids of the objects in between: ReplicaSets of a Deployment, Jobs of a CronJob.
    pub between: BTreeSet<String>,
}

impl Wanted {
    /// # Errors
    /// In words, if an image or the owner is none.
    pub fn parse(selection: &Selection) -> Result<Self, String> {
        for image in &selection.images {
            let digest = image.strip_prefix("sha256:");
            if digest.is_some_and(|digest| digest.parse::<Sha256>().is_err()) {
                return Err(format!(
                    "image {image:?}: expected 64 hexadecimal digits behind \"sha256:\""
                ));
            }
        }
        let owner = match selection.owner.as_str() {
            "" => None,
            text => {
                let (kind, name) = text.split_once('/').ok_or_else(|| {
                    format!("owner {text:?}: expected KIND/NAME, e.g. Deployment/web")
                })?;
                Some(Owner {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    between: BTreeSet::new(),
                })
            }
        };
        Ok(Self {
            nodes: None,
            images: selection.images.clone(),
            owner,
        })
    }

    /// Whether the pod has it all.
    #[must_use]
    pub fn fits(&self, pod: &Pod) -> bool {
        self.fits_otherwise(pod)
            && (self.images.is_empty() || self.images.iter().any(|image| runs(pod, image)))
    }

    /// Whether the pod would fit but for its images, and the digest of one of them is not known yet.
    #[must_use]
    pub fn is_unknown(&self, pod: &Pod) -> bool {
        let by_digest = self.images.iter().any(|image| image.starts_with("sha256:"));
        let known = pod.status.iter().flat_map(|status| {
            let all = status.init_container_statuses.iter().flatten();
            all.chain(status.container_statuses.iter().flatten())
        });
        let known = known.filter(|status| !status.image_id.is_empty()).count();
        let all = pod.spec.as_ref().map_or(0, |spec| {
            spec.containers.len() + spec.init_containers.iter().flatten().count()
        });
        by_digest && !self.fits(pod) && self.fits_otherwise(pod) && known < all
    }

    /// The same but for its images.
    fn fits_otherwise(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let on_node = |nodes: &BTreeSet<String>| node.is_some_and(|node| nodes.contains(node));
        let owned = |owner: &Owner| owner.is_of(&pod.metadata) || owner.is_between(&pod.metadata);
        self.nodes.as_ref().is_none_or(on_node) && self.owner.as_ref().is_none_or(owned)
    }
}

impl Owner {
    /// Whether it is itself an owner of the object.
    #[must_use]
    pub fn is_of(&self, object: &ObjectMeta) -> bool {
        object
            .owner_references
            .iter()
            .flatten()
            .any(|owner| owner.kind.eq_ignore_ascii_case(&self.kind) && owner.name == self.name)
    }

    fn is_between(&self, object: &ObjectMeta) -> bool {
        let mut owners = object.owner_references.iter().flatten();
        owners.any(|owner| self.between.contains(&owner.uid))
    }
}

/// Whether a container of the pod has the image, by its digest or by its name.
fn runs(pod: &Pod, image: &str) -> bool {
    let statuses = pod.status.iter().flat_map(|status| {
        let of = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
        let mut all = of(&status.container_statuses);
        all.extend(of(&status.init_container_statuses));
        all.extend(of(&status.ephemeral_container_statuses));
        all
    });
    if image.starts_with("sha256:") {
        // `docker-pullable://registry/name@sha256:…`, `docker://sha256:…` or `sha256:…`
        let mut ids = statuses.map(|status| status.image_id);
        let started = ids.any(|id| {
            let before = id.strip_suffix(image);
            before.is_some_and(|before| before.is_empty() || before.ends_with(['@', '/']))
        });
        // One that is asked for by its digest has no other, also before it is there.
        let is_asked_for = |name: &str| {
            let before = name.strip_suffix(image);
            before.is_some_and(|before| before.ends_with('@'))
        };
        return started || images(pod).any(is_asked_for);
    }
    images(pod).any(|name| name == image)
        || statuses
            .map(|status| status.image)
            .any(|name| name == image)
}

/// The images of a pod's containers as they are asked for.
fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        let containers = spec.containers.iter().chain(inits);
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        containers
            .filter_map(|container| container.image.as_deref())
            .chain(ephemeral.filter_map(|container| container.image.as_deref()))
    })
}

/// Agents, controller, store: a sweep of everything must not export the evidence itself.
#[must_use]
pub fn is_own(pod: &Pod, settings: &Settings) -> bool {
    evict::is_own(pod, settings)
}

/// A selection for people and the custody log, in one line. What is too long for it is named by the SHA-256 of its JSON.
#[must_use]
pub fn words(selection: &Selection) -> String {
    let mut parts = Vec::new();
    parts.push(match selection.all_namespaces {
        true => "all namespaces".to_owned(),
        false => format!("namespaces {}", selection.namespaces.join(",")),
    });
    for (name, value) in [
        ("labels", selection.labels.clone()),
        ("nodes with labels", selection.node_labels.clone()),
        ("images", selection.images.join(",")),
        ("owner", selection.owner.clone()),
    ] {
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    }
    let mut text = parts.join("; ");
    if text.len() > WORDS {
        // A Selection is always serialisable.
        let json = serde_json::to_vec(selection).unwrap_or_default();
        let mut end = WORDS;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text = format!("{text}… (sha256 {})", Sha256::of(&json));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn pod(more: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "web-1", "namespace": "shop", "uid": "u",
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "set" }] },
            "spec": { "nodeName": "worker", "containers": [{ "name": "c", "image": "registry/web:1" }] },
        });
        for (key, value) in more.as_object().unwrap() {
            pod[key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn wanted(selection: Selection) -> Wanted {
        Wanted::parse(&selection).unwrap()
    }

    #[test]
    fn an_image_is_known_by_its_digest_however_the_runtime_writes_it_or_by_its_name() {
        let with = |id: &str| {
            pod(json!({ "status": { "containerStatuses": [{
                "name": "c", "image": "web", "imageID": id, "ready": true, "restartCount": 0 }] } }))
        };
        let by_digest = wanted(Selection {
            images: vec![DIGEST.into()],
            ..Default::default()
        });
        for id in [
            DIGEST.to_owned(),
            format!("docker://{DIGEST}"),
            format!("docker-pullable://registry/web@{DIGEST}"),
        ] {
            assert!(by_digest.fits(&with(&id)), "{id}");
        }
        for id in ["", "registry/web:1", &format!("x{DIGEST}"), &DIGEST[..60]] {
            assert!(!by_digest.fits(&with(id)), "{id}");
        }
        let asked_for = pod(json!({ "spec": { "nodeName": "worker",
            "containers": [{ "name": "c", "image": format!("registry/web@{DIGEST}") }] } }));
        assert!(by_digest.fits(&asked_for), "before it has started");
        assert!(!by_digest.is_unknown(&asked_for));
        assert!(by_digest.is_unknown(&pod(json!({}))));
        assert!(by_digest.is_unknown(&with("")));
        assert!(!by_digest.is_unknown(&with("sha256:12")));
        let by_name = |name: &str| {
            wanted(Selection {
                images: vec![name.into()],
                ..Default::default()
            })
        };
        assert!(by_name("registry/web:1").fits(&with("")));
        assert!(by_name("web").fits(&with("")), "as the status has it");
        assert!(!by_name("registry/web").fits(&with("")));
        let wrong = Selection {
            images: vec!["sha256:12".into()],
            ..Default::default()
        };
        assert!(
            Wanted::parse(&wrong)
                .unwrap_err()
                .contains("64 hexadecimal digits")
        );
    }

    #[test]
    fn an_owner_is_found_directly_and_through_what_it_owns() {
        let mut direct = wanted(Selection {
            owner: "replicaset/web-5d4f".into(),
            ..Default::default()
        });
        assert!(direct.fits(&pod(json!({}))));
        direct = wanted(Selection {
            owner: "ReplicaSet/web".into(),
            ..Default::default()
        });
        assert!(!direct.fits(&pod(json!({}))));
        let mut through = wanted(Selection {
            owner: "Deployment/web".into(),
            ..Default::default()
        });
        assert!(!through.fits(&pod(json!({}))));
        through.owner.as_mut().unwrap().between.insert("set".into());
        assert!(through.fits(&pod(json!({}))));
    }

    #[test]
    fn a_pod_on_no_node_is_on_none_of_the_wanted_ones() {
        let mut wanted = wanted(Selection::default());
        let unscheduled = pod(json!({ "spec": { "containers": [] } }));
        assert!(wanted.fits(&unscheduled));
        wanted.nodes = Some(["worker".to_owned()].into());
        assert!(wanted.fits(&pod(json!({}))) && !wanted.fits(&unscheduled));
    }

    #[test]
    fn a_long_selection_is_told_apart_from_others_that_begin_alike() {
        let long = |last: &str| Selection {
            namespaces: (0..200)
                .map(|n| format!("ns-{n}"))
                .chain([last.to_owned()])
                .collect(),
            ..Default::default()
        };
        let (one, other) = (words(&long("a")), words(&long("b")));
        assert_ne!(one, other);
        assert!(one.len() < 700, "{one}");
    }
}
