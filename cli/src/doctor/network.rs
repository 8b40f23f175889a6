//! Whether NetworkPolicies are enforced, by trying: a policy that nobody enforces looks like any other.
//!
//! ```text
//! allowed    a pod listens, another gets an answer          else: could not be tested
//! denied     the next one gets none any more                else: NOT enforced
//! allowed    a third one gets an answer again               else: could not be tested (the listener may have died)
//! ```
//! The three that try are on one node, or the first and the third would say nothing of the second's way. What was found
//! holds for that node and the listener's, so both are named. What is made has a label of this run, and is deleted at
//! the end, whatever that is. Pods that nobody could delete end by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{View, view};
use crate::arguments::Doctor;
use crate::cluster::Kubectl;
use crate::failure::Failure;

const ABOUT: &str = "network policies";
const LEFT: &str = "network policies, after the test";
/// Where a pod names its node.
const NODE: &str = "/spec/nodeName";
/// Label of what one run made.
const LABEL: &str = "impound.dev/network-test";
const MANAGER: &str = "impound-doctor";
const PORT: u16 = 7445;

/// How long the second end tries, in seconds: a policy takes some until it is in force everywhere.
const TRYING: u64 = 60;
/// How long a pod may take until it has done its part.
const PATIENCE: Duration = Duration::from_secs(150);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_secs(1);
/// When a pod that nobody deletes is ended, in seconds.
const DEADLINE: u64 = 900;

/// Tries it, and deletes what that took.
pub(super) async fn tried(wanted: Doctor) -> Result<Vec<View>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let mut work = tokio::task::spawn_blocking(move || Test::of(&wanted, &told).run());
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let done = tokio::select! {
        done = &mut work => done,
        _ = interrupt.recv() => { stop.store(true, Ordering::Relaxed); work.await }
        _ = terminate.recv() => { stop.store(true, Ordering::Relaxed); work.await }
    };
    done.map_err(|error| Failure::failed("the test of the network ended badly", &error))?
}

struct Test<'a> {
    kubectl: Kubectl<'a>,
    namespace: &'a str,
    /// Names everything of this run.
    id: String,
    stop: &'a AtomicBool,
}

/// Why there is no answer.
enum Unknown {
    /// The test could not be made.
    Because(String),
    /// The user does not want it any more.
    Interrupted,
}

/// What was found, and between which nodes, for people.
struct Found {
    enforced: bool,
    between: String,
}

/// How a pod ended that had a task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    InVain,
}

impl<'a> Test<'a> {
    fn of(wanted: &'a Doctor, stop: &'a AtomicBool) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        Self {
            kubectl: Kubectl(&wanted.cluster),
            namespace: &wanted.namespace,
            id: format!("impound-network-{now:x}"),
            stop,
        }
    }

    fn run(&self) -> Result<Vec<View>, Failure> {
        let enforced = self.enforced();
        // Not `ignored`: what is left behind is told.
        let selected = format!("{LABEL}={}", self.id);
        let deleted = self.kubectl.read(&[
            "delete",
            "pods,networkpolicies",
            "-n",
            self.namespace,
            "-l",
            &selected,
            "--ignore-not-found",
            "--wait=false",
        ]);
        let left = deleted.err().map(|failure| {
            let found = format!("pods and policies of the test are not all deleted: {failure}");
            let remedy = format!(
                "kubectl delete pods,networkpolicies -n {} -l {selected}",
                self.namespace
            );
            (found, remedy)
        });
        let remedy = "use a network plugin that enforces NetworkPolicies (Cilium, Calico and others), and isolation at the \
                      node (isolation.enabled): a policy that is not enforced contains nothing";
        let tried = match enforced {
            Ok(Found { enforced, between }) if enforced => view(
                ABOUT,
                "ok",
                format!(
                    "enforced {between}: what a policy did not allow any more did not get through"
                ),
                "",
            ),
            Ok(Found { between, .. }) => view(
                ABOUT,
                "failed",
                format!(
                    "NOT enforced {between}: {TRYING} s after it was denied, traffic still got through"
                ),
                remedy,
            ),
            Err(Unknown::Because(why)) => view(
                ABOUT,
                "warning",
                format!("could not be tested, because {why}"),
                "see to that, and try again",
            ),
            Err(Unknown::Interrupted) => {
                let left = left.map_or(
                    "pods and policies of the test are deleted".into(),
                    |(found, remedy)| format!("{found}; {remedy}"),
                );
                return Err(Failure::Interrupted(format!("interrupted; {left}")));
            }
        };
        let left = left.map(|(found, remedy)| view(LEFT, "warning", found, &remedy));
        Ok([tried].into_iter().chain(left).collect())
    }

    fn enforced(&self) -> Result<Found, Unknown> {
        let (image, secrets) = self.image()?;
        let image = (&*image, &secrets);
        let at = format!("0.0.0.0:{PORT}");
        self.apply(&[
            self.policy(true),
            self.pod("listener", image, None, &["reach", "listen", "--at", &at]),
        ])?;
        let (address, listeners) = self.listening()?;
        let (before, node) = self.ended("before", image, None, &address, "comes")?;
        if before == Ended::InVain {
            return Err(because(
                "a pod does not reach another even where a policy allows it",
            ));
        }
        let between = match node == listeners {
            true => format!("on node {node} (other nodes were not tried)"),
            false => format!("between nodes {node} and {listeners} (others were not tried)"),
        };
        let found = |enforced| Found {
            enforced,
            between: between.clone(),
        };
        let here = Some(&*node);
        self.apply(&[self.policy(false)])?;
        if self.ended("denied", image, here, &address, "stops")?.0 == Ended::InVain {
            return Ok(found(false));
        }
        self.apply(&[self.policy(true)])?;
        match self.ended("after", image, here, &address, "comes")?.0 {
            Ended::Well => Ok(found(true)),
            Ended::InVain => Err(because(
                "the listener did not answer either once it was allowed again",
            )),
        }
    }

    /// The agents' image, and the Secrets that it is pulled with.
    fn image(&self) -> Result<(String, Value), Unknown> {
        let found = self.read(&[
            "get",
            "daemonset",
            "impound-agent",
            "-n",
            self.namespace,
            "-o",
            "json",
        ])?;
        let spec = found.pointer("/spec/template/spec");
        let image = spec.and_then(|spec| spec.pointer("/containers/0/image"));
        let image = image.and_then(Value::as_str).map(str::to_owned);
        let image = image.ok_or_else(|| because("the DaemonSet impound-agent has no image"))?;
        let secrets = spec.and_then(|spec| spec.get("imagePullSecrets"));
        Ok((image, secrets.cloned().unwrap_or_else(|| json!([]))))
    }

    /// Where the listener listens, and its node.
    fn listening(&self) -> Result<(String, String), Unknown> {
        let name = format!("{}-listener", self.id);
        let pod = self.until(&name, |pod| {
            let running = text(pod, "/status/phase") == "Running";
            running && !text(pod, "/status/podIP").is_empty()
        })?;
        let address = text(&pod, "/status/podIP");
        let address = match address.contains(':') {
            true => format!("[{address}]:{PORT}"),
            false => format!("{address}:{PORT}"),
        };
        Ok((address, text(&pod, NODE).to_owned()))
    }

    /// Has a pod try, on this node if one is given, and says how that ended, and on which node.
    fn ended(
        &self,
        part: &str,
        image: (&str, &Value),
        node: Option<&str>,
        to: &str,
        until: &str,
    ) -> Result<(Ended, String), Unknown> {
        let seconds = TRYING.to_string();
        let task = [
            "reach",
            "try",
            "--to",
            to,
            "--until",
            until,
            "--seconds",
            &seconds,
        ];
        self.apply(&[self.pod(part, image, node, &task)])?;
        let over = |pod: &Value| matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        let pod = self.until(&format!("{}-{part}", self.id), over)?;
        // A pod that was ended from outside has tried nothing to its end.
        let code = pod.pointer("/status/containerStatuses/0/state/terminated/exitCode");
        match (text(&pod, "/status/phase"), code.and_then(Value::as_i64)) {
            ("Succeeded", _) => Ok((Ended::Well, text(&pod, NODE).to_owned())),
            (_, Some(1)) => Ok((Ended::InVain, text(&pod, NODE).to_owned())),
            (_, code) => Err(because(&format!(
                "the pod {part} ended with {code:?}: {}",
                text(&pod, "/status/reason")
            ))),
        }
    }

    /// The pod, once that is so of it.
    fn until(&self, name: &str, so: impl Fn(&Value) -> bool) -> Result<Value, Unknown> {
        let began = Instant::now();
        loop {
            let pod = self.read(&["get", "pod", name, "-n", self.namespace, "-o", "json"])?;
            if so(&pod) {
                return Ok(pod);
            }
            if began.elapsed() > PATIENCE {
                let waiting = pod.pointer("/status/containerStatuses/0/state/waiting/reason");
                let waiting = waiting.and_then(Value::as_str).unwrap_or_default();
                let phase = text(&pod, "/status/phase");
                return Err(because(&format!(
                    "the pod {name} is {phase} {waiting} after {} s",
                    PATIENCE.as_secs()
                )));
            }
            sleep(LOOK);
        }
    }

    fn read(&self, arguments: &[&str]) -> Result<Value, Unknown> {
        self.go_on()?;
        let read = self.kubectl.read(arguments);
        let read = read.map_err(|failure| self.failed(&failure))?;
        serde_json::from_str(&read).map_err(|error| because(&error.to_string()))
    }

    fn apply(&self, objects: &[Value]) -> Result<(), Unknown> {
        self.go_on()?;
        for object in objects {
            let applied = self.kubectl.apply_quietly(&object.to_string(), MANAGER);
            applied.map_err(|failure| self.failed(&failure))?;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Unknown> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Unknown::Interrupted),
            false => Ok(()),
        }
    }

    /// An interruption ends kubectl as well, which then has failed at nothing; it may have ended before we are told.
    fn failed(&self, failure: &Failure) -> Unknown {
        sleep(LOOK);
        match self.go_on() {
            Err(interrupted) => interrupted,
            Ok(()) => because(&failure.to_string()),
        }
    }

    /// Isolates the test's pods from all, with or without each other.
    fn policy(&self, allowed: bool) -> Value {
        let pods = json!({"matchLabels": {LABEL: self.id}});
        let (ingress, egress) = match allowed {
            true => (
                json!([{"from": [{"podSelector": pods}]}]),
                json!([{"to": [{"podSelector": pods}]}]),
            ),
            false => (json!([]), json!([])),
        };
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": self.named("policy"),
            "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}})
    }

    /// As confined as the agent's front is. On this node; without one on another node than the others, if there is one.
    fn pod(
        &self,
        part: &str,
        (image, secrets): (&str, &Value),
        node: Option<&str>,
        arguments: &[&str],
    ) -> Value {
        let others = json!({"topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {LABEL: self.id}}});
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": self.named(part), "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": secrets,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 100, "podAffinityTerm": others}]}},
            "containers": [{
                "name": "reach",
                "image": image,
                "args": arguments,
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        }});
        let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
        if let (Some(spec), Some(node)) = (spec, node) {
            spec.insert("nodeName".into(), node.into());
        }
        pod
    }

    fn named(&self, part: &str) -> Value {
        json!({"name": format!("{}-{part}", self.id), "namespace": self.namespace,
            "labels": {"app.kubernetes.io/part-of": "impound", LABEL: self.id}})
    }
}

fn because(why: &str) -> Unknown {
    Unknown::Because(why.to_owned())
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
