//! Which case a quarantine belongs to, of those that this process has shown or made: a release that is refused is
//! written into its case's custody log, and costs the Kubernetes API nothing.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::locked::locked;
use crate::resources::Quarantine;

/// Names that are remembered; each quarantine has two.
const MOST: usize = 20_000;

/// Namespace and name of a quarantine, or of its pod -> case.
#[derive(Default)]
pub struct Cases(Mutex<HashMap<(String, String), String>>);

impl Cases {
    /// Remembers the case of `quarantine`, under its own name and its pod's.
    pub(super) fn learn(&self, quarantine: &Quarantine) {
        let mut known = locked(&self.0);
        if known.len() >= MOST {
            known.clear();
        }
        let namespace = quarantine.metadata.namespace.clone().unwrap_or_default();
        let own = quarantine.metadata.name.clone().unwrap_or_default();
        for name in [own, quarantine.spec.pod.clone()] {
            known.insert((namespace.clone(), name), quarantine.spec.case.clone());
        }
    }

    /// The case; empty if it is not known.
    pub(super) fn of(&self, namespace: &str, name: &str) -> String {
        let known = locked(&self.0);
        let key = (namespace.to_owned(), name.to_owned());
        known.get(&key).cloned().unwrap_or_default()
    }
}
