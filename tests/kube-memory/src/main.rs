//! `kube-memory serve`: the server as a process, for demos and for tests in other languages.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use kube_memory::{Cluster, ClusterConfig};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(about = "An in-memory Kubernetes API server")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        /// Where the kubeconfig is written once requests are answered.
        #[arg(long)]
        dir: PathBuf,
        /// Address and port to listen on.
        #[arg(long, default_value = "127.0.0.1:6443")]
        listen: SocketAddr,
        /// Nodes, as name or name=ip.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "k8s-worker1,k8s-worker2,k8s-worker3"
        )]
        nodes: Vec<String>,
        /// Append every request to this file as one JSON line.
        #[arg(long)]
        audit: Option<PathBuf>,
        /// A service account as namespace:name; a kubeconfig that speaks as it is written to `kubeconfig-<name>`.
        #[arg(long, value_name = "NAMESPACE:NAME")]
        service_account: Vec<String>,
        /// Play kubelet: scheduled pods become Ready at once.
        #[arg(long)]
        instant_kubelet: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let Command::Serve {
        dir,
        listen,
        nodes,
        audit,
        service_account,
        instant_kubelet,
    } = Arguments::parse().command;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let config = ClusterConfig {
        nodes,
        listen,
        audit,
        instant_kubelet,
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    for account in service_account {
        let (_, name) = account
            .split_once(':')
            .with_context(|| format!("expected namespace:name, found {account}"))?;
        let user = format!("system:serviceaccount:{account}");
        let text = cluster.kubeconfig_as(&user);
        write_whole(&dir.join(format!("kubeconfig-{name}")), &text)?;
    }
    // Last: whoever waits for it finds the others.
    write_whole(&dir.join("kubeconfig"), &cluster.kubeconfig())?;
    #[expect(clippy::print_stdout, reason = "the line that scripts wait for")]
    {
        println!("ready {}", cluster.url());
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    cluster.shutdown().await;
    Ok(())
}

/// Whoever waits for the file must never read half of it.
fn write_whole(path: &Path, content: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let partial = path.with_extension("partial");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("creating {}", partial.display()))?;
    file.write_all(content.as_bytes())
        .with_context(|| format!("writing {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("renaming to {}", path.display()))
}
