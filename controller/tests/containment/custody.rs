//! A case from the request to the release over gRPC, on an object store, and what its custody log then says: who
//! did what, shown by which certificate, and why.
//!
//! Needs an S3 server, as the tests of the object store do, and openssl.

use futures::TryStreamExt as _;
use impound_evidence::{CHECKPOINT, CUSTODY, Entry, Event, Sha256};
use impound_proto::controller::v1::read_evidence_response::Message;
use impound_proto::controller::v1::{
    CreateQuarantineRequest, HoldEvidenceRequest, HoldEvidenceResponse, ListEvidenceRequest,
    ReadEvidenceRequest, ReleaseQuarantineRequest, VerifyEvidenceRequest,
};
use tonic::Code;

use super::agent::FakeAgent;
use super::world::{World, eventually, name, node_of};

const CASE: &str = "INC-1";
const ALICE: &str = "spiffe://impound.dev/responder/responder/alice";
const CAROL: &str = "spiffe://impound.dev/responder/custodian/carol";
const EVE: &str = "spiffe://impound.dev/responder/viewer/eve";
const US: &str = "spiffe://impound.dev/controller";

/// Event, who, whether that is only claimed, and why.
type Line = (Event, &'static str, bool, Option<String>);

struct Site {
    world: World,
    _agent: tokio::task::JoinHandle<()>,
    suspect: String,
    collection: String,
}

impl Site {
    /// A quarantined pod whose evidence is sealed in a bucket.
    async fn sealed(more: &[&str]) -> Self {
        let bucket = std::env::var("IMPOUND_TEST_S3").unwrap_or_else(|_| {
            panic!("this test needs an S3 server: deploy/object-store.sh start DIR, bucket DIR evidence, then eval \"$(deploy/object-store.sh env DIR)\"")
        });
        let store = format!("s3://evidence/{}", uuid::Uuid::new_v4());
        let mut world = World::in_memory_without_controller().await;
        world.store = Some(store);
        world.arguments = ["--store-endpoint", &bucket]
            .into_iter()
            .chain(["--store-lock", "governance", "--store-retain-days", "1"])
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        let pods = world.deployment("web", 1, None).await;
        let (suspect, node) = (name(&pods[0]), node_of(&pods[0]));
        let agent = FakeAgent::new(&node);
        let uid = pods[0].metadata.uid.clone().unwrap();
        agent.add((&world.namespace, &suspect, &uid), "web", 0, 3_000);
        let pki = world.dir.path().join("pki/agents").join(&node);
        let (port, server) = agent.serve(&pki).await;
        world.about_agents = ["--agent-port", &port.to_string(), "--no-node-isolation"]
            .map(str::to_owned)
            .to_vec();
        world.start_controller().await;
        let request = CreateQuarantineRequest {
            skip_collection: false,
            ..world.request(&suspect)
        };
        let mut alice = world.responder("alice").await;
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        let quarantine = created.quarantine.unwrap().name;
        let mut site = Self {
            world,
            _agent: server,
            suspect,
            collection: quarantine,
        };
        let sealed = site.world.settled(&site.collection).await;
        assert_eq!(sealed.phase, "Complete", "{sealed:#?}");
        site.collection = sealed.collection;
        site
    }

    async fn read(&self, who: &str, path: &str, offset: u64) -> Result<Vec<u8>, tonic::Status> {
        let request = ReadEvidenceRequest {
            case_id: CASE.into(),
            collection: match path {
                CUSTODY => "custody".into(),
                _ => self.collection.clone(),
            },
            path: path.into(),
            offset,
        };
        let mut reader = self.world.responder(who).await;
        let answers = reader.read_evidence(request).await?.into_inner();
        let chunks = answers.try_filter_map(|answer| async move {
            Ok(match answer.message {
                Some(Message::Chunk(chunk)) => Some(chunk.data.to_vec()),
                _ => None,
            })
        });
        Ok(chunks.try_collect::<Vec<_>>().await?.concat())
    }

    async fn hold(
        &self,
        who: &str,
        lift: bool,
        reason: &str,
    ) -> Result<HoldEvidenceResponse, tonic::Status> {
        let request = HoldEvidenceRequest {
            case_id: CASE.into(),
            collection: self.collection.clone(),
            lift,
            reason: reason.into(),
        };
        let mut holder = self.world.responder(who).await;
        Ok(holder.hold_evidence(request).await?.into_inner())
    }

    async fn log(&self) -> Vec<Entry> {
        let lines = self.read("carol", CUSTODY, 0).await.unwrap();
        let lines = lines.split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.is_empty())
            .map(|line| Entry::decode(line).unwrap())
            .collect()
    }

    /// SHA-256 of somebody's certificate.
    fn certificate(&self, who: &str) -> Sha256 {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let file = self.world.dir.path().join("pki/responders").join(who);
        let certificate = CertificateDer::from_pem_file(file.join("tls.crt")).unwrap();
        Sha256::of(&certificate)
    }
}

/// All but what was read and stored, which has no fixed order.
fn lines(log: &[Entry]) -> Vec<(Event, &str, bool, Option<String>)> {
    let single = |entry: &&Entry| !matches!(entry.event, Event::Read | Event::Stored);
    log.iter()
        .filter(single)
        .map(|entry| {
            let why = entry.why.clone();
            (entry.event, entry.who.as_str(), entry.claimed, why)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_in_a_case_is_in_its_custody_log_in_order() {
    let root = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/authority.sh");
    let directory = root.path().to_str().unwrap();
    let made = std::process::Command::new(script)
        .args(["make", directory, "ec"])
        .status()
        .unwrap();
    assert!(made.success(), "openssl is needed");
    let authority = root.path().join("root.pem");
    // Nobody answers there.
    let asked = [
        "--timestamp-url",
        "http://127.0.0.1:9/tsa",
        "--timestamp-ca",
    ];
    let site = Site::sealed(&[&asked[..], &[authority.to_str().unwrap()]].concat()).await;

    let denied = site.read("eve", "manifest.json", 0).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        !site
            .read("carol", "manifest.json", 0)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        !site
            .read("carol", "manifest.json", 7)
            .await
            .unwrap()
            .is_empty()
    );
    // The collection's own copy of the log's head.
    assert!(!site.read("carol", CHECKPOINT, 0).await.unwrap().is_empty());
    let asked = VerifyEvidenceRequest {
        case_id: CASE.into(),
        collection: site.collection.clone(),
    };
    let mut alice = site.world.responder("alice").await;
    let nothing = VerifyEvidenceRequest {
        collection: "nothing".into(),
        ..asked.clone()
    };
    let nothing = alice.verify_evidence(nothing).await.unwrap_err();
    assert_eq!(nothing.code(), Code::NotFound);
    let mut carol = site.world.responder("carol").await;
    let list = ListEvidenceRequest {
        case_id: CASE.into(),
        collection: site.collection.clone(),
    };
    carol.list_evidence(list).await.unwrap();
    let trick = ListEvidenceRequest {
        case_id: CASE.into(),
        collection: "../INC-1".into(),
    };
    let trick = carol.list_evidence(trick).await.unwrap_err();
    assert_eq!(trick.code(), Code::InvalidArgument);
    let verdict = alice.verify_evidence(asked).await.unwrap().into_inner();
    assert!(verdict.intact && verdict.complete, "{verdict:?}");
    let denied_hold = site.hold("alice", false, "court").await.unwrap_err();
    assert_eq!(denied_hold.code(), Code::PermissionDenied);
    let held = site.hold("carol", false, "court order 12").await.unwrap();
    assert!(held.objects > 20 && held.failed == 0, "{held:?}");
    let lifted = site.hold("carol", true, "case closed").await.unwrap();
    assert_eq!((lifted.objects, lifted.failed), (held.objects, 0));
    let release = ReleaseQuarantineRequest {
        namespace: site.world.namespace.clone(),
        name: site.suspect.clone(),
        reason: "false alarm".into(),
        force: false,
    };
    let mut eve = site.world.responder("eve").await;
    let denied_release = eve.release_quarantine(release.clone()).await.unwrap_err();
    let released = alice.release_quarantine(release.clone()).await.unwrap();
    let released = site.world.settled(&released.into_inner().name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    let again = alice.release_quarantine(release).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);

    let why = |text: &str| Some(text.to_owned());
    let log = eventually("the release is logged", || async {
        let log = site.log().await;
        match log.iter().any(|entry| entry.event == Event::Released) {
            true => Ok(log),
            false => Err(format!("{:?}", lines(&log))),
        }
    })
    .await;
    let log = eventually("the last refusal is logged", || async {
        match log.last().map(|entry| entry.event) {
            Some(Event::Refused) => Ok(log.clone()),
            _ => Ok::<_, String>(site.log().await),
        }
    })
    .await;
    let said = lines(&log);
    let contained = said.iter().find(|(event, ..)| *event == Event::Contained);
    let contained = contained.and_then(|(.., why)| why.clone());
    let stamp = said.iter().find(|(event, ..)| *event == Event::Failed);
    let stamp = stamp.and_then(|(.., why)| why.clone());
    assert!(
        stamp
            .as_ref()
            .is_some_and(|why| why.starts_with("http://127.0.0.1:9/tsa: ")),
        "{stamp:?}"
    );
    let expected: Vec<Line> = vec![
        (Event::Authorised, ALICE, false, why("beaconing")),
        (Event::Requested, ALICE, false, why("beaconing")),
        (Event::Contained, US, false, contained),
        (Event::Requested, ALICE, false, why("beaconing")),
        // What could not be had is settled, then everything that is stored.
        (Event::Verified, US, false, None),
        (Event::Verified, US, false, None),
        (Event::Failed, US, false, stamp),
        (Event::Sealed, US, false, None),
        (Event::Refused, EVE, false, why(denied.message())),
        (Event::Exported, CAROL, false, None),
        (Event::Accessed, CAROL, false, None),
        (Event::Exported, CAROL, false, None),
        (Event::Refused, ALICE, false, why(nothing.message())),
        (Event::Accessed, CAROL, false, None),
        (Event::Refused, CAROL, false, why(trick.message())),
        (Event::Verified, ALICE, false, None),
        (Event::Refused, ALICE, false, why(denied_hold.message())),
        (Event::Hold, CAROL, false, why("court order 12")),
        (Event::Hold, CAROL, false, why("case closed")),
        (Event::Refused, EVE, false, why(denied_release.message())),
        (Event::Authorised, ALICE, false, why("false alarm")),
        (Event::Released, ALICE, false, why("false alarm")),
        (Event::Refused, ALICE, false, why(again.message())),
    ];
    assert_eq!(said, expected, "{said:#?}");

    // Everything stored was read before, by us.
    let of = |event: Event| {
        let entries = log.iter().filter(move |entry| entry.event == event);
        entries
            .map(|entry| (entry.what.as_str(), entry.seq))
            .collect::<Vec<_>>()
    };
    let (read, stored) = (of(Event::Read), of(Event::Stored));
    assert!(read.len() > 15 && read.len() == stored.len());
    for (what, at) in stored {
        let before = read.iter().find(|(read, _)| *read == what).unwrap().1;
        assert!(before < at, "{what}: stored as {at}, read as {before}");
    }
    // Whoever showed a certificate is known by it, and only they.
    for entry in &log {
        let expected = match entry.who.as_str() {
            US => None,
            who => Some(site.certificate(who.rsplit_once('/').unwrap().1)),
        };
        assert_eq!(entry.certificate_sha256, expected, "{entry:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_everything_is_held_the_log_says_so_before_the_seal() {
    let site = Site::sealed(&["--store-legal-hold"]).await;
    let log = site.log().await;
    let at = |event| log.iter().position(|entry| entry.event == event).unwrap();
    let stored = log
        .iter()
        .filter(|entry| entry.event == Event::Stored)
        .count();
    assert!(at(Event::Hold) < at(Event::Sealed));
    assert_eq!(
        log[at(Event::Hold)].what,
        format!("legal hold on {stored} objects, and on each that is written after them")
    );
    let lifted = site.hold("carol", true, "test is over").await.unwrap();
    assert_eq!(lifted.failed, 0);
}
