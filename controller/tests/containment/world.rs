//! What a test needs around it: a cluster, certificates, a running controller, a responder.

mod real;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use impound_proto::controller::v1::controller_client::ControllerClient;
use impound_proto::controller::v1::{
    ApiCall, CreateQuarantineRequest, GetQuarantineRequest, Quarantine, WatchQuarantineRequest,
};
use impound_proto::tls::{self, Peers, TlsFiles};
use impound_proto::{NodeName, PeerId, ResponderName, Role, pki};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config, ResourceExt};
use kube_memory::{Cluster, ClusterConfig, Effect, Fault, FaultHandle, RequestRecord};
use serde_json::{Value, json};
use tonic::transport::Channel;

use self::real::Kubelet;

/// How long anything may take before a test gives up: generous, because machines are noisy.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The in-memory cluster, if that is where the test is.
    pub(crate) memory: Option<Cluster>,
    /// Else what stands between the controller and a real one.
    door: Option<Cluster>,
    kubelet: Kubelet,
    /// Cluster-scoped objects that the test made in a real one, as paths.
    made: Mutex<Vec<String>>,
    pub(crate) dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    port: u16,
    pub(crate) health_port: u16,
    controller: Mutex<Option<Child>>,
    /// What the controller is told about agents.
    pub(crate) about_agents: Vec<String>,
    /// Where the evidence goes, if not into a directory of the test.
    pub(crate) store: Option<String>,
    /// Further arguments of the controller.
    pub(crate) arguments: Vec<String>,
    /// Held as long as a real cluster is used: nodes are everybody's, so one test at a time works on them.
    _alone: Option<std::fs::File>,
}

/// How the namespaces of these tests begin.
const NAMESPACE: &str = "impound-test-";

/// User of the controller in the in-memory cluster.
pub(crate) const CONTROLLER: &str = "impound";

impl World {
    /// A cluster with our definitions, and a running controller.
    pub(crate) async fn start() -> Self {
        let mut world = Self::without_controller().await;
        world.start_controller().await;
        world
    }

    /// As `start`, but always the in-memory cluster: for what a real one has not, or has not at will.
    pub(crate) async fn start_in_memory() -> Self {
        Self::start_in(ClusterConfig::default()).await
    }

    /// As `start_in_memory`, with a cluster of this kind.
    pub(crate) async fn start_in(cluster: ClusterConfig) -> Self {
        let mut world = Self::prepared(None, cluster).await;
        world.start_controller().await;
        world
    }

    /// A cluster without the pods' play-acting kubelet, whose agents listen at this port: the in-memory one, or the
    /// one that `KUBECONFIG` names if nobody runs its pods. Where somebody does, the nodes are other machines.
    pub(crate) async fn with_agents(port: u16, arguments: &[&str]) -> Self {
        let config = ClusterConfig {
            instant_kubelet: false,
            ..ClusterConfig::default()
        };
        let real = match real::kubeconfig() {
            Some(path) if real::kubelet_of(&path).await == Kubelet::Nobody => Some(path),
            _ => None,
        };
        let mut world = Self::prepared(real, config).await;
        world.about_agents = vec!["--agent-port".into(), port.to_string()];
        world.arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        world.start_controller().await;
        world
    }

    /// As `start`, with further arguments of the controller.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let mut world = Self::without_controller().await;
        world.arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        world.start_controller().await;
        world
    }

    /// The in-memory cluster, without a controller yet.
    pub(crate) async fn in_memory_without_controller() -> Self {
        Self::prepared(None, ClusterConfig::default()).await
    }

    /// The same with a cluster of this kind.
    pub(crate) async fn in_memory_of(cluster: ClusterConfig) -> Self {
        Self::prepared(None, cluster).await
    }

    pub(crate) async fn without_controller() -> Self {
        Self::prepared(real::kubeconfig(), ClusterConfig::default()).await
    }

    async fn prepared(real: Option<PathBuf>, cluster: ClusterConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let alone = match real.clone() {
            Some(path) => {
                let locked = tokio::task::spawn_blocking(move || real::alone(&path));
                Some(locked.await.unwrap())
            }
            None => None,
        };
        let (client, memory, door, kubelet) = match real {
            Some(path) => {
                let client = client(real::read(&path)).await;
                let kubelet = real::expected(&client).await;
                let door = Cluster::in_front_of(client.clone()).await.unwrap();
                (client, None, Some(door), kubelet)
            }
            None => {
                let kubelet = if cluster.instant_kubelet {
                    Kubelet::Played
                } else {
                    Kubelet::Nobody
                };
                let cluster = Cluster::start(cluster).await.unwrap();
                let parsed = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
                (client(parsed).await, Some(cluster), None, kubelet)
            }
        };
        let kubeconfig = dir.path().join("kubeconfig");
        let api = memory.as_ref().or(door.as_ref()).unwrap();
        std::fs::write(&kubeconfig, api.kubeconfig_as(CONTROLLER)).unwrap();
        let namespace = format!("{NAMESPACE}{}", uuid::Uuid::new_v4().simple());
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .unwrap();
        let plan = pki::Plan {
            nodes: nodes
                .iter()
                .map(|node| node.name_any().parse::<NodeName>().unwrap())
                .collect(),
            responders: vec![
                responder("alice", Role::Responder),
                responder("carol", Role::Custodian),
                responder("eve", Role::Viewer),
            ],
            controller_addresses: vec!["127.0.0.1".into()],
            leaf_life: None,
        };
        pki::init(&dir.path().join("pki"), &plan).unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let world = Self {
            client,
            namespace,
            memory,
            door,
            kubelet,
            made: Mutex::default(),
            dir,
            kubeconfig,
            port: free_port(),
            health_port: free_port(),
            controller: Mutex::default(),
            // No agents are here: what needs them is tested where they are.
            about_agents: [
                "--agent-port",
                "1",
                "--agent-patience",
                "1",
                "--no-node-isolation",
            ]
            .map(String::from)
            .to_vec(),
            store: None,
            arguments: Vec::new(),
            _alone: alone,
        };
        world.furnish().await;
        world
    }

    /// Starts the controller and waits until it answers.
    pub(crate) async fn start_controller(&mut self) {
        let started = self.replica(&self.kubeconfig, self.port, self.health_port);
        *self.controller.lock().unwrap() = Some(started);
        eventually("the controller answers", || async {
            let connected = self.try_channel("alice").await;
            connected
                .map(drop)
                .map_err(|error| format!("{error}; {}", self.log()))
        })
        .await;
    }

    /// Starts the controller again if it has ended by itself, as its Deployment does: it ends when the API, or the
    /// machine, stalls for so long that it can't renew its lease.
    pub(crate) fn restart_if_ended(&self) {
        let mut controller = self.controller.lock().unwrap();
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        if controller.as_mut().is_some_and(ended) {
            *controller = Some(self.replica(&self.kubeconfig, self.port, self.health_port));
        }
    }

    /// What the controller talks to, with its faults and its log: the in-memory cluster, or the door before a
    /// real one.
    pub(crate) fn api(&self) -> &Cluster {
        self.memory.as_ref().or(self.door.as_ref()).unwrap()
    }

    /// Whether the test is in a real cluster, where others' pods run too.
    pub(crate) fn is_real(&self) -> bool {
        self.memory.is_none()
    }

    /// Whether the pods' containers run, and the cluster has every controller that Kubernetes has. Else pods only
    /// say that they run.
    pub(crate) fn runs_containers(&self) -> bool {
        self.kubelet == Kubelet::Real
    }

    /// A node on which nothing runs but what stays anyway, if that matters: what a test evicts in a real cluster
    /// is its own.
    pub(crate) async fn own_node(&self) -> Option<String> {
        if !self.is_real() {
            return None;
        }
        let found = eventually("this test evicts a node's pods", || async {
            // What the test before this one made may still be ending.
            real::free_node(&self.client).await
        });
        Some(found.await)
    }

    /// Starts another replica beside the first, known to the API under this user name.
    pub(crate) fn other_replica(&self, user: &str) -> Replica {
        let kubeconfig = self.dir.path().join(format!("kubeconfig-{user}"));
        std::fs::write(&kubeconfig, self.api().kubeconfig_as(user)).unwrap();
        Replica(self.replica(&kubeconfig, free_port(), free_port()))
    }

    fn replica(&self, kubeconfig: &Path, port: u16, health_port: u16) -> Child {
        let pki = self.dir.path().join("pki");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("controller.log"))
            .unwrap();
        Command::new(env!("CARGO_BIN_EXE_impound-controller"))
            .env("KUBECONFIG", kubeconfig)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--health-listen", &format!("127.0.0.1:{health_port}")])
            .args(&self.about_agents)
            .arg("--tls-dir")
            .arg(pki.join("controller"))
            .arg("--signing-key")
            .arg(pki.join("signing/evidence.key"))
            .arg("--store")
            .arg(match &self.store {
                Some(store) => store.into(),
                None => self.dir.path().join("store"),
            })
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Sends a signal to the first controller.
    pub(crate) fn signal_controller(&self, signal: &str) {
        let controller = self.controller.lock().unwrap();
        let id = controller.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Whether the first controller has ended by itself.
    pub(crate) fn controller_has_ended(&mut self) -> bool {
        let controller = self.controller.get_mut().unwrap();
        controller.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// As if the leases of a controller that was killed had run out.
    pub(crate) async fn expire_lease(&self) {
        let leases = Api::<Lease>::namespaced(self.client.clone(), "default");
        let all = [impound_controller::leader::LEASE];
        for name in all.iter().chain(&impound_controller::claims::LEASES) {
            match leases.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Lets the controller's `nth` write from now on have its effect, and never be answered.
    pub(crate) fn hang_after(&self, nth: usize) -> FaultHandle {
        let fault = Fault::new(Effect::HangAfter)
            .by(CONTROLLER)
            .writes()
            .but("/leases")
            .but("/events")
            .but("/selfsubjectreviews")
            .nth(nth);
        self.api().inject(fault)
    }

    /// Ends the controller at once, as a crash does.
    pub(crate) fn kill_controller(&mut self) {
        if let Some(mut child) = self.controller.get_mut().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) async fn responder(&self, name: &str) -> ControllerClient<Channel> {
        ControllerClient::new(self.try_channel(name).await.unwrap())
    }

    /// A connection to the controller with the certificate of a responder.
    pub(crate) async fn try_channel(&self, name: &str) -> Result<Channel, tls::ConnectError> {
        let dir = self.dir.path().join("pki/responders").join(name);
        let files = TlsFiles::in_dir(&dir, "controller-ca.crt");
        let (credentials, _) = tls::client_credentials(files, Peers::AnyResponder).unwrap();
        let address = self.address().to_string();
        tls::connect(&address, credentials, PeerId::Controller).await
    }

    /// Where the controller serves gRPC.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Quarantines a pod without collecting and waits until nothing more happens. In a real cluster its
    /// neighbours stay.
    pub(crate) async fn quarantine(&self, pod: &str) -> Quarantine {
        self.quarantine_by(self.request(pod)).await
    }

    /// The same with the neighbours evicted, also in a real cluster: the suspect must be on [`World::own_node`].
    pub(crate) async fn quarantine_and_evict(&self, pod: &str) -> Quarantine {
        self.quarantine_by(CreateQuarantineRequest {
            keep_neighbours: false,
            ..self.request(pod)
        })
        .await
    }

    /// The same with a collection, of which no agent may answer.
    pub(crate) async fn quarantine_and_collect(&self, pod: &str) -> Quarantine {
        self.quarantine_by(CreateQuarantineRequest {
            skip_collection: false,
            ..self.request(pod)
        })
        .await
    }

    async fn quarantine_by(&self, request: CreateQuarantineRequest) -> Quarantine {
        let mut alice = self.responder("alice").await;
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        self.settled(&created.quarantine.unwrap().name).await
    }

    pub(crate) fn request(&self, pod: &str) -> CreateQuarantineRequest {
        CreateQuarantineRequest {
            namespace: self.namespace.clone(),
            pod: pod.into(),
            case_id: "INC-1".into(),
            reason: "beaconing".into(),
            skip_collection: true,
            keep_neighbours: self.is_real(),
            ..Default::default()
        }
    }

    /// Waits until the quarantine is as far as it gets.
    pub(crate) async fn settled(&self, name: &str) -> Quarantine {
        let watched = async {
            let mut alice = self.responder("alice").await;
            let request = WatchQuarantineRequest {
                namespace: self.namespace.clone(),
                name: name.into(),
                follow: false,
            };
            let mut changes = alice.watch_quarantine(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(change) = changes.message().await.unwrap() {
                last = Some(change);
            }
            last.expect("a watch begins with the present state")
        };
        match tokio::time::timeout(PATIENCE, watched).await {
            Ok(quarantine) => quarantine,
            Err(_) => panic!("{:#?}\n{}", self.current(name).await, self.log()),
        }
    }

    pub(crate) async fn current(&self, name: &str) -> Quarantine {
        let request = GetQuarantineRequest {
            namespace: self.namespace.clone(),
            name: name.into(),
        };
        self.responder("alice")
            .await
            .get_quarantine(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Creates an object in the test's namespace and gives its uid.
    pub(crate) async fn create(&self, object: Value) -> String {
        self.try_create(object).await.unwrap()
    }

    /// The uid of what was created.
    pub(crate) async fn try_create(&self, object: Value) -> kube::Result<String> {
        let mut object = object;
        object["metadata"]["namespace"] = json!(self.namespace);
        let (group, version) = match object["apiVersion"].as_str().unwrap().split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), "v1".to_owned()),
        };
        let kind = object["kind"].as_str().unwrap().to_owned();
        let resource = ApiResource::from_gvk(&GroupVersionKind {
            group,
            version,
            kind,
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api =
            Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let created = api.create(&PostParams::default(), &object).await?;
        Ok(created.metadata.uid.unwrap())
    }

    /// A Deployment with a Service, and its pods once they run. The first is on a node of its own
    /// choice; `with` are merged into the pod template's spec.
    pub(crate) async fn deployment(
        &self,
        name: &str,
        replicas: usize,
        node: Option<&str>,
    ) -> Vec<Pod> {
        let mut template = json!({
            "metadata": { "labels": { "app": name } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [container(name)] },
        });
        template["spec"]["affinity"] = prefers(node);
        self.create(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template },
        }))
        .await;
        self.create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] },
        }))
        .await;
        self.running(&format!("app={name}"), replicas).await
    }

    /// The pods with these labels once so many of them run and none is ending.
    pub(crate) async fn running(&self, labels: &str, count: usize) -> Vec<Pod> {
        eventually("pods run", || async {
            let pods = self.pods(labels).await;
            let running = pods.iter().filter(|pod| is_running(pod)).count();
            if running == count && pods.len() == count {
                Ok(pods)
            } else {
                Err(format!("{running} of {count} run"))
            }
        })
        .await
    }

    pub(crate) async fn pods(&self, labels: &str) -> Vec<Pod> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        api.list(&ListParams::default().labels(labels))
            .await
            .unwrap()
            .items
    }

    pub(crate) async fn pod(&self, name: &str) -> Pod {
        Api::<Pod>::namespaced(self.client.clone(), &self.namespace)
            .get(name)
            .await
            .unwrap()
    }

    pub(crate) async fn node(&self, name: &str) -> Node {
        Api::<Node>::all(self.client.clone())
            .get(name)
            .await
            .unwrap()
    }

    /// What the controller asked of the API, in order.
    pub(crate) fn requests(&self) -> Vec<RequestRecord> {
        let all = self.api().requests();
        all.into_iter()
            .filter(|request| request.user.starts_with(CONTROLLER))
            .collect()
    }

    /// Its writes that had an effect, without those to its own resources, its lease and events.
    pub(crate) fn changes(&self) -> Vec<RequestRecord> {
        let own = [
            "impound.dev/v1alpha1",
            "/leases",
            "/events",
            "/selfsubjectreviews",
        ];
        let mut changes = self.requests();
        changes.retain(|request| {
            request.method != "GET"
                && !own.iter().any(|own| request.path.contains(own))
                && (200..300).contains(&request.status)
        });
        changes
    }

    /// The same as method and path.
    pub(crate) fn effects(&self) -> Vec<String> {
        let line =
            |change: &RequestRecord| format!("{} {}", change.method, without_query(&change.path));
        self.changes().iter().map(line).collect()
    }

    /// Has a cluster-scoped object deleted at the end, which a real cluster would keep.
    pub(crate) fn made(&self, path: impl Into<String>) {
        self.made.lock().unwrap().push(path.into());
    }

    /// The controller's log, for failures.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("controller.log")).unwrap_or_default()
    }

    async fn furnish(&self) {
        let definitions = Api::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>::all(self.client.clone());
        // Those of an earlier version may be there.
        let apply = PatchParams::apply("impound-test").force();
        for definition in impound_controller::resources::definitions() {
            let name = definition.name_any();
            let whole = Patch::Apply(&definition);
            definitions.patch(&name, &apply, &whole).await.unwrap();
        }
        eventually("the definitions are served", || async {
            for resource in ["quarantines", "collections", "sweeps", "sweeprosters"] {
                let path = format!("/apis/impound.dev/v1alpha1/{resource}");
                let request = http::Request::get(path).body(Vec::new()).unwrap();
                self.client
                    .request::<Value>(request)
                    .await
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        })
        .await;
        let namespace = Namespace {
            metadata: kube::api::ObjectMeta {
                name: Some(self.namespace.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }
}

fn responder(name: &str, role: Role) -> pki::Responder {
    (name.parse::<ResponderName>().unwrap(), role).into()
}

async fn client(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// Another controller. It ends when it is dropped.
pub(crate) struct Replica(Child);

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The affinity of a pod that is on this node if it may, and elsewhere if it must.
pub(crate) fn prefers(node: Option<&str>) -> Value {
    node.map_or(Value::Null, |node| {
        json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100, "preference": { "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": [node] }] } }] } })
    })
}

/// A container that does nothing. `IMPOUND_TEST_IMAGE` names an image that the cluster can pull and that
/// has `sleep`.
pub(crate) fn container(name: &str) -> Value {
    let image = std::env::var("IMPOUND_TEST_IMAGE").unwrap_or_else(|_| "busybox:1".into());
    json!({ "name": name, "image": image, "command": ["sleep", "100000"] })
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_controller();
        if self.is_real() {
            let namespace = self.namespace.clone();
            let made = std::mem::take(&mut *self.made.lock().unwrap());
            // The test's own runtime can't be waited for in a drop.
            let tidied = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let kubeconfig = real::read(&real::kubeconfig().unwrap());
                    real::tidy(client(kubeconfig).await, &namespace, &made).await
                })
            });
            match tidied.join() {
                Ok(Ok(())) => {}
                problem => eprintln!("the cluster was not tidied up: {problem:?}"),
            }
        }
        if std::thread::panicking() {
            eprintln!("--- controller log\n{}", self.log());
        }
    }
}

/// Looks again until it holds; says the last reason when time is up.
pub(crate) async fn eventually<T, F>(what: &str, look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let found = try_until(look).await;
    found.unwrap_or_else(|reason| panic!("{what}: {reason}"))
}

/// Looks again until it holds; the last reason when time is up.
async fn try_until<T, F>(mut look: impl FnMut() -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(reason) if tokio::time::Instant::now() > deadline => return Err(reason),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Method, path and body of each planned call, to compare with those that were sent.
pub(crate) fn calls_planned(calls: &[ApiCall]) -> Vec<Value> {
    let calls = calls.iter();
    calls
        .map(|call| {
            let body = serde_json::from_str(&call.body).unwrap_or_default();
            json!([call.method, without_query(&call.path), versionless(body)])
        })
        .collect()
}

/// The same of requests that were made.
pub(crate) fn calls_sent(requests: &[RequestRecord]) -> Vec<Value> {
    let requests = requests.iter();
    requests
        .map(|request| {
            let body = request.body.clone().unwrap_or_default();
            json!([
                request.method,
                without_query(&request.path),
                versionless(body)
            ])
        })
        .collect()
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// A body without the versions that guard it, which are those of the moment.
fn versionless(mut body: Value) -> Value {
    match &mut body {
        Value::Object(fields) => {
            fields.remove("resourceVersion");
            for field in fields.values_mut() {
                *field = versionless(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = versionless(item.take());
            }
        }
        _ => {}
    }
    body
}

pub(crate) fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

pub(crate) fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().node_name.clone().unwrap()
}

pub(crate) fn label(pod: &Pod, key: &str) -> Option<String> {
    pod.metadata.labels.as_ref()?.get(key).cloned()
}

pub(crate) fn state(quarantine: &Quarantine, step: &str) -> String {
    let step = quarantine.steps.iter().find(|found| found.name == step);
    step.map(|step| step.state.clone()).unwrap_or_default()
}

pub(crate) fn is_running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Running")
}

/// A port that nobody listens at, from below those that the system gives to outgoing connections: one of these
/// may be taken by any connection of any test before the program that is to listen there has started.
pub(crate) fn free_port() -> u16 {
    const OURS: Range<u16> = 10_000..32_000;
    loop {
        let random = RandomState::new().hash_one(std::process::id());
        let port = OURS.start + (random % OURS.len() as u64) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
