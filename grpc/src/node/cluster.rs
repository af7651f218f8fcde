//! This node's place in a cluster: what it says of itself, and whom its schedule hears of. Must
//! never be needed by a node that works alone.

use super::tiers::{self, Tiers};
use crate::{
    config::{ClusterSettings, Config},
    metrics::WatchedTier,
    peer::{
        Peering, PeeringParts, errands,
        home::Homes,
        proof::{self, Secret},
    },
    tls::Tls,
};
use anyhow::{Context, bail};
use engine::{
    control::{self, ClusterConfig, Key, Membership, OwnState, Peers, Seed, Snapshot, WIRE},
    cores::Cores,
    exec::{self, Errand, Executions, PeerCapacity},
    limits::Limits,
    tier::{Below, Guarded, Tier},
};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::MissedTickBehavior};

/// How often the schedule hears of its peers where nothing changes: what a peer refused is offered
/// again by the next news.
const TELL_SCHEDULE: Duration = Duration::from_millis(100);
/// How long a goodbye may take to be passed on.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster, once it is joined.
pub(super) struct Cluster {
    pub(super) peering: Arc<Peering>,
    /// Blobs of other nodes, by their homes, and how asking goes; where nodes share.
    pub(super) share: Option<(Tier, Guarded)>,
    membership: Rc<Membership>,
    own: watch::Sender<OwnState>,
    offload: bool,
}

/// What joining needs of the rest of the node.
pub(super) struct Joining<'a> {
    pub(super) config: &'a Config,
    /// Where this node serves clients.
    pub(super) serving: SocketAddr,
    pub(super) cores: &'a Cores,
    pub(super) limits: &'a Limits,
    pub(super) tiers: &'a Tiers,
}

/// What this node is to the others, before any of them is asked.
pub(super) struct Standing {
    /// Where they reach its services.
    pub(super) endpoint: String,
    /// Whether certificates prove who calls.
    by_certificate: bool,
}

/// Works it out, for one that gossips at `listen` and serves at `serving`.
///
/// # Errors
/// Why others would not believe it, or why it should not believe them.
pub(super) fn standing(
    config: &Config,
    listen: SocketAddr,
    serving: SocketAddr,
    tls: Option<&Tls>,
) -> anyhow::Result<Standing> {
    let settings = &config.cluster;
    let endpoint = endpoint(settings, listen, serving)?;
    if let Some(tls) = tls {
        tls.check_as_node(proof::host(&endpoint)).context("tls.certificate")?;
    }
    // Where there is a secret, that is what proves.
    let by_certificate = settings.secret.is_empty() && tls.is_some_and(Tls::proves_nodes);
    check_trust(settings, listen, &endpoint, by_certificate)?;
    Ok(Standing { endpoint, by_certificate })
}

/// Opens gossip where it is configured; nodes talk to each other by `tls`, if there is any. Within
/// the control core's runtime.
///
/// # Errors
/// What is wrong with the settings, or with the sockets.
pub(super) async fn join(
    joining: Joining<'_>,
    tls: Option<&Tls>,
) -> anyhow::Result<Option<Cluster>> {
    let Joining { config, serving, cores, limits, tiers } = joining;
    let settings = &config.cluster;
    let Some(listen) = settings.listen else { return Ok(None) };
    let Standing { endpoint, by_certificate } = standing(config, listen, serving, tls)?;
    let seeds: Vec<Seed> = settings
        .peers
        .iter()
        .map(|peer| peer.parse().with_context(|| format!("cluster.peers: {peer:?}")))
        .collect::<Result<_, _>>()?;
    let keys = settings.keys.iter().map(|key| key.parse::<Key>());
    let mut keys = keys.collect::<Result<Vec<_>, _>>().context("cluster.keys")?;
    let secret = Secret::new(&settings.secret);
    if keys.is_empty() {
        // Whoever can join gossip is given actions, and what it answers is believed: what guards
        // calls has to guard gossip too.
        keys.extend(secret.gossip_key().map(Key::from));
    }
    let (own, said) = watch::channel(own_state(&exec::Load::default()));
    let node_id: Arc<str> = config.execution.node_id.as_str().into();
    let cluster = ClusterConfig {
        node_id: node_id.clone(),
        listen,
        advertise: settings.advertise,
        endpoint,
        seeds,
        resolve_every: settings.resolve_every,
        keys,
        started: started(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        wire: WIRE,
    };
    let (peers, membership) = control::start(cluster, said).await.context("cluster")?;
    let peering = Peering::new(PeeringParts {
        node_id,
        address: membership.address(),
        peers,
        secret,
        tls: tls.cloned(),
        by_certificate,
        instance: config.server.instances.first().cloned().unwrap_or_default(),
        cores: cores.clone(),
        tier: tiers::peer_tier_config(&config.backing, limits),
        guard: tiers::guard_config(&config.backing),
        runtime: tiers.runtime().clone(),
    });
    let share = settings.share.then(|| share(config, cores, limits, tiers, &peering));
    let membership = Rc::new(membership);
    Ok(Some(Cluster { peering, share, membership, own, offload: settings.offload }))
}

/// Other nodes' blobs as one tier.
fn share(
    config: &Config,
    cores: &Cores,
    limits: &Limits,
    tiers: &Tiers,
    peering: &Arc<Peering>,
) -> (Tier, Guarded) {
    let _inside = tiers.runtime().enter();
    // Its parts are guarded, each peer by itself; one that is gone must not be all that are.
    let guard = tiers::guard_config(&config.backing);
    let homes = Guarded::new(Arc::new(Homes::new(peering)), guard);
    let limits = tiers::peer_tier_config(&config.backing, limits);
    let (tier, serve) = Tier::new(Arc::new(homes.clone()), cores.clone(), limits);
    tokio::spawn(serve);
    (tier, homes)
}

impl Cluster {
    /// Takes part, as long as it is polled: gossip, what this node says, what its schedule hears.
    pub(super) fn run(&self, executions: Option<Executions>) -> impl Future<Output = ()> + use<> {
        let membership = self.membership.clone();
        let peers = self.peering.peers().clone();
        let (own, offload) = (self.own.clone(), self.offload);
        async move {
            tokio::select! {
                () = membership.run() => {}
                () = tell(peers, own, executions, offload) => {}
            }
        }
    }

    /// Runs actions on peers, on the runtime of calls to them.
    pub(super) fn take(&self, errands: async_channel::Receiver<Errand>, limits: &Limits) {
        let taken = errands::run(errands, self.peering.clone(), limits.into());
        self.peering.runtime().spawn(taken);
    }

    /// What of other nodes' blobs is watched.
    pub(super) fn watched(&self) -> Option<WatchedTier> {
        let (tier, guard) = self.share.clone()?;
        Some(WatchedTier { name: guard.name().to_owned(), guard, tier, backlog: None })
    }

    /// How the cluster is told that this node goes.
    pub(super) fn membership(&self) -> Rc<Membership> {
        self.membership.clone()
    }
}

/// Says goodbye to the others.
pub(super) async fn leave(membership: &Membership) {
    membership.leave(LEAVE_TIMEOUT).await;
}

/// What this node is doing, to the others; what they are doing, to its schedule. Never ends.
async fn tell(
    peers: Peers,
    own: watch::Sender<OwnState>,
    executions: Option<Executions>,
    offload: bool,
) {
    let Some(executions) = executions else { return std::future::pending().await };
    let (mut load, mut changed) = (executions.load(), peers.changed());
    load.mark_changed();
    let mut interval = tokio::time::interval(TELL_SCHEDULE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            alive = load.changed() => {
                if alive.is_err() {
                    return std::future::pending().await;
                }
                own.send_replace(own_state(&load.borrow_and_update()));
                continue;
            }
            _ = changed.changed() => {}
            _ = interval.tick() => {}
        }
        if offload {
            executions.peers(capacities(&changed.borrow_and_update()));
        }
    }
}

fn capacities(snapshot: &Snapshot) -> Vec<PeerCapacity> {
    let stated = snapshot.peers.values().filter_map(|peer| {
        let state = peer.state.as_ref()?;
        Some(PeerCapacity {
            node_id: peer.node_id.clone(),
            slots: state.slots,
            running: state.running,
            queued: state.queued,
            draining: state.draining,
            fits: state.platform == snapshot.own.platform,
        })
    });
    stated.collect()
}

fn own_state(load: &exec::Load) -> OwnState {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    OwnState {
        slots: count(load.slots),
        running: count(load.running),
        queued: count(load.queued),
        draining: load.draining,
        platform: exec::platform().into_iter().collect(),
    }
}

/// Milliseconds since 1970. A clock that went back makes this process look older than the one
/// before it, until that one has been found dead.
fn started() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Where others reach this node's services.
fn endpoint(
    settings: &ClusterSettings,
    listen: SocketAddr,
    serving: SocketAddr,
) -> anyhow::Result<String> {
    if !settings.endpoint.is_empty() {
        return Ok(settings.endpoint.clone());
    }
    let advertised = settings.advertise.unwrap_or(listen);
    // An address that means all of them is none to connect to; the other one may be better.
    let host = [advertised.ip(), serving.ip()].into_iter().find(|ip| !ip.is_unspecified());
    let host = host.with_context(|| {
        format!(
            "cluster.endpoint is needed: {listen} and {serving} stand for all addresses of this \
             machine, and others have to be told one"
        )
    })?;
    Ok(SocketAddr::new(host, serving.port()).to_string())
}

/// Refuses to execute on anybody's word: without a secret and without certificates, only the
/// machine's own processes are believed.
fn check_trust(
    settings: &ClusterSettings,
    listen: SocketAddr,
    endpoint: &str,
    by_certificate: bool,
) -> anyhow::Result<()> {
    if !settings.secret.is_empty() {
        return Ok(());
    }
    let is_loopback = |address: &SocketAddr| address.ip().is_loopback();
    let host = proof::host(endpoint);
    let serves_loopback =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if is_loopback(&listen) && settings.advertise.iter().all(is_loopback) && serves_loopback {
        return Ok(());
    }
    if by_certificate && settings.keys.is_empty() {
        bail!(
            "cluster.keys is needed, or cluster.secret: {listen} can be reached from outside of \
             this machine, and certificates do not protect gossip"
        );
    }
    if by_certificate {
        return Ok(());
    }
    bail!(
        "cluster.secret is needed: {listen} or {endpoint} can be reached from outside of this \
         machine, and whoever reaches it could have actions executed here (certificates can stand \
         in its place: tls.certificate, tls.client_auth and cluster.keys)"
    );
}
