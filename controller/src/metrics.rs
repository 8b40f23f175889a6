//! What the controller counts, for Prometheus (OpenMetrics text at `/metrics`).
//!
//! Names and units follow its conventions: base units, `_total` on counters. Labels have few values:
//! never a pod, a case or a person, which are in the status, the events and the custody log.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The counters. One for the whole process.
pub struct Metrics {
    registry: Registry,
    steps: Family<Step, Counter>,
    phases: Family<Phase, Counter>,
    disturbances: Family<Disturbance, Counter>,
    containment: Histogram,
    collections: Family<Outcome, Counter>,
    collected_bytes: Counter,
    agent_failures: Counter,
    requests: Family<Call, Counter>,
    leader: Gauge,
    store_free_bytes: Gauge,
    certificates: Family<Certificate, Gauge>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Step {
    step: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Phase {
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Disturbance {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Certificate {
    towards: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("impound");
        let steps = Family::default();
        registry.register(
            "quarantine_steps",
            "Steps of quarantines that ended, by step and how",
            steps.clone(),
        );
        let phases = Family::default();
        registry.register(
            "quarantine_phases",
            "Phases that quarantines entered",
            phases.clone(),
        );
        let disturbances = Family::default();
        registry.register(
            "quarantine_disturbances",
            "What disturbed a quarantine: drift put back or not, loss of evidence, no longer contained",
            disturbances.clone(),
        );
        // 10 ms to 40 s: an idle API server takes about 50 ms for all of it.
        let containment = Histogram::new(exponential_buckets(0.01, 2.0, 13));
        registry.register_with_unit(
            "containment_duration",
            "From the creation of a quarantine to its pod being contained",
            Unit::Seconds,
            containment.clone(),
        );
        let collections = Family::default();
        registry.register(
            "collections",
            "Collections that ended, by outcome",
            collections.clone(),
        );
        let collected_bytes = Counter::default();
        registry.register_with_unit(
            "collected",
            "Evidence stored, re-read and found equal",
            Unit::Bytes,
            collected_bytes.clone(),
        );
        let agent_failures = Counter::default();
        registry.register(
            "agent_connection_failures",
            "Agents that could not be asked",
            agent_failures.clone(),
        );
        let requests = Family::default();
        registry.register(
            "requests",
            "Calls of responders, by method and gRPC code",
            requests.clone(),
        );
        let leader = Gauge::default();
        registry.register(
            "leader",
            "1 while this replica holds the lease and works",
            leader.clone(),
        );
        let store_free_bytes = Gauge::default();
        registry.register_with_unit(
            "store_free",
            "Space left in the evidence store",
            Unit::Bytes,
            store_free_bytes.clone(),
        );
        let certificates = Family::default();
        registry.register_with_unit(
            "certificate_not_after_timestamp",
            "Last instant of our own certificates",
            Unit::Seconds,
            certificates.clone(),
        );
        registry.register(
            "build",
            "What runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            registry,
            steps,
            phases,
            disturbances,
            containment,
            collections,
            collected_bytes,
            agent_failures,
            requests,
            leader,
            store_free_bytes,
            certificates,
        }
    }
}

impl Metrics {
    /// All of them as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// A step of a quarantine ended.
    pub fn step_ended(&self, step: &str, state: &str) {
        let (step, state) = (step.to_owned(), state.to_owned());
        self.steps.get_or_create(&Step { step, state }).inc();
    }

    /// A quarantine entered a phase.
    pub fn phase_entered(&self, phase: &str) {
        let phase = phase.to_owned();
        self.phases.get_or_create(&Phase { phase }).inc();
    }

    /// Something disturbed a quarantine.
    pub fn disturbed(&self, reason: &str) {
        let reason = reason.to_owned();
        self.disturbances
            .get_or_create(&Disturbance { reason })
            .inc();
    }

    /// A pod is contained, so many seconds after it was asked for.
    pub fn contained_after(&self, seconds: f64) {
        self.containment.observe(seconds);
    }

    /// A collection ended with so many bytes stored.
    pub fn collection_ended(&self, outcome: &str, bytes: u64) {
        let outcome = outcome.to_owned();
        self.collections.get_or_create(&Outcome { outcome }).inc();
        self.collected_bytes.inc_by(bytes);
    }

    /// An agent could not be asked.
    pub fn agent_failed(&self) {
        self.agent_failures.inc();
    }

    /// A responder's call was answered.
    pub fn answered(&self, method: &str, code: &str) {
        let (method, code) = (method.to_owned(), code.to_owned());
        self.requests.get_or_create(&Call { method, code }).inc();
    }

    /// Whether this replica works.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// Space left in the store.
    pub fn store_free(&self, bytes: u64) {
        self.store_free_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When our certificate towards somebody ends.
    pub fn certificate(&self, towards: &str, not_after: time::OffsetDateTime) {
        let towards = towards.to_owned();
        self.certificates
            .get_or_create(&Certificate { towards })
            .set(not_after.unix_timestamp());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted_under_conventional_names() {
        let metrics = Metrics::default();
        metrics.step_ended("Strip", "Done");
        metrics.collection_ended("Complete", 7);
        metrics.contained_after(0.05);
        metrics.leads(true);
        let text = metrics.text();
        for line in [
            "impound_quarantine_steps_total{step=\"Strip\",state=\"Done\"} 1",
            "impound_collections_total{outcome=\"Complete\"} 1",
            "impound_collected_bytes_total 7",
            "impound_containment_duration_seconds_count 1",
            "impound_leader 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_metric_that_the_dashboard_asks_for_exists_with_its_labels() {
        let dashboard = include_str!("../../deploy/grafana.json");
        let metrics = Metrics::default();
        // A family shows nothing before something of it was counted.
        metrics.step_ended("Strip", "Done");
        metrics.phase_entered("Contained");
        metrics.disturbed("Drift");
        metrics.contained_after(0.05);
        metrics.collection_ended("Complete", 7);
        metrics.answered("ListQuarantines", "Ok");
        metrics.certificate("agents", time::OffsetDateTime::UNIX_EPOCH);
        let text = metrics.text();
        let mut seen = 0;
        for asked in dashboard.split("impound_").skip(1) {
            let word = |text: &str| {
                let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                text[..end.unwrap_or(text.len())].to_owned()
            };
            let name = format!("impound_{}", word(asked));
            let lines: Vec<&str> = text.lines().filter(|line| word(line) == name).collect();
            assert!(!lines.is_empty(), "there is no metric {name}");
            // `name{job=~"$job",code!="Ok"}`
            let selector = asked.strip_prefix(&name["impound_".len()..]).unwrap();
            let selector = selector
                .strip_prefix('{')
                .and_then(|rest| rest.split('}').next());
            for label in selector.into_iter().flat_map(|labels| labels.split(',')) {
                let label = word(label);
                let here = lines.iter().any(|line| line.contains(&format!("{label}=")));
                assert!(here || label == "job", "{name} has no label {label}");
            }
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }
}
