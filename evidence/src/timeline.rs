//! `timeline.jsonl`: what happened when, for Timesketch, out of what a collection has.
//!
//! Every text here is the suspect's, the runtime's or a person's: it is data, and what has no time is
//! left out, as a timeline has no place for it.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::custody::{Entry, Event};
use crate::timestamp::Timestamp;

/// Something that happened; [`Moment::encode`] gives its line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// For people.
    pub message: String,
    /// When.
    pub datetime: Timestamp,
    /// The same in microseconds since 1970.
    pub timestamp: i64,
    /// What the time is of, in Timesketch's words where it has some.
    pub timestamp_desc: &'static str,
    /// `impound:file`, `impound:container`, `impound:custody` or `impound:containment`.
    pub data_type: &'static str,
    /// Which container it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Which file, of the container or of the collection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What the diff says of it: A or C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Of its contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Four octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u64>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u64>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Moment {
    fn new(
        datetime: Timestamp,
        timestamp_desc: &'static str,
        data_type: &'static str,
        message: String,
    ) -> Self {
        // The years 0 to 9999 fit in microseconds.
        let micros = datetime.to_utc().unix_timestamp_nanos() / 1000;
        Self {
            message,
            datetime,
            timestamp: i64::try_from(micros).unwrap_or_default(),
            timestamp_desc,
            data_type,
            container: None,
            path: None,
            change: None,
            sha256: None,
            size: None,
            mode: None,
            uid: None,
            gid: None,
            who: None,
            why: None,
        }
    }

    /// Its line, with the newline.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// A changed or added file, out of its line of `changes.jsonl`; none without a time.
    #[must_use]
    pub fn of_change(container: &str, line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let text = |pointer| line.pointer(pointer).and_then(Value::as_str);
        let number = |pointer| line.pointer(pointer).and_then(Value::as_u64);
        let (kind, path) = (text("/kind")?, text("/path")?);
        let time = instant(text("/file/mtime")?)?;
        let done = if kind == "A" { "added" } else { "changed" };
        let what = text("/file/type").unwrap_or("file");
        let message = match text("/file/link") {
            Some(link) => format!("{done}: {path} ({what} to {link}) in container {container}"),
            None => format!("{done}: {path} ({what}) in container {container}"),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Self {
            container: Some(container.to_owned()),
            path: Some(path.to_owned()),
            change: Some(kind.to_owned()),
            sha256: owned(text("/file/sha256")),
            size: number("/file/size"),
            mode: owned(text("/file/mode")),
            uid: number("/file/uid"),
            gid: number("/file/gid"),
            ..Self::new(time, "Content Modification Time", "impound:file", message)
        })
    }

    /// An entry of the custody log.
    #[must_use]
    pub fn of_entry(entry: &Entry) -> Self {
        let event = serde_json::to_value(entry.event).unwrap_or_default();
        let message = format!("{}: {}", event.as_str().unwrap_or_default(), entry.what);
        let artifact = entry.artifact.as_ref();
        Self {
            path: artifact.map(|artifact| artifact.path.to_string()),
            sha256: artifact.map(|artifact| artifact.sha256.to_string()),
            size: artifact.map(|artifact| artifact.size),
            who: Some(entry.who.clone()),
            why: entry.why.clone(),
            ..Self::new(entry.time, "Evidence Custody", "impound:custody", message)
        }
    }

    /// Creation, start and end of a container, out of the runtime's description.
    #[must_use]
    pub fn of_container(container: &str, inspect: &[u8]) -> Vec<Self> {
        let inspect: Value = serde_json::from_slice(inspect).unwrap_or_default();
        let one = |(pointer, done, desc): (&str, &str, &'static str)| {
            let time = instant(inspect.pointer(pointer)?.as_str()?)?;
            // The runtime's word for never.
            if time.to_utc().year() <= 1 {
                return None;
            }
            let message = format!("container {container} {done}");
            Some(Self {
                container: Some(container.to_owned()),
                ..Self::new(time, desc, "impound:container", message)
            })
        };
        [
            ("/Created", "was created", "Creation Time"),
            ("/State/StartedAt", "was started", "Start Time"),
            ("/State/FinishedAt", "ended", "End Time"),
        ]
        .into_iter()
        .filter_map(one)
        .collect()
    }

    /// The steps of containment, out of the Quarantine object.
    #[must_use]
    pub fn of_containment(quarantine: &[u8]) -> Vec<Self> {
        let quarantine: Value = serde_json::from_slice(quarantine).unwrap_or_default();
        let steps = quarantine
            .pointer("/status/steps")
            .and_then(Value::as_array);
        let one = |step: &Value| {
            let text = |field| step.get(field).and_then(Value::as_str);
            let (name, state) = (text("name")?, text("state")?);
            let time = instant(text("finished").or(text("started"))?)?;
            let message = match text("message") {
                Some(message) => format!("{name} {}: {message}", state.to_lowercase()),
                None => format!("{name} {}", state.to_lowercase()),
            };
            let desc = match text("finished") {
                Some(_) => "Containment Step Ended",
                None => "Containment Step Begun",
            };
            Some(Self::new(time, desc, "impound:containment", message))
        };
        steps.into_iter().flatten().filter_map(one).collect()
    }

    /// Whether an entry belongs on a timeline: every event but the reading, which the storing
    /// repeats a moment later.
    #[must_use]
    pub fn is_of_interest(entry: &Entry) -> bool {
        let derived = |artifact: &crate::manifest::ArtifactRecord| {
            artifact.method == crate::manifest::Method::Derived
        };
        entry.event != Event::Read && !entry.artifact.as_ref().is_some_and(derived)
    }
}

/// An RFC 3339 time with any fraction and offset.
fn instant(text: &str) -> Option<Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Timestamp::from_unix(
        time.unix_timestamp(),
        i32::try_from(time.nanosecond()).ok()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(moment: &Moment) -> Value {
        serde_json::from_slice(&moment.encode()).unwrap()
    }

    #[test]
    fn a_changed_file_is_at_its_modification_time() {
        let line = r#"{"kind":"A","path":"/tmp/x","file":{"path":"tmp/x","type":"file","mode":"0755","uid":0,"gid":0,"size":3,"mtime":"2026-01-31T03:04:05.5Z","sha256":"ba78"}}"#;
        let moment = fields(&Moment::of_change("app", line.as_bytes()).unwrap());
        assert_eq!(moment["message"], "added: /tmp/x (file) in container app");
        assert_eq!(moment["datetime"], "2026-01-31T03:04:05.500000Z");
        assert_eq!(moment["timestamp"], 1_769_828_645_500_000u64);
        assert_eq!(moment["timestamp_desc"], "Content Modification Time");
        assert_eq!(
            (&moment["sha256"], &moment["size"]),
            (&"ba78".into(), &3.into())
        );
        for timeless in [
            r#"{"kind":"D","path":"/tmp/x"}"#,
            r#"{"kind":"A","path":"/tmp/x","file":{"mtime":null}}"#,
            "[]",
            "",
        ] {
            assert_eq!(Moment::of_change("app", timeless.as_bytes()), None);
        }
    }

    #[test]
    fn a_container_that_never_ended_has_no_end() {
        let inspect = br#"{"Created":"2026-01-31T03:04:05.123456789Z","State":{"StartedAt":"2026-01-31T05:04:06+02:00","FinishedAt":"0001-01-01T00:00:00Z"}}"#;
        let moments = Moment::of_container("app", inspect);
        let text: Vec<String> = moments
            .iter()
            .map(|moment| format!("{} {}", moment.datetime, moment.message))
            .collect();
        assert_eq!(
            text,
            [
                "2026-01-31T03:04:05.123456Z container app was created",
                "2026-01-31T03:04:06.000000Z container app was started",
            ]
        );
        assert!(Moment::of_container("app", b"no JSON").is_empty());
    }

    #[test]
    fn steps_of_containment_are_at_their_end() {
        let object = br#"{"status":{"steps":[{"name":"Cordon","state":"Done","message":"no new pod","started":"2026-01-31T03:04:05.000001Z","finished":"2026-01-31T03:04:05.100000Z"},{"name":"Collect","state":"Running","started":"2026-01-31T03:04:06.000000Z"},{"name":"Evict","state":"Waiting"}]}}"#;
        let moments = Moment::of_containment(object);
        assert_eq!(moments.len(), 2);
        assert_eq!(moments[0].message, "Cordon done: no new pod");
        assert_eq!(
            moments[0].datetime.to_string(),
            "2026-01-31T03:04:05.100000Z"
        );
        assert_eq!(moments[1].timestamp_desc, "Containment Step Begun");
    }
}
