//! Whether NetworkPolicies are enforced, by trying: a policy that nobody enforces looks like any other.
//!
//! ```text
//! allowed    a pod listens, another gets an answer          else: could not be tested
//! denied     the next one gets none any more                else: NOT enforced
//! allowed    a third one gets an answer again               else: could not be tested (the listener may have died)
//! ```
//! What is made has a label of this run, and is deleted at the end, whatever that is. Pods that nobody could delete end by
//! themselves.

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
pub(super) async fn tried(wanted: Doctor) -> Result<View, Failure> {
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

    fn run(&self) -> Result<View, Failure> {
        let enforced = self.enforced();
        // Not `ignored`: what is left behind is told.
        let selected = format!("{LABEL}={}", self.id);
        self.kubectl.read(&[
            "delete",
            "pods,networkpolicies",
            "-n",
            self.namespace,
            "-l",
            &selected,
            "--ignore-not-found",
            "--wait=false",
        ])?;
        let remedy = "use a network plugin that enforces NetworkPolicies (Cilium, Calico and others), and isolation at the \
                      node (isolation.enabled): a policy that is not enforced contains nothing";
        Ok(match enforced {
            Ok(true) => view(
                ABOUT,
                "ok",
                "enforced: what a policy did not allow any more did not get through".into(),
                "",
            ),
            Ok(false) => view(
                ABOUT,
                "failed",
                format!("NOT enforced: {TRYING} s after it was denied, traffic still got through"),
                remedy,
            ),
            Err(Unknown::Because(why)) => view(
                ABOUT,
                "warning",
                format!("could not be tested, because {why}"),
                "see to that, and try again",
            ),
            Err(Unknown::Interrupted) => {
                return Err(Failure::Interrupted(
                    "interrupted; pods and policies of the test are deleted".to_owned(),
                ));
            }
        })
    }

    fn enforced(&self) -> Result<bool, Unknown> {
        let (image, secrets) = self.image()?;
        let image = (&*image, &secrets);
        let at = format!("0.0.0.0:{PORT}");
        self.apply(&[
            self.policy(true),
            self.pod("listener", image, &["reach", "listen", "--at", &at]),
        ])?;
        let address = self.listening()?;
        if self.ended("before", image, &address, "comes")? == Ended::InVain {
            return Err(because(
                "a pod does not reach another even where a policy allows it",
            ));
        }
        self.apply(&[self.policy(false)])?;
        if self.ended("denied", image, &address, "stops")? == Ended::InVain {
            return Ok(false);
        }
        self.apply(&[self.policy(true)])?;
        match self.ended("after", image, &address, "comes")? {
            Ended::Well => Ok(true),
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

    /// Where the listener listens.
    fn listening(&self) -> Result<String, Unknown> {
        let name = format!("{}-listener", self.id);
        let pod = self.until(&name, |pod| {
            let running = text(pod, "/status/phase") == "Running";
            running && !text(pod, "/status/podIP").is_empty()
        })?;
        let address = text(&pod, "/status/podIP");
        Ok(match address.contains(':') {
            true => format!("[{address}]:{PORT}"),
            false => format!("{address}:{PORT}"),
        })
    }

    /// Has a pod try, and says how that ended.
    fn ended(
        &self,
        part: &str,
        image: (&str, &Value),
        to: &str,
        until: &str,
    ) -> Result<Ended, Unknown> {
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
        self.apply(&[self.pod(part, image, &task)])?;
        let over = |pod: &Value| matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        let pod = self.until(&format!("{}-{part}", self.id), over)?;
        // A pod that was ended from outside has tried nothing to its end.
        let code = pod.pointer("/status/containerStatuses/0/state/terminated/exitCode");
        match (text(&pod, "/status/phase"), code.and_then(Value::as_i64)) {
            ("Succeeded", _) => Ok(Ended::Well),
            (_, Some(1)) => Ok(Ended::InVain),
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

    /// As confined as the agent's front is. On another node than the others, if there is one.
    fn pod(&self, part: &str, (image, secrets): (&str, &Value), arguments: &[&str]) -> Value {
        let others = json!({"topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {LABEL: self.id}}});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": self.named(part), "spec": {
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
        }})
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
