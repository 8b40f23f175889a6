//! Wires the controller together and runs it until it is told to stop. Any part that ends by
//! itself ends the process with a failure.

mod issuing;

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use impound_evidence::age::{RECIPIENT_LIMIT, Recipient};
use impound_evidence::{KEYRING_LIMIT, Keyring, Signer, SigningKey, VerifyingKey};
use impound_proto::PeerId;
use impound_proto::controller::v1::FILE_DESCRIPTOR_SET;
use impound_proto::controller::v1::controller_server::ControllerServer;
use impound_proto::tls::{self, Peers, TlsFiles};
use impound_proto::traces::{LogError, Traces};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing_subscriber::Layer;
use zeroize::Zeroizing;

use crate::agents::AgentConnector;
use crate::claims::Claims;
use crate::collect::Collector;
use crate::config::{LogFormat, Serve};
use crate::contain::guard;
use crate::contain::plugin::Discovery;
use crate::contain::settings::Settings;
use crate::health::Health;
use crate::kubernetes;
use crate::leader::{LEASE, Leadership};
use crate::metrics::Metrics;
use crate::nodes::NodeAddresses;
use crate::reconcile::custody::{AT_ONCE, within};
use crate::reconcile::ending::{Ended, Endings};
use crate::reconcile::pace::Pace;
use crate::reconcile::{self, Context, collection::Running, isolating};
use crate::resources::FactState;
use crate::resources::RECIPIENTS;
use crate::revoked;
use crate::seal::CustodyAppender;
use crate::service::{
    self, Allowance, Cases, Diagnosed, Door, Limits, Listings, Refusals, Reviews, Service, Tokens,
};

/// Threads of the runtime: the work is waiting, copying and hashing, and hashing has its own.
const WORKERS: usize = 2;

/// Threads for blocking work. An export holds some of them for its whole length (a writer and a re-reader for the
/// tar and each listing above a MiB, and a hash): those that wait for each other must never take all of tokio's
/// 512, however many streams are let in at once. They are idle most of the time and cost address space.
const BLOCKING: usize = 4096;
/// Bytes of a thread's stack: four times the default. A build that is not optimised moves what waits through its frames;
/// memory is only what is used of it.
const STACK: usize = 8 << 20;

/// How long open calls may go on after a stop is asked for: below a pod's default grace period of
/// 30 s, so that the end is ours and not a kill.
const DRAIN: Duration = Duration::from_secs(20);

/// Pause between two looks at the evidence guard.
const GUARD_INTERVAL: Duration = Duration::from_secs(60);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If something that is needed is missing or wrong at start, or a part ends by itself.
pub fn serve(config: Serve) -> Result<()> {
    let traces = traces(&config);
    start_log(config.log_format, traces.as_ref())?;
    impound_proto::hardening::protect_memory()
        .context("memory could not be kept out of core dumps")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        if let Some(traces) = &traces {
            traces.start()?;
        }
        let outcome = run(config).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        outcome
    });
    // A hash or a verification that is under way does not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn run(config: Serve) -> Result<()> {
    let stop = CancellationToken::new();
    let client = kubernetes::client()
        .await
        .context("no way to the Kubernetes API")?;
    let watch_client = kubernetes::watch_client()
        .await
        .context("no way to the Kubernetes API")?;
    let key: Arc<dyn Signer> = Arc::new(signing_key(&config)?);
    let store = config.store.open().await?;

    let (agent_credentials, agent_reloader) = tls::client_credentials(
        TlsFiles::in_dir(&config.tls_dir, "agent-ca.crt"),
        Peers::Only(PeerId::Controller),
    )
    .context("credentials towards the agents")?;
    let responders = TlsFiles::in_dir(&config.tls_dir, "responder-ca.crt");
    let (own, accept) = (PeerId::Controller, Peers::AnyResponder);
    let (credentials, reloader) = match config.access.kubernetes_tokens {
        true => tls::caller_credentials(responders, own, accept),
        false => tls::server_credentials(responders, own, accept),
    }
    .context("credentials towards responders")?;
    let (revoked, revoked_watch) = revoked::list();
    let mut revocations = {
        let (client, namespace) = (watch_client.clone(), client.default_namespace().to_owned());
        tokio::spawn(async move { revoked_watch.run(client, &namespace).await })
    };
    let mut issuing = tokio::spawn(issuing::issue(
        config.issuing.clone(),
        config.tls_dir.clone(),
        (client.clone(), watch_client.clone()),
        revoked.clone(),
        stop.clone(),
    ));
    let mut reloaders = tokio::spawn(async move {
        tokio::join!(
            agent_reloader.run(tls::RELOAD_INTERVAL),
            reloader.run(tls::RELOAD_INTERVAL)
        );
    });

    let nodes = Arc::new(NodeAddresses::new(client.clone(), config.agent_port));
    let agents_own = agent_credentials.clone();
    let agents = AgentConnector::new(agent_credentials, nodes, revoked);
    let mut cutting = {
        let agents = agents.clone();
        tokio::spawn(async move { agents.cut_revoked().await })
    };
    let custody = Arc::new(CustodyAppender::new(
        store.clone(),
        key,
        evidence_keys(&config)?,
    ));
    let collector = Collector::new(store.clone(), agents.clone(), custody.clone())?
        .with_limits(config.collecting.limits())
        .with_recipients(recipients(&config)?)
        .with_timestamps(config.timestamps.open()?);
    let metrics = Arc::new(Metrics::default());
    let guard = Arc::new(guard::Known::default());
    let mut guarding = {
        let (guard, client, settings) = (guard.clone(), client.clone(), config.settings());
        tokio::spawn(async move { watch_guard(&guard, &client, &settings).await })
    };
    let health = Arc::new(Health {
        client: client.clone(),
        guard: guard.clone(),
        store: store.clone(),
        agents: agents_own,
        responders: credentials.clone(),
        metrics: metrics.clone(),
    });
    let mut probes = tokio::spawn(serve_health(
        health.clone(),
        config.health_listen,
        stop.clone(),
    ));
    let (endings, ended) = Endings::new(watch_client.clone());
    let process = format!(
        "{}_{}",
        std::env::var("HOSTNAME").unwrap_or_else(|_| "impound-controller".into()),
        uuid::Uuid::new_v4()
    );
    let context = Arc::new(Context {
        metrics,
        recorder: Recorder::new(client.clone(), Reporter::from("impound-controller")),
        claims: Claims::new(client.clone(), process),
        client,
        settings: config.settings(),
        plugins: Discovery::default(),
        agents,
        collector: Arc::new(collector),
        custody,
        running: Running::default(),
        shared: Mutex::default(),
        isolation: isolating::Memory::default(),
        pace: Pace::default(),
        endings,
        guard: guard.clone(),
        failures: reconcile::Failures::default(),
        works: kubernetes::pace::Works::default(),
        eviction_patience: config
            .eviction_patience
            .try_into()
            .context("the eviction patience")?,
        agent_patience: config
            .agent_patience
            .and_then(|limit| limit.try_into().ok()),
        sweeps: reconcile::sweep::Sweeps::default(),
    });

    let refusals = Refusals::new(store.clone(), context.custody.clone());
    let listings = Listings::new(context.custody.clone());
    let service = Service {
        context: context.clone(),
        refusals: refusals.clone(),
        listings: listings.clone(),
        store,
        health: health.clone(),
        cases: Cases::default(),
        verifying: Semaphore::new(1),
        reviews: Reviews {
            issuing: config.issuing.issuer_listen.is_some(),
            pod_certificates: config.issuing.pod_certificates,
            callers: config.access.kubernetes_tokens,
        },
        recheck: Duration::from_secs(config.access.caller_recheck.into()),
        diagnosed: Diagnosed::default(),
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("can't listen at {}", config.listen))?;
    tracing::info!(listen = %listener.local_addr()?, "serving");
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let mut reporting = tokio::spawn(async move { health.report(&reporter).await });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let door = Door {
        tokens: config
            .access
            .kubernetes_tokens
            .then(|| Tokens::new(context.client.clone())),
        limits: Limits::new(Allowance {
            per_second: config.access.caller_rate,
            at_once: config.access.caller_calls,
        }),
        metrics: context.metrics.clone(),
    };
    let server = tls::http2::server(Server::builder())
        .layer(door)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(
            ControllerServer::new(service).max_decoding_message_size(service::REQUEST_LIMIT),
        )
        .serve_with_incoming_shutdown(
            tls::incoming_callers(listener, credentials),
            stop.clone().cancelled_owned(),
        );

    let mut server = tokio::spawn(server);
    let mut collecting = tokio::spawn(collect(watch_client.clone(), context.clone(), stop.clone()));
    let mut reconcilers = tokio::spawn(lead(watch_client, context, ended, stop.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut reloaders => return Err(anyhow!("the certificates are not watched any more: {ended:?}")),
        ended = &mut revocations => return Err(anyhow!("revoked nodes are not watched any more: {ended:?}")),
        ended = &mut reporting => return Err(anyhow!("gRPC health is not told any more: {ended:?}")),
        ended = &mut guarding => return Err(anyhow!("the evidence guard is not looked at any more: {ended:?}")),
        ended = &mut cutting => return Err(anyhow!("revoked nodes are not cut off any more: {ended:?}")),
        ended = &mut issuing => {
            ended?.context("agents' certificates can't be issued")?;
            return Err(anyhow!("the issuer ended by itself"));
        }
        ended = &mut probes => {
            ended?.context("health and metrics can't be served")?;
            return Err(anyhow!("health and metrics ended by themselves"));
        }
        ended = &mut server => return Err(anyhow!("the gRPC server ended by itself: {ended:?}")),
        ended = &mut reconcilers => return Err(ended?.context("the reconcilers ended by themselves")),
        ended = &mut collecting => return Err(anyhow!("collections are not worked on any more: {ended:?}")),
    }
    tracing::info!("stopping; running collections resume at the next start");
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async {
        let _ = tokio::join!(server, reconcilers, collecting);
    })
    .await;
    if drained.is_err() {
        tracing::warn!(after_s = DRAIN.as_secs(), "open calls were cut off");
    }
    if let Err(problem) = within(AT_ONCE, async {
        tokio::join!(refusals.finish(), listings.finish());
        Ok(())
    })
    .await
    {
        tracing::error!(
            problem,
            "refusals and lists that were only counted are lost"
        );
    }
    Ok(())
}

/// Looks at start, and then now and then, whether the evidence guard lets this controller work.
async fn watch_guard(guard: &guard::Known, client: &Client, settings: &Settings) {
    let mut said = None;
    loop {
        let standing = guard.look(client, settings).await;
        if said.as_ref() != Some(&standing) {
            let fact = standing.fact();
            if fact.state == FactState::False {
                tracing::error!(guard = fact.message, "this controller can't work");
            } else {
                tracing::info!(guard = fact.message, "evidence guard");
            }
            said = Some(standing);
        }
        tokio::time::sleep(GUARD_INTERVAL).await;
    }
}

/// Serves health and metrics, if that is asked for.
async fn serve_health(
    health: Arc<Health>,
    address: Option<SocketAddr>,
    stop: CancellationToken,
) -> Result<()> {
    let Some(address) = address else {
        stop.cancelled().await;
        return Ok(());
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen at {address}"))?;
    tracing::info!(listen = %listener.local_addr()?, "serving health and metrics");
    tokio::select! {
        () = health.serve(listener) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Takes its share of the collections, as every replica does.
async fn collect(watch_client: Client, context: Arc<Context>, stop: CancellationToken) {
    tokio::select! {
        () = reconcile::collections(watch_client, context.clone()) => {}
        // At a stop what is under way is dropped, as a crash would; another replica goes on from what is recorded.
        () = context.claims.run(&stop) => {}
    }
}

/// Works while this replica holds the lease. Every replica serves gRPC and collects; one contains, and makes the
/// collections of sweeps.
async fn lead(
    watch_client: Client,
    context: Arc<Context>,
    ended: Ended,
    stop: CancellationToken,
) -> anyhow::Error {
    let client = context.client.clone();
    let namespace = client.default_namespace().to_owned();
    let holder = context.claims.process().to_owned();
    let mut leadership = Leadership::new(client, &namespace, LEASE, holder);
    tokio::select! {
        () = leadership.acquire() => {}
        () = stop.cancelled() => return anyhow!("stopped"),
    }
    let metrics = context.metrics.clone();
    metrics.leads(true);
    let lost = tokio::select! {
        () = reconcile::run(watch_client, context, ended) => Some("the watches ended".to_owned()),
        lost = leadership.keep() => Some(lost),
        // Dropped at once, as a crash would: the next holder goes on from what is recorded.
        () = stop.cancelled() => None,
    };
    metrics.leads(false);
    if let Some(lost) = lost {
        // Dropped above, so nothing more is begun; what is on its way is guarded by uid and version.
        return anyhow!("{lost}");
    }
    leadership.give_up().await;
    anyhow!("stopped")
}

/// To whom all evidence is encrypted. Objects name as many again, and each run has a key of its own.
fn recipients(config: &Serve) -> Result<Vec<Recipient>> {
    const MOST: usize = RECIPIENT_LIMIT - RECIPIENTS - 1;
    anyhow::ensure!(
        config.encrypt_to.len() <= MOST,
        "--encrypt-to: expected at most {MOST} recipients, got {}",
        config.encrypt_to.len()
    );
    // Not by clap, which repeats what it can't parse: it could be a secret key.
    let parsed = config.encrypt_to.iter().map(|text| text.trim().parse());
    parsed.collect::<Result<_, _>>().context("--encrypt-to")
}

fn signing_key(config: &Serve) -> Result<SigningKey> {
    let file = &config.signing_key;
    let pem = std::fs::read_to_string(file).with_context(|| {
        format!(
            "the signing key {} can't be read; `impound pki init` makes one",
            file.display()
        )
    })?;
    let pem = Zeroizing::new(pem);
    SigningKey::from_pem(&pem).with_context(|| format!("the signing key {}", file.display()))
}

fn evidence_keys(config: &Serve) -> Result<Vec<VerifyingKey>> {
    let Some(file) = &config.evidence_keys else {
        return Ok(Vec::new());
    };
    let name = || format!("the evidence keys {}", file.display());
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(KEYRING_LIMIT).read_to_end(&mut bytes))
        .with_context(name)?;
    let keys = Keyring::from_json(&bytes).and_then(|ring| ring.keys());
    keys.with_context(name)
}

/// The traces of this process, if it is to export any.
fn traces(config: &Serve) -> Option<Traces> {
    let to = config.otlp_endpoint.clone()?;
    let pod = config.pod_name.clone();
    let pod = pod.map(|name| ("k8s.pod.name", name));
    Some(Traces::new("impound-controller", pod, to))
}

fn start_log(format: LogFormat, traces: Option<&Traces>) -> Result<(), LogError> {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => log.boxed(),
    };
    impound_proto::traces::start_log(log, &[], traces)
}
