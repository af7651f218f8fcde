//! The numbers of the cluster: who is in it, what each node says of itself, how calls to it go.
//! Must only read; there are no more series than the cluster may have nodes.

use super::{
    Collector,
    page::{Family, Number, Page, counter, gauge},
    tiers::breaker_state,
};
use crate::peer::Peering;
use engine::{
    control::{ClusterCounters, NODES_MAX, Peer, Snapshot},
    tier::Health,
};
use futures_util::future::{LocalBoxFuture, ready};
use std::sync::{Arc, atomic::Ordering::Relaxed};

const NODES: Family = gauge(
    "ringforge_cluster_nodes",
    "Other nodes that are alive, by state: serving; draining; silent = it has said nothing yet.",
);
const MAX: Family =
    gauge("ringforge_cluster_nodes_max", "Nodes that a cluster may have, this one included.");

const COUNTERS: [Number<ClusterCounters>; 7] = [
    (
        counter(
            "ringforge_gossip_foreign_total",
            "Packets and connections of somebody without the key, or of no gossip at all.",
        ),
        |all| all.foreign.load(Relaxed) as f64,
    ),
    (counter("ringforge_gossip_malformed_total", "States of members that can't be read."), |all| {
        all.malformed.load(Relaxed) as f64
    }),
    (
        counter(
            "ringforge_gossip_refused_total",
            "Times that a node was refused: another wire version, or one node too many.",
        ),
        |all| all.refused.load(Relaxed) as f64,
    ),
    (
        counter(
            "ringforge_gossip_conflicts_total",
            "Times that two processes with one name were seen.",
        ),
        |all| all.conflicts.load(Relaxed) as f64,
    ),
    (
        counter(
            "ringforge_gossip_dropped_total",
            "News that found its queue full; the next round brings it again.",
        ),
        |all| all.dropped.load(Relaxed) as f64,
    ),
    (
        counter(
            "ringforge_gossip_joins_failed_total",
            "Exchanges with an address of cluster.peers, or with a lost node, that failed.",
        ),
        |all| all.joins_failed.load(Relaxed) as f64,
    ),
    (
        counter(
            "ringforge_gossip_renewed_total",
            "Times that the list of members was begun anew, to forget the dead.",
        ),
        |all| all.renewed.load(Relaxed) as f64,
    ),
];

const PEER: [Number<Peer>; 5] = [
    (gauge("ringforge_peer_slots", "Actions that may run there at the same time."), |peer| {
        of_state(peer, |state| f64::from(state.slots))
    }),
    (gauge("ringforge_peer_running", "Actions that run there."), |peer| {
        of_state(peer, |state| f64::from(state.running))
    }),
    (gauge("ringforge_peer_queued", "Actions that wait there."), |peer| {
        of_state(peer, |state| f64::from(state.queued))
    }),
    (gauge("ringforge_peer_draining", "1 where it takes no more."), |peer| {
        of_state(peer, |state| f64::from(u8::from(state.draining)))
    }),
    (gauge("ringforge_peer_heard_seconds", "How long ago it last said something."), |peer| {
        peer.heard.elapsed().as_secs_f64()
    }),
];

/// Of those that were called.
const CALLS: [Number<Health>; 5] = [
    (
        gauge(
            "ringforge_peer_breaker_state",
            "The circuit breaker of reads of its blobs, as that of a tier.",
        ),
        |peer| breaker_state(peer.breaker),
    ),
    (gauge("ringforge_peer_in_flight", "Reads of its blobs that are in flight."), |peer| {
        peer.in_flight as f64
    }),
    (
        counter("ringforge_peer_calls_total", "Questions about its blobs, refused ones too."),
        |peer| peer.calls as f64,
    ),
    (
        counter(
            "ringforge_peer_outages_total",
            "Attempts that found it unreachable, too slow or busy.",
        ),
        |peer| peer.outages as f64,
    ),
    (counter("ringforge_peer_received_bytes_total", "Bytes of blobs received from it."), |peer| {
        peer.bytes_in as f64
    }),
];

fn of_state(peer: &Peer, number: impl Fn(&proto::node::NodeState) -> f64) -> f64 {
    peer.state.as_deref().map_or(0.0, number)
}

/// The cluster as this node knows it.
pub(super) struct WatchedCluster(pub(super) Arc<Peering>);

impl WatchedCluster {
    fn write(&self, page: &mut Page) {
        let peers = self.0.peers();
        let snapshot = peers.snapshot();
        write_states(page, &snapshot);
        page.set(&MAX, &[], NODES_MAX as f64);
        page.set_all(&COUNTERS, peers.counters(), &[]);
        for (name, peer) in &snapshot.peers {
            page.set_all(&PEER, peer, &[("peer", name)]);
        }
        for (name, health) in self.0.healths() {
            if snapshot.peers.contains_key(&name) {
                page.set_all(&CALLS, &health, &[("peer", &name)]);
            }
        }
    }
}

fn write_states(page: &mut Page, snapshot: &Snapshot) {
    let count = |is: fn(&Peer) -> bool| snapshot.peers.values().filter(|peer| is(peer)).count();
    let is_draining = |peer: &Peer| peer.state.as_ref().is_some_and(|state| state.draining);
    let (silent, draining) = (count(|peer| peer.state.is_none()), count(is_draining));
    let serving = snapshot.peers.len() - silent - draining;
    for (state, count) in [("serving", serving), ("draining", draining), ("silent", silent)] {
        page.set(&NODES, &[("state", state)], count as f64);
    }
}

impl Collector for WatchedCluster {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        self.write(page);
        Box::pin(ready(()))
    }
}
