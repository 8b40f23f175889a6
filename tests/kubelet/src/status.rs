//! A pod's status as a kubelet reports it, from its specification and its containers as they are.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::plan;
use crate::runtime::{Observed, State};

/// Why a container (or, under [`SANDBOX`], the pod) can't be started at the moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    /// As Kubernetes names it, e.g. `ErrImagePull`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Key of a problem that concerns the sandbox and so every container. No container is called that.
pub(crate) const SANDBOX: &str = "";

/// What the probes say about a running container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Health {
    pub(crate) started: bool,
    pub(crate) ready: bool,
}

/// Everything a status is made of.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a [Observed],
    pub(crate) problems: &'a HashMap<String, Problem>,
    pub(crate) health: &'a dyn Fn(&str) -> Health,
    pub(crate) host_address: &'a str,
    /// The pod is being deleted: nothing that ended starts again.
    pub(crate) terminating: bool,
    pub(crate) now: Timestamp,
}

/// When each condition last changed; lives as long as the pod.
#[derive(Default)]
pub(crate) struct Conditions(HashMap<&'static str, (bool, Value)>);

/// The `status` to patch in. Lists are whole, conditions are those that a kubelet owns.
pub(crate) fn pod_status(facts: &Facts<'_>, conditions: &mut Conditions) -> Value {
    let pod = facts.pod;
    let Some(spec) = &pod.spec else {
        return json!({});
    };
    let policy = plan::policy(spec);
    let no_containers = Vec::new();
    let inits = spec.init_containers.as_ref().unwrap_or(&no_containers);
    let initialized = inits
        .iter()
        .all(|one| plan::latest(facts.observed, &one.name).is_some_and(plan::succeeded));

    let init_policy = if policy == "Never" {
        "Never"
    } else {
        "OnFailure"
    };
    let init: Vec<View> = inits
        .iter()
        .map(|one| view(one, init_policy, facts, "PodInitializing"))
        .map(done_is_ready)
        .collect();
    let waiting_for = if initialized {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let main: Vec<View> = spec
        .containers
        .iter()
        .map(|one| view(one, policy, facts, waiting_for))
        .collect();

    let unready: Vec<&str> = spec
        .containers
        .iter()
        .zip(&main)
        .filter(|(_, view)| !view.ready)
        .map(|(container, _)| container.name.as_str())
        .collect();
    let sandbox = plan::sandbox(facts.observed).filter(|sandbox| plan::is_running(sandbox));
    let ready = initialized && unready.is_empty();
    let unready_message = format!("containers with unready status: [{}]", unready.join(" "));
    let mut status = json!({
        "phase": phase(spec, initialized, &main, facts),
        "hostIP": facts.host_address,
        "hostIPs": [{ "ip": facts.host_address }],
        "conditions": [
            conditions.entry("PodReadyToStartContainers", sandbox.is_some(), None, facts.now),
            conditions.entry("Initialized", initialized,
                Some(("ContainersNotInitialized", "init containers have not all succeeded")), facts.now),
            conditions.entry("Ready", ready, Some(("ContainersNotReady", &unready_message)), facts.now),
            conditions.entry("ContainersReady", ready, Some(("ContainersNotReady", &unready_message)), facts.now),
        ],
        "containerStatuses": main.into_iter().map(|view| view.status).collect::<Vec<_>>(),
    });
    let Some(fields) = status.as_object_mut() else {
        return status;
    };
    if !init.is_empty() {
        let statuses = init.into_iter().map(|view| view.status).collect::<Vec<_>>();
        fields.insert("initContainerStatuses".into(), statuses.into());
    }
    if let Some(ephemeral) = ephemeral(spec, facts) {
        fields.insert("ephemeralContainerStatuses".into(), ephemeral);
    }
    let address = match sandbox {
        Some(_) if spec.host_network == Some(true) => facts.host_address,
        Some(sandbox) => sandbox.address.as_str(),
        None => "",
    };
    if !address.is_empty() {
        fields.insert("podIP".into(), address.into());
        fields.insert("podIPs".into(), json!([{ "ip": address }]));
    }
    if let Some(generation) = pod.metadata.generation {
        fields.insert("observedGeneration".into(), generation.into());
    }
    // The kubelet's first look at the pod; never changes after.
    let started = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    let started = conditions.started(started.map_or(facts.now, |time| time.0));
    fields.insert("startTime".into(), started);
    status
}

/// Seconds, as Kubernetes writes times.
fn time(time: Timestamp) -> Value {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

struct View {
    status: Value,
    ready: bool,
    /// Exit code, if it ended for good.
    over: Option<i64>,
    /// Waiting, and never ran.
    new: bool,
}

fn view(container: &Container, policy: &str, facts: &Facts<'_>, waiting_for: &str) -> View {
    let latest = plan::latest(facts.observed, &container.name);
    let before = latest.and_then(|latest| {
        plan::attempts(facts.observed, &container.name)
            .filter(|one| one.attempt < latest.attempt)
            .max_by_key(|one| one.attempt)
    });
    let problem = facts
        .problems
        .get(&container.name)
        .or(facts.problems.get(SANDBOX));
    let (mut running, mut over, mut health) = (
        false,
        None,
        Health {
            started: false,
            ready: false,
        },
    );
    let mut last = before.map(terminated);
    let waiting = |reason: &str, message: &str| {
        let mut waiting = json!({ "reason": reason });
        if let (false, Some(fields)) = (message.is_empty(), waiting.as_object_mut()) {
            fields.insert("message".into(), message.into());
        }
        json!({ "waiting": waiting })
    };
    let state = match latest.map(|latest| (latest, &latest.state)) {
        Some((latest, State::Running { started })) => {
            running = true;
            health = (facts.health)(&latest.id);
            json!({ "running": { "startedAt": time(*started) } })
        }
        Some((latest, State::Exited { code, .. })) => match plan::restart(policy, latest) {
            plan::Restart::At(time)
                if !facts.terminating && (time > facts.now || problem.is_some()) =>
            {
                last = Some(terminated(latest));
                match problem {
                    Some(problem) => waiting(problem.reason, &problem.message),
                    None => waiting(
                        "CrashLoopBackOff",
                        &back_off_message(container, latest, facts),
                    ),
                }
            }
            // About to start again.
            plan::Restart::At(_) if !facts.terminating => terminated(latest),
            _ => {
                over = Some(*code);
                terminated(latest)
            }
        },
        Some((_, State::Created)) | None => match problem {
            Some(problem) => waiting(problem.reason, &problem.message),
            None => waiting(waiting_for, ""),
        },
    };
    let mut status = json!({
        "name": container.name,
        "state": state,
        "lastState": last.unwrap_or_else(|| json!({})),
        "ready": health.ready,
        "started": running && health.started,
        "restartCount": latest.map_or(0, |latest| latest.attempt),
        "image": container.image,
        "imageID": "",
    });
    if let (Some(latest), Some(fields)) = (latest, status.as_object_mut()) {
        fields.insert(
            "imageID".into(),
            format!("docker://{}", latest.image_id).into(),
        );
        fields.insert(
            "containerID".into(),
            format!("docker://{}", latest.id).into(),
        );
    }
    let new = !running && over.is_none() && latest.is_none();
    View {
        status,
        ready: health.ready,
        over,
        new,
    }
}

/// An init container that succeeded counts as ready.
fn done_is_ready(mut view: View) -> View {
    if let (Some(0), Some(fields)) = (view.over, view.status.as_object_mut()) {
        fields.insert("ready".into(), true.into());
    }
    view
}

fn back_off_message(container: &Container, latest: &Observed, facts: &Facts<'_>) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let meta = &facts.pod.metadata;
    format!(
        "back-off {}s restarting failed container={} pod={}_{}({})",
        plan::back_off(latest.attempt).as_secs(),
        container.name,
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid),
    )
}

fn terminated(ended: &Observed) -> Value {
    let State::Exited {
        code,
        reason,
        started,
        finished,
    } = &ended.state
    else {
        return json!({});
    };
    json!({ "terminated": {
        "exitCode": code,
        "reason": reason,
        "startedAt": time(*started),
        "finishedAt": time(*finished),
        "containerID": format!("docker://{}", ended.id),
    }})
}

fn phase(spec: &PodSpec, initialized: bool, main: &[View], facts: &Facts<'_>) -> &'static str {
    let over = plan::finished(spec, facts.observed, plan::policy(spec))
        || (facts.terminating && !facts.observed.iter().any(plan::is_running));
    if over {
        let succeeded = initialized && main.iter().all(|view| view.over == Some(0));
        return if succeeded { "Succeeded" } else { "Failed" };
    }
    if !initialized || main.iter().any(|view| view.new) {
        "Pending"
    } else {
        "Running"
    }
}

fn ephemeral(spec: &PodSpec, facts: &Facts<'_>) -> Option<Value> {
    let containers = spec.ephemeral_containers.as_ref()?;
    let statuses = containers.iter().map(|container| {
        let container = Container {
            name: container.name.clone(),
            image: container.image.clone(),
            ..Default::default()
        };
        view(&container, "Never", facts, "ContainerCreating").status
    });
    Some(statuses.collect::<Vec<_>>().into())
}

impl Conditions {
    fn entry(
        &mut self,
        kind: &'static str,
        holds: bool,
        unless: Option<(&str, &str)>,
        now: Timestamp,
    ) -> Value {
        let known = self.0.contains_key(kind);
        let entry = self.0.entry(kind).or_insert_with(|| (holds, time(now)));
        if entry.0 != holds {
            *entry = (holds, time(now));
        }
        let mut condition = json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastProbeTime": null,
            "lastTransitionTime": entry.1,
        });
        let Some(fields) = condition.as_object_mut() else {
            return condition;
        };
        match unless {
            Some((reason, message)) if !holds => {
                fields.insert("reason".into(), reason.into());
                fields.insert("message".into(), message.into());
            }
            // A strategic merge keeps what isn't named: null takes an earlier reason away.
            Some(_) if known => {
                fields.insert("reason".into(), Value::Null);
                fields.insert("message".into(), Value::Null);
            }
            _ => {}
        }
        condition
    }

    fn started(&mut self, seen: Timestamp) -> Value {
        self.0
            .entry("startTime")
            .or_insert_with(|| (true, time(seen)))
            .1
            .clone()
    }
}

#[cfg(test)]
mod tests;
