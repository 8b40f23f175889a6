//! A controller with canned answers behind real mutual TLS, and a real collection behind it.
//!
//! What a pod is called decides what happens to it: `web-5d4f-x7` is contained and collected,
//! `partial-1` loses an artifact, `refused-1` is refused, `flaky-1` has its streams cut, `denied-1`,
//! `gone-1` and `twice-1` get errors.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use impound_evidence::Sha256;
use impound_proto::controller::v1::controller_server::{Controller, ControllerServer};
use impound_proto::controller::v1::read_evidence_response::Message;
use impound_proto::controller::v1::*;
use impound_proto::tls::{self, Peer, Peers, TlsFiles, http2};
use impound_proto::{PeerId, Role, pki};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::collection::Collection;
use crate::story;

/// A running controller. Stops when dropped.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) pki: tempfile::TempDir,
    pub(crate) state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

/// What the controller remembers, for tests to look at and to set up.
pub(crate) struct State {
    /// Pause between two updates of a stream.
    pace: Duration,
    pub(crate) evidence: Mutex<Collection>,
    /// Bytes after which the next read of a path breaks off, once.
    pub(crate) break_off: Mutex<BTreeMap<String, u64>>,
    /// `path@offset` of every read.
    pub(crate) reads: Mutex<Vec<String>>,
    /// Pods whose stream was cut already.
    cut: Mutex<HashSet<String>>,
    pub(crate) quarantines: Mutex<Vec<CreateQuarantineRequest>>,
    pub(crate) releases: Mutex<Vec<ReleaseQuarantineRequest>>,
    pub(crate) collections: Mutex<Vec<CreateCollectionRequest>>,
    pub(crate) sweeps: Mutex<Vec<CreateSweepRequest>>,
    pub(crate) changes: Mutex<Vec<SetSweepRequest>>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::paced(Duration::from_millis(2))
    }

    /// As [`Fake::start`], with this pause between two updates.
    pub(crate) fn paced(pace: Duration) -> Self {
        let pki = tempfile::tempdir().unwrap();
        let plan = pki::Plan {
            nodes: Vec::new(),
            responders: vec![("ada".parse().unwrap(), Role::Responder).into()],
            controller_addresses: Vec::new(),
            leaf_life: None,
        };
        pki::init(pki.path(), &plan).unwrap();
        let evidence = Collection::sealed(&pki.path().join("signing/evidence.key"));
        let state = Arc::new(State {
            pace,
            evidence: Mutex::new(evidence),
            break_off: Mutex::default(),
            reads: Mutex::default(),
            cut: Mutex::default(),
            quarantines: Mutex::default(),
            releases: Mutex::default(),
            collections: Mutex::default(),
            sweeps: Mutex::default(),
            changes: Mutex::default(),
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let files = TlsFiles::in_dir(&pki.path().join("controller"), "responder-ca.crt");
        let (credentials, _) =
            tls::server_credentials(files, PeerId::Controller, Peers::AnyResponder).unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = ControllerServer::from_arc(Arc::clone(&state));
        runtime.spawn(async move {
            let incoming = tls::incoming(listener, credentials);
            let server = http2::server(Server::builder()).add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            pki,
            state,
            _runtime: runtime,
        }
    }

    /// `impound` with the arguments, as ada.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = impound(arguments);
        command
            .env("IMPOUND_CONTROLLER", &self.address)
            .env("IMPOUND_TLS_DIR", self.pki.path().join("responders/ada"));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.pki.path().join("signing/evidence.pub")
    }
}

/// `impound` with the arguments and nothing of our environment.
pub(crate) fn impound(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_impound"));
    command
        .args(arguments)
        .env_remove("IMPOUND_CONTROLLER")
        .env_remove("IMPOUND_TLS_DIR");
    command
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by a signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// Sends canned updates, one after another; breaks off after `cut` of them.
fn stream<T: Send + 'static>(
    updates: Vec<T>,
    pace: Duration,
    cut: Option<usize>,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for (at, update) in updates.into_iter().enumerate() {
            if Some(at) == cut {
                let _ = sender
                    .send(Err(Status::unavailable("the controller is going down")))
                    .await;
                return;
            }
            if sender.send(Ok(update)).await.is_err() {
                return;
            }
            tokio::time::sleep(pace).await;
        }
    });
    ReceiverStream::new(receiver)
}

impl State {
    fn refusal(pod: &str) -> Result<(), Status> {
        match pod {
            "denied-1" => Err(Status::permission_denied(
                "quarantine needs the role responder, and your certificate has the role viewer",
            )),
            "gone-1" => Err(Status::not_found("there is no pod default/gone-1")),
            "twice-1" => Err(Status::already_exists(
                "pod default/twice-1 is quarantined already by default/twice-1 (case INC-2)",
            )),
            _ => Ok(()),
        }
    }

    fn cut_once(&self, key: String) -> Option<usize> {
        (key.contains("flaky") && self.cut.lock().unwrap().insert(key)).then_some(2)
    }
}

#[tonic::async_trait]
impl Controller for State {
    async fn create_quarantine(
        &self,
        request: Request<CreateQuarantineRequest>,
    ) -> Answer<CreateQuarantineResponse> {
        assert!(matches!(
            Peer::of(&request).unwrap().id,
            PeerId::Responder { .. }
        ));
        let asked = request.into_inner();
        Self::refusal(&asked.pod)?;
        self.quarantines.lock().unwrap().push(asked.clone());
        let first = story::quarantine(&asked.pod).remove(0);
        Ok(Response::new(CreateQuarantineResponse {
            quarantine: (!asked.dry_run).then_some(first),
            plan: Some(story::plan()),
        }))
    }

    async fn get_quarantine(&self, request: Request<GetQuarantineRequest>) -> Answer<Quarantine> {
        let asked = request.into_inner();
        Self::refusal(&asked.name)?;
        Ok(Response::new(story::quarantine(&asked.name).pop().unwrap()))
    }

    async fn list_quarantines(
        &self,
        request: Request<ListQuarantinesRequest>,
    ) -> Answer<ListQuarantinesResponse> {
        let case = request.into_inner().case_id;
        let all = ["web-5d4f-x7", "refused-1"].map(|pod| story::quarantine(pod).pop().unwrap());
        let quarantines = all
            .into_iter()
            .filter(|one| case.is_empty() || one.case_id == case);
        Ok(Response::new(ListQuarantinesResponse {
            quarantines: quarantines.collect(),
        }))
    }

    type WatchQuarantineStream = ReceiverStream<Result<Quarantine, Status>>;

    async fn watch_quarantine(
        &self,
        request: Request<WatchQuarantineRequest>,
    ) -> Answer<Self::WatchQuarantineStream> {
        let name = request.into_inner().name;
        Self::refusal(&name)?;
        let cut = self.cut_once(format!("quarantine/{name}"));
        let released = self.releases.lock().unwrap();
        let updates = match released.iter().any(|release| release.name == name) {
            true => story::releasing(&name),
            false => story::quarantine(&name),
        };
        Ok(Response::new(stream(updates, self.pace, cut)))
    }

    async fn plan_release(&self, request: Request<ReleaseQuarantineRequest>) -> Answer<Plan> {
        if !request.into_inner().force {
            return Err(Status::failed_precondition(
                "the evidence of default/web-5d4f-x7 is not sealed; wait for it, or release with force",
            ));
        }
        Ok(Response::new(story::release()))
    }

    async fn release_quarantine(
        &self,
        request: Request<ReleaseQuarantineRequest>,
    ) -> Answer<Quarantine> {
        let asked = request.into_inner();
        if !asked.force {
            return Err(Status::failed_precondition(
                "the evidence of default/web-5d4f-x7 is not sealed; wait for it, or release with force",
            ));
        }
        // As the controller answers: the wish is recorded, and nothing has happened yet.
        let quarantine = story::quarantine(&asked.name).pop().unwrap();
        self.releases.lock().unwrap().push(asked);
        Ok(Response::new(quarantine))
    }

    async fn create_collection(
        &self,
        request: Request<CreateCollectionRequest>,
    ) -> Answer<impound_proto::controller::v1::Collection> {
        let asked = request.into_inner();
        Self::refusal(&asked.pod)?;
        let first = story::collection(&asked.pod).remove(0);
        self.collections.lock().unwrap().push(asked);
        Ok(Response::new(first))
    }

    async fn get_collection(
        &self,
        request: Request<GetCollectionRequest>,
    ) -> Answer<impound_proto::controller::v1::Collection> {
        Ok(Response::new(
            story::collection(&request.into_inner().name).pop().unwrap(),
        ))
    }

    async fn list_collections(
        &self,
        _: Request<ListCollectionsRequest>,
    ) -> Answer<ListCollectionsResponse> {
        let collections = vec![story::collection("web-5d4f-x7").pop().unwrap()];
        Ok(Response::new(ListCollectionsResponse { collections }))
    }

    type WatchCollectionStream =
        ReceiverStream<Result<impound_proto::controller::v1::Collection, Status>>;

    async fn watch_collection(
        &self,
        request: Request<WatchCollectionRequest>,
    ) -> Answer<Self::WatchCollectionStream> {
        let name = request.into_inner().name;
        let cut = self.cut_once(format!("collection/{name}"));
        // The collection begins while the quarantine goes on; here always after it, so that lines
        // come in one order.
        tokio::time::sleep(self.pace * 40).await;
        Ok(Response::new(stream(
            story::collection(&name),
            self.pace,
            cut,
        )))
    }

    async fn create_sweep(
        &self,
        request: Request<CreateSweepRequest>,
    ) -> Answer<CreateSweepResponse> {
        let asked = request.into_inner();
        if asked.select.as_ref().unwrap().labels == "app=nothing" {
            return Err(Status::failed_precondition(
                "no pod is selected by namespaces shop; labels app=nothing",
            ));
        }
        let answer = CreateSweepResponse {
            sweep: (!asked.dry_run).then(|| story::sweep("sweep-1").remove(0)),
            plan: asked.dry_run.then(story::sweep_plan),
        };
        self.sweeps.lock().unwrap().push(asked);
        Ok(Response::new(answer))
    }

    async fn get_sweep(&self, request: Request<GetSweepRequest>) -> Answer<Sweep> {
        let name = request.into_inner().name;
        Ok(Response::new(story::sweep(&name).pop().unwrap()))
    }

    async fn list_sweeps(&self, _: Request<ListSweepsRequest>) -> Answer<ListSweepsResponse> {
        let sweeps = vec![
            story::sweep("sweep-1").pop().unwrap(),
            story::sweep("whole-1").pop().unwrap(),
        ];
        Ok(Response::new(ListSweepsResponse { sweeps }))
    }

    type WatchSweepStream = ReceiverStream<Result<Sweep, Status>>;

    async fn watch_sweep(
        &self,
        request: Request<WatchSweepRequest>,
    ) -> Answer<Self::WatchSweepStream> {
        let name = request.into_inner().name;
        let cut = self.cut_once(format!("sweep/{name}"));
        Ok(Response::new(stream(story::sweep(&name), self.pace, cut)))
    }

    async fn set_sweep(&self, request: Request<SetSweepRequest>) -> Answer<Sweep> {
        let asked = request.into_inner();
        let mut sweep = story::sweep(&asked.name).swap_remove(1);
        sweep.state.clone_from(&asked.state);
        self.changes.lock().unwrap().push(asked);
        Ok(Response::new(sweep))
    }

    type ListSweepTargetsStream = ReceiverStream<Result<ListSweepTargetsResponse, Status>>;

    async fn list_sweep_targets(
        &self,
        _: Request<ListSweepTargetsRequest>,
    ) -> Answer<Self::ListSweepTargetsStream> {
        let messages = story::sweep_targets().into_iter().map(|target| {
            Ok(ListSweepTargetsResponse {
                targets: vec![target],
            })
        });
        Ok(Response::new(stream_of(messages.collect())))
    }

    async fn list_evidence(
        &self,
        request: Request<ListEvidenceRequest>,
    ) -> Answer<ListEvidenceResponse> {
        let asked = request.into_inner();
        let files = match asked.case_id.as_str() {
            "INC-7" => self.evidence.lock().unwrap().files(),
            "INC-9" => ["INC-9", "INC-9.part-2"]
                .map(|case| EvidenceFile {
                    case_id: case.to_owned(),
                    collection: "web".to_owned(),
                    path: "manifest.json".to_owned(),
                    ..EvidenceFile::default()
                })
                .to_vec(),
            _ => Vec::new(),
        };
        Ok(Response::new(ListEvidenceResponse { files }))
    }

    type ReadEvidenceStream = ReceiverStream<Result<ReadEvidenceResponse, Status>>;

    async fn read_evidence(
        &self,
        request: Request<ReadEvidenceRequest>,
    ) -> Answer<Self::ReadEvidenceStream> {
        let asked = request.into_inner();
        self.reads
            .lock()
            .unwrap()
            .push(format!("{}@{}", asked.path, asked.offset));
        let (bytes, sha256) = {
            let evidence = self.evidence.lock().unwrap();
            let Some(bytes) = evidence.read(&asked.path) else {
                return Err(Status::not_found(format!("there is no {}", asked.path)));
            };
            (bytes, evidence.sha256(&asked.path))
        };
        let break_off = self.break_off.lock().unwrap().remove(&asked.path);
        let message = |message| {
            Ok(ReadEvidenceResponse {
                message: Some(message),
            })
        };
        let size = bytes.len() as u64;
        let mut messages = vec![message(Message::Header(ReadEvidenceHeader {
            size,
            sha256,
        }))];
        let rest = &bytes[asked.offset as usize..];
        let mut offset = asked.offset;
        for chunk in rest.chunks(64 << 10) {
            if break_off.is_some_and(|at| offset >= at) {
                messages.push(Err(Status::unavailable("the controller is going down")));
                return Ok(Response::new(stream_of(messages)));
            }
            messages.push(message(Message::Chunk(EvidenceChunk {
                offset,
                data: chunk.to_vec().into(),
            })));
            offset += chunk.len() as u64;
        }
        let sha256 = Sha256::of(rest).to_string();
        messages.push(message(Message::Trailer(ReadEvidenceTrailer { sha256 })));
        Ok(Response::new(stream_of(messages)))
    }

    async fn verify_evidence(
        &self,
        request: Request<VerifyEvidenceRequest>,
    ) -> Answer<VerifyEvidenceResponse> {
        let asked = request.into_inner();
        let intact = asked.collection != "broken-1";
        let problems = match intact {
            true => Vec::new(),
            false => vec!["before/pod.json: expected 14 bytes, got 13".to_owned()],
        };
        let complete = intact && asked.collection != "partial-1";
        Ok(Response::new(VerifyEvidenceResponse {
            intact,
            complete,
            problems,
            files: 8,
            closed: 0,
            bytes: 4096,
        }))
    }

    async fn hold_evidence(
        &self,
        request: Request<HoldEvidenceRequest>,
    ) -> Answer<HoldEvidenceResponse> {
        let asked = request.into_inner();
        if asked.collection == "in-a-directory" {
            return Err(Status::failed_precondition(
                "nothing in file:///evidence can be put under a legal hold: a directory has no legal holds",
            ));
        }
        let failed = asked.collection == "partial-1";
        let problems = failed.then(|| format!("INC-7/partial-1/a: {}", asked.reason));
        Ok(Response::new(HoldEvidenceResponse {
            objects: if asked.lift { 9 } else { 8 },
            failed: u64::from(failed),
            problems: problems.into_iter().collect(),
        }))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        match request.into_inner().node.as_str() {
            "worker2" => Ok(Response::new(story::containers())),
            _ => Err(Status::unavailable(
                "the agent of node worker9 does not answer: connection refused",
            )),
        }
    }

    async fn diagnose(&self, _: Request<DiagnoseRequest>) -> Answer<DiagnoseResponse> {
        let check = |about: &str, state: &str, found: &str, remedy: &str| Check {
            about: about.into(),
            state: state.into(),
            found: found.into(),
            remedy: remedy.into(),
        };
        let proof = "use an object store with Object Lock";
        Ok(Response::new(DiagnoseResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            now: Some(std::time::SystemTime::now().into()),
            checks: vec![
                check("Kubernetes API", "ok", "version 1.36", ""),
                check(
                    "store's memory",
                    "warning",
                    "not proven to be write-once",
                    proof,
                ),
                check(
                    "agent worker\u{1b}[2J",
                    "failed",
                    "connection refused",
                    "see the DaemonSet",
                ),
            ],
        }))
    }
}

fn stream_of<T: Send + 'static>(
    messages: Vec<Result<T, Status>>,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
