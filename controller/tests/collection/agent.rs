//! An agent whose containers, breakdowns and lies a test decides. Serves `agent.proto` over the same
//! mutual TLS as the real one.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use impound_evidence::Sha256;
use impound_proto::PeerId;
use impound_proto::agent::v1::agent_server::{Agent, AgentServer};
use impound_proto::agent::v1::*;
use impound_proto::tls::{Peers, TlsFiles, http2, incoming, server_credentials};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[path = "hanging.rs"]
mod hanging;
#[path = "table.rs"]
mod table;

use hanging::Hanging;

/// Small, so that an artifact has many chunks.
const CHUNK: usize = 1000;

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status in the place of an answer.
    Status(tonic::Code),
    /// A status after so many chunks.
    BreakAfter(usize),
    /// The stream ends after its chunks.
    NoTrailer,
    /// A digest that is not that of the bytes.
    WrongDigest,
    /// A size that is not that of the bytes.
    WrongSize,
    /// One chunk is left out.
    Gap,
    /// An error status behind the trailer.
    ErrorBehindTrailer,
    /// The runtime's stream ended early, as the agent saw: half the bytes.
    Truncated,
    /// The same, and the agent doesn't say so.
    TruncatedSilently,
    /// Another container's id in the header.
    OtherSource,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) containers: Vec<Container>,
    /// By container id.
    pub(crate) exports: HashMap<String, Vec<u8>>,
    /// By container id; of others there is none to be had.
    pub(crate) layers: HashMap<String, Vec<u8>>,
    /// By container id.
    pub(crate) diffs: HashMap<String, Vec<(ChangeKind, String)>>,
    /// On the node, by reference.
    pub(crate) images: BTreeMap<String, Vec<u8>>,
    /// For the next call of that name, in order.
    pub(crate) faults: HashMap<&'static str, Vec<Fault>>,
    /// How long before the thaw was asked for the freeze had ended by itself; zero: it had not.
    pub(crate) thawed_early: Duration,
    /// Calls that were begun, the one that is never answered, and whether it came.
    pub(crate) begun: usize,
    pub(crate) hang_at: Option<usize>,
    pub(crate) hung: bool,
    /// The suspect's table is set.
    pub(crate) isolated: bool,
    /// Exports, or inspections, wait.
    pub(crate) slow: bool,
    pub(crate) slow_inspect: bool,
    /// Every call.
    pub(crate) calls: Vec<String>,
    /// The list is of every pod of the name, whatever its uid.
    pub(crate) selects_badly: bool,
    /// The agent's clock minus the controller's.
    pub(crate) clock_offset: Duration,
    /// Exports and images that are being sent now, and the most there ever were.
    pub(crate) sending: Arc<Sending>,
    /// What is said of a container; of others something short.
    pub(crate) inspects: HashMap<String, Vec<u8>>,
    /// Attempts that the containers of this pod and name are restarted to, one at each export.
    pub(crate) restarts: Vec<(
        (&'static str, &'static str, &'static str),
        &'static str,
        u32,
    )>,
}

/// How many tars are on their way.
#[derive(Default)]
pub(crate) struct Sending {
    now: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

/// One of them, until it is dropped.
struct OneMore(Arc<Sending>);

impl OneMore {
    fn new(sending: Arc<Sending>) -> Self {
        let now = sending.now.fetch_add(1, Ordering::SeqCst) + 1;
        sending.most.fetch_max(now, Ordering::SeqCst);
        Self(sending)
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The agent and what it was made of.
#[derive(Clone)]
pub(crate) struct FakeAgent {
    pub(crate) node: String,
    pub(crate) state: Arc<Mutex<State>>,
}

impl FakeAgent {
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            state: Arc::default(),
        }
    }

    /// Serves with the files in `tls`; ends when the handle is aborted.
    pub(crate) async fn serve(&self, tls: &std::path::Path) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (port, self.serve_at(tls, listener))
    }

    pub(crate) fn serve_at(
        &self,
        tls: &std::path::Path,
        listener: TcpListener,
    ) -> tokio::task::JoinHandle<()> {
        let own: PeerId = PeerId::agent(tls.file_name().unwrap().to_str().unwrap()).unwrap();
        let files = TlsFiles::in_dir(tls, "controller-ca.crt");
        let (credentials, reloader) =
            server_credentials(files, own, Peers::Only(PeerId::Controller)).unwrap();
        let service = Hanging {
            inner: AgentServer::new(self.clone()),
            state: self.state.clone(),
        };
        tokio::spawn(async move {
            let _reloader = reloader;
            let server = http2::server(Server::builder()).add_service(service);
            server
                .serve_with_incoming(incoming(listener, credentials))
                .await
                .unwrap();
        })
    }

    /// A container of a pod, as a kubelet names it, with a file system of `size` bytes.
    pub(crate) fn add(
        &self,
        pod: (&str, &str, &str),
        name: &str,
        attempt: u32,
        size: usize,
    ) -> String {
        let (namespace, pod_name, uid) = pod;
        let id = Sha256::of(format!("{uid}/{name}/{attempt}").as_bytes()).to_string();
        let mut state = self.state.lock().unwrap();
        state.containers.insert(
            0,
            Container {
                id: id.clone(),
                name: format!("k8s_{name}_{pod_name}_{namespace}_{uid}_{attempt}"),
                image: "sha256:1234".into(),
                image_id: "sha256:1234".into(),
                state: ContainerState::Running.into(),
                created: Some(SystemTime::now().into()),
                pod_namespace: namespace.into(),
                pod_name: pod_name.into(),
                pod_uid: uid.into(),
                container_name: name.into(),
                sandbox: name == "POD",
                attempt,
            },
        );
        state.exports.insert(id.clone(), tar(size, id.as_bytes()));
        let changes = vec![
            (ChangeKind::Changed, "/tmp".to_owned()),
            (ChangeKind::Added, "/tmp/dropped \"tool\"".to_owned()),
            (ChangeKind::Deleted, "/var/log/x".to_owned()),
        ];
        state.diffs.insert(id.clone(), changes);
        id
    }

    /// Lets the next call of that name go wrong.
    pub(crate) fn fail(&self, call: &'static str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .entry(call)
            .or_default()
            .push(fault);
    }

    /// The container is removed after it was listed.
    pub(crate) fn lose(&self, id: &str) {
        let mut state = self.state.lock().unwrap();
        state.exports.remove(id);
        state.diffs.remove(id);
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    async fn while_it(&self, is: impl Fn(&State) -> bool) {
        while is(&self.state.lock().unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn called(&self, name: &'static str, what: &str) -> Result<Option<Fault>, Status> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(format!("{name} {what}"));
        let faults = state.faults.entry(name).or_default();
        match (!faults.is_empty()).then(|| faults.remove(0)) {
            Some(Fault::Status(code)) => Err(Status::new(code, "as the test wants")),
            fault => Ok(fault),
        }
    }

    fn stream(
        &self,
        source: &str,
        media: &str,
        call: String,
        bytes: Vec<u8>,
        fault: Option<Fault>,
    ) -> Messages {
        let bytes = match fault {
            Some(Fault::Truncated | Fault::TruncatedSilently) => bytes[..bytes.len() / 2].to_vec(),
            _ => bytes,
        };
        let source_id = if matches!(fault, Some(Fault::OtherSource)) {
            "other".to_owned()
        } else {
            source.to_owned()
        };
        let header = ArtifactHeader {
            source_id,
            media_type: media.into(),
            api_call: call,
            started: Some(SystemTime::now().into()),
        };
        let mut messages = vec![Ok(artifact_message::Message::Header(header))];
        for (n, data) in bytes.chunks(CHUNK).enumerate() {
            if matches!(fault, Some(Fault::BreakAfter(after)) if n == after) {
                messages.push(Err(Status::data_loss("the runtime broke off")));
                break;
            }
            if matches!(fault, Some(Fault::Gap)) && n == 1 {
                continue;
            }
            let chunk = ArtifactChunk {
                offset: (n * CHUNK) as u64,
                data: Bytes::copy_from_slice(data),
            };
            messages.push(Ok(artifact_message::Message::Chunk(chunk)));
        }
        let (mut size, mut sha256) = (bytes.len() as u64, Sha256::of(&bytes));
        match fault {
            Some(Fault::WrongDigest) => sha256 = Sha256::of(b"other"),
            Some(Fault::WrongSize) => size += 1,
            _ => {}
        }
        let truncated = matches!(fault, Some(Fault::Truncated));
        if !matches!(fault, Some(Fault::NoTrailer)) {
            messages.push(Ok(artifact_message::Message::Trailer(ArtifactTrailer {
                size,
                sha256: sha256.as_bytes().to_vec(),
                completeness: if truncated {
                    Completeness::Incomplete
                } else {
                    Completeness::Complete
                }
                .into(),
                reasons: if truncated {
                    vec!["it ends in the middle of a member".into()]
                } else {
                    vec![]
                },
                finished: Some(SystemTime::now().into()),
            })));
        }
        if matches!(fault, Some(Fault::ErrorBehindTrailer)) {
            messages.push(Err(Status::data_loss("it was not all after all")));
        }
        let tar = media == "application/x-tar";
        let sending = tar.then(|| OneMore::new(Arc::clone(&self.state.lock().unwrap().sending)));
        stream::iter(messages)
            .map(move |message| {
                let _until_dropped = &sending;
                message.map(|message| ArtifactMessage {
                    message: Some(message),
                })
            })
            .boxed()
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<ArtifactMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for FakeAgent {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.called("info", "")?;
        let offset = self.state.lock().unwrap().clock_offset;
        Ok(Response::new(InfoResponse {
            node: self.node.clone(),
            runtime: "docker".into(),
            runtime_version: "20.10.24".into(),
            agent_version: "0.1.0".into(),
            executable_sha256: vec![7; 32],
            now: Some((SystemTime::now() + offset).into()),
        }))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        // Of tests that have more cases all begin so.
        let case = request.metadata().get("impound-case").unwrap();
        assert!(case.to_str().unwrap().starts_with("INC-1"), "{case:?}");
        self.called("list", "")?;
        let pod = request
            .into_inner()
            .pod
            .expect("all containers were asked for");
        let state = self.state.lock().unwrap();
        let of_pod = |container: &&Container| {
            container.pod_namespace == pod.namespace
                && container.pod_name == pod.name
                && (container.pod_uid == pod.uid || state.selects_badly)
        };
        let containers = state.containers.iter().filter(of_pod).cloned().collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type InspectContainerStream = Messages;

    async fn inspect_container(
        &self,
        request: Request<InspectContainerRequest>,
    ) -> Result<Response<Messages>, Status> {
        let id = request.into_inner().container_id;
        let fault = self.called("inspect", &id)?;
        self.while_it(|state| state.slow_inspect).await;
        self.state
            .lock()
            .unwrap()
            .exports
            .get(&id)
            .ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let said = self.state.lock().unwrap().inspects.get(&id).cloned();
        let json = said.unwrap_or_else(|| format!("{{\"Id\":\"{id}\"}}").into_bytes());
        Ok(Response::new(self.stream(
            &id,
            "application/json",
            format!("GET /containers/{id}/json"),
            json,
            fault,
        )))
    }

    type DiffStream = Pin<Box<dyn Stream<Item = Result<DiffMessage, Status>> + Send>>;

    async fn diff(
        &self,
        request: Request<DiffRequest>,
    ) -> Result<Response<Self::DiffStream>, Status> {
        let id = request.into_inner().container_id;
        let fault = self.called("diff", &id)?;
        let state = self.state.lock().unwrap();
        let changes = state
            .diffs
            .get(&id)
            .ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let letter = |kind: &ChangeKind| match kind {
            ChangeKind::Added => "A",
            ChangeKind::Changed => "C",
            _ => "D",
        };
        let text: String = changes
            .iter()
            .map(|(kind, path)| format!("{} {path}\n", letter(kind)))
            .collect();
        let mut messages = Vec::new();
        for (kind, path) in changes {
            let change = Change {
                kind: (*kind).into(),
                path: path.clone(),
            };
            messages.push(Ok(diff_message::Message::Batch(DiffBatch {
                changes: vec![change],
            })));
        }
        let mut sha256 = Sha256::of(text.as_bytes());
        match fault {
            Some(Fault::WrongDigest) => sha256 = Sha256::of(b"other"),
            Some(Fault::BreakAfter(after)) => {
                messages.truncate(after);
                messages.push(Err(Status::unavailable("the runtime does not answer")));
            }
            Some(Fault::Gap) => drop(messages.remove(1)),
            _ => {}
        }
        if !matches!(fault, Some(Fault::NoTrailer)) {
            messages.push(Ok(diff_message::Message::Trailer(DiffTrailer {
                changes: changes.len() as u64 + u64::from(matches!(fault, Some(Fault::WrongSize))),
                text_sha256: sha256.as_bytes().to_vec(),
                started: Some(SystemTime::now().into()),
                finished: Some(SystemTime::now().into()),
            })));
        }
        let messages = stream::iter(messages);
        Ok(Response::new(
            messages
                .map(|message| {
                    message.map(|message| DiffMessage {
                        message: Some(message),
                    })
                })
                .boxed(),
        ))
    }

    type ExportStream = Messages;

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Messages>, Status> {
        let id = request.into_inner().container_id;
        let fault = self.called("export", &id)?;
        self.while_it(|state| state.slow).await;
        let restart = self.state.lock().unwrap().restarts.pop();
        if let Some((pod, name, attempt)) = restart {
            self.add(pod, name, attempt, 2_000);
        }
        let tar = self.state.lock().unwrap().exports.get(&id).cloned();
        let tar = tar.ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        Ok(Response::new(self.stream(
            &id,
            "application/x-tar",
            format!("GET /containers/{id}/export"),
            tar,
            fault,
        )))
    }

    type LayerStream = Messages;

    async fn layer(&self, request: Request<LayerRequest>) -> Result<Response<Messages>, Status> {
        let id = request.into_inner().container_id;
        let fault = self.called("layer", &id)?;
        let tar = self.state.lock().unwrap().layers.get(&id).cloned();
        let tar = tar.ok_or_else(|| Status::failed_precondition("its root is no overlayfs"))?;
        let call = "upperdir=/layers/1 of the root of process 7, over image sha256:1234".to_owned();
        Ok(Response::new(self.stream(
            &id,
            "application/x-tar",
            call,
            tar,
            fault,
        )))
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let request = request.into_inner();
        let reference = format!("{}:{}", request.repository, request.tag);
        let fault = self.called("commit", &reference)?;
        let mut state = self.state.lock().unwrap();
        if state.images.contains_key(&reference) {
            return Err(Status::failed_precondition(format!(
                "image {reference} exists already"
            )));
        }
        let tar = state.exports.get(&request.container_id).cloned();
        let tar =
            tar.ok_or_else(|| Status::not_found(format!("no container {}", request.container_id)))?;
        state.images.insert(reference.clone(), tar);
        if let Some(Fault::BreakAfter(_)) = fault {
            return Err(Status::unavailable("the answer was lost"));
        }
        Ok(Response::new(CommitResponse {
            image_id: format!("sha256:{}", Sha256::of(reference.as_bytes())),
            api_call: format!("POST /v1.41/commit?container={}", request.container_id),
            reference,
            started: Some(SystemTime::now().into()),
            finished: Some(SystemTime::now().into()),
        }))
    }

    type SaveImageStream = Messages;

    async fn save_image(
        &self,
        request: Request<SaveImageRequest>,
    ) -> Result<Response<Messages>, Status> {
        let reference = request.into_inner().reference;
        let fault = self.called("save", &reference)?;
        let tar = self.state.lock().unwrap().images.get(&reference).cloned();
        let tar = tar.ok_or_else(|| Status::not_found(format!("no image {reference}")))?;
        let id = format!("sha256:{}", Sha256::of(reference.as_bytes()));
        Ok(Response::new(self.stream(
            &id,
            "application/x-tar",
            format!("GET /images/{reference}/get"),
            tar,
            fault,
        )))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let reference = request.into_inner().reference;
        self.called("remove", &reference)?;
        let removed = self
            .state
            .lock()
            .unwrap()
            .images
            .remove(&reference)
            .is_some();
        Ok(Response::new(RemoveImageResponse {
            removed,
            api_call: format!("DELETE /v1.41/images/{reference}?noprune=true"),
            started: Some(SystemTime::now().into()),
            finished: Some(SystemTime::now().into()),
        }))
    }

    async fn isolate(
        &self,
        request: Request<IsolateRequest>,
    ) -> Result<Response<IsolateResponse>, Status> {
        let pod = request.into_inner().pod.unwrap_or_default();
        self.called("isolate", &pod.name)?;
        let mut state = self.state.lock().unwrap();
        Ok(Response::new(table::isolate(&mut state)))
    }

    async fn inspect_isolation(
        &self,
        _: Request<InspectIsolationRequest>,
    ) -> Result<Response<InspectIsolationResponse>, Status> {
        self.called("inspect_isolation", "")?;
        Ok(Response::new(table::inspect(&self.state.lock().unwrap())))
    }

    async fn lift_isolation(
        &self,
        request: Request<LiftIsolationRequest>,
    ) -> Result<Response<LiftIsolationResponse>, Status> {
        let pod = request.into_inner().pod.unwrap_or_default();
        self.called("lift", &pod.name)?;
        let mut state = self.state.lock().unwrap();
        Ok(Response::new(table::lift(&mut state)))
    }

    async fn probe_isolation(
        &self,
        request: Request<ProbeIsolationRequest>,
    ) -> Result<Response<ProbeIsolationResponse>, Status> {
        self.called("probe", "")?;
        let state = self.state.lock().unwrap();
        Ok(Response::new(table::probe(&state, request.into_inner())))
    }

    async fn freeze(
        &self,
        request: Request<FreezeRequest>,
    ) -> Result<Response<FreezeResponse>, Status> {
        let request = request.into_inner();
        self.called("freeze", &request.container_ids.join(","))?;
        let now = SystemTime::now();
        let limit = Duration::from_millis(request.limit_ms.into());
        Ok(Response::new(FreezeResponse {
            freeze_id: "frozen".into(),
            frozen: Some(now.into()),
            until: Some((now + limit).into()),
        }))
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        self.called("thaw", &request.into_inner().freeze_id)?;
        let state = self.state.lock().unwrap();
        Ok(Response::new(ThawResponse {
            thawed: Some((SystemTime::now() - state.thawed_early).into()),
            by_deadline: !state.thawed_early.is_zero(),
        }))
    }
}

/// A ustar with one member of `size` bytes, ended by two zero blocks.
pub(crate) fn tar(size: usize, seed: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..4].copy_from_slice(b"file");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend((0..size).map(|n| (n as u8) ^ seed[n % seed.len()]));
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
