//! What the agent is started with: arguments or environment variables.
//!
//! Without a mode everything is one process; with one it is a part of an agent that is split by
//! privilege, see `PRIVILEGES.md`. Nothing secret is an argument: keys are files.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use impound_proto::NodeName;
use impound_proto::traces::OtlpEndpoint;

use crate::local::SocketPath;

/// What a process of the agent is told.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// What it is.
    pub mode: Mode,
    /// Form of its log.
    pub log_format: LogFormat,
}

/// What a process of the agent is.
#[derive(Clone, Debug, Subcommand)]
pub enum Mode {
    /// Faces the controller: mutual TLS; forwards calls to the other parts. Needs no privilege.
    Front(Front),
    /// Reads containers for the front. Needs the runtime's socket, and no network.
    Collector(Worker),
    /// Isolates pods for the front. Needs hostPID and the capabilities SYS_ADMIN, NET_ADMIN and SYS_PTRACE.
    Isolator(Worker),
    /// One end of a test whether network policies are enforced, for `impound doctor --network`. Needs no privilege.
    #[command(subcommand)]
    Reach(Reach),
    /// Everything in one process: no mode was named.
    #[command(skip)]
    Single(Single),
}

/// Serves this node's containers to the Impound controller over mutual TLS.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "impound-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Line {
    /// A part of the agent, each a process of its own; without it, all in one.
    #[command(subcommand)]
    mode: Option<Mode>,

    /// Form of the log on standard error. RUST_LOG chooses what is logged.
    #[arg(long, env = "IMPOUND_LOG_FORMAT", value_enum, global = true, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

impl Arguments {
    /// Reads a command line, its first word the program's name.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for, to be printed.
    pub fn read(
        line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Single::augment_args(Line::command()).try_get_matches_from(line)?;
        let line = Line::from_arg_matches(&matches)?;
        Ok(Self {
            mode: match line.mode {
                Some(mode) => mode,
                None => Mode::Single(Single::from_arg_matches(&matches)?),
            },
            log_format: line.log_format,
        })
    }
}

/// Everything in one process.
#[derive(Clone, Debug, Args)]
pub struct Single {
    /// Name of the Node object of this node.
    #[arg(long, env = "IMPOUND_NODE")]
    pub node: NodeName,

    /// Where the controller comes in.
    #[command(flatten)]
    pub entrance: Entrance,

    /// Where containers are read.
    #[command(flatten)]
    pub runtime: Runtime,

    /// Isolate pods in their own network namespace when the controller asks for it. Needs hostPID and
    /// the capabilities SYS_ADMIN, NET_ADMIN and SYS_PTRACE.
    #[arg(
        long,
        env = "IMPOUND_ALLOW_ISOLATION",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub allow_isolation: bool,

    /// How it ends.
    #[command(flatten)]
    pub ending: Ending,
}

/// The part that faces the network.
#[derive(Clone, Debug, Args)]
pub struct Front {
    /// Name of the Node object of this node.
    #[arg(long, env = "IMPOUND_NODE")]
    pub node: NodeName,

    /// Where the controller comes in.
    #[command(flatten)]
    pub entrance: Entrance,

    /// Socket of the collector.
    #[arg(long, env = "IMPOUND_COLLECTOR", value_name = "unix:PATH")]
    pub collector: SocketPath,

    /// Socket of the isolator, where one was chosen.
    #[arg(long, env = "IMPOUND_ISOLATOR", value_name = "unix:PATH")]
    pub isolator: Option<SocketPath>,

    /// How it ends.
    #[command(flatten)]
    pub ending: Ending,
}

/// One end of a test of the network.
#[derive(Clone, Debug, Subcommand)]
pub enum Reach {
    /// Greet whoever connects.
    Listen {
        /// Address to listen at.
        #[arg(long, value_name = "ADDR:PORT")]
        at: SocketAddr,
    },
    /// Connect again and again.
    Try {
        /// Where the other end listens.
        #[arg(long, value_name = "ADDR:PORT")]
        to: SocketAddr,
        /// What is waited for.
        #[arg(long, value_enum)]
        until: Answer,
        /// How long; then the exit code says that it was in vain.
        #[arg(long)]
        seconds: u64,
    },
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// The other end answers.
    Comes,
    /// It answers no more, several times one after the other.
    Stops,
}

/// A part that works for the front.
#[derive(Clone, Debug, Args)]
pub struct Worker {
    /// Name of the Node object of this node.
    #[arg(long, env = "IMPOUND_NODE")]
    pub node: NodeName,

    /// Socket to serve the front on.
    #[arg(long, env = "IMPOUND_SOCKET", value_name = "unix:PATH")]
    pub listen: SocketPath,

    /// User that the front runs as; nobody else's connection is accepted.
    #[arg(long, env = "IMPOUND_FRONT_UID", default_value_t = 65532)]
    pub front_uid: u32,

    /// Where containers are read.
    #[command(flatten)]
    pub runtime: Runtime,

    /// How it ends.
    #[command(flatten)]
    pub ending: Ending,
}

/// Where the controller and the kubelet's probe come in.
#[derive(Clone, Debug, Args)]
pub struct Entrance {
    /// Address to serve the controller on.
    #[arg(long, env = "IMPOUND_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,

    /// Directory with tls.crt, tls.key and controller-ca.crt; watched for new ones.
    #[arg(long, env = "IMPOUND_TLS_DIR")]
    pub tls_dir: PathBuf,

    /// File in that directory with the key and the certificate in one, instead of tls.key and tls.crt: what the
    /// kubelet writes for a podCertificate volume (credentialBundlePath).
    #[arg(
        long,
        env = "IMPOUND_TLS_BUNDLE",
        value_name = "NAME",
        conflicts_with = "issuer"
    )]
    pub tls_bundle: Option<String>,

    /// Getting the certificate from the controller.
    #[command(flatten)]
    pub enrolment: Enrolment,

    /// Address for plain HTTP GET /ready, for the kubelet's probe. It tells nothing but what is pending.
    /// Off by default.
    #[arg(long, env = "IMPOUND_READY_LISTEN")]
    pub ready_listen: Option<SocketAddr>,

    /// OpenTelemetry collector that takes traces as OTLP over gRPC, e.g. http://otel-collector.monitoring.svc:4317.
    /// Without it, none are made.
    #[arg(long, env = "IMPOUND_OTLP_ENDPOINT", value_name = "http://HOST:PORT")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

/// Getting the certificate from the controller; without it, somebody puts it into the TLS directory.
#[derive(Clone, Debug, Args)]
pub struct Enrolment {
    /// The controller's issuer. The certificate is asked for there, put into the TLS directory, and renewed
    /// after two thirds of its life.
    #[arg(long, env = "IMPOUND_ISSUER", value_name = "HOST:PORT")]
    pub issuer: Option<String>,

    /// Projected service account token of this pod, with the audience impound.dev/issuer.
    #[arg(
        long,
        env = "IMPOUND_ISSUER_TOKEN",
        default_value = "/var/run/secrets/impound.dev/token",
        value_name = "FILE"
    )]
    pub issuer_token: PathBuf,

    /// CA that the controller's certificate comes from.
    #[arg(
        long,
        env = "IMPOUND_CONTROLLER_CA",
        default_value = "/etc/impound/controller-ca/ca.crt",
        value_name = "FILE"
    )]
    pub controller_ca: PathBuf,
}

/// The container runtime and its disk.
#[derive(Clone, Debug, Args)]
pub struct Runtime {
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

    /// Directory that says which containers are paused, so that an agent that starts lets them go on; it has
    /// to outlive the agent's container, and not the node's restart.
    #[arg(long, env = "IMPOUND_STATE_DIR", default_value = "/run/impound-agent")]
    pub state_dir: PathBuf,
}

/// How a process ends.
#[derive(Clone, Debug, Args)]
pub struct Ending {
    /// Seconds that running streams get to end after SIGTERM; keep it below the pod's
    /// terminationGracePeriodSeconds.
    #[arg(long, env = "IMPOUND_DRAIN_SECONDS", default_value_t = 25)]
    pub drain_seconds: u64,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::read([&["impound-agent"], arguments].concat())
    }

    #[test]
    fn without_a_mode_everything_is_one_process_and_what_it_needs_is_required() {
        let arguments = parse(&["--node", "a", "--tls-dir", "/tls"]).unwrap();
        let Mode::Single(single) = arguments.mode else {
            panic!("found {arguments:?}")
        };
        assert_eq!(single.entrance.tls_dir, PathBuf::from("/tls"));
        assert!(!single.allow_isolation);
        for missing in [&["--node", "a"][..], &["--tls-dir", "/tls"], &[]] {
            let error = parse(missing).unwrap_err();
            assert_eq!(
                error.kind(),
                clap::error::ErrorKind::MissingRequiredArgument
            );
        }
    }

    #[test]
    fn each_mode_takes_what_it_needs_and_nothing_of_the_others() {
        let front = [
            "front",
            "--node",
            "a",
            "--tls-dir",
            "/tls",
            "--collector",
            "unix:/run/c.sock",
        ];
        assert!(
            matches!(parse(&front).unwrap().mode, Mode::Front(front) if front.isolator.is_none())
        );
        let collector = ["collector", "--node", "a", "--listen", "unix:/run/c.sock"];
        assert!(matches!(
            parse(&collector).unwrap().mode,
            Mode::Collector(_)
        ));
        let isolator = ["isolator", "--node", "a", "--listen", "unix:/run/i.sock"];
        assert!(matches!(parse(&isolator).unwrap().mode, Mode::Isolator(_)));
        for wrong in [
            &[
                "collector",
                "--node",
                "a",
                "--listen",
                "unix:/run/c.sock",
                "--tls-dir",
                "/tls",
            ][..],
            &["collector", "--node", "a"],
            &["collector", "--node", "a", "--listen", "0.0.0.0:1"],
            &[
                "front",
                "--node",
                "a",
                "--tls-dir",
                "/tls",
                "--collector",
                "unix:/c",
                "--docker-socket",
                "/x",
            ],
            &["front", "--node", "a", "--tls-dir", "/tls"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
