//! Which resources are served: the built-in ones and those that CustomResourceDefinitions add.

use std::collections::HashMap;
use std::sync::Arc;

use crate::crd::CustomVersion;

/// One served version of one resource.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Has `/status`, and the main resource then ignores status.
    pub(crate) status: bool,
    pub(crate) scale: bool,
    /// Keeps `metadata.generation`, raised by a change of the spec.
    pub(crate) generation: bool,
    /// A PUT without resourceVersion is taken.
    pub(crate) unconditional_update: bool,
    /// Stored at all: reviews are only answered.
    pub(crate) stored: bool,
    /// `plural.group`: the storage it shares with its other versions, and its name in error texts.
    pub(crate) table: Arc<str>,
    /// Set for a resource that a CustomResourceDefinition defines.
    pub(crate) custom: Option<CustomVersion>,
}

impl Resource {
    /// `group/version`, or `v1`.
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub(crate) fn is(&self, table: &str) -> bool {
        &*self.table == table
    }
}

/// `group/version`, or only the version in the core group.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// `plural.group`, or only the plural in the core group.
pub(crate) fn table_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

/// Letters of the columns below: n namespaced, s status, S scale, g generation, c a PUT needs a resourceVersion,
/// a category `all`, v virtual (answered, never stored).
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

/// (group, version, plural, kind, short names, letters)
const BUILT_IN: &[Row] = &[
    ("", "v1", "namespaces", "Namespace", "ns", "s"),
    ("", "v1", "nodes", "Node", "no", "s"),
    ("", "v1", "pods", "Pod", "po", "nsga"),
    ("", "v1", "services", "Service", "svc", "nsa"),
    ("", "v1", "endpoints", "Endpoints", "ep", "n"),
    ("", "v1", "configmaps", "ConfigMap", "cm", "n"),
    ("", "v1", "secrets", "Secret", "", "n"),
    ("", "v1", "serviceaccounts", "ServiceAccount", "sa", "n"),
    ("", "v1", "events", "Event", "ev", "n"),
    ("", "v1", "limitranges", "LimitRange", "limits", "n"),
    ("", "v1", "resourcequotas", "ResourceQuota", "quota", "ns"),
    (
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        "pvc",
        "ns",
    ),
    ("", "v1", "persistentvolumes", "PersistentVolume", "pv", "s"),
    (
        "",
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        "rc",
        "nsgSa",
    ),
    ("events.k8s.io", "v1", "events", "Event", "ev", "n"),
    ("apps", "v1", "deployments", "Deployment", "deploy", "nsgSa"),
    ("apps", "v1", "replicasets", "ReplicaSet", "rs", "nsgSa"),
    ("apps", "v1", "statefulsets", "StatefulSet", "sts", "nsgSa"),
    ("apps", "v1", "daemonsets", "DaemonSet", "ds", "nsga"),
    (
        "apps",
        "v1",
        "controllerrevisions",
        "ControllerRevision",
        "",
        "n",
    ),
    ("batch", "v1", "jobs", "Job", "", "nsga"),
    ("batch", "v1", "cronjobs", "CronJob", "cj", "nsga"),
    (
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        "netpol",
        "ng",
    ),
    (
        "networking.k8s.io",
        "v1",
        "ingresses",
        "Ingress",
        "ing",
        "nsg",
    ),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        "pdb",
        "nsgc",
    ),
    (
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        "",
        "ng",
    ),
    ("coordination.k8s.io", "v1", "leases", "Lease", "", "nc"),
    (
        "certificates.k8s.io",
        "v1beta1",
        "podcertificaterequests",
        "PodCertificateRequest",
        "",
        "nsc",
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        "sgc",
    ),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", "", "n"),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        "RoleBinding",
        "",
        "n",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterroles",
        "ClusterRole",
        "",
        "",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        "",
        "",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        "",
        "g",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        "",
        "g",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        "",
        "sg",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        "",
        "g",
    ),
    (
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        "pc",
        "g",
    ),
    (
        "storage.k8s.io",
        "v1",
        "storageclasses",
        "StorageClass",
        "sc",
        "",
    ),
    (
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        "",
        "v",
    ),
    (
        "authorization.k8s.io",
        "v1",
        "subjectaccessreviews",
        "SubjectAccessReview",
        "",
        "v",
    ),
    (
        "authorization.k8s.io",
        "v1",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        "",
        "v",
    ),
    (
        "authentication.k8s.io",
        "v1",
        "selfsubjectreviews",
        "SelfSubjectReview",
        "",
        "v",
    ),
    (
        "authentication.k8s.io",
        "v1",
        "tokenreviews",
        "TokenReview",
        "",
        "v",
    ),
];

/// All served resources, found by group, version and plural.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    resources: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    by_table: HashMap<Arc<str>, Arc<Resource>>,
}

impl Registry {
    pub(crate) fn built_in() -> Self {
        let mut registry = Self::default();
        for (group, version, plural, kind, short, letters) in BUILT_IN {
            let has = |letter| letters.contains(letter);
            // Both event APIs show the same objects.
            let table = match *plural {
                "events" => "events".to_owned(),
                plural => table_name(group, plural),
            };
            registry.add(Resource {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
                plural: (*plural).to_owned(),
                singular: kind.to_lowercase(),
                kind: (*kind).to_owned(),
                list_kind: format!("{kind}List"),
                short_names: short.split_whitespace().map(str::to_owned).collect(),
                categories: if has('a') {
                    vec!["all".to_owned()]
                } else {
                    vec![]
                },
                namespaced: has('n'),
                status: has('s'),
                scale: has('S'),
                generation: has('g'),
                unconditional_update: !has('c'),
                stored: !has('v'),
                table: table.into(),
                custom: None,
            });
        }
        registry
    }

    pub(crate) fn add(&mut self, resource: Resource) {
        let resource = Arc::new(resource);
        let path = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.resources
            .retain(|old| (&old.group, &old.version, &old.plural) != (&path.0, &path.1, &path.2));
        self.by_path.insert(path, resource.clone());
        // The first version of a table is the one controllers use; for custom resources the newest definition.
        if resource.custom.is_some() || !self.by_table.contains_key(&resource.table) {
            self.by_table
                .insert(resource.table.clone(), resource.clone());
        }
        self.resources.push(resource);
    }

    /// Stops serving all versions of a table.
    pub(crate) fn remove(&mut self, table: &str) {
        self.resources.retain(|resource| !resource.is(table));
        self.by_path.retain(|_, resource| !resource.is(table));
        self.by_table.remove(table);
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .cloned()
    }

    pub(crate) fn table(&self, table: &str) -> Option<Arc<Resource>> {
        self.by_table.get(table).cloned()
    }

    /// The resource of an object's apiVersion and kind.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.resources
            .iter()
            .find(|resource| resource.kind == kind && resource.api_version() == api_version)
            .cloned()
    }

    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }
}
