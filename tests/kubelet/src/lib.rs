//! A kubelet for tests and the demo: runs the pods that an API server binds to given nodes as
//! real Docker containers, so that everything behind the API is as on a real node.
//!
//! Containers, sandboxes, names, labels, attempts and statuses are those of a kubelet with
//! cri-dockerd. One process serves any number of nodes on one Docker Engine; every container it
//! makes carries [`CLUSTER_LABEL`], and only such containers are ever touched.
//!
//! ```text
//! API watch ----> kubelet --(a worker for each pod)--> pod::Worker
//! Docker events ----^                                    observe  (runtime)
//!                                                        decide   (plan, pure)
//!                                                        act      (runtime, spec, volumes, probe)
//!                                                        report   (status -> API)
//! ```
//!
//! Covered: restart policies with back-off, init and ephemeral containers, liveness, readiness and
//! startup probes, graceful deletion, emptyDir and hostPath volumes, literal and field environment
//! variables. Not covered, and reported in the container's status when a pod asks for it: other
//! volumes, restartable init containers. Ignored: resource limits, hooks, image pulls (images
//! must be on the machine), logs, exec and port-forward through the API.

mod kubelet;
mod naming;
mod plan;
mod pod;
mod probe;
mod runtime;
mod spec;
mod status;
mod volumes;

pub use kubelet::{Config, Kubelet, KubeletError};
pub use naming::CLUSTER_LABEL;
