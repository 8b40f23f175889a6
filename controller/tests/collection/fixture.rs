//! One node with its agent, a store, and a collector between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use impound_controller::agents::{AgentConnector, AgentError, NodeAddress, NodeDirectory};
use impound_controller::collect::{
    Begun, CollectError, CollectionJob, Collector, Retry, SealedCollection, TargetPod,
};
use impound_controller::progress::{ArtifactState, CollectionProgress};
use impound_controller::seal::CustodyAppender;
use impound_controller::store::directory::DirectoryStore;
use impound_controller::store::{CollectionId, Store};
use impound_controller::timestamp::TimestampAuthority;
use impound_evidence::age::Recipient;
use impound_evidence::{DirSource, Entry, Event, Manifest, Signer, SigningKey, Verdict, verify};
use impound_proto::PeerId;
use impound_proto::pki::{Plan, init};
use impound_proto::tls::{Peers, TlsFiles, client_credentials};
use tempfile::TempDir;
use tokio::sync::watch;

use super::agent::FakeAgent;

pub(crate) const NODE: &str = "worker2";
/// Namespace, name and uid of the suspect.
pub(crate) const POD: (&str, &str, &str) = ("default", "web-5d4f", "uid-web");
pub(crate) const DIRECTORY: &str = "artifacts/worker2/default_web-5d4f";

/// What is made of an export and of an image, behind the tar's name.
pub(crate) const EXPORT_LISTINGS: [&str; 6] = [
    "bodyfile",
    "changes.jsonl",
    "files.jsonl",
    "hashes.md5",
    "hashes.sha256",
    "index.json",
];
pub(crate) const IMAGE_LISTINGS: [&str; 3] = ["files.jsonl", "image.json", "index.json"];

pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) agent: FakeAgent,
    pub(crate) server: Mutex<tokio::task::JoinHandle<()>>,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) progress: watch::Sender<CollectionProgress>,
    pub(crate) timestamps: Mutex<Option<Arc<TimestampAuthority>>>,
    pub(crate) recipients: Mutex<Vec<Recipient>>,
}

/// Where the one node's agent is.
pub(crate) struct Nodes(pub(crate) Mutex<u16>);

#[async_trait]
impl NodeDirectory for Nodes {
    async fn address(&self, node: &str) -> Result<NodeAddress, AgentError> {
        if node != NODE {
            return Err(AgentError::NoSuchNode {
                node: node.to_owned(),
            });
        }
        let port = *self.0.lock().unwrap();
        Ok(NodeAddress {
            name: node.to_owned(),
            uid: "uid-node".into(),
            boot_id: Some("boot-node".into()),
            ip: [127, 0, 0, 1].into(),
            port,
        })
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let fixture = Self::empty().await;
        fixture.agent.add(POD, "POD", 0, 10);
        fixture.agent.add(POD, "app", 0, 50_000);
        fixture
    }

    /// With as few operations as possible, for tests that stop at each.
    pub(crate) async fn small() -> Self {
        let fixture = Self::empty().await;
        fixture.agent.add(POD, "app", 0, 3_000);
        fixture
    }

    /// A node without containers.
    pub(crate) async fn empty() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let agent = FakeAgent::new(NODE);
        let (port, server) = agent.serve(&pki("agents").join(NODE)).await;
        Self {
            key: Arc::new(SigningKey::generate().unwrap()),
            nodes: Arc::new(Nodes(Mutex::new(port))),
            server: Mutex::new(server),
            progress: watch::Sender::new(CollectionProgress::default()),
            timestamps: Mutex::default(),
            recipients: Mutex::default(),
            agent,
            dir,
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::open(&self.dir.path().join("store")).unwrap())
    }

    /// As a new process: nothing is remembered of earlier ones.
    pub(crate) fn collector(&self, store: Arc<dyn Store>) -> Collector {
        let files = TlsFiles::in_dir(&self.pki("controller"), "agent-ca.crt");
        let (credentials, _) = client_credentials(files, Peers::Only(PeerId::Controller)).unwrap();
        let agents = AgentConnector::new(
            credentials,
            Arc::clone(&self.nodes) as Arc<dyn NodeDirectory>,
            impound_controller::revoked::list().0,
        );
        let custody = Arc::new(self.appender(Arc::clone(&store)));
        let collector = Collector::new(store, agents, custody)
            .unwrap()
            .with_recipients(self.recipients.lock().unwrap().clone())
            .with_timestamps(self.timestamps.lock().unwrap().clone());
        collector.with_retry(Retry {
            attempts: 3,
            delay: Duration::from_millis(1),
        })
    }

    pub(crate) fn appender(&self, store: Arc<dyn Store>) -> CustodyAppender {
        CustodyAppender::new(store, Arc::clone(&self.key) as Arc<dyn Signer>, Vec::new())
    }

    pub(crate) fn job(&self) -> CollectionJob {
        CollectionJob {
            case: "INC-1".parse().unwrap(),
            name: "web-1".parse().unwrap(),
            requested_by: "spiffe://impound.dev/responder/responder/ada".into(),
            request: None,
            reason: "beacon to a known address".into(),
            cluster: "uid-kube-system".into(),
            target: pod(POD),
            before: vec![(
                "pod.json".into(),
                br#"{"kind":"Pod","metadata":{"uid":"uid-web"}}"#.to_vec(),
            )],
            neighbours: Vec::new(),
            freeze: None,
            encrypt_to: Vec::new(),
            pause: false,
            unpaused: None,
            quarantine: None,
            containment: None,
        }
    }

    /// What is known of that job's collection when there is no job any more.
    pub(crate) fn begun(&self) -> Begun {
        let job = self.job();
        Begun {
            at: self.id(),
            target: job.target,
            requested_by: job.requested_by,
            reason: job.reason,
        }
    }

    pub(crate) async fn run(&self) -> Result<SealedCollection, CollectError> {
        self.run_job(self.job()).await
    }

    pub(crate) async fn run_job(
        &self,
        job: CollectionJob,
    ) -> Result<SealedCollection, CollectError> {
        let collector = self.collector(self.store());
        let progress = self.progress.clone();
        // Spawned as the controller does it, so that the future has to be `Send`.
        tokio::spawn(async move { collector.run(job, &progress).await })
            .await
            .unwrap()
    }

    /// A small file system of its own for the store, unmounted with what is returned.
    pub(crate) fn mount_store(&mut self, options: &str) -> Mount {
        let store = self.dir.path().join("store");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&store)
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "mounting a tmpfs needs root; run this test as root"
        );
        Mount(store)
    }

    pub(crate) fn id(&self) -> CollectionId {
        CollectionId {
            case: "INC-1".parse().unwrap(),
            name: "web-1".parse().unwrap(),
        }
    }

    pub(crate) fn collection(&self) -> PathBuf {
        self.dir.path().join("store/INC-1/web-1")
    }

    pub(crate) fn pki(&self, below: &str) -> PathBuf {
        pki(below)
    }

    /// Every file, ordered.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        walk(&self.collection(), "", &mut files);
        files.sort();
        files
    }

    pub(crate) fn file(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.collection().join(path)).unwrap()
    }

    pub(crate) fn verdict(&self) -> Verdict {
        verify(
            &DirSource::open(self.collection()).unwrap(),
            &[self.key.verifying_key().clone()],
        )
    }

    /// The manifest of a collection that is intact.
    pub(crate) fn manifest(&self) -> Manifest {
        let verdict = self.verdict();
        assert!(verdict.intact(), "{:#?}", verdict.problems);
        verdict.manifest.unwrap()
    }

    /// The case's custody log, which goes on after the seal.
    pub(crate) fn log(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("store/INC-1/custody/custody.jsonl")).unwrap()
    }

    pub(crate) fn custody(&self) -> Vec<Entry> {
        self.log()
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Entry::decode(line).unwrap())
            .collect()
    }

    pub(crate) fn events(&self, event: Event) -> usize {
        self.custody()
            .iter()
            .filter(|entry| entry.event == event)
            .count()
    }

    pub(crate) fn state(&self, path: &str) -> ArtifactState {
        let progress = self.progress.borrow();
        progress
            .artifacts
            .iter()
            .find(|artifact| artifact.path.as_str() == path)
            .unwrap()
            .state
    }
}

/// A mounted file system.
pub(crate) struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Made once: keys take time.
fn pki(below: &str) -> PathBuf {
    static PKI: OnceLock<TempDir> = OnceLock::new();
    let pki = PKI.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let plan = Plan {
            nodes: vec![NODE.parse().unwrap(), "other".parse().unwrap()],
            ..Plan::default()
        };
        init(dir.path(), &plan).unwrap();
        dir
    });
    pki.path().join(below)
}

pub(crate) fn pod((namespace, name, uid): (&str, &str, &str)) -> TargetPod {
    TargetPod {
        namespace: namespace.into(),
        name: name.into(),
        uid: uid.into(),
        node: NODE.into(),
        image_digests: [(
            "nginx".to_owned(),
            "docker-pullable://nginx@sha256:beef".to_owned(),
        )]
        .into(),
    }
}

/// The export's and the image archive's file names.
pub(crate) fn names(container: &str, id: &str) -> (String, String) {
    let short = &id[..12];
    (
        format!("evidence-compromised-{container}-{short}.tar"),
        format!("compromised-{container}-{short}.tar"),
    )
}

fn walk(directory: &Path, below: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &format!("{name}/"), files);
        } else {
            files.push(name);
        }
    }
}
