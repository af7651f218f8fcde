//! The cluster as any thread of the node may look at it: the last snapshot, without asking anybody.
//! Must never need a runtime: data cores read it too.

use proto::node::NodeState;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio::sync::watch;

/// Another node. Whoever has left or is dead is none.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Unique in the cluster.
    pub node_id: Arc<str>,
    /// Where it gossips; where it serves gRPC its state says.
    pub address: SocketAddr,
    /// When it started, in milliseconds since 1970, by its own clock.
    pub started: u64,
    /// What it last said of itself; `None` until it has.
    pub state: Option<Arc<NodeState>>,
    /// When that was heard, or when it came if it has said nothing yet.
    pub heard: Instant,
}

/// The cluster as this node knows it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What this node says of itself.
    pub own: Arc<NodeState>,
    /// All others that are alive, by name.
    pub peers: BTreeMap<Arc<str>, Peer>,
}

/// What membership counted since the node started.
#[derive(Debug, Default)]
pub struct ClusterCounters {
    /// Packets and connections of somebody without the key, or of no gossip at all.
    pub foreign: AtomicU64,
    /// States that could not be read, of members that have the key.
    pub malformed: AtomicU64,
    /// Times that a node was refused: another wire version, or one node too many.
    pub refused: AtomicU64,
    /// Times that two processes with one name were seen.
    pub conflicts: AtomicU64,
    /// News that found its queue full; the next round brings it again.
    pub dropped: AtomicU64,
    /// Exchanges with a seed or a lost peer that failed.
    pub joins_failed: AtomicU64,
    /// Times that the list of members was begun anew to forget the dead.
    pub renewed: AtomicU64,
}

impl ClusterCounters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

/// A handle to the cluster. Cheap to clone; may be used on any thread.
#[derive(Clone, Debug)]
pub struct Peers {
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) counters: Arc<ClusterCounters>,
}

impl Peers {
    /// The cluster as it was last seen.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// The node of that name, unless it is this one or not alive.
    #[must_use]
    pub fn get(&self, node_id: &str) -> Option<Peer> {
        self.snapshot.borrow().peers.get(node_id).cloned()
    }

    /// Each change of the snapshot, to be awaited.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// What was counted since the node started.
    #[must_use]
    pub fn counters(&self) -> &ClusterCounters {
        &self.counters
    }
}

/// Proof, kept beside the claim: a snapshot is read on any thread.
const _: fn() = || {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Peers>();
};
