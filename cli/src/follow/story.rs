//! What is new in an object's state, told once: each step, check, warning and artifact as its result
//! is there, what runs meanwhile.

use std::collections::{HashMap, HashSet};

use impound_proto::controller::v1 as wire;

use crate::failure::Failure;
use crate::human;
use crate::screen::{Bytes, Line, Screen};

pub(super) struct Story<'s> {
    screen: &'s mut Screen,
    /// By key: what was last said of it.
    said: HashMap<String, String>,
    warned: HashSet<String>,
    lost: bool,
    /// What a terminal shows at the bottom: steps, then artifacts, to come.
    steps: String,
    artifacts: String,
}

impl<'s> Story<'s> {
    pub(super) fn new(screen: &'s mut Screen) -> Self {
        Self {
            screen,
            said: HashMap::new(),
            warned: HashSet::new(),
            lost: false,
            steps: String::new(),
            artifacts: String::new(),
        }
    }

    /// Takes something as told: only what comes after it is new.
    pub(super) fn knows(&mut self, quarantine: &wire::Quarantine) {
        for step in &quarantine.steps {
            self.is_new(&step_key(step), &step_text(step));
        }
        for fact in &quarantine.facts {
            self.is_new(&fact_key(fact), &fact_text(fact));
        }
        self.warned.extend(quarantine.warnings.iter().cloned());
        self.is_new("quarantine", &quarantine.phase);
    }

    pub(super) fn quarantine(&mut self, quarantine: &wire::Quarantine) -> Result<(), Failure> {
        for step in &quarantine.steps {
            self.step(step)?;
        }
        for fact in &quarantine.facts {
            if self.is_new(&fact_key(fact), &fact_text(fact)) {
                let message = format!("{}: {}", fact.name, fact.message);
                self.screen
                    .event("Check", fact_word(&fact.state), &message)?;
            }
        }
        for warning in &quarantine.warnings {
            if self.warned.insert(warning.clone()) {
                self.screen.event("", "warning", warning)?;
            }
        }
        if self.is_new("quarantine", &quarantine.phase) {
            self.screen.line(&Line {
                time: human::clock(latest(quarantine)),
                label: "Quarantine".to_owned(),
                state: phase_word(&quarantine.phase).to_owned(),
                took: String::new(),
                message: quarantine.message.clone(),
            })?;
        }
        let to_come = quarantine
            .steps
            .iter()
            .filter(|step| step.state == "Pending");
        self.steps = to_come
            .map(|step| step.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        self.rest();
        Ok(())
    }

    pub(super) fn collection(&mut self, collection: &wire::Collection) -> Result<(), Failure> {
        for artifact in &collection.artifacts {
            self.artifact(artifact)?;
        }
        if self.is_new("collection", &collection.phase) {
            let over = collection.finished.as_ref();
            self.screen.line(&Line {
                time: human::clock(over.or(collection.created.as_ref())),
                label: "Collection".to_owned(),
                state: phase_word(&collection.phase).to_owned(),
                took: human::between(collection.created.as_ref(), over),
                message: collection.message.clone(),
            })?;
        }
        let to_come = collection
            .artifacts
            .iter()
            .filter(|one| one.state == "Pending")
            .count();
        self.artifacts = match to_come {
            0 => String::new(),
            1 => "1 artifact".to_owned(),
            n => format!("{n} artifacts"),
        };
        self.rest();
        Ok(())
    }

    /// Each target that has ended without being sealed and complete once, as far as the sweep names it, and how far
    /// the whole is.
    pub(super) fn sweep(&mut self, sweep: &wire::Sweep) -> Result<(), Failure> {
        for one in &sweep.exceptions {
            let name = format!("{}/{}", one.namespace, one.pod);
            if self.is_new(&format!("target/{name}"), &one.state) {
                let word = match one.state.as_str() {
                    "Failed" => "FAILED",
                    "Partial" => "PARTIAL",
                    _ => "missing",
                };
                let message = format!("{name} ({}): {}", one.node, one.message);
                self.screen.event("Pod", word, &message)?;
            }
        }
        if self.is_new("sweep", &sweep.phase) {
            let over = sweep.finished.as_ref();
            self.screen.line(&Line {
                time: human::clock(over.or(sweep.created.as_ref())),
                label: "Sweep".to_owned(),
                state: phase_word(&sweep.phase).to_owned(),
                took: human::between(sweep.created.as_ref(), over),
                message: sweep.message.clone(),
            })?;
        }
        let counts = sweep.counts.unwrap_or_default();
        let ended = sweep
            .targets
            .saturating_sub(counts.waiting + counts.running);
        let failed = ended.saturating_sub(counts.sealed);
        if sweep.targets > 0 && ended < sweep.targets {
            let mut about = format!(
                "{} under way, {} stored",
                counts.running,
                human::bytes(sweep.bytes)
            );
            if failed > 0 {
                about.push_str(&format!(", {failed} not sealed and complete"));
            }
            let (done, all) = (ended.into(), sweep.targets.into());
            self.screen.count("sweep", "Pods", done, all, &about)?;
        } else {
            self.screen.over("sweep");
        }
        Ok(())
    }

    pub(super) fn lost(&mut self, why: &str) -> Result<(), Failure> {
        if !self.lost {
            self.lost = true;
            let message = format!("{why}; the work goes on in the cluster, trying again");
            self.screen.event("Connection", "lost", &message)?;
        }
        Ok(())
    }

    pub(super) fn back(&mut self) -> Result<(), Failure> {
        self.lost = false;
        self.screen.event("Connection", "back", "")
    }

    fn step(&mut self, step: &wire::Step) -> Result<(), Failure> {
        let key = step_key(step);
        let new = self.is_new(&key, &step_text(step));
        let first = !self.screen.is_running(&key);
        let word = match step.state.as_str() {
            "Pending" => return Ok(()),
            "Running" => {
                // A message that changes while a step runs is for the terminal's bar only.
                let told = self.screen.is_live() || !first;
                self.screen.step(&key, &step.name, &step.message);
                if told {
                    return Ok(());
                }
                "running"
            }
            "Waiting" => {
                self.screen.step(&key, &step.name, &step.message);
                "waiting"
            }
            state => {
                self.screen.over(&key);
                match state {
                    "Done" => "done",
                    "Skipped" => "skipped",
                    "Failed" => "FAILED",
                    other => other,
                }
            }
        };
        if !new {
            return Ok(());
        }
        let tries = match step.attempts {
            0 | 1 => String::new(),
            n => format!(" (attempt {n})"),
        };
        self.screen.line(&Line {
            time: human::clock(step.finished.as_ref().or(step.started.as_ref())),
            label: step.name.clone(),
            state: word.to_owned(),
            took: human::between(step.started.as_ref(), step.finished.as_ref()),
            message: format!("{}{tries}", step.message),
        })
    }

    fn artifact(&mut self, artifact: &wire::CollectedArtifact) -> Result<(), Failure> {
        let key = format!("artifact/{}", artifact.path);
        let name = path_below_node(&artifact.path);
        let word = match artifact.state.as_str() {
            "Pending" => return Ok(()),
            "Running" => {
                let bytes = Bytes {
                    done: artifact.bytes,
                    all: artifact.expected_bytes,
                };
                return self.screen.transfer(&key, "Evidence", name, bytes);
            }
            "Stored" => "stored",
            "Incomplete" => "INCOMPLETE",
            "Failed" => "FAILED",
            other => other,
        };
        self.screen.over(&key);
        if !self.is_new(&key, &artifact.state) {
            return Ok(());
        }
        let size = match artifact.bytes {
            0 if word == "FAILED" => String::new(),
            n => format!(", {}", human::bytes(n)),
        };
        let why = match artifact.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        self.screen.line(&Line {
            time: human::clock(artifact.finished.as_ref().or(artifact.started.as_ref())),
            label: "Evidence".to_owned(),
            state: word.to_owned(),
            took: human::between(artifact.started.as_ref(), artifact.finished.as_ref()),
            message: format!("{name}{size}{why}"),
        })
    }

    fn rest(&mut self) {
        let both = [self.steps.as_str(), self.artifacts.as_str()];
        let both: Vec<_> = both.into_iter().filter(|text| !text.is_empty()).collect();
        let text = match both.is_empty() {
            true => String::new(),
            false => format!("           then: {}", both.join(", ")),
        };
        self.screen.rest(&text);
    }

    fn is_new(&mut self, key: &str, what: &str) -> bool {
        let before = self.said.insert(key.to_owned(), what.to_owned());
        before.as_deref() != Some(what)
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        self.screen.clear();
    }
}

fn step_key(step: &wire::Step) -> String {
    format!("step/{}", step.name)
}

fn step_text(step: &wire::Step) -> String {
    format!("{} {}", step.state, step.message)
}

fn fact_key(fact: &wire::Fact) -> String {
    format!("fact/{}", fact.name)
}

fn fact_text(fact: &wire::Fact) -> String {
    format!("{} {}", fact.state, fact.message)
}

/// An artifact's path without the directory and node that all of a collection share.
pub(crate) fn path_below_node(path: &str) -> &str {
    path.strip_prefix("artifacts/")
        .and_then(|rest| rest.split_once('/'))
        .map_or(path, |(_, below)| below)
}

/// A check's result as a word.
pub(crate) fn fact_word(state: &str) -> &str {
    match state {
        "True" => "yes",
        "False" => "NO",
        "Unverified" => "UNVERIFIED",
        other => other,
    }
}

/// A phase as a word.
fn phase_word(phase: &str) -> &str {
    match phase {
        "Pending" => "pending",
        "Containing" => "containing",
        "Contained" => "CONTAINED",
        "Collecting" | "Running" => "running",
        "Paused" => "paused",
        "Cancelled" => "CANCELLED",
        "Complete" => "done",
        "Sealed" => "sealed",
        "Partial" => "PARTIAL",
        "Refused" => "REFUSED",
        "Failed" => "FAILED",
        "Releasing" => "releasing",
        "Released" => "released",
        other => other,
    }
}

/// The last time that anything happened, or the object was made.
fn latest(quarantine: &wire::Quarantine) -> Option<&prost_types::Timestamp> {
    let steps = quarantine.steps.iter();
    steps
        .flat_map(|step| [step.started.as_ref(), step.finished.as_ref()])
        .flatten()
        .max_by_key(|time| (time.seconds, time.nanos))
        .or(quarantine.created.as_ref())
}
