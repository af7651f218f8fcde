//! One instance of `memberlist`: how fast it is, what it is given, how its sockets are opened. Must
//! never decide who is in the cluster.

use super::{
    ClusterConfig, ClusterError,
    gossip::{Gossip, Queue},
    peers::Snapshot,
    transport::{Guard, Guarded, GuardedOptions},
};
use memberlist::{
    Memberlist, Options,
    proto::{EncryptionAlgorithm, SecretKey},
};
use proto::node::NodeMeta;
use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tokio::sync::watch;

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

/// How often one state is sent on, times the logarithm of the number of nodes.
const TRANSMITS: usize = 4;

/// Longer than any node runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(super) type List = Memberlist<Guarded, Gossip>;

/// `memberlist` and what belongs to one instance of it.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) list: List,
    pub(super) queue: Arc<Queue>,
}

/// What each instance of `memberlist` is given.
pub(super) struct GossipParts {
    pub(super) guard: Guard,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
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
        // look-up is out of bounds, and a panic ends the node: where one of two nodes dies, with
        // one chance in two the other follows. `renew` in membership.rs forgets them instead.
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

pub(super) async fn open(
    config: &ClusterConfig,
    parts: &GossipParts,
) -> Result<Running, ClusterError> {
    let alive = Arc::new(AtomicUsize::new(0));
    let queue = Arc::new(Queue::new(TRANSMITS, alive.clone()));
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
    let options = options(&parts.guard.keys);
    let list = Memberlist::with_delegate(gossip, transport, options).await;
    let list = list
        .map_err(|error| ClusterError::Listen { listen: config.listen, why: error.to_string() })?;
    Ok(Running { list, queue })
}
