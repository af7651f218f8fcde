//! One node's life: start in order, wait for a signal, stop in reverse. Must only compose.

mod check;
mod cluster;
mod parts;
mod stop;
mod tiers;

pub(crate) use self::check::check;
pub(crate) use parts::store_config;

use self::{
    cluster::{Cluster, Joining},
    parts::serving,
    tiers::Tiers,
};
use crate::{
    config::{Config, LogFormat, LogLevel, LogSettings},
    front::{FrontParts, SERVICES, front},
    metrics::{self, Calls, Watched},
    peer::Peering,
    self_test::{self, Report},
    services::Node,
    tls::{self, Renewal, Tls},
    transport::{Connections, accept},
};
use anyhow::Context;
use engine::{
    cores::{self, placement},
    exec::{self, Executions},
    limits::Limits,
    shard::{self, StoreConfig},
};
use futures_util::future::LocalBoxFuture;
use sandbox::Spawner;
use std::{io::IsTerminal, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::LocalSet,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// How often the executions are told that time has passed.
const TICK: Duration = Duration::from_secs(1);

/// Serves until a signal ends it; the exit code says whether everything ended within the grace.
///
/// # Errors
/// Where the node can't start: one line with the cause.
pub(crate) fn serve(config: Config) -> anyhow::Result<ExitCode> {
    start_log(config.log);
    let (tls, renewal) = config.tls.as_ref().map(Tls::open).transpose().context("tls")?.unzip();
    let mut report = Report::default();
    let allowed = placement::allowed_cpus().context("the CPUs of this process")?;
    let plan = placement::plan(&parts::placement_request(&config.cpus), &allowed)?;
    // Before any thread exists, and on the CPUs of actions, which they inherit.
    let spawner = match config.execution.enabled {
        true => Some(parts::start_spawner(&plan.actions)?),
        false => None,
    };
    placement::bind_thread(&plan.control).context("binding to the control CPUs")?;
    self_test::check_machine(&mut report)?;
    let shards = parts::shards(&config.cpus, &plan);
    self_test::placement(&mut report, &plan, shards);
    let store = parts::store_config(&config.store);
    let _lock = store.layout.take().map_err(|error| parts::store_error(&store, &error))?;
    self_test::check_links(&mut report, store.layout.root())?;
    exec::clear_roots(&store.layout.exec()).context("what an earlier process left")?;
    let recovered = shard::recover(&store, shards).context("the store can't be read")?;
    let blobs: usize = recovered.iter().map(shard::Recovered::blobs).sum();
    let results: usize = recovered.iter().map(shard::Recovered::actions).sum();
    let found = format!("{} ({blobs} blobs, {results} results)", store.layout.root().display());
    report.add("data", found);
    if let Some(spawner) = &spawner {
        parts::probe_sandbox(&mut report, &config.sandbox, spawner, &store.layout.exec())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(first) = recovered.first() {
        runtime.spawn(parts::janitor(&store, first.usage()).run());
    }
    let (signals, hangup) = {
        let _control = runtime.enter();
        (stop::Signals::new()?, signal(SignalKind::hangup())?)
    };
    let listener = std::net::TcpListener::bind(config.server.listen)
        .with_context(|| format!("can't listen on {}", config.server.listen))?;
    report.add("serving", serving(listener.local_addr()?, tls.as_ref()));
    listener.set_nonblocking(true)?;
    let metrics = parts::metrics_listener(config.metrics, &mut report)?;
    let renewing = Box::pin(renew(renewal, hangup));
    let start = Start {
        config,
        tls,
        renewing,
        store,
        plan,
        recovered,
        spawner,
        listener,
        metrics,
        report,
        signals,
    };
    run(start, runtime)
}

/// All that start-up found and made, before the first thread.
struct Start {
    config: Config,
    tls: Option<Tls>,
    renewing: LocalBoxFuture<'static, ()>,
    store: StoreConfig,
    plan: placement::Placement,
    recovered: Vec<shard::Recovered>,
    spawner: Option<Spawner>,
    listener: std::net::TcpListener,
    metrics: Option<std::net::TcpListener>,
    report: Report,
    signals: stop::Signals,
}

/// Threads, then listeners; then waits, and stops what was started.
fn run(start: Start, runtime: Runtime) -> anyhow::Result<ExitCode> {
    let Start { config, tls, store, plan, recovered, spawner, .. } = start;
    let Start { renewing, listener, metrics, report, signals, .. } = start;
    let limits = Arc::new(parts::limits(&config));
    let shards = u16::try_from(recovered.len()).context("shards")?;
    let (connections, accepted) = Connections::new(shards, config.server.connections_max);
    let calls = Calls::new(shards);
    let ((drain, draining), stopping) = (watch::channel(false), watch::channel(false));
    let (reporter, health) = tonic_health::server::health_reporter();
    let waiting = cores::prepare(shards, limits.inbox_len_max);
    let handle = waiting.handle();
    let executing = parts::executions_config(&config, &store, &plan, &limits);
    let start = |spawner| exec::start(executing, handle.clone(), spawner);
    let started = spawner.map(start).transpose()?;
    let executions = started.as_ref().map(|started| started.executions.clone());
    let tiers = Tiers::start(&config, &handle, &limits, &store.layout.backlog(), &plan.control)?;
    let control = runtime.handle().clone();
    let mut node = parts::node(&config, handle.clone(), &limits, executions.clone(), control);
    let (local, serving, cores) = (LocalSet::new(), listener.local_addr()?, &handle);
    let joining = Joining { config: &config, serving, cores, limits: &limits, tiers: &tiers };
    let cluster = local.block_on(&runtime, cluster::join(joining, tls.as_ref()))?;
    surround(&mut node, &tiers, cluster.as_ref());
    let front = front(FrontParts {
        node,
        health,
        connections: connections.clone(),
        calls: calls.clone(),
        accepted,
        opening: parts::opening(&config.server, tls, shards),
        config: parts::serve_config(&config.server),
        draining: draining.clone(),
    })?;
    let running = cores::start(waiting, &plan.data, &store, &limits, recovered, &front)?;
    print!("{report}");
    local.spawn_local(renewing);
    let workers = started.map(|started| schedule(&local, started, cluster.as_ref(), &limits));
    begin(&local, cluster.as_ref(), executions.as_ref(), reporter.clone());
    local.spawn_local(accept_all(listener, connections.clone(), draining));
    let (watching, peering) = watched(&tiers, cluster.as_ref());
    let watched = Watched {
        cores: handle.clone(),
        executions: executions.clone(),
        connections: connections.clone(),
        calls,
        tiers: watching,
        peering,
    };
    local.spawn_local(metrics::serve(metrics, watched.collectors(), stopping.1));
    let membership = cluster.as_ref().map(Cluster::membership);
    let (stopping, cores) = (stopping.0, handle);
    let stop = stop::Stop { drain, stopping, reporter, executions, membership, connections, cores };
    let held = local.block_on(&runtime, stop.on_signal(signals, config.server.grace));
    drop(local);
    let ended = stop::finish(held, workers, running);
    tiers.stop();
    ended
}

/// What is around a node, for those who serve.
fn surround(node: &mut Node, tiers: &Tiers, cluster: Option<&Cluster>) {
    node.peering = cluster.map(|cluster| cluster.peering.clone());
    node.share = cluster.and_then(|cluster| Some(cluster.share.as_ref()?.0.clone()));
    node.backing = tiers.backing.as_ref().map(|open| open.rule.clone());
}

/// What is around a node, for those who read its numbers.
fn watched(
    tiers: &Tiers,
    cluster: Option<&Cluster>,
) -> (Vec<metrics::WatchedTier>, Option<Arc<Peering>>) {
    let share = cluster.and_then(Cluster::watched);
    let peering = cluster.map(|cluster| cluster.peering.clone());
    (tiers.watched().into_iter().chain(share).collect(), peering)
}

/// The schedule on the control core, and what it gives to peers on its way; the workers.
fn schedule(
    local: &LocalSet,
    started: exec::Started,
    cluster: Option<&Cluster>,
    limits: &Limits,
) -> exec::Workers {
    local.spawn_local(started.schedule);
    match cluster {
        Some(cluster) => cluster.take(started.errands, limits),
        // Nobody is told of peers, so that nobody sends.
        None => drop(started.errands),
    }
    started.workers
}

/// What the control core does besides, as long as the node serves.
fn begin(
    local: &LocalSet,
    cluster: Option<&Cluster>,
    executions: Option<&Executions>,
    reporter: HealthReporter,
) {
    local.spawn_local(say_serving(reporter));
    if let Some(cluster) = cluster {
        local.spawn_local(cluster.run(executions.cloned()));
    }
    local.spawn_local(tick(executions.cloned()));
}

/// Certificates are read again, where there are any.
async fn renew(renewal: Option<Renewal>, hangup: Signal) {
    match renewal {
        Some(renewal) => renewal.run(hangup).await,
        None => tls::ignore(hangup).await,
    }
}

async fn say_serving(reporter: HealthReporter) {
    for service in SERVICES {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
}

async fn accept_all(
    listener: std::net::TcpListener,
    connections: Connections,
    draining: watch::Receiver<bool>,
) {
    match TcpListener::from_std(listener) {
        Ok(listener) => accept(listener, connections, draining).await,
        Err(error) => tracing::error!(%error, "the listener can't be served"),
    }
}

async fn tick(executions: Option<Executions>) {
    let Some(executions) = executions else { return };
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        executions.tick();
    }
}

fn start_log(settings: LogSettings) {
    let level = match settings.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // It reports each lost packet as an error. What matters of it the engine says, once.
    let ours = Targets::new().with_default(level).with_target("memberlist", LevelFilter::OFF);
    match settings.format {
        LogFormat::Text => log.finish().with(ours).init(),
        LogFormat::Json => log.json().finish().with(ours).init(),
    }
}
