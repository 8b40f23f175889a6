//! The calls that the tests make, traffic to watch, and what waits for it.

use std::net::IpAddr;
use std::time::Duration;

use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{
    AllowDirection, AllowProtocol, AllowRule, InspectIsolationRequest, InspectIsolationResponse,
    IsolateRequest, IsolateResponse, LiftIsolationRequest, ProbeIsolationRequest,
    ProbeOutcome::{self, Connected},
    ProbeTarget,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::pod::{HOST, PORT, Pod};
use crate::world::{CASE, case};

pub(super) type Client = AgentClient<Channel>;

pub(super) const QUARANTINE: &str = "shop/suspect";

/// Listens on the host and counts what it gets.
pub(super) struct Sink {
    address: IpAddr,
    pub(super) port: u16,
    bytes: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    task: JoinHandle<()>,
}

impl Sink {
    pub(super) async fn at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap_or_else(|error| {
            panic!("cannot listen on {address} ({error}): the network impound-agent-test was made otherwise; remove it")
        });
        let address = listener.local_addr().unwrap();
        let bytes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = std::sync::Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        counted.fetch_add(read, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        Self {
            address: address.ip(),
            port: address.port(),
            bytes,
            task,
        }
    }

    pub(super) fn target(&self) -> ProbeTarget {
        ProbeTarget {
            address: self.address.to_string(),
            port: self.port.into(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.bytes.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn target(address: &str) -> ProbeTarget {
    ProbeTarget {
        address: address.to_owned(),
        port: PORT.into(),
    }
}

pub(super) fn allow(direction: AllowDirection, cidr: &str, port: u16) -> AllowRule {
    AllowRule {
        direction: direction.into(),
        cidr: cidr.to_owned(),
        protocol: AllowProtocol::Tcp.into(),
        port: port.into(),
    }
}

pub(super) fn request(pod: &Pod, allow: Vec<AllowRule>) -> IsolateRequest {
    IsolateRequest {
        pod: Some(pod.selector.clone()),
        case_id: CASE.to_owned(),
        quarantine: QUARANTINE.to_owned(),
        allow,
        drop_loopback: false,
        node_access: None,
    }
}

pub(super) async fn isolate(
    client: &Client,
    pod: &Pod,
    allow: Vec<AllowRule>,
) -> Result<IsolateResponse, Status> {
    let request = case(request(pod, allow));
    Ok(client.clone().isolate(request).await?.into_inner())
}

pub(super) async fn inspect(
    client: &Client,
    pod: &Pod,
    allow: Vec<AllowRule>,
) -> Result<InspectIsolationResponse, Status> {
    let request = InspectIsolationRequest {
        pod: Some(pod.selector.clone()),
        allow,
        drop_loopback: false,
        node_access: None,
    };
    Ok(client
        .clone()
        .inspect_isolation(case(request))
        .await?
        .into_inner())
}

pub(super) async fn lift(client: &Client, pod: &Pod) -> Result<bool, Status> {
    let request = LiftIsolationRequest {
        pod: Some(pod.selector.clone()),
        case_id: CASE.to_owned(),
        quarantine: QUARANTINE.to_owned(),
        force: false,
    };
    Ok(client
        .clone()
        .lift_isolation(case(request))
        .await?
        .into_inner()
        .removed)
}

/// Each outcome, with what it was an outcome of.
pub(super) async fn probe(
    client: &Client,
    pod: &Pod,
    from_pod: &[ProbeTarget],
    from_node: &[ProbeTarget],
) -> Vec<(ProbeOutcome, String)> {
    let request = ProbeIsolationRequest {
        pod: Some(pod.selector.clone()),
        from_pod: from_pod.to_vec(),
        from_node: from_node.to_vec(),
        timeout_ms: 1200,
        node_port: 0,
    };
    let answer = client
        .clone()
        .probe_isolation(case(request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.sandbox_id, pod.sandbox.id);
    let asked: Vec<_> = from_pod
        .iter()
        .chain(from_node)
        .cloned()
        .map(Some)
        .collect();
    let answered: Vec<_> = answer
        .results
        .iter()
        .map(|result| result.target.clone())
        .collect();
    assert_eq!(answered, asked);
    let results = answer.results.iter();
    results
        .map(|result| (result.outcome(), format!("{result:?}")))
        .collect()
}

/// Waits for servers to listen and for IPv6 addresses to be usable.
pub(super) async fn until_connected(
    client: &Client,
    pod: &Pod,
    from_pod: &[ProbeTarget],
    from_node: &[ProbeTarget],
) {
    let mut last = Vec::new();
    for _ in 0..40 {
        last = probe(client, pod, from_pod, from_node).await;
        if last.iter().all(|(outcome, _)| *outcome == Connected) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("there is no connection even without isolation: {last:?}");
}

pub(super) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..400 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("waited in vain: {what}");
}

pub(super) async fn answers(stream: &mut TcpStream) -> bool {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    answer == *b"ping"
}

pub(super) fn ping(pod: &Pod, address: &str) -> bool {
    let family = if address.contains(':') { "-6" } else { "-4" };
    pod.exec(&["ping", family, "-c", "1", "-W", "1", address])
        .status
        .success()
}

pub(super) async fn udp_arrives(pod: &Pod) -> bool {
    let socket = UdpSocket::bind((HOST, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    let send = format!("echo x >/dev/udp/{HOST}/{port} || true");
    pod.inside(&["bash", "-c", &send]);
    let mut buffer = [0; 16];
    tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut buffer))
        .await
        .is_ok()
}

pub(super) async fn free_port() -> u16 {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}
