//! From settings to what each part of the engine takes. Must never hold a default.

use crate::{
    config::{
        ClientAuth, Config, CpuChoice, CpuSettings, Durability, MetricsSettings, SandboxSettings,
        ServerConfig, StoreSettings,
    },
    self_test::Report,
    services::{Bounds, Node},
    tls::Tls,
    transport::{Opening, Patience, ServeConfig},
};
use anyhow::Context;
use engine::{
    control::janitor::Janitor,
    cores::{
        Cores,
        placement::{self, Placement, PlacementRequest},
    },
    exec::{ExecLimits, Executions, ExecutionsConfig, SandboxConfig},
    limits::Limits,
    shard::{self, Layout, StoreConfig, Usage},
};
use sandbox::{Mount, Spawner};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};

/// TLS handshakes that one core has at once: each holds some 70 KiB, and ends within a few round
/// trips where its client is honest.
const HANDSHAKES_MAX: usize = 256;

pub(super) fn placement_request(cpus: &CpuSettings) -> PlacementRequest {
    let list = |choice: &CpuChoice| match choice {
        CpuChoice::Auto => Vec::new(),
        CpuChoice::List(cpus) => cpus.clone(),
    };
    PlacementRequest {
        data: list(&cpus.data),
        control: list(&cpus.control),
        actions: list(&cpus.actions),
    }
}

pub(super) fn shards(cpus: &CpuSettings, plan: &Placement) -> u16 {
    let shards = if cpus.shards == 0 { plan.data.len() } else { cpus.shards };
    u16::try_from(shards.min(64)).expect("at most 64")
}

pub(super) fn start_spawner(cpus: &[usize]) -> anyhow::Result<Spawner> {
    placement::bind_thread(cpus).context("binding to the CPUs of actions")?;
    Spawner::start().context("the spawner of sandboxes can't be started")
}

pub(crate) fn store_config(store: &StoreSettings) -> StoreConfig {
    StoreConfig {
        layout: Layout::new(&store.directory),
        segment_bytes: store.segment_bytes,
        small_blob_bytes_max: store.small_blob_bytes_max,
        blob_bytes_max: store.blob_bytes_max,
        bytes_max: store.bytes_max,
        free_bytes_min: store.free_bytes_min,
        lease: store.lease,
        durability: match store.durability {
            Durability::Epoch => shard::Durability::Epoch,
            Durability::Sync => shard::Durability::Sync,
        },
        scrub_bytes_per_second: store.scrub_bytes_per_second,
    }
}

pub(super) fn janitor(store: &StoreConfig, usage: Usage) -> Janitor {
    Janitor::new(usage, store.layout.clone(), store.bytes_max, store.free_bytes_min)
}

pub(super) fn store_error(store: &StoreConfig, error: &io::Error) -> anyhow::Error {
    let root = store.layout.root().display();
    match error.kind() {
        io::ErrorKind::WouldBlock => anyhow::anyhow!("{root} is in use by another process"),
        _ => anyhow::anyhow!("{root} can't be used: {error}"),
    }
}

pub(super) fn limits(config: &Config) -> Limits {
    Limits {
        inbox_len_max: config.limits.inbox_len_max,
        in_flight_max: config.limits.in_flight_max,
        uploads_max: config.limits.uploads_max,
        upload_idle: config.limits.upload_idle,
        blob_bytes_max: config.store.blob_bytes_max,
        tree_bytes_max: config.limits.tree_bytes_max,
        tree_directories_max: config.limits.tree_directories_max,
    }
}

fn sandbox_config(settings: &SandboxSettings, file_bytes_max: u64) -> SandboxConfig {
    let mounts = settings.toolchain.iter();
    SandboxConfig {
        mounts: mounts.map(|source| Mount { source: source.clone(), optional: true }).collect(),
        limits: sandbox::Limits {
            file_bytes_max,
            open_files_max: settings.open_files_max,
            processes_max: settings.processes_max,
            tmp_bytes_max: settings.tmp_bytes_max,
            tmp_inodes_max: settings.tmp_inodes_max,
        },
        network: settings.network,
        uid_first: settings.uid_first,
    }
}

pub(super) fn executions_config(
    config: &Config,
    store: &StoreConfig,
    plan: &Placement,
    limits: &Limits,
) -> ExecutionsConfig {
    let execution = &config.execution;
    let slots = if execution.slots == 0 { plan.actions.len() } else { execution.slots };
    ExecutionsConfig {
        slots,
        queue_max: execution.queue_max,
        operations_max: execution.operations_max,
        operations_kept: execution.operations_kept,
        node_id: execution.node_id.as_str().into(),
        cpus: plan.actions.clone(),
        directory: store.layout.exec(),
        limits: ExecLimits {
            timeout_default: execution.timeout_default,
            timeout_max: execution.timeout_max,
            input_files_max: execution.input_files_max as u64,
            input_bytes_max: execution.input_bytes_max,
            output_files_max: execution.output_files_max,
            output_bytes_max: execution.output_bytes_max,
            stream_bytes_max: execution.stream_bytes_max,
            tree_bytes_max: limits.tree_bytes_max,
            tree_directories_max: limits.tree_directories_max,
        },
        sandbox: sandbox_config(&config.sandbox, execution.output_bytes_max),
    }
}

/// Runs a program in a full sandbox before anything is promised.
pub(super) fn probe_sandbox(
    report: &mut Report,
    settings: &SandboxSettings,
    spawner: &Spawner,
    scratch: &Path,
) -> anyhow::Result<()> {
    let SandboxConfig { mounts, uid_first, .. } = sandbox_config(settings, u64::MAX);
    let user = rustix::process::geteuid();
    let (uid, gid, how) = match user.is_root() {
        true => (uid_first, uid_first, "another user, inputs are links"),
        false => {
            let group = rustix::process::getegid().as_raw();
            (user.as_raw(), group, "this process's user, so inputs are copies")
        }
    };
    sandbox::probe(spawner, scratch, uid, gid, mounts).context(
        "actions can't be sandboxed here; allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.apparmor_restrict_unprivileged_userns = 0) or set execution.enabled: false",
    )?;
    report.add("sandbox", format!("all layers hold; actions run as {how}"));
    Ok(())
}

pub(super) fn node(
    config: &Config,
    cores: Cores,
    limits: &Arc<Limits>,
    executions: Option<Executions>,
    control: tokio::runtime::Handle,
) -> Node {
    let server = &config.server;
    let bounds = Bounds {
        instances: server.instances.clone(),
        batch_bytes_max: server.batch_bytes_max,
        message_bytes_max: server.message_bytes_max,
        find_missing_digests_max: server.find_missing_digests_max,
    };
    Node {
        node_id: config.execution.node_id.as_str().into(),
        cores,
        limits: limits.clone(),
        bounds: Arc::new(bounds),
        backing: None,
        peering: None,
        share: None,
        executions,
        control,
    }
}

/// Where numbers are asked for, if anywhere.
pub(super) fn metrics_listener(
    settings: MetricsSettings,
    report: &mut Report,
) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = settings.listen else { return Ok(None) };
    let listener = TcpListener::bind(address)
        .with_context(|| format!("can't listen on {address} (metrics.listen)"))?;
    listener.set_nonblocking(true)?;
    report.add("metrics", format!("http://{}/metrics", listener.local_addr()?));
    Ok(Some(listener))
}

/// How connections begin.
pub(super) fn opening(server: &ServerConfig, tls: Option<Tls>, cores: u16) -> Opening {
    let each = server.connections_max / usize::from(cores.max(1));
    // Those that never end must leave room for those that have.
    let handshakes_max = (each / 4).clamp(1, HANDSHAKES_MAX);
    Opening { tls, handshakes_max }
}

/// Where clients are told that this node serves.
pub(super) fn serving(address: SocketAddr, tls: Option<&Tls>) -> String {
    match tls {
        None => format!("grpc://{address}"),
        Some(tls) => {
            let ends = humantime::format_rfc3339_seconds(tls.now().ends);
            let clients = match tls.client_auth {
                ClientAuth::None => "are not asked for certificates",
                ClientAuth::Request => "may show certificates",
                ClientAuth::Require => "have to show a certificate, which anybody may have signed",
                ClientAuth::Verify => "have to show a certificate that verifies",
            };
            format!("grpcs://{address} (certificate until {ends}; clients {clients})")
        }
    }
}

pub(super) fn serve_config(server: &ServerConfig) -> ServeConfig {
    ServeConfig {
        streams_max: server.streams_max,
        header_bytes_max: server.header_bytes_max,
        grace: server.grace,
        patience: Patience::LIVE,
    }
}
