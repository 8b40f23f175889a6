//! What the controller is told at start: command line and environment.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use impound_proto::traces::OtlpEndpoint;

use crate::collect::Limits;
use crate::contain::guard;
use crate::contain::settings::{Settings, StorePods};
use crate::resources::{Label, Names};
use crate::timestamp::TimestampAuthority;
use store::StoreConfig;

mod store;

/// Contains suspect pods through the Kubernetes API and collects their evidence.
#[derive(Debug, Parser)]
#[command(name = "impound-controller", version, about, long_about = None)]
pub struct Config {
    /// What to do; without it, serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// Other things than serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the custom resource definitions as YAML, for `kubectl apply -f -`.
    Crds,
    /// Print the admission policies that guard quarantined pods as YAML, for `kubectl apply -f -`.
    Admission {
        /// User name under which the controller is known to the Kubernetes API.
        #[arg(long, default_value = guard::CONTROLLER, value_parser = guard::user_name, value_name = "NAME")]
        user: String,
        /// Instead, the policy that also keeps everybody from entering a quarantined pod (exec, debug, …).
        #[arg(long)]
        no_access: bool,
    },
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Address of the gRPC service for responders.
    #[arg(
        long,
        env = "IMPOUND_LISTEN",
        default_value = "0.0.0.0:8443",
        value_name = "ADDR:PORT"
    )]
    pub listen: SocketAddr,
    /// Directory with tls.crt, tls.key, agent-ca.crt and responder-ca.crt.
    #[arg(
        long,
        env = "IMPOUND_TLS_DIR",
        default_value = "/etc/impound/tls",
        value_name = "DIR"
    )]
    pub tls_dir: PathBuf,
    /// Where evidence is kept.
    #[command(flatten)]
    pub store: StoreConfig,
    /// PKCS#8 PEM file of the P-256 key that manifests are signed with.
    #[arg(
        long,
        env = "IMPOUND_SIGNING_KEY",
        default_value = "/etc/impound/signing/evidence.key",
        value_name = "FILE"
    )]
    pub signing_key: PathBuf,
    /// Public keys that manifests were signed with, the present one among them, as `impound pki init` lists
    /// them. Without it, only what the present key signed is believed.
    #[arg(long, env = "IMPOUND_EVIDENCE_KEYS", value_name = "FILE")]
    pub evidence_keys: Option<PathBuf>,
    /// Encrypt all evidence to this age X25519 recipient (age1…), a public key; may be given several times, at most 15.
    /// Whoever has one of the secret keys reads it with `impound … --identity` or `age -d`; the controller can't.
    #[arg(
        long,
        env = "IMPOUND_ENCRYPT_TO",
        value_delimiter = ',',
        value_name = "RECIPIENT"
    )]
    pub encrypt_to: Vec<String>,
    /// Who dates the evidence besides.
    #[command(flatten)]
    pub timestamps: Timestamps,
    /// Port at which every node's agent listens, at the node's InternalIP.
    #[arg(
        long,
        env = "IMPOUND_AGENT_PORT",
        default_value_t = 7443,
        value_name = "PORT"
    )]
    pub agent_port: u16,
    /// Address for plain HTTP GET /live, /ready and /metrics, for the kubelet and Prometheus. Off by default.
    #[arg(long, env = "IMPOUND_HEALTH_LISTEN", value_name = "ADDR:PORT")]
    pub health_listen: Option<SocketAddr>,
    /// Issuing of agents' certificates.
    #[command(flatten)]
    pub issuing: Issuing,
    /// Who may call, and how much.
    #[command(flatten)]
    pub access: Access,
    /// Label put on a suspect pod and selected by the deny-all policy.
    #[arg(long, env = "IMPOUND_POD_LABEL", default_value = "status=suspectpod", value_parser = label, value_name = "KEY=VALUE")]
    pub pod_label: Label,
    /// Label put on a suspect's node.
    #[arg(long, env = "IMPOUND_NODE_LABEL", default_value = "status=suspectnode", value_parser = label, value_name = "KEY=VALUE")]
    pub node_label: Label,
    /// Name of the deny-all NetworkPolicy.
    #[arg(
        long,
        env = "IMPOUND_POLICY_NAME",
        default_value = "deny-all-suspectpod",
        value_name = "NAME"
    )]
    pub policy_name: String,
    /// Don't isolate pods in their network namespace unless a quarantine asks for it: for an installation
    /// whose agents run without --allow-isolation.
    #[arg(
        long,
        env = "IMPOUND_NO_NODE_ISOLATION",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub no_node_isolation: bool,
    /// Longest time in seconds for which a container is paused while it is read, if a request asks for that;
    /// a pod's own liveness and startup probes may allow less
    #[arg(long, env = "IMPOUND_FREEZE_LIMIT", value_parser = seconds, default_value = "60", value_name = "SECONDS")]
    pub freeze_limit: Duration,
    /// Namespace that this process runs in (downward API, metadata.namespace). With it, only pods of this
    /// namespace are taken for parts of Impound.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// Name of the pod that this process runs in (downward API, metadata.name): never evicted
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Pods of the evidence store, which are never evicted, e.g. storage/app=seaweedfs
    #[arg(long, env = "IMPOUND_STORE_PODS", value_parser = store_pods, value_name = "NAMESPACE/KEY=VALUE,...")]
    pub store_pods: Option<StorePods>,
    /// Seconds that a collection waits for an agent that can't be reached, before it goes on without [default: 120]
    #[arg(long, env = "IMPOUND_AGENT_PATIENCE", value_parser = seconds, value_name = "SECONDS")]
    pub agent_patience: Option<Duration>,
    /// How much of the nodes and of the network collecting may take.
    #[command(flatten)]
    pub collecting: Collecting,
    /// Seconds that blocked evictions are tried before they are reported as failed; each is then asked for
    /// again as often as that
    #[arg(long, env = "IMPOUND_EVICTION_PATIENCE", value_parser = seconds, default_value = "300", value_name = "SECONDS")]
    pub eviction_patience: Duration,
    /// Format of the log on standard error.
    #[arg(long, env = "IMPOUND_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// OpenTelemetry collector that takes traces as OTLP over gRPC, e.g. http://otel-collector.monitoring.svc:4317.
    /// Without it, none are made.
    #[arg(long, env = "IMPOUND_OTLP_ENDPOINT", value_name = "http://HOST:PORT")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

/// A time-stamping authority (RFC 3161) that dates each collection's checkpoint. Off by default.
#[derive(Clone, Debug, Args)]
pub struct Timestamps {
    /// URL of a time-stamping authority (RFC 3161), asked once when a collection is sealed; needs --timestamp-ca
    #[arg(
        long,
        env = "IMPOUND_TIMESTAMP_URL",
        requires = "timestamp_ca",
        value_name = "URL"
    )]
    pub timestamp_url: Option<String>,
    /// PEM file with the root certificate that its time-stamps are checked against
    #[arg(
        long,
        env = "IMPOUND_TIMESTAMP_CA",
        requires = "timestamp_url",
        value_name = "FILE"
    )]
    pub timestamp_ca: Option<PathBuf>,
}

impl Timestamps {
    /// The authority, if one is to be asked.
    ///
    /// # Errors
    /// If the URL or the certificates are none.
    pub fn open(&self) -> anyhow::Result<Option<Arc<TimestampAuthority>>> {
        let given = self.timestamp_url.as_ref().zip(self.timestamp_ca.as_ref());
        let opened = given.map(|(url, ca)| TimestampAuthority::new(url, ca).map(Arc::new));
        opened.transpose()
    }
}

/// Who may call, and how much.
#[derive(Clone, Debug, Args)]
pub struct Access {
    /// Let callers in who show a Kubernetes token of the audience impound.dev/controller instead of a client
    /// certificate. Who that is and may do what, the Kubernetes API is asked.
    #[arg(
        long,
        env = "IMPOUND_KUBERNETES_TOKENS",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub kubernetes_tokens: bool,
    /// Calls a second by one caller, on average; twice as many may come at once
    #[arg(
        long,
        env = "IMPOUND_CALLER_RATE",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        value_name = "CALLS"
    )]
    pub caller_rate: u32,
    /// Calls at the same time by one caller, streams among them
    #[arg(
        long,
        env = "IMPOUND_CALLER_CALLS",
        default_value_t = 64,
        value_name = "CALLS"
    )]
    pub caller_calls: usize,
    /// Seconds between two looks at whether the caller of an open stream may still have it
    #[arg(
        long,
        env = "IMPOUND_CALLER_RECHECK",
        default_value_t = 20,
        value_parser = clap::value_parser!(u16).range(1..=600),
        value_name = "SECONDS"
    )]
    pub caller_recheck: u16,
}

/// How much of the nodes and of the network collecting may take. Each replica keeps within it by itself.
#[derive(Clone, Debug, Args)]
pub struct Collecting {
    /// Exports and images received at the same time; each takes some 20 MiB of memory
    #[arg(
        long,
        env = "IMPOUND_COLLECT_STREAMS",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=128),
        value_name = "STREAMS"
    )]
    pub collect_streams: u16,
    /// Of them, from one node; without it, 4, which is what an agent gives at a time
    #[arg(long, env = "IMPOUND_COLLECT_STREAMS_PER_NODE", value_name = "STREAMS")]
    pub collect_streams_per_node: Option<NonZeroUsize>,
    /// MiB a second of all streams together; without it, as fast as they come
    #[arg(long, env = "IMPOUND_COLLECT_RATE", value_parser = mebibytes, value_name = "MIB")]
    pub collect_rate: Option<NonZeroU64>,
    /// The same of one node
    #[arg(long, env = "IMPOUND_COLLECT_RATE_PER_NODE", value_parser = mebibytes, value_name = "MIB")]
    pub collect_rate_per_node: Option<NonZeroU64>,
}

impl Collecting {
    /// As bytes and streams.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            streams: NonZeroUsize::new(self.collect_streams.into()),
            streams_per_node: self.collect_streams_per_node,
            bytes_per_second: self.collect_rate,
            node_bytes_per_second: self.collect_rate_per_node,
        }
    }
}

/// Whole MiB as bytes.
fn mebibytes(text: &str) -> Result<NonZeroU64, String> {
    let mebibytes: Option<u64> = text.parse().ok();
    let bytes = mebibytes.and_then(|mebibytes| mebibytes.checked_mul(1 << 20));
    bytes
        .and_then(NonZeroU64::new)
        .ok_or_else(|| format!("expected MiB a second, from 1 on, came {text:?}"))
}

/// How agents get their certificates. Off by default: then they have those of a static installation.
#[derive(Clone, Debug, Args)]
pub struct Issuing {
    /// Address at which agents ask for certificates; without it, none are issued.
    #[arg(long, env = "IMPOUND_ISSUER_LISTEN", value_name = "ADDR:PORT")]
    pub issuer_listen: Option<SocketAddr>,
    /// Sign the PodCertificateRequests of the signer impound.dev/agent, which kubelets make for the agents' pods
    /// (certificates.k8s.io/v1beta1, Kubernetes 1.35 or later, where it is turned on).
    #[arg(
        long,
        env = "IMPOUND_POD_CERTIFICATES",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub pod_certificates: bool,
    /// Directory with ca.crt and ca.key of the agent CA.
    #[arg(
        long,
        env = "IMPOUND_AGENT_CA_DIR",
        default_value = "/etc/impound/agent-ca",
        value_name = "DIR"
    )]
    pub agent_ca_dir: PathBuf,
    /// Namespace of the agents.
    #[arg(
        long,
        env = "IMPOUND_AGENT_NAMESPACE",
        default_value = "impound-system",
        value_name = "NAMESPACE"
    )]
    pub agent_namespace: String,
    /// Service account of the agents.
    #[arg(
        long,
        env = "IMPOUND_AGENT_SERVICE_ACCOUNT",
        default_value = "impound-agent",
        value_name = "NAME"
    )]
    pub agent_service_account: String,
    /// DaemonSet that the agents' pods belong to.
    #[arg(
        long,
        env = "IMPOUND_AGENT_DAEMON_SET",
        default_value = "impound-agent",
        value_name = "NAME"
    )]
    pub agent_daemon_set: String,
    /// Minutes that an agent's certificate is valid, 60 at least with --pod-certificates; it is renewed after two
    /// thirds
    #[arg(
        long,
        env = "IMPOUND_AGENT_CERTIFICATE_MINUTES",
        default_value_t = 720,
        value_parser = clap::value_parser!(u32).range(5..=10080),
        value_name = "MINUTES"
    )]
    pub agent_certificate_minutes: u32,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Serve {
    /// Names and labels for containment.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            names: Names {
                pod_label: self.pod_label.clone(),
                node_label: self.node_label.clone(),
                policy: self.policy_name.clone(),
            },
            isolate: !self.no_node_isolation,
            agent_port: self.agent_port,
            freeze_limit: self.freeze_limit,
            own_namespace: self.pod_namespace.clone(),
            own_pod: self.pod_name.clone(),
            store_pods: self.store_pods.clone(),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .map_err(|_| format!("expected whole seconds, came {text:?}"))?;
    Ok(Duration::from_secs(seconds))
}

fn store_pods(text: &str) -> Result<StorePods, String> {
    let (namespace, labels) = text
        .split_once('/')
        .filter(|(namespace, _)| !namespace.is_empty())
        .ok_or_else(|| format!("expected NAMESPACE/KEY=VALUE,..., came {text:?}"))?;
    let labels = labels
        .split(',')
        .map(|text| label(text).map(|label| label.pair()));
    let labels = labels.collect::<Result<_, _>>()?;
    Ok(StorePods {
        namespace: namespace.to_owned(),
        labels,
    })
}

fn label(text: &str) -> Result<Label, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(Label {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err(format!(
            "expected KEY=VALUE, e.g. status=suspectpod, came {text:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_whole_mebibytes_and_never_nothing() {
        assert_eq!(mebibytes("100").unwrap().get(), 100 << 20);
        for wrong in ["", "0", "-1", "1.5", "18446744073709551615"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_stores_pods_are_named_by_namespace_and_labels() {
        let read = store_pods("storage/app=weed,tier=s3").unwrap();
        assert_eq!(read.namespace, "storage");
        assert_eq!(read.labels.len(), 2);
        for wrong in ["app=weed", "/app=weed", "storage/", "storage/app"] {
            assert!(store_pods(wrong).is_err(), "{wrong}");
        }
    }
}
