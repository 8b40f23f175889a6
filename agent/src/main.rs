//! `impound-agent`: arguments and log in, exit code out. Everything else is in the library.

use anyhow::Context;
use impound_agent::config::{Arguments, LogFormat, Mode};
use impound_agent::confine::Confinement;
use tracing_subscriber::EnvFilter;

/// Threads of the runtime. One moves 600 MB/s with hashing, more than Docker exports, and a stream whose tasks
/// stay on one thread costs fewer turns of a suspect node's processors.
const WORKERS: usize = 1;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    init_log(arguments.log_format)?;
    impound_proto::hardening::protect_memory()
        .context("memory could not be kept out of core dumps")?;
    // Before the first thread: each one inherits it.
    confinement(&arguments.mode).apply()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?
        .block_on(impound_agent::run(arguments.mode))
        .inspect_err(|error| {
            tracing::error!(error = impound_proto::tls::explain(error), "the agent ends");
        })?;
    tracing::info!("the agent ends: it was told to");
    Ok(())
}

fn confinement(mode: &Mode) -> Confinement {
    match mode {
        Mode::Front(_) => Confinement::FRONT,
        Mode::Collector(_) => Confinement::COLLECTOR,
        Mode::Isolator(_) => Confinement::ISOLATOR,
        Mode::Single(single) => Confinement::single(single.allow_isolation),
    }
}

fn init_log(format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env()
        .context("RUST_LOG is malformed")?
        // At debug level it logs whole answers of the runtime, environment variables included.
        .add_directive("bollard=info".parse()?);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.init(),
    }
    Ok(())
}
