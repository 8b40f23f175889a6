//! What the agent is started with: arguments or environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use impound_proto::NodeName;

/// Serves this node's containers to the Impound controller over mutual TLS.
#[derive(Clone, Debug, Parser)]
#[command(name = "impound-agent", version)]
pub struct Config {
    /// Name of the Node object of this node.
    #[arg(long, env = "IMPOUND_NODE")]
    pub node: NodeName,

    /// Address to serve the controller on.
    #[arg(long, env = "IMPOUND_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,

    /// Directory with tls.crt, tls.key and controller-ca.crt; watched for new ones.
    #[arg(long, env = "IMPOUND_TLS_DIR")]
    pub tls_dir: PathBuf,

    /// Socket of the Docker Engine.
    #[arg(
        long,
        env = "IMPOUND_DOCKER_SOCKET",
        default_value = "/var/run/docker.sock"
    )]
    pub docker_socket: PathBuf,

    /// Directory on the disk that Docker stores images on, to see how much is free.
    #[arg(long, env = "IMPOUND_DOCKER_ROOT", default_value = "/var/lib/docker")]
    pub docker_root: PathBuf,

    /// Share of that disk in percent that a commit or save must leave free. 15 is where the kubelet
    /// starts to evict pods (imagefs.available).
    #[arg(
        long,
        env = "IMPOUND_DISK_RESERVE_PERCENT",
        default_value_t = 15,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub disk_reserve_percent: u8,

    /// Address for plain HTTP GET /ready, for the kubelet's probe; keep it on 127.0.0.1. Off by default.
    #[arg(long, env = "IMPOUND_READY_LISTEN")]
    pub ready_listen: Option<SocketAddr>,

    /// Seconds that running streams get to end after SIGTERM; keep it below the pod's
    /// terminationGracePeriodSeconds.
    #[arg(long, env = "IMPOUND_DRAIN_SECONDS", default_value_t = 25)]
    pub drain_seconds: u64,

    /// Isolate pods in their own network namespace when the controller asks for it. Needs hostPID and
    /// the capabilities SYS_ADMIN, NET_ADMIN and SYS_PTRACE.
    #[arg(
        long,
        env = "IMPOUND_ALLOW_ISOLATION",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub allow_isolation: bool,

    /// Form of the log on standard error. RUST_LOG chooses what is logged.
    #[arg(long, env = "IMPOUND_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
