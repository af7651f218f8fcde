//! Gossip in, a snapshot of peers out: the loop around the view. Owns this node's part in the
//! cluster; must never be waited for by whoever serves a request.

use super::{
    ClusterConfig, ClusterError, Key, OwnState, check_keys,
    gossip::{Gossip, Heard, Queue, STATE_BYTES_MAX, StateBroadcast, member},
    log::{Lately, Remark},
    peers::{ClusterCounters, Peers, Snapshot},
    transport::{Guard, Guarded, GuardedOptions},
    view::{Effects, Event, NODES_MAX, View},
};
use bytes::Bytes;
use futures_util::future::{join_all, join4, select};
use memberlist::{
    Memberlist, Options,
    proto::{EncryptionAlgorithm, MaybeResolvedAddress, SecretKey},
};
use prost::Message;
use proto::node::{ClusterState, NodeMeta, NodeState, PlatformProperty};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

// How soon a dead node is missed. One that was killed answers neither UDP nor TCP, and says so
// (TCP refused); one that is cut off says nothing. With three nodes, at the worst: 1.2 s until a
// survivor's round comes to it, 0.4 s for the probe (1.4 s if it is cut off: TCP is tried until
// `EXCHANGE`), and a suspicion of 1.2 s to 2.4 s in which it may object: 4 s or 5 s.

/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(400);
/// For a ping by UDP to come back; then others are asked to ping, and TCP is tried. Must be less
/// than `PROBE_EVERY`: as it is by `memberlist`'s default the others are asked and not awaited.
const PROBE_PATIENCE: Duration = Duration::from_millis(200);
/// For an exchange by TCP, and for the ping by TCP. Room for one SYN that is lost.
const EXCHANGE: Duration = Duration::from_millis(1200);
/// Probes that a suspicion lasts, times the logarithm of the number of nodes.
const SUSPICION_PROBES: usize = 3;
/// That much longer if nobody else suspects.
const SUSPICION_DOUBT: usize = 2;
/// Between two packets of news to three others.
const GOSSIP_EVERY: Duration = Duration::from_millis(100);
/// Between two exchanges of everything with one other.
const EXCHANGE_EVERY: Duration = Duration::from_secs(10);

/// Between two states of this node at least: a scheduler changes far more often than that.
pub(super) const TELL_MIN: Duration = Duration::from_millis(100);
/// And at most.
const TELL_MAX: Duration = Duration::from_secs(5);

/// Between two looks at the whole list.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Until a seed that could not be reached is tried again.
const SEEK_AGAIN: Duration = Duration::from_secs(2);
/// For a name server to answer.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);
/// Addresses asked in one round; of more, as many by chance.
const SEEK_MAX: usize = 32;

/// How long this node behaves as if its name were taken, after it last heard so.
const CONFLICT: Duration = Duration::from_secs(5);

/// News that wait for the view.
const HEARD_LEN_MAX: usize = 8192;
/// News handled before others are let in.
const HEARD_AT_ONCE: usize = 256;

/// The dead that are remembered: so many, or as many as are alive.
const DEAD_MAX: usize = 64;

/// Longer than any node runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

type List = Memberlist<Guarded, Gossip>;

/// `memberlist` and what belongs to one instance of it.
#[derive(Clone)]
struct Running {
    list: List,
    queue: Arc<Queue>,
}

/// This node's part in the cluster, on the thread of the control core. Does nothing unless
/// [`Membership::run`] is polled. Whoever drops it without [`Membership::leave`] or
/// [`Membership::stop`] leaves its sockets to the runtime.
pub struct Membership {
    config: ClusterConfig,
    running: RefCell<Running>,
    view: RefCell<View>,
    lately: RefCell<Lately>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    own: watch::Receiver<OwnState>,
    keys: watch::Sender<Vec<SecretKey>>,
    heard: async_channel::Receiver<Heard>,
    gossip: GossipParts,
    /// Until when this node has to insist on its name.
    conflict_until: Cell<Option<Instant>>,
    generation: Cell<u64>,
}

/// What each instance of `memberlist` is given.
struct GossipParts {
    guard: Guard,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// Opens the sockets and begins to answer. Seeds are asked once [`Membership::run`] is polled.
///
/// # Errors
///
/// What is configured can't be, or the sockets can't be had. To be called inside a tokio runtime
/// with I/O and time.
pub async fn start(
    config: ClusterConfig,
    own: watch::Receiver<OwnState>,
) -> Result<(Peers, Membership), ClusterError> {
    config.check()?;
    let first = own_state(&config, &own.borrow(), config.started << 16);
    if first.encoded_len() > STATE_BYTES_MAX {
        return Err(ClusterError::Config(format!(
            "the node's name, endpoint and platform need {} bytes of {STATE_BYTES_MAX} in a packet",
            first.encoded_len()
        )));
    }
    let generation = Cell::new(first.generation);
    let first = Snapshot { own: Arc::new(first), peers: Default::default() };
    let (snapshot, seen) = watch::channel(Arc::new(first));
    let (keys, guard_keys) = watch::channel(secret_keys(&config.keys));
    let (news, heard) = async_channel::bounded(HEARD_LEN_MAX);
    let counters = Arc::new(ClusterCounters::default());
    let guard = Guard { keys: guard_keys, heard: news, counters: counters.clone() };
    let gossip = GossipParts { guard, snapshot: seen.clone() };
    let running = open(&config, &gossip).await?;
    let peers = Peers { snapshot: seen, counters };
    let membership = Membership {
        view: RefCell::new(View::new(config.node_id.clone())),
        lately: RefCell::default(),
        conflict_until: Cell::new(None),
        running: RefCell::new(running),
        config,
        snapshot,
        own,
        keys,
        heard,
        gossip,
        generation,
    };
    Ok((peers, membership))
}

fn secret_keys(keys: &[Key]) -> Vec<SecretKey> {
    keys.iter().map(|key| key.0).collect()
}

fn options(keys: &[SecretKey]) -> Options {
    let options = Options::lan()
        .with_probe_interval(PROBE_EVERY)
        .with_probe_timeout(PROBE_PATIENCE)
        .with_timeout(EXCHANGE)
        .with_suspicion_mult(SUSPICION_PROBES)
        .with_suspicion_max_timeout_mult(SUSPICION_DOUBT)
        .with_gossip_interval(GOSSIP_EVERY)
        .with_push_pull_interval(EXCHANGE_EVERY)
        // The dead are never forgotten by `memberlist` 0.8 itself: when it takes them out of its
        // list it moves the last entry to the place of a dead one and may keep the old place in
        // its index (`move_dead_nodes`, then a shuffle that need not touch place 0). The next
        // look-up is out of bounds, and a panic ends the node: of three nodes one dies, and with
        // one chance in six a survivor follows. `Membership::renew` forgets them instead.
        .with_gossip_to_the_dead_time(NEVER)
        // A dead node may come back from another address as soon as it is known to be dead; by
        // default, never.
        .with_dead_node_reclaim_time(Duration::from_millis(1))
        // Else `memberlist` uses blocking threads for what takes microseconds.
        .with_offload_size(usize::MAX);
    let Some((first, others)) = keys.split_first() else { return options };
    // All three are needed: without the algorithm, or without `outgoing`, keys are not used at
    // all; without `incoming`, plain text is taken as well.
    options
        .with_primary_key(*first)
        .with_secret_keys(others.iter().copied().collect())
        .with_encryption_algo(EncryptionAlgorithm::NoPadding)
        .with_gossip_verify_incoming(true)
        .with_gossip_verify_outgoing(true)
}

async fn open(config: &ClusterConfig, parts: &GossipParts) -> Result<Running, ClusterError> {
    let alive = Arc::new(AtomicUsize::new(0));
    let queue = Arc::new(Queue::new(4, alive.clone()));
    let gossip = Gossip {
        own: config.node_id.clone(),
        meta: NodeMeta { wire: config.wire, started: config.started },
        heard: parts.guard.heard.clone(),
        counters: parts.guard.counters.clone(),
        snapshot: parts.snapshot.clone(),
        queue: queue.clone(),
        alive,
    };
    let transport = GuardedOptions {
        id: config.node_id.clone(),
        listen: config.listen,
        advertise: config.advertise,
        guard: parts.guard.clone(),
    };
    let keys = parts.guard.keys.borrow().clone();
    let list = Memberlist::with_delegate(gossip, transport, options(&keys)).await;
    let list = list
        .map_err(|error| ClusterError::Listen { listen: config.listen, why: error.to_string() })?;
    Ok(Running { list, queue })
}

fn own_state(config: &ClusterConfig, own: &OwnState, generation: u64) -> NodeState {
    let platform = own.platform.iter();
    let platform =
        platform.map(|(name, value)| PlatformProperty { name: name.clone(), value: value.clone() });
    NodeState {
        node_id: config.node_id.to_string(),
        endpoint: config.endpoint.clone(),
        generation,
        slots: own.slots,
        running: own.running,
        queued: own.queued,
        draining: own.draining,
        platform: platform.collect(),
        version: config.version.clone(),
        started: config.started,
    }
}

/// Nobody's secret and nobody's proof: what spreads nodes over time.
fn chance(below: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) % below.max(1)
}

/// Give or take a fifth, so that nodes that start together do not ask together.
fn jittered(around: Duration) -> Duration {
    around.mul_f64(0.8 + 0.4 * (chance(1000) as f64 / 1000.0))
}

impl Membership {
    /// Takes part in the cluster: listens, tells, looks for others. Never returns; dropping it
    /// ends that, while the node goes on to answer until it leaves or stops.
    pub async fn run(&self) {
        join4(self.listen(), self.publish(), self.seek(), self.look()).await;
    }

    /// Says goodbye, so that others need not find out, and stops. `timeout` is for the goodbye to
    /// be passed on by somebody.
    pub async fn leave(&self, timeout: Duration) {
        let list = self.running().list;
        let leave = tokio::time::timeout(timeout, list.leave(timeout)).await;
        if !matches!(leave, Ok(Ok(_))) {
            tracing::warn!("nobody took this node's goodbye; others will miss it by themselves");
        }
        self.stop().await;
    }

    /// Closes the sockets without a word: to the others this node is dead.
    pub async fn stop(&self) {
        if let Err(error) = self.running().list.shutdown().await {
            tracing::warn!(%error, "gossip did not stop in order");
        }
    }

    /// Where others reach this node's gossip.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.running.borrow().list.advertise_address()
    }

    /// Encrypts by the first of these keys from now on and opens what any of them opens. To rotate,
    /// give all nodes the new key as the second, then as the first, then take the old one away.
    ///
    /// # Errors
    ///
    /// The node started without keys and is to have some, or the other way round.
    pub fn set_keys(&self, keys: &[Key]) -> Result<(), ClusterError> {
        check_keys(keys)?;
        let list = self.running().list;
        let (Some(ring), Some(first)) = (list.keyring(), keys.first()) else {
            let had = list.keyring().is_some();
            return if had == keys.is_empty() { Err(ClusterError::Keys(had)) } else { Ok(()) };
        };
        for key in keys {
            ring.insert(key.0);
        }
        // It was just put in.
        let _ = ring.use_key(&first.0);
        for old in ring.keys().filter(|old| !keys.contains(&Key(*old))).collect::<Vec<_>>() {
            let _ = ring.remove(&old);
        }
        self.keys.send_replace(secret_keys(keys));
        Ok(())
    }

    fn running(&self) -> Running {
        self.running.borrow().clone()
    }

    /// Brings what came in to the view.
    async fn listen(&self) {
        while let Ok(first) = self.heard.recv().await {
            let mut relays = Vec::new();
            let mut changed = self.take(first, &mut relays);
            for _ in 1..HEARD_AT_ONCE {
                let Ok(next) = self.heard.try_recv() else { break };
                changed |= self.take(next, &mut relays);
            }
            if changed {
                self.show();
            }
            let queue = self.running().queue;
            for state in relays {
                let id = Arc::from(state.node_id.as_str());
                let bytes = Bytes::from(state.encode_to_vec());
                queue.queue_broadcast(StateBroadcast { id, bytes }).await;
            }
        }
    }

    /// Returns whether the view changed.
    fn take(&self, heard: Heard, relays: &mut Vec<Arc<NodeState>>) -> bool {
        match heard {
            Heard::Joined(member) => self.handle(Event::Joined(member)).changed,
            Heard::Left(id) => self.handle(Event::Left(id)).changed,
            Heard::State(bytes) => match NodeState::decode(bytes) {
                Ok(state) => self.believe(vec![state], relays),
                Err(_) => self.is_malformed(),
            },
            Heard::States(bytes) => match ClusterState::decode(bytes) {
                Ok(cluster) if cluster.states.len() <= NODES_MAX => {
                    self.believe(cluster.states, relays)
                }
                _ => self.is_malformed(),
            },
            Heard::Remark(remark) => {
                if matches!(&remark, Remark::Conflict { id, .. } if *id == self.config.node_id) {
                    self.conflict_until.set(Some(Instant::now() + CONFLICT));
                }
                let (own, wire) = (&self.config.node_id, self.config.wire);
                self.lately.borrow_mut().say(&remark, Instant::now().into_std(), own, wire);
                false
            }
        }
    }

    fn handle(&self, event: Event) -> Effects {
        self.view.borrow_mut().handle(event, Instant::now().into_std())
    }

    fn is_malformed(&self) -> bool {
        ClusterCounters::count(&self.gossip.guard.counters.malformed);
        false
    }

    fn believe(&self, states: Vec<NodeState>, relays: &mut Vec<Arc<NodeState>>) -> bool {
        let mut changed = false;
        for state in states {
            if state.encoded_len() > STATE_BYTES_MAX || state.endpoint.is_empty() {
                self.is_malformed();
                continue;
            }
            let effects = self.handle(Event::State(state));
            changed |= effects.changed;
            relays.extend(effects.relay);
        }
        changed
    }

    /// Makes the view everybody's.
    fn show(&self) {
        let peers = self.view.borrow().peers().clone();
        let own = self.snapshot.borrow().own.clone();
        self.snapshot.send_replace(Arc::new(Snapshot { own, peers }));
    }

    /// Tells the others of this node: when it changes, but not too often, and now and then.
    async fn publish(&self) {
        let mut own = self.own.clone();
        let mut too_long = false;
        loop {
            self.generation.set(self.generation.get() + 1);
            let state = own_state(&self.config, &own.borrow_and_update(), self.generation.get());
            let bytes = Bytes::from(state.encode_to_vec());
            if bytes.len() <= STATE_BYTES_MAX {
                too_long = false;
                let peers = self.snapshot.borrow().peers.clone();
                self.snapshot.send_replace(Arc::new(Snapshot { own: Arc::new(state), peers }));
                let id = self.config.node_id.clone();
                self.running().queue.queue_broadcast(StateBroadcast { id, bytes }).await;
            } else if !too_long {
                too_long = true;
                tracing::error!(
                    bytes = bytes.len(),
                    bytes_max = STATE_BYTES_MAX,
                    "this node's state does not fit into a packet: others keep the last one"
                );
            }
            tokio::time::sleep(TELL_MIN).await;
            let changed = pin!(async {
                if own.changed().await.is_err() {
                    // Nobody changes it any more; it is told now and then all the same.
                    std::future::pending::<()>().await;
                }
            });
            select(changed, pin!(tokio::time::sleep(TELL_MAX - TELL_MIN))).await;
        }
    }

    /// Asks seeds that are no members, for ever: else two halves of a cluster that once took each
    /// other for dead would never meet again (hashicorp/memberlist#222).
    async fn seek(&self) {
        loop {
            let failed = self.seek_once().await;
            let insists = self.insists();
            let pause = match (insists, failed) {
                (true, _) => LOOK_EVERY,
                (false, true) => SEEK_AGAIN.min(self.config.resolve_every),
                (false, false) => self.config.resolve_every,
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Whether others know another address by this node's name: that of the process before it, it
    /// is to be hoped, which they will find dead. Until then they refuse this one, and it asks them
    /// again and again.
    fn insists(&self) -> bool {
        self.conflict_until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether something is to be tried again soon.
    async fn seek_once(&self) -> bool {
        let mut failed = false;
        let mut addresses = BTreeSet::new();
        let resolved = self.config.seeds.iter().map(|seed| async move {
            (seed, tokio::time::timeout(RESOLVE_PATIENCE, seed.resolve()).await)
        });
        for (seed, answer) in join_all(resolved).await {
            match answer {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => {
                    tracing::debug!(%seed, %error, "a seed has no address");
                    failed = true;
                }
                Err(_) => failed = true,
            }
        }
        let list = self.running().list;
        let known: Vec<_> = self.view.borrow().peers().values().map(|peer| peer.address).collect();
        if self.insists() {
            addresses.extend(known);
        } else {
            addresses.retain(|address| !known.contains(address));
        }
        addresses.remove(list.advertise_address());
        addresses.remove(&self.config.listen);
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        while addresses.len() > SEEK_MAX {
            addresses.swap_remove(chance(addresses.len() as u64) as usize);
        }
        let joins =
            addresses.iter().map(|address| list.join(MaybeResolvedAddress::resolved(*address)));
        for joined in join_all(joins).await {
            if let Err(error) = joined {
                tracing::debug!(%error, "a seed does not answer");
                ClusterCounters::count(&self.gossip.guard.counters.joins_failed);
                failed = true;
            }
        }
        failed
    }

    /// Holds the view against the list, for events may be lost; and keeps the list short.
    async fn look(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let list = self.running().list;
            let online = list.online_members().await;
            let members = online.iter().filter_map(|known| member(known)).collect();
            if self.handle(Event::Members(members)).changed {
                self.show();
            }
            let dead = list.num_members().await.saturating_sub(online.len());
            if dead > DEAD_MAX.max(online.len()) {
                self.renew().await;
            }
        }
    }

    /// Begins the list of members anew, on the same sockets' address, to forget the dead. To the
    /// others it is as if this process had been started again within a moment.
    pub(super) async fn renew(&self) {
        tracing::info!("the list of members is begun anew, to forget the dead");
        ClusterCounters::count(&self.gossip.guard.counters.renewed);
        let alive: Vec<_> = self.view.borrow().peers().values().map(|peer| peer.address).collect();
        self.stop().await;
        let running = loop {
            match open(&self.config, &self.gossip).await {
                Ok(running) => break running,
                Err(error) => tracing::warn!(%error, "gossip can't go on yet"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let list = running.list.clone();
        self.running.replace(running);
        // One that answers knows all the others.
        for address in alive.into_iter().take(SEEK_MAX) {
            if list.join(MaybeResolvedAddress::resolved(address)).await.is_ok() {
                break;
            }
        }
    }
}
