//! The `docker-kubelet` command: arguments, logs, signals; everything else is in the library.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use docker_kubelet::{Config, Kubelet};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the pods bound to the given nodes as Docker containers.
///
/// Ends on SIGTERM or SIGINT and then removes the containers it made, and no others.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// File that says how to reach the Kubernetes API
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Node whose pods are run here; may be given several times
    #[arg(long = "node", required = true, value_name = "NAME")]
    nodes: Vec<String>,
    /// Tells the containers of this cluster from those of others on the same Docker Engine
    #[arg(long, default_value = "default", value_name = "ID")]
    cluster: String,
    /// Image of the pods' sandboxes
    #[arg(long, default_value = "impound-demo/pause:1", value_name = "IMAGE")]
    pause_image: String,
    /// Socket of the Docker Engine
    #[arg(long, default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker_socket: PathBuf,
    /// Directory for the pods' emptyDir volumes [default: a directory for this cluster below the temporary directory]
    #[arg(long, value_name = "DIR")]
    volumes: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "docker_kubelet=info,warn".into()),
        )
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let kubeconfig = Kubeconfig::read_from(&arguments.kubeconfig)
        .with_context(|| format!("kubeconfig {}", arguments.kubeconfig.display()))?;
    let mut api =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // The library's own retries wait for up to minutes; the workers retry by themselves.
    api.default_retry = false;

    let volumes = arguments.volumes.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("docker-kubelet-{}", arguments.cluster))
    });
    let kubelet = Kubelet::connect(Config {
        client: kube::Client::try_from(api)?,
        docker_socket: arguments.docker_socket,
        nodes: arguments.nodes,
        cluster: arguments.cluster,
        pause_image: arguments.pause_image,
        volumes,
    })
    .await?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    kubelet.run(stop).await?;
    Ok(())
}
