//! Isolation at the node, on real containers: the controller, the agent of the suspect's node and a kubelet
//! that runs the cluster's pods with Docker. What flowed is dead, the neighbour and the suspect's own probes
//! notice nothing, and a release brings it back.
//!
//! Needs a Docker Engine, nftables, root, and the image that `deploy/images.sh pause` builds.

mod traces;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use docker_kubelet::{Kubelet, KubeletError};
use impound_agent::runtime::docker::Docker;
use impound_agent::{Agent, Disk};
use impound_proto::controller::v1::{
    CreateQuarantineRequest, Quarantine, ReleaseQuarantineRequest,
};
use impound_proto::tls::TlsFiles;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::receiver;
use super::world::{World, eventually, free_port, name, state};

const NODE: &str = "k8s-worker1";
const SOCKET: &str = "/var/run/docker.sock";
const IMAGE: &str = "impound-demo/pause:1";

/// Ports of every pod of these tests: pages, an echo, and pages for the kubelet's liveness probe alone.
const PAGES: u16 = 80;
const ECHO: u16 = 7;
const HEALTH: u16 = 81;

/// Longer than the kernel takes to send a lost packet again.
const QUIET: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn what_flowed_before_is_dead_until_the_release_and_nobody_else_notices() {
    let site = Site::start(true).await;
    let (suspect, neighbour) = (site.pod("suspect").await, site.pod("neighbour").await);
    assert_eq!(page(&suspect, PAGES).await.as_deref(), Ok("it works"));
    let mut established = TcpStream::connect(at(&suspect, ECHO)).await.unwrap();
    assert!(echoes(&mut established).await);
    assert!(site.reaches(&neighbour, &suspect));
    assert!(site.reaches(&suspect, &neighbour));

    let quarantine = site.quarantine(&suspect).await;
    assert_eq!(quarantine.phase, "Complete", "{quarantine:#?}");
    for step in ["Isolate", "Prove"] {
        assert_eq!(state(&quarantine, step), "Done", "{quarantine:#?}");
    }
    assert_eq!(quarantine.verdict, "Isolated", "{quarantine:#?}");
    for fact in ["NodeIsolated", "OutgoingBlocked", "IncomingBlocked"] {
        let found = quarantine.facts.iter().find(|known| known.name == fact);
        assert_eq!(found.unwrap().state, "True", "{quarantine:#?}");
    }
    // Said in words, though it does not stand against the verdict: the container is root's.
    let past = quarantine
        .facts
        .iter()
        .find(|fact| fact.name == "NoWayPast")
        .unwrap();
    assert!(past.message.contains("CAP_NET_RAW"), "{past:?}");

    assert!(
        !echoes(&mut established).await,
        "an established connection lives on"
    );
    assert!(
        page(&suspect, PAGES).await.is_err(),
        "a new connection is answered"
    );
    assert!(!site.reaches(&neighbour, &suspect) && !site.reaches(&suspect, &neighbour));
    // The kubelet's own way in stays open, to the probed port and to the node alone.
    assert_eq!(page(&suspect, HEALTH).await.as_deref(), Ok("it works"));
    assert!(!site.fetches(&neighbour, &suspect, HEALTH));
    assert_eq!(page(&neighbour, PAGES).await.as_deref(), Ok("it works"));
    assert!(site.reaches(&neighbour, &neighbour));
    // Three periods of the liveness probe, whose first two failures in a row would be the end.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(site.restarts(&suspect).await, 0);

    let now = site.world.current(&quarantine.name).await;
    let isolation = now.isolation.unwrap();
    assert!(
        isolation.in_force && isolation.netns_inode > 0,
        "{isolation:?}"
    );
    assert_eq!(isolation.probe_ports, [u32::from(HEALTH)]);

    let released = site.release(&quarantine.name).await;
    assert_eq!(state(&released, "UndoIsolate"), "Done", "{released:#?}");
    assert_eq!(released.isolation, None);
    eventually("the suspect is back", || async {
        page(&suspect, PAGES).await.map(drop)
    })
    .await;
    assert!(site.reaches(&neighbour, &suspect) && site.reaches(&suspect, &neighbour));
    assert!(site.rules(&suspect).await.is_empty());
    assert_eq!(site.restarts(&suspect).await, 0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_removes_is_set_again_also_by_a_controller_and_an_agent_that_are_new()
{
    let mut site = Site::start(true).await;
    let suspect = site.pod("suspect").await;
    let quarantine = site.quarantine(&suspect).await.name;
    site.world.kill_controller();
    site.stop_agent().await;
    assert!(
        page(&suspect, PAGES).await.is_err(),
        "the table went with the agent"
    );
    let pid = site.sandbox(&suspect).await;
    inside(&pid, &["nft", "delete", "table", "inet", "impound"]);
    assert_eq!(page(&suspect, PAGES).await.as_deref(), Ok("it works"));
    site.start_agent(true).await;
    site.world.start_controller().await;
    let restored = eventually("the table is put back", || async {
        let now = site.world.current(&quarantine).await;
        let noted = now.drift.iter().any(|drift| {
            drift.reason == "Restored" && drift.what.contains("the table was removed")
        });
        if noted {
            Ok(now)
        } else {
            Err(format!("{:?}", now.drift))
        }
    })
    .await;
    assert_eq!(restored.verdict, "Isolated", "{restored:#?}");
    assert!(page(&suspect, PAGES).await.is_err());
    assert!(site.rules(&suspect).await.contains("table inet impound"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_not_isolate_leaves_the_pod_contained_and_says_why() {
    let site = Site::start(false).await;
    let suspect = site.pod("suspect").await;
    let done = site.quarantine(&suspect).await;
    assert_eq!(state(&done, "Isolate"), "Skipped", "{done:#?}");
    assert_eq!(
        (done.phase.as_str(), done.verdict.as_str()),
        ("Complete", "Contained")
    );
    let step = done
        .steps
        .iter()
        .find(|step| step.name == "Isolate")
        .unwrap();
    assert!(
        step.message.contains("--allow-isolation"),
        "{}",
        step.message
    );
    let fact = done
        .facts
        .iter()
        .find(|fact| fact.name == "NodeIsolated")
        .unwrap();
    assert_eq!(fact.state, "Unverified");
    let released = site.release(&done.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    site.stop().await;
}

/// A task, and what ends it when it is dropped.
type Part<T> = (oneshot::Sender<()>, JoinHandle<T>);

/// A cluster whose pods run with Docker, with an agent on [`NODE`].
struct Site {
    world: World,
    port: u16,
    cluster: String,
    kubelet: Option<Part<Result<(), KubeletError>>>,
    agent: Option<Part<()>>,
}

impl Site {
    async fn start(allow_isolation: bool) -> Self {
        Self::start_with(allow_isolation, &[]).await
    }

    /// With further arguments of the controller.
    async fn start_with(allow_isolation: bool, arguments: &[&str]) -> Self {
        let port = free_port();
        let world = World::with_agents(port, arguments).await;
        let cluster = world.namespace.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let kubelet = Kubelet::connect(docker_kubelet::Config {
            client: world.client.clone(),
            docker_socket: SOCKET.into(),
            nodes: vec![NODE.into()],
            cluster: cluster.clone(),
            pause_image: IMAGE.into(),
            volumes: world.dir.path().join("volumes"),
        });
        let kubelet = kubelet.await.unwrap().run(async {
            let _ = stopped.await;
        });
        let mut site = Self {
            world,
            port,
            cluster,
            kubelet: Some((stop, tokio::spawn(kubelet))),
            agent: None,
        };
        site.start_agent(allow_isolation).await;
        site
    }

    async fn start_agent(&mut self, allow_isolation: bool) {
        let tls = self.world.dir.path().join("pki/agents").join(NODE);
        let agent = Agent {
            node: NODE.parse().unwrap(),
            files: TlsFiles::in_dir(&tls, "controller-ca.crt"),
            runtime: Arc::new(Docker::new(SOCKET)),
            disk: Disk::new("/var/lib/docker", 0),
            ready: None,
            drain: Duration::from_secs(5),
            allow_isolation,
            enrolment: None,
            state_dir: self.world.dir.path().join("agent"),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let served = agent.serve(listener, async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async move { served.await.unwrap() });
        self.agent = Some((stop, task));
    }

    async fn stop_agent(&mut self) {
        let (stop, task) = self.agent.take().unwrap();
        drop(stop);
        task.await.unwrap();
    }

    /// Removes the containers.
    async fn stop(mut self) {
        let (stop, task) = self.kubelet.take().unwrap();
        drop(stop);
        task.await.unwrap().unwrap();
    }

    /// A pod of a Deployment on [`NODE`] that serves pages and an echo, once it is ready.
    async fn pod(&self, name: &str) -> Pod {
        let script = format!(
            "mkdir /www; echo -n it works >/www/index.html; busybox httpd -p {PAGES} -h /www; \
             busybox httpd -p {HEALTH} -h /www; exec busybox nc -ll -p {ECHO} -e /bin/cat"
        );
        self.world
            .create(json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
                "spec": {
                    "replicas": 1,
                    "selector": { "matchLabels": { "app": name } },
                    "template": {
                        "metadata": { "labels": { "app": name } },
                        "spec": {
                            "nodeSelector": { "kubernetes.io/hostname": NODE },
                            "terminationGracePeriodSeconds": 1,
                            "containers": [{
                                "name": name, "image": IMAGE, "command": ["sh", "-c", script],
                                // Held, it could send past the table, and nothing would be called isolated.
                                "securityContext": { "capabilities": { "drop": ["NET_RAW"] } },
                                "ports": [{ "containerPort": PAGES }, { "containerPort": ECHO }],
                                "livenessProbe": { "httpGet": { "port": HEALTH, "path": "/index.html" },
                                    "periodSeconds": 1, "failureThreshold": 2, "initialDelaySeconds": 1 },
                                "readinessProbe": { "httpGet": { "port": HEALTH, "path": "/index.html" },
                                    "periodSeconds": 1 },
                            }],
                        },
                    },
                },
            }))
            .await;
        self.world
            .running(&format!("app={name}"), 1)
            .await
            .remove(0)
    }

    async fn quarantine(&self, pod: &Pod) -> Quarantine {
        let mut alice = self.world.responder("alice").await;
        let request = CreateQuarantineRequest {
            keep_neighbours: true,
            ..self.world.request(&name(pod))
        };
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        self.world.settled(&created.quarantine.unwrap().name).await
    }

    async fn release(&self, quarantine: &str) -> Quarantine {
        let mut alice = self.world.responder("alice").await;
        let request = ReleaseQuarantineRequest {
            namespace: self.world.namespace.clone(),
            name: quarantine.into(),
            reason: "done".into(),
            force: false,
        };
        alice.release_quarantine(request).await.unwrap();
        self.world.settled(quarantine).await
    }

    async fn restarts(&self, pod: &Pod) -> i32 {
        let status = self.world.pod(&name(pod)).await.status.unwrap();
        status
            .container_statuses
            .unwrap()
            .iter()
            .map(|one| one.restart_count)
            .sum()
    }

    /// Whether one pod gets the other's page.
    fn reaches(&self, from: &Pod, to: &Pod) -> bool {
        self.fetches(from, to, PAGES)
    }

    fn fetches(&self, from: &Pod, to: &Pod, port: u16) -> bool {
        let url = format!("http://{}/index.html", at(to, port));
        let container = container_id(from);
        // Not `wget -T`, which crashes in a static busybox.
        let wget = [
            "busybox", "timeout", "2", "busybox", "wget", "-q", "-O", "-",
        ];
        let fetched = Command::new("docker")
            .args([&["exec", &container], wget.as_slice(), &[&url]].concat())
            .output();
        fetched.unwrap().status.success()
    }

    /// Process id of the pod's sandbox.
    async fn sandbox(&self, pod: &Pod) -> String {
        let uid = format!(
            "label=io.kubernetes.pod.uid={}",
            pod.metadata.uid.clone().unwrap()
        );
        let cluster = format!("label={}={}", docker_kubelet::CLUSTER_LABEL, self.cluster);
        let kind = "label=io.kubernetes.docker.type=podsandbox";
        let id = run(
            "docker",
            &[
                "ps", "-q", "--filter", &uid, "--filter", &cluster, "--filter", kind,
            ],
        );
        run("docker", &["inspect", "-f", "{{.State.Pid}}", id.trim()])
            .trim()
            .to_owned()
    }

    /// The rules in the pod's network namespace.
    async fn rules(&self, pod: &Pod) -> String {
        inside(&self.sandbox(pod).await, &["nft", "list", "ruleset"])
    }
}

fn inside(pid: &str, program: &[&str]) -> String {
    let namespace = format!("--net=/proc/{pid}/ns/net");
    run("nsenter", &[&[namespace.as_str()], program].concat())
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run {program} ({error}): these tests need docker, nsenter (util-linux) and nft (nftables)")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn container_id(pod: &Pod) -> String {
    let status = pod
        .status
        .clone()
        .unwrap()
        .container_statuses
        .unwrap()
        .remove(0);
    status
        .container_id
        .unwrap()
        .trim_start_matches("docker://")
        .to_owned()
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    let address = pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap();
    SocketAddr::new(address.parse().unwrap(), port)
}

/// The page that a pod serves to this machine, which is its node.
async fn page(pod: &Pod, port: u16) -> Result<String, String> {
    let fetched = async {
        let mut stream = TcpStream::connect(at(pod, port)).await?;
        stream
            .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = timeout(QUIET, fetched)
        .await
        .map_err(|late| late.to_string())?;
    let text = text.map_err(|error| error.to_string())?;
    let body = text.split_once("\r\n\r\n").ok_or("no answer")?.1;
    Ok(body.to_owned())
}

async fn echoes(stream: &mut TcpStream) -> bool {
    let echoed = async {
        stream.write_all(b"ping").await?;
        let mut bytes = [0; 4];
        stream
            .read_exact(&mut bytes)
            .await
            .map(|_| bytes == *b"ping")
    };
    matches!(timeout(QUIET, echoed).await, Ok(Ok(true)))
}
