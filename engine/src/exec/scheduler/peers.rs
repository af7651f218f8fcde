//! What is known of the peers, how much may be given to each, and which one is asked first.
//!
//! Must never read a clock or draw a random number: chance is a hash of what is sent.
//!
//! Gossip is slow beside small actions, so that it only says how much of a peer *others* use.
//! What this node has there it counts itself: what ends makes room at once.

use super::event::{PeerId, PeerLoad, RunId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Peers that are known; beyond it those with the highest ids are taken for gone.
pub(crate) const PEERS_MAX: usize = 1000;

/// How long a peer that had no room, or that failed, is given no more than it holds, unless it
/// is heard of before.
pub(crate) const COOL_DOWN: Duration = Duration::from_millis(50);

/// How long a peer that could not be asked is avoided, whatever is heard of it: gossip may reach
/// it where calls do not. Each time twice as long as before, until it answers.
pub(crate) const AVOID_FIRST: Duration = Duration::from_millis(250);

/// At most.
pub(crate) const AVOID_MAX: Duration = Duration::from_secs(16);

/// One peer.
struct Peer {
    load: PeerLoad,
    /// What this node has there, what is being killed too.
    ours: BTreeSet<RunId>,
    /// What others have there, by the last that was heard.
    others: u64,
    /// It is given less for a time.
    lowered: Option<Lowered>,
    /// It failed, and has shown no sign of work since.
    failed: bool,
    /// How often it was avoided since it last answered.
    avoided: u32,
}

/// What a peer is given meanwhile.
#[derive(Clone, Copy)]
struct Lowered {
    /// No more than so many of ours.
    limit: usize,
    until: Duration,
    /// News of it do not end this.
    firm: bool,
}

impl Peer {
    /// How many of ours it may hold. By the same rule as it accepts: what waits may be as much
    /// as what runs, so that no worker waits for the network. At least one, to find out.
    fn limit(&self) -> usize {
        let room = (2 * u64::from(self.load.slots)).saturating_sub(self.others).max(1);
        let room = if self.failed { 1 } else { usize::try_from(room).unwrap_or(usize::MAX) };
        self.lowered.map_or(room, |lowered| room.min(lowered.limit))
    }

    /// It has shown that it works.
    const fn answers(&mut self) {
        self.failed = false;
        self.avoided = 0;
    }

    /// Whether it would take anything if it had room.
    fn is_open(&self) -> bool {
        self.load.slots > 0 && self.load.fits && !self.load.draining
    }

    fn is_avoided(&self) -> bool {
        matches!(self.lowered, Some(Lowered { firm: true, .. }))
    }

    fn has_room(&self) -> bool {
        self.is_open() && self.ours.len() < self.limit()
    }

    fn used(&self) -> u64 {
        self.others + self.ours.len() as u64
    }

    fn has_free_slot(&self) -> bool {
        self.used() < u64::from(self.load.slots)
    }

    /// Whether less of its slots is used than of another's.
    fn is_freer_than(&self, other: &Self) -> bool {
        let (used, slots) = (u128::from(self.used()), u128::from(self.load.slots));
        let (other_used, other_slots) = (u128::from(other.used()), u128::from(other.load.slots));
        used * other_slots < other_used * slots
    }
}

/// All peers.
#[derive(Default)]
pub(super) struct Peers {
    peers: BTreeMap<PeerId, Peer>,
    /// Those with room that seem to have a free slot.
    free: BTreeSet<PeerId>,
    /// Those with room to wait in.
    busy: BTreeSet<PeerId>,
    /// When what was lowered ends.
    cooling: BTreeSet<(Duration, PeerId)>,
}

impl Peers {
    /// Takes the latest gossip; the runs that were with peers it does not name.
    pub(super) fn update(&mut self, loads: &[PeerLoad]) -> Vec<RunId> {
        let loads: BTreeMap<PeerId, PeerLoad> =
            loads.iter().map(|&load| (load.peer, load)).collect();
        let loads: BTreeMap<_, _> = loads.into_iter().take(PEERS_MAX).collect();
        let gone: Vec<PeerId> =
            self.peers.keys().copied().filter(|peer| !loads.contains_key(peer)).collect();
        let orphans = gone.into_iter().flat_map(|peer| self.remove(peer)).collect();
        for (id, load) in loads {
            let peer = self.peers.entry(id).or_insert_with(|| Peer {
                load,
                ours: BTreeSet::new(),
                others: 0,
                lowered: None,
                failed: false,
                avoided: 0,
            });
            peer.load = load;
            let used = u64::from(load.running) + u64::from(load.queued);
            peer.others = used.saturating_sub(peer.ours.len() as u64);
            match peer.is_avoided() {
                true => self.sort(id),
                false => self.restore(id),
            }
        }
        orphans
    }

    /// Forgets a peer; the runs that were with it.
    pub(super) fn remove(&mut self, id: PeerId) -> BTreeSet<RunId> {
        self.restore(id);
        let gone = self.peers.remove(&id);
        self.sort(id);
        gone.map(|peer| peer.ours).unwrap_or_default()
    }

    /// Ends what was lowered for a time that has passed.
    pub(super) fn pass(&mut self, now: Duration) {
        while let Some(&(until, id)) = self.cooling.first()
            && until <= now
        {
            self.restore(id);
        }
    }

    /// Whether anything can be given to anybody.
    pub(super) fn have_room(&self) -> bool {
        !self.free.is_empty() || !self.busy.is_empty()
    }

    /// The peer to ask: one with a free slot, the likeliest to have the inputs. If there is none,
    /// of the two that are the likeliest the one with less to do.
    ///
    /// Every node ranks the peers alike, so that the same inputs, and the same actions, meet.
    pub(super) fn choose(&self, locality: u64, not: Option<PeerId>) -> Option<PeerId> {
        let excluded = not.filter(|&peer| !self.is_only(peer));
        let allowed = |ids: &BTreeSet<PeerId>| {
            let allowed = ids.iter().copied().filter(|&id| Some(id) != excluded);
            two_best(allowed.map(|id| (rank(locality, id), id)))
        };
        if let (Some(best), _) = allowed(&self.free) {
            return Some(best);
        }
        match allowed(&self.busy) {
            (Some(best), Some(other)) if self.peers[&other].is_freer_than(&self.peers[&best]) => {
                Some(other)
            }
            (best, _) => best,
        }
    }

    /// Whether no other peer would take anything, now or soon.
    fn is_only(&self, id: PeerId) -> bool {
        self.peers.iter().all(|(&other, peer)| other == id || !peer.is_open() || peer.is_avoided())
    }

    /// A run is given to a peer.
    pub(super) fn give(&mut self, id: PeerId, run: RunId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.ours.insert(run);
            self.sort(id);
        }
    }

    /// A run has ended at a peer, whatever the result.
    pub(super) fn finish(&mut self, id: PeerId, run: RunId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.ours.remove(&run);
            peer.answers();
            self.sort(id);
        }
    }

    /// A peer says something of what it was given.
    pub(super) fn show_work(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.answers();
            self.sort(id);
        }
    }

    /// A peer had no room: it is given no more than what it holds, for a while.
    pub(super) fn decline(&mut self, id: PeerId, run: RunId, now: Duration) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.ours.remove(&run);
        peer.answers();
        let limit = peer.ours.len();
        self.lower(id, limit, now);
    }

    /// A peer failed a run: it is given nothing for a while, then one at a time until it shows
    /// that it works.
    pub(super) fn fail(&mut self, id: PeerId, run: RunId, now: Duration) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.ours.remove(&run);
        peer.failed = true;
        self.lower(id, 0, now);
    }

    /// A peer could not be asked: it is given nothing for a time, then one to find out. Those
    /// that were sent together fail together: that is one time.
    pub(super) fn avoid(&mut self, id: PeerId, run: RunId, now: Duration) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.ours.remove(&run);
        peer.failed = true;
        if peer.is_avoided() {
            return self.sort(id);
        }
        let time = AVOID_FIRST.saturating_mul(1 << peer.avoided.min(16)).min(AVOID_MAX);
        peer.avoided += 1;
        self.lower_until(id, Lowered { limit: 0, until: now.saturating_add(time), firm: true });
    }

    fn lower(&mut self, id: PeerId, limit: usize, now: Duration) {
        let until = now.saturating_add(COOL_DOWN);
        self.lower_until(id, Lowered { limit, until, firm: false });
    }

    fn lower_until(&mut self, id: PeerId, lowered: Lowered) {
        self.restore(id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.lowered = Some(lowered);
            self.cooling.insert((lowered.until, id));
        }
        self.sort(id);
    }

    fn restore(&mut self, id: PeerId) {
        if let Some(lowered) = self.peers.get_mut(&id).and_then(|peer| peer.lowered.take()) {
            self.cooling.remove(&(lowered.until, id));
        }
        self.sort(id);
    }

    /// Puts a peer where it belongs.
    fn sort(&mut self, id: PeerId) {
        let room = self.peers.get(&id).filter(|peer| peer.has_room());
        let (free, busy) = match room {
            Some(peer) => (peer.has_free_slot(), !peer.has_free_slot()),
            None => (false, false),
        };
        for (set, belongs) in [(&mut self.free, free), (&mut self.busy, busy)] {
            if belongs {
                set.insert(id);
            } else {
                set.remove(&id);
            }
        }
    }
}

/// The two highest of those ranked, best first.
fn two_best(ranked: impl Iterator<Item = (u64, PeerId)>) -> (Option<PeerId>, Option<PeerId>) {
    let (mut best, mut second) = (None, None);
    for candidate in ranked {
        if best.is_none_or(|best| candidate > best) {
            (best, second) = (Some(candidate), best);
        } else if second.is_none_or(|second| candidate > second) {
            second = Some(candidate);
        }
    }
    (best.map(|(_, id)| id), second.map(|(_, id)| id))
}

/// How likely a peer is to have certain inputs (rendezvous hashing). The same on every node.
fn rank(locality: u64, PeerId(id): PeerId) -> u64 {
    mix(mix(locality) ^ id)
}

/// Spreads every bit over all bits (the finalizer of splitmix64).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
