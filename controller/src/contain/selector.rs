//! Label selectors evaluated as the API server does, and the labels that must go for a selector
//! to let go of a pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether the selector selects the labels. An empty selector selects everything; an unknown
/// operator selects (the safe reading: it is then reported, never overlooked).
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let by_labels = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    by_labels
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|expression| {
                let values = expression.values.as_deref().unwrap_or_default();
                let value = labels.get(&expression.key);
                match expression.operator.as_str() {
                    "In" => value.is_some_and(|value| values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => true,
                }
            })
}

/// Whether a Service's selector (plain equality) selects the labels. A Service without a selector
/// selects nothing: its endpoints are written by hand.
#[must_use]
pub fn service_selects(selector: Option<&BTreeMap<String, String>>, labels: &Labels) -> bool {
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    })
}

/// The label keys whose removal makes the selector let go: those it demands to be there.
/// `NotIn` and `DoesNotExist` can't be left by removing a label and give nothing.
#[must_use]
pub fn demanded_keys(selector: &LabelSelector) -> BTreeSet<String> {
    let from_labels = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, _)| key.clone());
    let from_expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .filter(|expression| matches!(expression.operator.as_str(), "In" | "Exists"))
        .map(|expression| expression.key.clone());
    from_labels.chain(from_expressions).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
            }]),
            match_labels: None,
        }
    }

    #[test]
    fn each_operator_reads_presence_and_absence_as_the_api_server_does() {
        let nginx = labels(&[("app", "nginx")]);
        let none = labels(&[]);
        for (selector, with, without) in [
            (expression("app", "In", &["nginx"]), true, false),
            (expression("app", "NotIn", &["nginx"]), false, true),
            (expression("app", "NotIn", &["tomcat"]), true, true),
            (expression("app", "Exists", &[]), true, false),
            (expression("app", "DoesNotExist", &[]), false, true),
            (LabelSelector::default(), true, true),
        ] {
            assert_eq!(selects(&selector, &nginx), with, "{selector:?} with app");
            assert_eq!(
                selects(&selector, &none),
                without,
                "{selector:?} without app"
            );
        }
    }

    #[test]
    fn only_demanded_labels_can_release_a_pod() {
        assert_eq!(
            demanded_keys(&expression("app", "In", &["nginx"])),
            BTreeSet::from(["app".to_owned()])
        );
        assert!(demanded_keys(&expression("app", "NotIn", &["nginx"])).is_empty());
    }

    #[test]
    fn a_service_without_selector_selects_nothing() {
        let nginx = labels(&[("app", "nginx")]);
        assert!(!service_selects(None, &nginx));
        assert!(!service_selects(Some(&BTreeMap::new()), &nginx));
        assert!(service_selects(Some(&nginx), &nginx));
    }
}
