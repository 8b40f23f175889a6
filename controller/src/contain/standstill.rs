//! How long a pod may be paused before its own probes have the kubelet restart a container. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Probe};

/// Kubernetes' own values for what a probe leaves out.
const FAILURES: i32 = 3;
const PERIOD: i32 = 10;

/// For the way to the agent and back, and for an engine that is slow to let go.
const MARGIN: Duration = Duration::from_secs(2);

/// The longest time for which all probes together allow a standstill; at most `most`, which holds for a pod
/// without such probes. Zero: none at all.
///
/// A probe that fails `failureThreshold` times in a row restarts the container. The first failure can come at
/// once (a command in a paused container fails without delay), the last one a period later for each of the
/// others. One may have failed just before, which no API tells: that one counts, too. So it is the threshold
/// less two that is left. Readiness restarts nothing.
#[must_use]
pub fn allowed(pod: &Pod, most: Duration) -> Duration {
    limit(pod).map_or(most, |limit| limit.min(most))
}

/// The same, `None` for a pod in which no probe restarts anything.
#[must_use]
pub fn limit(pod: &Pod) -> Option<Duration> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    let probes = containers.flat_map(|container| {
        [&container.liveness_probe, &container.startup_probe]
            .into_iter()
            .flatten()
    });
    probes
        .map(patience)
        .map(|patience| patience.saturating_sub(MARGIN))
        .min()
}

/// Why no container of the pod is paused while its image is made: how long that takes is known to nobody, and a
/// runtime that has begun does not let go before it is done. `None` where nothing restarts it.
#[must_use]
pub fn why_no_paused_commit(pod: &Pod) -> Option<String> {
    let limit = limit(pod)?;
    Some(format!(
        "the pod's own probes restart a container that stands still for more than {} s, and a commit may take longer",
        limit.as_secs()
    ))
}

fn patience(probe: &Probe) -> Duration {
    let failures = probe
        .failure_threshold
        .unwrap_or(FAILURES)
        .saturating_sub(2)
        .max(0);
    let period = probe.period_seconds.unwrap_or(PERIOD).max(1);
    let seconds = i64::from(failures) * i64::from(period);
    Duration::from_secs(seconds.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn allowed_for(container: Value) -> u64 {
        let pod =
            json!({ "metadata": {}, "spec": { "containers": [{ "name": "quick" }, container] } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        allowed(&pod, Duration::from_secs(60)).as_secs()
    }

    #[test]
    fn the_least_patient_probe_that_restarts_decides() {
        let liveness = |failures, period| {
            json!({ "name": "web", "livenessProbe": { "tcpSocket": { "port": 80 },
                "failureThreshold": failures, "periodSeconds": period } })
        };
        assert_eq!(allowed_for(liveness(3, 10)), 8);
        assert_eq!(allowed_for(liveness(100, 10)), 60);
        assert_eq!(allowed_for(liveness(1, 3600)), 0);
        assert_eq!(allowed_for(liveness(2, 3600)), 0);
        assert_eq!(allowed_for(liveness(3, 2)), 0);
        assert_eq!(
            allowed_for(json!({ "name": "web", "livenessProbe": { "exec": {} } })),
            8
        );
        let startup = json!({ "name": "web", "startupProbe": { "exec": {}, "failureThreshold": 3, "periodSeconds": 7 },
            "livenessProbe": { "exec": {} } });
        assert_eq!(allowed_for(startup), 5);
    }

    #[test]
    fn a_failure_just_before_the_pause_and_all_that_fit_into_it_are_fewer_than_restart() {
        for threshold in 1..10_i32 {
            for period in 1..20_i32 {
                let pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "web", "livenessProbe": {
                    "exec": {}, "failureThreshold": threshold, "periodSeconds": period } }] } });
                let pod: Pod = serde_json::from_value(pod).unwrap();
                let stands = allowed(&pod, Duration::from_secs(600)).as_secs();
                if stands > 0 {
                    let during = stands / u64::from(period.unsigned_abs()) + 1;
                    assert!(1 + during < u64::from(threshold.unsigned_abs()));
                }
            }
        }
    }

    #[test]
    fn a_container_that_a_probe_restarts_is_not_paused_for_a_commit() {
        let pod = |container: Value| {
            let pod = json!({ "metadata": {}, "spec": { "containers": [container] } });
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let why = why_no_paused_commit(&pod(
            json!({ "name": "web", "livenessProbe": { "exec": {} } }),
        ));
        assert!(why.unwrap().contains("for more than 8 s"));
        let ready = pod(json!({ "name": "web", "readinessProbe": { "exec": {} } }));
        assert_eq!(why_no_paused_commit(&ready), None);
    }

    #[test]
    fn a_pod_that_nothing_restarts_may_stand_still_as_long_as_is_configured() {
        assert_eq!(allowed_for(json!({ "name": "web" })), 60);
        let readiness =
            json!({ "name": "web", "readinessProbe": { "exec": {}, "periodSeconds": 1 } });
        assert_eq!(allowed_for(readiness), 60);
    }
}
