//! Collections in which nothing breaks.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use impound_controller::collect::{Containment, ContainmentSource};
use impound_controller::progress::{ArtifactState, CollectionProgress};
use impound_evidence::{AlterationKind, ContainerRole, Entry, Event, Method, Outcome, Sha256};

use super::fixture::{DIRECTORY, EXPORT_LISTINGS, Fixture, IMAGE_LISTINGS, POD, names, pod};

#[tokio::test]
async fn everything_that_was_asked_for_is_stored_signed_and_verifies() {
    let fixture = Fixture::new().await;
    fixture.agent.state.lock().unwrap().clock_offset = Duration::from_secs(90);
    let sealed = fixture.run().await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing, sealed.warnings),
        (Outcome::Complete, vec![], vec![])
    );
    assert!(sealed.location.ends_with("/INC-1/web-1"));
    assert_eq!(
        sealed.manifest_sha256,
        Sha256::of(&fixture.file("manifest.json"))
    );

    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let (export, image) = names("app", &id);
    let mut expected = [
        "before/pod.json",
        "custody.checkpoint",
        "custody.jsonl",
        "manifest.json",
        "manifest.sigstore.json",
        "timeline.jsonl",
        "verify.sh",
    ]
    .map(str::to_owned)
    .to_vec();
    for name in ["inspect.json", "diff.txt", "diff.jsonl", &export, &image] {
        expected.push(format!("{DIRECTORY}/app/{name}"));
    }
    for name in EXPORT_LISTINGS {
        expected.push(format!("{DIRECTORY}/app/{export}.{name}"));
    }
    for name in IMAGE_LISTINGS {
        expected.push(format!("{DIRECTORY}/app/{image}.{name}"));
    }
    expected.sort();
    assert_eq!(fixture.files(), expected);
    let state = fixture.agent.state.lock().unwrap();
    assert!(fixture.file(&format!("{DIRECTORY}/app/{export}")) == state.exports[&id]);
    assert!(state.images.is_empty(), "an image was left on the node");
    drop(state);
    assert_eq!(
        fixture.file(&format!("{DIRECTORY}/app/diff.txt")),
        b"C /tmp\nA /tmp/dropped \"tool\"\nD /var/log/x\n"
    );
    assert_eq!(
        String::from_utf8(fixture.file(&format!("{DIRECTORY}/app/diff.jsonl"))).unwrap(),
        "{\"kind\":\"C\",\"path\":\"/tmp\"}\n{\"kind\":\"A\",\"path\":\"/tmp/dropped \\\"tool\\\"\"}\n{\"kind\":\"D\",\"path\":\"/var/log/x\"}\n"
    );

    let manifest = fixture.manifest();
    assert!(fixture.verdict().complete());
    assert_eq!(manifest.agents.len(), 1);
    assert!((89_000..91_000).contains(&manifest.agents[0].clock_offset_ms.unwrap()));
    assert_ne!(manifest.agents[0].certificate_sha256, Sha256::from([0; 32]));
    assert_eq!(
        manifest.containers.len(),
        1,
        "the sandbox is no container of the pod"
    );
    assert_eq!(manifest.node.uid.as_deref(), Some("uid-node"));
    assert_eq!(manifest.node.boot_id.as_deref(), Some("boot-node"));
    assert!(fixture.log().starts_with(&fixture.file("custody.jsonl")));
    let claimed: Vec<_> = fixture
        .custody()
        .iter()
        .map(|entry| entry.claimed)
        .collect();
    assert!(claimed[0], "nobody showed a certificate for this job");
    assert!(!claimed[1..].contains(&true));
    let kinds: Vec<_> = manifest.alterations.iter().map(|done| done.kind).collect();
    assert_eq!(kinds, [AlterationKind::Commit, AlterationKind::RemoveImage]);
    for (done, call) in manifest
        .alterations
        .iter()
        .zip(["POST /v1.41/commit?", "DELETE /v1.41/images/"])
    {
        assert!(done.api_call.starts_with(call), "{done:?}");
        assert!(
            done.started.is_some() && done.started <= done.finished,
            "{done:?}"
        );
    }
    let methods: Vec<_> = manifest
        .artifacts
        .iter()
        .map(|record| record.method)
        .filter(|method| *method != Method::Derived)
        .collect();
    assert_eq!(
        methods,
        [
            Method::Commit,
            Method::Diff,
            Method::Diff,
            Method::Export,
            Method::Inspect,
            Method::KubernetesObject,
            Method::Program
        ]
    );

    assert_eq!(fixture.custody()[0].event, Event::Requested);
    // And the timeline.
    let listings = EXPORT_LISTINGS.len() + IMAGE_LISTINGS.len() + 1;
    assert_eq!(fixture.events(Event::Read), 7 + listings);
    assert_eq!(fixture.events(Event::Stored), 7 + listings);
    assert_eq!(fixture.custody().last().unwrap().event, Event::Sealed);
    assert_eq!(
        fixture.state(&format!("{DIRECTORY}/app/{export}")),
        ArtifactState::Stored
    );
    assert!(
        fixture
            .progress
            .borrow()
            .quick
            .as_ref()
            .unwrap()
            .failures
            .is_empty()
    );
}

#[tokio::test]
async fn a_sealed_collection_is_only_described_and_its_log_still_grows() {
    let fixture = Fixture::new().await;
    let first = fixture.run().await.unwrap();
    let (files, log, calls) = (fixture.files(), fixture.log(), fixture.agent.calls().len());
    let second = fixture.run().await.unwrap();
    assert_eq!(first.manifest_sha256, second.manifest_sha256);
    assert_eq!(
        (fixture.files(), fixture.log(), fixture.agent.calls().len()),
        (files, log, calls)
    );

    let custody = fixture.appender(fixture.store());
    let appends = (0..10).map(|n| {
        let (custody, at) = (&custody, fixture.id());
        async move {
            custody
                .append(&at, Entry::new(Event::Accessed, "ada", format!("read {n}")))
                .await
        }
    });
    for appended in futures::future::join_all(appends).await {
        appended.unwrap();
    }
    assert_eq!(fixture.events(Event::Accessed), 10);
    fixture.manifest();
}

#[tokio::test]
async fn every_container_of_the_pod_gets_a_directory_of_its_own() {
    let fixture = Fixture::new().await;
    let first = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let second = fixture.agent.add(POD, "app", 1, 700);
    let init = fixture.agent.add(POD, "init", 0, 0);
    fixture.run().await.unwrap();
    let manifest = fixture.manifest();
    for (id, directory, name) in [
        (&second, "app", "app"),
        (&first, "app.0", "app"),
        (&init, "init", "init"),
    ] {
        let path = format!("{DIRECTORY}/{directory}/{}", names(name, id).0);
        let record = manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str() == path);
        assert_eq!(
            &record
                .unwrap_or_else(|| panic!("{path} is not there"))
                .source_id,
            id
        );
    }
}

#[tokio::test]
async fn of_neighbours_only_what_is_quick_is_taken_and_it_waits_for_no_export() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job();
    for n in 0..9 {
        let (name, uid) = (format!("db-{n}"), format!("uid-{n}"));
        fixture.agent.add(("data", &name, &uid), "db", 0, 100);
        job.neighbours.push(pod(("data", &name, &uid)));
    }
    fixture.agent.state.lock().unwrap().slow = true;
    let mut seen = fixture.progress.subscribe();
    let export = async {
        let quick = seen.wait_for(CollectionProgress::quick_done).await;
        assert_eq!(quick.unwrap().quick.as_ref().unwrap().failures.len(), 0);
        fixture.agent.state.lock().unwrap().slow = false;
    };
    let (sealed, ()) = tokio::join!(fixture.run_job(job), export);
    assert_eq!(sealed.unwrap().outcome, Outcome::Complete);
    let below = fixture
        .files()
        .into_iter()
        .filter(|file| file.starts_with("artifacts/worker2/data_db-3/db/"))
        .count();
    assert_eq!(below, 3);
    let manifest = fixture.manifest();
    assert_eq!(
        manifest
            .containers
            .iter()
            .filter(|container| container.role == ContainerRole::Neighbour)
            .count(),
        9
    );
    let calls = fixture.agent.calls();
    let of = |call: &str| {
        calls
            .iter()
            .filter(|called| called.starts_with(call))
            .count()
    };
    assert_eq!((of("inspect"), of("diff"), of("export")), (10, 10, 1));
}

#[tokio::test]
async fn a_container_stands_still_for_its_export_whatever_comes_beside_it() {
    let fixture = Fixture::small().await;
    let mut job = fixture.job();
    let neighbour = ("data", "db-0", "uid-0");
    fixture.agent.add(neighbour, "db", 0, 100);
    job.neighbours.push(pod(neighbour));
    job.freeze = Some(Duration::from_secs(30));
    fixture.agent.state.lock().unwrap().slow = true;
    let mut seen = fixture.progress.subscribe();
    let thaws = |fixture: &Fixture| {
        let calls = fixture.agent.calls();
        calls.iter().filter(|call| call.starts_with("thaw")).count()
    };
    let described = async {
        let quick = seen.wait_for(CollectionProgress::quick_done).await;
        assert_eq!(quick.unwrap().quick.as_ref().unwrap().failures.len(), 0);
        assert_eq!(thaws(&fixture), 0);
        fixture.agent.state.lock().unwrap().slow = false;
    };
    let (sealed, ()) = tokio::join!(fixture.run_job(job), described);
    assert_eq!(sealed.unwrap().outcome, Outcome::Complete);
    assert_eq!(thaws(&fixture), 1);
}

#[tokio::test]
async fn an_image_that_may_not_be_made_at_a_standstill_is_made_without_one_and_that_is_said() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job();
    job.unpaused = Some("a probe restarts it".into());
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete);
    let said = "a probe restarts it; its image is made while it runs";
    assert!(
        sealed.warnings.iter().any(|warning| warning.contains(said)),
        "{:?}",
        sealed.warnings
    );
    let alterations = fixture.manifest().alterations;
    let paused = |one: &impound_evidence::Alteration| one.kind == AlterationKind::Pause;
    assert!(!alterations.iter().any(paused), "{alterations:?}");
}

#[tokio::test]
async fn another_pod_of_the_same_name_is_not_touched() {
    let fixture = Fixture::empty().await;
    fixture
        .agent
        .add(("default", "web-5d4f", "another-uid"), "app", 0, 100);
    fixture.agent.state.lock().unwrap().selects_badly = true;
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Partial);
    assert!(fixture.manifest().containers.is_empty());
    assert!(
        fixture.manifest().missing[0]
            .reason
            .contains("has no container of pod default/web-5d4f")
    );
}

#[tokio::test]
async fn a_name_of_the_agents_making_is_no_way_out_of_the_collection() {
    let fixture = Fixture::empty().await;
    fixture.agent.add(POD, "../../../../etc", 0, 100);
    fixture.agent.add(POD, "a/b", 0, 100);
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Complete);
    assert!(
        fixture
            .files()
            .iter()
            .any(|file| file.starts_with(&format!("{DIRECTORY}/unnamed/")))
    );
    fixture.manifest();
}

/// A Quarantine that can be read after so many failures.
struct Quarantine(AtomicU32);

#[async_trait::async_trait]
impl Containment for Quarantine {
    async fn read(&self) -> Result<Vec<u8>, String> {
        match self
            .0
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
        {
            Ok(_) => Err("no answer from the Kubernetes API".into()),
            Err(_) => Ok(QUARANTINE.to_vec()),
        }
    }
}

const QUARANTINE: &[u8] = br#"{"apiVersion":"impound.dev/v1alpha1","kind":"Quarantine","metadata":{"namespace":"shop","name":"q","uid":"uid-q"}}"#;

#[tokio::test]
async fn the_record_of_the_containment_is_part_of_the_evidence() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job();
    job.containment = Some(ContainmentSource(Arc::new(Quarantine(AtomicU32::new(2)))));
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    assert_eq!(fixture.file("containment.json"), QUARANTINE);
    let manifest = fixture.manifest();
    let record = manifest
        .artifact(&"containment.json".parse().unwrap())
        .unwrap();
    assert_eq!(
        (record.api_call.as_str(), record.source_id.as_str()),
        (
            "GET /apis/impound.dev/v1alpha1/namespaces/shop/quarantines/q",
            "uid-q"
        )
    );
    assert!(fixture.verdict().complete());
}

#[tokio::test]
async fn a_containment_that_cannot_be_read_makes_the_collection_partial() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job();
    job.containment = Some(ContainmentSource(Arc::new(Quarantine(AtomicU32::new(100)))));
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    assert_eq!(
        sealed.missing,
        ["containment.json: the Quarantine could not be read: no answer from the Kubernetes API"]
    );
    assert!(fixture.verdict().intact());
}

#[tokio::test]
async fn a_container_that_is_restarted_while_it_is_exported_is_collected_before_and_after() {
    let fixture = Fixture::small().await;
    let before = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    // The liveness probe kills it in the middle of the export, and again in that of its successor.
    let restarts = [(POD, "app", 2), (POD, "app", 1)];
    fixture.agent.state.lock().unwrap().restarts = restarts.to_vec();
    let sealed = fixture.run().await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let state = fixture.agent.state.lock().unwrap();
    let ids: Vec<String> = state
        .containers
        .iter()
        .map(|found| found.id.clone())
        .collect();
    assert_eq!((ids.len(), ids.last()), (3, Some(&before)));
    let files = fixture.files();
    for id in &ids {
        let (export, image) = names("app", id);
        for name in [export, image] {
            let name = format!("/{name}");
            let found = files.iter().filter(|file| file.ends_with(&name)).count();
            assert_eq!(found, 1, "{name} in {files:#?}");
        }
    }
    let exports = state.calls.iter().filter(|call| call.starts_with("export"));
    assert_eq!(exports.count(), 3, "each once: {:#?}", state.calls);
}
