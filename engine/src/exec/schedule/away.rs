//! The schedule's way to its peers: who there is, what is given to them, how busy this node is.
//! Must never choose a peer: the scheduler does.

use super::{Attempt, Cancel, Schedule};
use crate::{
    digest::{Digest, HASH_BYTES},
    exec::{
        errand::{Errand, Load, PeerCapacity},
        handle::Request,
        scheduler::event::{Event, OperationId, PeerId, PeerLoad, RunId},
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};

/// The peers, and the way to them.
pub(in crate::exec) struct Away {
    errands: async_channel::Sender<Errand>,
    /// Through which errands report.
    reports: async_channel::Sender<Request>,
    publish: watch::Sender<Load>,
    names: BTreeMap<PeerId, Arc<str>>,
    /// When it was last said of a peer that it takes nothing; only of peers that are known.
    pub(super) said: BTreeMap<PeerId, Duration>,
}

/// How long it stands for all that follow that a peer is said to take nothing.
const SAY_EVERY: Duration = Duration::from_secs(60);

impl Away {
    pub(in crate::exec) fn new(
        errands: async_channel::Sender<Errand>,
        reports: async_channel::Sender<Request>,
        publish: watch::Sender<Load>,
    ) -> Self {
        Self { errands, reports, publish, names: BTreeMap::new(), said: BTreeMap::new() }
    }
}

impl Away {
    /// Whether it is to be said that a peer takes nothing: once for each peer and time.
    pub(super) fn is_news(&mut self, peer: &str, now: Duration) -> bool {
        let id = peer_id(peer);
        let said = self.said.get(&id).is_some_and(|&at| now.saturating_sub(at) < SAY_EVERY);
        if !said && self.names.contains_key(&id) {
            self.said.insert(id, now);
        }
        !said
    }
}

impl Schedule {
    /// What is known of peers; the errands to those that are gone end with them.
    pub(super) fn peers(&mut self, peers: Vec<PeerCapacity>) {
        self.away.names =
            peers.iter().map(|peer| (peer_id(&peer.node_id), peer.node_id.clone())).collect();
        let names = &self.away.names;
        self.away.said.retain(|peer, _| names.contains_key(peer));
        self.attempts
            .retain(|_, one| one.peer().is_none_or(|name| names.contains_key(&peer_id(name))));
        let load = |peer: PeerCapacity| PeerLoad {
            peer: peer_id(&peer.node_id),
            slots: peer.slots,
            running: peer.running,
            queued: peer.queued,
            draining: peer.draining,
            fits: peer.fits,
        };
        self.handle(Event::Peers { peers: peers.into_iter().map(load).collect() }, None);
    }

    pub(super) fn publish_load(&self) {
        let counts = self.scheduler.snapshot();
        let load = Load {
            slots: if self.is_full() { 0 } else { self.slots },
            running: counts.executing,
            queued: counts.queued,
            away: counts.away,
            draining: counts.draining,
        };
        self.away.publish.send_if_modified(|known| std::mem::replace(known, load) != load);
    }

    pub(super) fn send(&mut self, run: RunId, operation: OperationId, peer: PeerId) {
        let held = self.operations.get(&operation);
        let prepared = held.and_then(|held| Some((held.prepared.clone()?, held.priority)));
        let name = self.away.names.get(&peer).cloned();
        if let (Some((prepared, priority)), Some(peer)) = (prepared, name) {
            let (cancel, unwanted) = oneshot::channel();
            let requests = self.away.reports.clone();
            let errand = Errand { peer: peer.clone(), prepared, priority, run, requests, unwanted };
            if self.away.errands.try_send(errand).is_ok() {
                let cancel = Cancel::Peer { name: peer, _unwanted: cancel };
                self.attempts.insert(run, Attempt::new(cancel));
                return;
            }
        }
        // Nobody takes it: it stays.
        self.pending.push_back((Event::Declined { run }, None));
    }
}

/// What a peer is called by all nodes alike.
fn peer_id(node_id: &str) -> PeerId {
    PeerId(front(Digest::of(node_id.as_bytes()).hash()))
}

/// The first of a hash, as a number.
pub(super) fn front(hash: &[u8; HASH_BYTES]) -> u64 {
    hash.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}
