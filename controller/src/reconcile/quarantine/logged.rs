//! What a quarantine writes to its case's custody log: who asked, how far the pod was contained, who released it.

use impound_evidence::Event as CustodyEvent;

use crate::reconcile::custody::AT_LEISURE;
use crate::reconcile::next_step::is_contained;
use crate::reconcile::record::Record;
use crate::reconcile::{Context, custody, releasing};
use crate::resources::QuarantinePhase;

/// Says that something is not in the custody log.
pub(super) fn report(record: &Record, logged: Result<(), String>) {
    if let Err(problem) = logged {
        tracing::error!(
            quarantine = record.name(),
            problem,
            "not in the custody log"
        );
    }
}

/// Writes what containment did not wait for, unless it is there already.
pub(super) async fn log_again(record: &Record, context: &Context) -> Result<(), String> {
    let writing = async {
        log_request(record, context).await?;
        log_contained(record, context).await
    };
    custody::within(AT_LEISURE, writing).await
}

/// The custody log says who asked, and at once if it is refused.
pub(super) async fn log_request(record: &Record, context: &Context) -> Result<(), String> {
    let spec = &record.object.spec;
    let subject = subject("quarantine", record);
    let request = custody::request_id(&record.object);
    let pod = (spec.pod.as_str(), spec.pod_uid.as_deref());
    let (namespace, name) = (record.namespace(), record.name());
    let authorised = request.map(|id| custody::request("quarantine", &namespace, &name, pod, id));
    let asked = custody::Asked {
        event: CustodyEvent::Requested,
        who: &spec.requested_by,
        subject: &subject,
        authorised: authorised.as_deref(),
        request,
        reason: &spec.reason,
    };
    custody::asked(context, &spec.case, asked).await?;
    if record.status.phase != QuarantinePhase::Refused {
        return Ok(());
    }
    let why = Some(record.status.message.clone());
    custody::done(context, &spec.case, CustodyEvent::Refused, &subject, why).await
}

/// The custody log says when and how far the pod was contained.
pub(super) async fn log_contained(record: &Record, context: &Context) -> Result<(), String> {
    let facts: Vec<String> = record
        .status
        .facts
        .iter()
        .map(|fact| format!("{}={:?}", fact.name, fact.state))
        .collect();
    let event = if is_contained(&record.status) {
        CustodyEvent::Contained
    } else {
        CustodyEvent::Failed
    };
    let what = format!(
        "containment of pod {}/{} (uid {}) by {}: {}",
        record.namespace(),
        record.object.spec.pod,
        record.status.pod_uid.as_deref().unwrap_or_default(),
        subject("quarantine", record),
        facts.join(", ")
    );
    custody::done(context, &record.object.spec.case, event, &what, None).await
}

pub(super) async fn log_release(record: &Record, context: &Context) -> Result<(), String> {
    let release = record.object.spec.release.clone().unwrap_or_default();
    let subject = subject("release of quarantine", record);
    let asked = custody::Asked {
        event: CustodyEvent::Released,
        who: &release.requested_by,
        subject: &subject,
        authorised: Some(&subject),
        request: None,
        reason: &release.reason,
    };
    custody::asked(context, &record.object.spec.case, asked).await
}

pub(super) async fn log_refused_release(record: &Record, context: &Context) -> Result<(), String> {
    let what = subject("release of quarantine", record);
    let why = Some(releasing::refusal());
    let case = &record.object.spec.case;
    custody::done(context, case, CustodyEvent::Refused, &what, why).await
}

fn subject(kind: &str, record: &Record) -> String {
    let uid = record.object.metadata.uid.as_deref().unwrap_or_default();
    custody::subject(kind, &record.namespace(), &record.name(), uid)
}
