//! What is not compared, or not wholly, and why.

/// How an exchange departs from "send it, compare everything".
#[derive(Debug, Clone, Copy)]
pub(crate) enum Exception {
    /// Not sent. The reason.
    Skip(&'static str),
    /// Compared except below these paths (`*` is one segment). The reason.
    Without(
        &'static [&'static str],
        #[expect(dead_code, reason = "for the reader")] &'static str,
    ),
    /// A watch, compared by a function of its own.
    Watch,
}

use Exception::{Skip, Watch, Without};

const STATUS: &[&str] = &["/status"];
const ITEM_STATUS: &[&str] = &["/items/*/status"];
const INSTANT: &str =
    "recorded while a real kubelet was starting the container; here it runs at once";

/// Paths that are never compared.
pub(crate) const NEVER: &[&str] = &[
    // Left out of the recordings.
    "**/managedFields",
    // Says what the real node's cgroups allow; nothing in the API depends on it.
    "/status/resources",
    "/items/*/status/resources",
    // When the endpoints controller was triggered, and how often: timing of a real kubelet.
    "/items/*/metadata/annotations@EndpointSliceList",
    "/items/*/metadata/generation@EndpointSliceList",
    // Deployments carry the revision the controller writes a moment later; ReplicaSets are compared with it.
    "**/deployment.kubernetes.io~1revision@Deployment",
];

/// The exception of an exchange, if there is one.
pub(crate) fn exception(name: &str, at: usize) -> Option<Exception> {
    Some(match (name, at) {
        ("01-deployment-release", 7) => Without(ITEM_STATUS, INSTANT),
        ("01-deployment-release", 17) => Without(
            &[
                "/items/*/metadata/deletionTimestamp",
                "/items/*/metadata/deletionGracePeriodSeconds",
                "/items/*/metadata/generation",
                "/items/*/metadata/resourceVersion",
                "/items/*/status",
            ],
            "which of its pods the ReplicaSet deletes is its choice; `after` checks that it is one, and not the suspect",
        ),
        ("02-guard-failures", 27) => Without(
            &["/metadata/resourceVersion"],
            "a real kubelet writes more often on the way to Failed",
        ),
        ("04-node-cordon", 0..=15) if at != 2 && at != 11 && at != 12 => Without(
            &["/status", "/metadata/annotations"],
            "hardware, images and addresses of the recorded node",
        ),
        ("01-deployment-release", 8) => Without(
            &["/items/*/endpoints"],
            "recorded before the replacement was ready; `after` checks that the suspect is not in it",
        ),
        ("05-eviction", 12) => Without(&["/status/currentHealthy"], INSTANT),
        ("05-eviction", 14) | ("07-daemonset", 7) => Without(
            &["/status", "/metadata/annotations", "/metadata/labels"],
            "hardware of the recorded node; left-over labels of another scenario",
        ),
        ("05-eviction", 17) => Without(
            &[
                "/status/phase",
                "/status/conditions/*/status",
                "/status/conditions/*/reason",
                "/status/conditions/*/message",
                "/status/containerStatuses",
                "/status/podIP",
                "/status/podIPs",
            ],
            INSTANT,
        ),
        ("05-eviction", 18..=20) => Without(ITEM_STATUS, INSTANT),
        ("07-daemonset", 4) => Without(ITEM_STATUS, INSTANT),
        ("08-job", 6) => Without(&["/items/*/spec/nodeName", "/items/*/status"], INSTANT),
        ("09-bare-pod", 10) => Skip("a proxy to a kubelet; there is none"),
        ("09-bare-pod", 11) => Skip("the log of a real container"),
        ("09-bare-pod", 6 | 7) => Without(
            &["/message", "/details/causes"],
            "the message ends with a diff of Go structures; `after` checks its beginning",
        ),
        ("10-crd", 22) => Without(&["/rows/*/cells/3"], "an age in seconds"),
        ("11-watch", 1..=3 | 6) => Watch,
        ("11-watch", 4) => Watch,
        ("11-watch", 9) => Without(
            &["/message"],
            "names the current version of the recorded server",
        ),
        ("11-watch", 12) => Without(
            &["/metadata/continue", "/items/*/status"],
            "an opaque token; and the pod's start times",
        ),
        ("12-lease", 8 | 9) => Without(
            &["/message", "/details/causes"],
            "the message shows the whole object in the order of Go's fields; `after` checks its end",
        ),
        ("13-tokens", _) => {
            Skip("the recording hides the tokens; tests/clients/tokens.rs asks the same questions")
        }
        ("14-access", 0) => return None,
        ("14-access", _) => Skip("this server enforces no RBAC"),
        ("16-liveness-restart", 0) => return None,
        ("16-liveness-restart", 4) => {
            Without(STATUS, "states of a container that a real probe kills")
        }
        ("16-liveness-restart", _) => Skip("a real kubelet restarting a container"),
        _ => return None,
    })
}
