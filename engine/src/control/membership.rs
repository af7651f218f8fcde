//! Gossip in, a snapshot of peers out: the loop around the view. Owns this node's part in the
//! cluster; must never be waited for by whoever serves a request.

use super::{
    ClusterConfig, ClusterError, OwnState,
    gossip::{Heard, STATE_BYTES_MAX, StateBroadcast, member},
    list::{GossipParts, Running, open},
    log::{Lately, Remark},
    peers::{ClusterCounters, Peers, Snapshot},
    seek::Insisting,
    transport::Guard,
    view::{Effects, Event, NODES_MAX, View},
};
use bytes::Bytes;
use futures_util::future::{join4, select};
use memberlist::proto::MaybeResolvedAddress;
use prost::Message;
use proto::node::{ClusterState, NodeState, PlatformProperty};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Between two states of this node at least: a scheduler changes far more often than that.
pub(super) const TELL_MIN: Duration = Duration::from_millis(100);
/// And at most.
const TELL_MAX: Duration = Duration::from_secs(5);

/// Between two looks at the whole list.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// News that wait for the view.
const HEARD_LEN_MAX: usize = 8192;
/// News handled before others are let in.
const HEARD_AT_ONCE: usize = 256;

/// The dead that are remembered: so many, or as many as are alive.
const DEAD_MAX: usize = 64;
/// Others asked for the list of members that this node has lost, one after the other.
const ASKED_MAX: usize = 32;

/// This node's part in the cluster, on the thread of the control core. Does nothing unless
/// [`Membership::run`] is polled. Whoever drops it without [`Membership::leave`] or
/// [`Membership::stop`] leaves its sockets to the runtime.
pub struct Membership {
    pub(super) config: ClusterConfig,
    running: RefCell<Running>,
    pub(super) view: RefCell<View>,
    lately: RefCell<Lately>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    own: watch::Receiver<OwnState>,
    heard: async_channel::Receiver<Heard>,
    pub(super) gossip: GossipParts,
    pub(super) insisting: Insisting,
    /// It is over: nothing may be opened again.
    stopped: Cell<bool>,
    generation: Cell<u64>,
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
    let keys = config.keys.iter().map(|key| key.0).collect();
    let (news, heard) = async_channel::bounded(HEARD_LEN_MAX);
    let counters = Arc::new(ClusterCounters::default());
    let guard = Guard { keys, heard: news, counters: counters.clone() };
    let gossip = GossipParts { guard, snapshot: seen.clone() };
    let running = open(&config, &gossip).await?;
    let peers = Peers { snapshot: seen, counters };
    let membership = Membership {
        view: RefCell::new(View::new(config.node_id.clone())),
        lately: RefCell::default(),
        insisting: Insisting::default(),
        stopped: Cell::new(false),
        running: RefCell::new(running),
        config,
        snapshot,
        own,
        heard,
        gossip,
        generation,
    };
    Ok((peers, membership))
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

impl Membership {
    /// Takes part in the cluster: listens, tells, looks for others. Never returns; dropping it
    /// ends that, while the node goes on to answer until it leaves or stops.
    pub async fn run(&self) {
        join4(self.listen(), self.publish(), self.seek(), self.look()).await;
    }

    /// Says goodbye, so that others need not find out, and stops. `timeout` is for the goodbye to
    /// be passed on by somebody.
    pub async fn leave(&self, timeout: Duration) {
        self.stopped.set(true);
        let list = self.running().list;
        let leave = tokio::time::timeout(timeout, list.leave(timeout)).await;
        if !matches!(leave, Ok(Ok(_))) {
            tracing::warn!("nobody took this node's goodbye; others will miss it by themselves");
        }
        self.stop().await;
    }

    /// Closes the sockets without a word: to the others this node is dead.
    pub async fn stop(&self) {
        self.stopped.set(true);
        self.close().await;
    }

    async fn close(&self) {
        if let Err(error) = self.running().list.shutdown().await {
            tracing::warn!(%error, "gossip did not stop in order");
        }
    }

    /// Where others reach this node's gossip.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.running.borrow().list.advertise_address()
    }

    pub(super) fn running(&self) -> Running {
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
                    self.insisting.begin();
                }
                self.say(&remark);
                false
            }
        }
    }

    pub(super) fn say(&self, remark: &Remark) {
        let (own, wire) = (&self.config.node_id, self.config.wire);
        self.lately.borrow_mut().say(remark, Instant::now().into_std(), own, wire);
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
        let before = self.snapshot.borrow().clone();
        for (node, peer) in &peers {
            let known = before.peers.get(node).map(|peer| peer.started);
            if known != Some(peer.started) {
                tracing::info!(%node, address = %peer.address, "a node came into the cluster");
            }
        }
        for (node, peer) in &before.peers {
            if !peers.contains_key(node) {
                tracing::info!(%node, address = %peer.address, "a node left the cluster, or died");
            }
        }
        self.snapshot.send_replace(Arc::new(Snapshot { own: before.own.clone(), peers }));
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
        self.close().await;
        while !self.stopped.get() {
            match open(&self.config, &self.gossip).await {
                Ok(running) => {
                    self.running.replace(running);
                    break;
                }
                Err(error) => tracing::warn!(%error, "gossip can't go on yet"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if self.stopped.get() {
            return self.close().await;
        }
        let list = self.running().list;
        // One that answers knows all the others.
        for address in alive.into_iter().take(ASKED_MAX) {
            if list.join(MaybeResolvedAddress::resolved(address)).await.is_ok() {
                break;
            }
        }
    }
}
