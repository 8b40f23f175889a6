//! `impound-agent`: arguments and log in, exit code out. Everything else is in the library.

use anyhow::Context;
use impound_agent::config::{Arguments, LogFormat, Mode};
use impound_agent::confine::Confinement;
use impound_proto::traces::{LogError, Traces};
use tracing_subscriber::Layer;

/// Threads of the runtime. One moves 600 MB/s with hashing, more than Docker exports, and a stream whose tasks
/// stay on one thread costs fewer turns of a suspect node's processors.
const WORKERS: usize = 1;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let traces = impound_agent::traces(&arguments.mode);
    start_log(arguments.log_format, traces.as_ref())?;
    impound_proto::hardening::protect_memory()
        .context("memory could not be kept out of core dumps")?;
    // Before the first thread: each one inherits it.
    confinement(&arguments.mode).apply()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?
        .block_on(traced(traces, arguments.mode))?;
    tracing::info!("the agent ends: it was told to");
    Ok(())
}

async fn traced(traces: Option<Traces>, mode: Mode) -> anyhow::Result<()> {
    if let Some(traces) = &traces {
        traces.start()?;
    }
    let ended = impound_agent::run(mode).await.inspect_err(|error| {
        tracing::error!(error = impound_proto::tls::explain(error), "the agent ends");
    });
    if let Some(traces) = traces {
        traces.finish().await;
    }
    Ok(ended?)
}

fn confinement(mode: &Mode) -> Confinement {
    match mode {
        Mode::Front(_) | Mode::Reach(_) => Confinement::FRONT,
        Mode::Collector(_) => Confinement::COLLECTOR,
        Mode::Isolator(_) => Confinement::ISOLATOR,
        Mode::Single(single) => Confinement::single(single.allow_isolation),
    }
}

fn start_log(format: LogFormat, traces: Option<&Traces>) -> Result<(), LogError> {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Json => log.json().flatten_event(true).boxed(),
        LogFormat::Text => log.boxed(),
    };
    // At debug level it logs whole answers of the runtime, environment variables included.
    impound_proto::traces::start_log(log, &["bollard=info"], traces)
}
