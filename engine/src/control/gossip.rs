//! What `memberlist` asks of this node and tells it. Must never wait, nor call `memberlist`: most
//! of this runs while it holds the lock of its list. What is to be done goes into a queue; if that
//! is full it is dropped and counted, and the next round over all members makes it good.

use super::{
    log::Remark,
    peers::{ClusterCounters, Snapshot},
    view::{Member, NODES_MAX},
};
use bytes::Bytes;
use memberlist::{
    Broadcast,
    delegate::{
        AliveDelegate, ConflictDelegate, Delegate, EventDelegate, MergeDelegate, NodeDelegate,
        PingDelegate, VoidDelegateError,
    },
    proto::{Meta, NodeState as Known},
    queue::TransmitLimitedQueue,
};
use prost::Message;
use proto::node::{ClusterState, NodeMeta};
use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Bytes of one node's state: it has to fit into a packet, beside its envelope.
pub(super) const STATE_BYTES_MAX: usize = 1024;

/// Bytes that a packet needs for a state besides the state: tag and length.
const ENVELOPE_BYTES: usize = 8;

/// What came in, for the loop that owns the view.
#[derive(Debug)]
pub(super) enum Heard {
    Joined(Member),
    Left(Arc<str>),
    /// An encoded `NodeState`.
    State(Bytes),
    /// An encoded `ClusterState`.
    States(Bytes),
    Remark(Remark),
}

/// States on their way out, the newest of each node.
pub(super) type Queue = TransmitLimitedQueue<StateBroadcast, Arc<AtomicUsize>>;

/// One of them.
#[derive(Debug)]
pub(super) struct StateBroadcast {
    pub(super) id: Arc<str>,
    pub(super) bytes: Bytes,
}

impl Broadcast for StateBroadcast {
    type Id = Arc<str>;
    type Message = Bytes;

    fn id(&self) -> Option<&Arc<str>> {
        Some(&self.id)
    }

    fn invalidates(&self, other: &Self) -> bool {
        self.id == other.id
    }

    fn message(&self) -> &Bytes {
        &self.bytes
    }

    fn encoded_len(bytes: &Bytes) -> usize {
        bytes.len() + ENVELOPE_BYTES
    }

    async fn finished(&self) {}
}

/// What stands between `memberlist` and the view.
pub(super) struct Gossip {
    pub(super) own: Arc<str>,
    pub(super) meta: NodeMeta,
    pub(super) heard: async_channel::Sender<Heard>,
    pub(super) counters: Arc<ClusterCounters>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) queue: Arc<Queue>,
    /// Members that are alive, this node among them. Counted here because `memberlist` counts the
    /// dead as well.
    pub(super) alive: Arc<AtomicUsize>,
}

/// A member as the view wants it; `None` if its meta can't be read.
pub(super) fn member(known: &Known<Arc<str>, SocketAddr>) -> Option<Member> {
    let meta = NodeMeta::decode(known.meta().as_bytes()).ok()?;
    let (id, address) = (known.id().clone(), *known.address());
    Some(Member { id, address, started: meta.started })
}

impl Gossip {
    fn tell(&self, heard: Heard) {
        if self.heard.try_send(heard).is_err() {
            ClusterCounters::count(&self.counters.dropped);
        }
    }

    fn refuse(&self, remark: Remark) -> Result<(), VoidDelegateError> {
        ClusterCounters::count(&self.counters.refused);
        self.tell(Heard::Remark(remark));
        Err(VoidDelegateError)
    }
}

impl AliveDelegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;
    type Error = VoidDelegateError;

    /// Each time somebody says that a node is alive, also of this one. Here and not when two nodes
    /// merge their lists, for there a refusal is of the whole list.
    async fn notify_alive(
        &self,
        peer: Arc<Known<Arc<str>, SocketAddr>>,
    ) -> Result<(), VoidDelegateError> {
        let (id, address) = (peer.id().clone(), *peer.address());
        let wire = NodeMeta::decode(peer.meta().as_bytes()).ok().map(|meta| meta.wire);
        let wire = wire.filter(|&wire| wire != 0);
        if wire != Some(self.meta.wire) {
            return self.refuse(Remark::Incompatible { id, address, wire });
        }
        let is_known = |id: &str| id == &*self.own || self.snapshot.borrow().peers.contains_key(id);
        if self.alive.load(Relaxed) >= NODES_MAX && !is_known(&id) {
            return self.refuse(Remark::TooMany { id, address });
        }
        Ok(())
    }
}

impl EventDelegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;

    async fn notify_join(&self, node: Arc<Known<Arc<str>, SocketAddr>>) {
        self.alive.fetch_add(1, Relaxed);
        self.notify_update(node).await;
    }

    async fn notify_leave(&self, node: Arc<Known<Arc<str>, SocketAddr>>) {
        self.alive.fetch_sub(1, Relaxed);
        self.tell(Heard::Left(node.id().clone()));
    }

    /// A node that was started anew before it was missed: only its meta is another.
    async fn notify_update(&self, node: Arc<Known<Arc<str>, SocketAddr>>) {
        if let Some(member) = member(&node) {
            self.tell(Heard::Joined(member));
        }
    }
}

impl ConflictDelegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;

    async fn notify_conflict(
        &self,
        existing: Arc<Known<Arc<str>, SocketAddr>>,
        other: Arc<Known<Arc<str>, SocketAddr>>,
    ) {
        ClusterCounters::count(&self.counters.conflicts);
        let (id, known, other) = (existing.id().clone(), *existing.address(), *other.address());
        self.tell(Heard::Remark(Remark::Conflict { id, known, other }));
    }
}

impl NodeDelegate for Gossip {
    async fn node_meta(&self, _limit: usize) -> Meta {
        let meta = Meta::try_from(self.meta.encode_to_vec());
        meta.expect("two numbers are shorter than 512 bytes")
    }

    async fn notify_message(&self, message: Cow<'_, [u8]>) {
        if message.len() > STATE_BYTES_MAX {
            return ClusterCounters::count(&self.counters.malformed);
        }
        self.tell(Heard::State(Bytes::copy_from_slice(&message)));
    }

    async fn broadcast_messages<F>(
        &self,
        limit: usize,
        _encoded_len: F,
    ) -> impl Iterator<Item = Bytes> + Send
    where
        F: Fn(Bytes) -> (usize, Bytes) + Send + Sync + 'static,
    {
        self.queue.get_broadcasts(limit).await.into_iter()
    }

    /// Everything known, so that who comes knows all at once.
    async fn local_state(&self, _join: bool) -> Bytes {
        let snapshot = self.snapshot.borrow().clone();
        let peers = snapshot.peers.values().filter_map(|peer| peer.state.as_deref());
        let states = [&*snapshot.own].into_iter().chain(peers).cloned().collect();
        ClusterState { states }.encode_to_vec().into()
    }

    async fn merge_remote_state(&self, states: &[u8], _join: bool) {
        if states.len() > NODES_MAX * (STATE_BYTES_MAX + ENVELOPE_BYTES) {
            return ClusterCounters::count(&self.counters.malformed);
        }
        self.tell(Heard::States(Bytes::copy_from_slice(states)));
    }
}

impl MergeDelegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;
    type Error = VoidDelegateError;

    /// Whoever may not join is refused one by one: a list may hold some of both.
    async fn notify_merge(
        &self,
        _peers: Arc<[Known<Arc<str>, SocketAddr>]>,
    ) -> Result<(), VoidDelegateError> {
        Ok(())
    }
}

impl PingDelegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;

    async fn ack_payload(&self) -> Bytes {
        Bytes::new()
    }

    async fn notify_ping_complete(
        &self,
        _node: Arc<Known<Arc<str>, SocketAddr>>,
        _rtt: Duration,
        _payload: Bytes,
    ) {
    }

    /// Where UDP is lost and TCP is not, a node is not dead.
    fn disable_reliable_pings(&self, _target: &Arc<str>) -> bool {
        false
    }
}

impl Delegate for Gossip {
    type Id = Arc<str>;
    type Address = SocketAddr;
}
