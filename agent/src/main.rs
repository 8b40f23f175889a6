//! `impound-agent`: arguments and log in, exit code out. Everything else is in the library.

use anyhow::Context;
use clap::Parser;
use impound_agent::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    init_log(config.log_format)?;
    impound_agent::run(config).await.inspect_err(|error| {
        tracing::error!(error = impound_proto::tls::explain(error), "the agent ends");
    })?;
    tracing::info!("the agent ends: it was told to");
    Ok(())
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
