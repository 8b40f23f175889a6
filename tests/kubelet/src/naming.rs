//! Names and labels of a kubelet's Docker containers, as cri-dockerd gives them; what the agent
//! later finds a pod's containers by.

use std::collections::{BTreeMap, HashMap};

/// Label on every container that this kubelet makes; its value is the cluster's id.
pub const CLUSTER_LABEL: &str = "dev.impound.test.cluster";

pub(crate) const TYPE: &str = "io.kubernetes.docker.type";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";
pub(crate) const RESTART_COUNT: &str = "annotation.io.kubernetes.container.restartCount";
/// Our own: cri-dockerd gives a sandbox's attempt in its name only.
pub(crate) const SANDBOX_ATTEMPT: &str = "dev.impound.test.sandbox-attempt";
pub(crate) const SANDBOX_TYPE: &str = "podsandbox";

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_TYPE: &str = "container";
/// What a sandbox has for a container name.
const SANDBOX_CONTAINER: &str = "POD";

/// The identity of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl PodRef {
    /// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`
    pub(crate) fn container_name(&self, container: &str, attempt: u32) -> String {
        format!(
            "k8s_{container}_{}_{}_{}_{attempt}",
            self.name, self.namespace, self.uid
        )
    }

    /// As [`PodRef::container_name`], with `POD` for the container.
    pub(crate) fn sandbox_name(&self, attempt: u32) -> String {
        self.container_name(SANDBOX_CONTAINER, attempt)
    }

    /// Labels of the sandbox; it also carries the pod's own labels.
    pub(crate) fn sandbox_labels(
        &self,
        cluster: &str,
        pod_labels: &BTreeMap<String, String>,
        attempt: u32,
    ) -> HashMap<String, String> {
        let mut labels: HashMap<String, String> = pod_labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        labels.extend(self.labels(cluster, SANDBOX_TYPE, SANDBOX_CONTAINER));
        labels.insert(SANDBOX_ATTEMPT.into(), attempt.to_string());
        labels
    }

    /// Labels of one attempt of a container. `hash` changes with the container's specification.
    pub(crate) fn container_labels(
        &self,
        cluster: &str,
        container: &str,
        sandbox: &str,
        attempt: u32,
        hash: &str,
        grace_seconds: i64,
    ) -> HashMap<String, String> {
        let log = format!(
            "/var/log/pods/{}_{}_{}/{container}/{attempt}.log",
            self.namespace, self.name, self.uid
        );
        let mut labels: HashMap<String, String> = self
            .labels(cluster, CONTAINER_TYPE, container)
            .into_iter()
            .collect();
        labels.extend([
            (SANDBOX_ID.into(), sandbox.into()),
            ("io.kubernetes.container.logpath".into(), log),
            (RESTART_COUNT.into(), attempt.to_string()),
            (
                "annotation.io.kubernetes.container.hash".into(),
                hash.into(),
            ),
            (
                "annotation.io.kubernetes.container.terminationMessagePath".into(),
                "/dev/termination-log".into(),
            ),
            (
                "annotation.io.kubernetes.container.terminationMessagePolicy".into(),
                "File".into(),
            ),
            (
                "annotation.io.kubernetes.pod.terminationGracePeriod".into(),
                grace_seconds.to_string(),
            ),
        ]);
        labels
    }

    fn labels(&self, cluster: &str, kind: &str, container: &str) -> [(String, String); 6] {
        [
            (TYPE.into(), kind.into()),
            (CONTAINER_NAME.into(), container.into()),
            (POD_NAME.into(), self.name.clone()),
            (POD_NAMESPACE.into(), self.namespace.clone()),
            (POD_UID.into(), self.uid.clone()),
            (CLUSTER_LABEL.into(), cluster.into()),
        ]
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodRef {
        PodRef {
            namespace: "shop".into(),
            name: "web-1".into(),
            uid: "u-1".into(),
        }
    }

    #[test]
    fn names_are_those_of_cri_dockerd() {
        assert_eq!(
            pod().container_name("nginx", 3),
            "k8s_nginx_web-1_shop_u-1_3"
        );
        assert_eq!(pod().sandbox_name(0), "k8s_POD_web-1_shop_u-1_0");
    }

    #[test]
    fn a_sandbox_has_no_sandbox_id_and_its_pods_labels() {
        let own = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let labels = pod().sandbox_labels("c", &own, 0);
        assert_eq!(labels[TYPE], "podsandbox");
        assert_eq!(labels[CONTAINER_NAME], "POD");
        assert_eq!(labels["app"], "web");
        assert!(!labels.contains_key(SANDBOX_ID));
    }

    #[test]
    fn a_container_names_its_sandbox_and_attempt() {
        let labels = pod().container_labels("c", "nginx", "s1", 2, "abc", 30);
        assert_eq!(labels[TYPE], "container");
        assert_eq!(labels[SANDBOX_ID], "s1");
        assert_eq!(labels[RESTART_COUNT], "2");
        assert_eq!(
            labels["io.kubernetes.container.logpath"],
            "/var/log/pods/shop_web-1_u-1/nginx/2.log"
        );
    }
}
