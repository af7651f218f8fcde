//! What a busy node gives to its peers, and what it takes back.
//!
//! Must never give away what could start here, nor anything that a peer has given to this node.
//!
//! No two nodes wait for each other: what a peer asks for joins or becomes a run that stays here
//! ([`Run::stays`](super::run::Run::stays)), so that a run at a peer waits for a worker there and
//! for nothing else.

use super::{
    RETURNS_MAX, Scheduler,
    event::{Effect, ExecutionStage, FailReason, PeerId, PeerLoad, RunId},
    queue::{Arrival, Offer, Place},
    run::Whereabouts,
};
use std::{collections::BTreeMap, time::Duration};

/// A run at a peer.
pub(super) struct Away {
    pub(super) peer: PeerId,
    /// `None` where it is being killed and nobody waits for it.
    pub(super) run: Option<Arrival>,
}

/// Runs at peers.
#[derive(Default)]
pub(super) struct AwayRuns {
    runs: BTreeMap<RunId, Away>,
    unwanted: usize,
}

impl AwayRuns {
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many may come back into the queue.
    pub(super) fn wanted(&self) -> usize {
        self.runs.len() - self.unwanted
    }

    pub(super) fn get(&self, attempt: RunId) -> Option<&Away> {
        self.runs.get(&attempt)
    }

    fn insert(&mut self, attempt: RunId, peer: PeerId, run: Arrival) {
        self.runs.insert(attempt, Away { peer, run: Some(run) });
    }

    pub(super) fn remove(&mut self, attempt: RunId) -> Option<Away> {
        let away = self.runs.remove(&attempt)?;
        self.unwanted -= usize::from(away.run.is_none());
        Some(away)
    }

    /// Nobody waits for it any more; the peer has yet to let go of it.
    pub(super) fn disown(&mut self, attempt: RunId) {
        if let Some(away) = self.runs.get_mut(&attempt)
            && away.run.take().is_some()
        {
            self.unwanted += 1;
        }
    }
}

impl Scheduler {
    pub(super) fn peers(&mut self, loads: &[PeerLoad], now: Duration) {
        for attempt in self.peers.update(loads) {
            self.returned(attempt, now);
        }
    }

    pub(super) fn peer_gone(&mut self, peer: PeerId, now: Duration) {
        for attempt in self.peers.remove(peer) {
            self.returned(attempt, now);
        }
    }

    /// The peer had no room: nothing was tried, so that it counts for nothing.
    pub(super) fn declined(&mut self, attempt: RunId, now: Duration) {
        let Some(away) = self.away.remove(attempt) else { return };
        self.counters.declined += 1;
        self.peers.decline(away.peer, attempt, now);
        if let Some(arrival) = away.run {
            self.wait_again(arrival);
        }
    }

    /// The peer was not to be had: nothing was tried, so that it counts against the peer alone,
    /// which is avoided for a time; another one is asked first.
    pub(super) fn unreached(&mut self, attempt: RunId, now: Duration) {
        let Some(away) = self.away.remove(attempt) else { return };
        self.counters.unreached += 1;
        self.peers.avoid(away.peer, attempt, now);
        if let Some(arrival) = away.run {
            let run = self.runs.get_mut(&arrival);
            let run = run.expect("a run that is not killed is in the books");
            run.failed_at = Some(away.peer);
            self.wait_again(arrival);
        }
    }

    /// A worker or a peer failed a run.
    pub(super) fn returned(&mut self, attempt: RunId, now: Duration) {
        let (arrival, peer) = if let Some(away) = self.away.remove(attempt) {
            self.peers.fail(away.peer, attempt, now);
            (away.run, Some(away.peer))
        } else {
            (self.running.remove(&attempt).flatten(), None)
        };
        let Some(arrival) = arrival else { return };
        self.counters.taken_back += u64::from(peer.is_some());
        let run = self.runs.get_mut(&arrival).expect("a run that is not killed is in the books");
        run.returns += 1;
        run.failed_at = peer.or(run.failed_at);
        // The last attempt is made here, so that no peer alone can fail an action.
        run.stays |= run.returns >= RETURNS_MAX && self.config.slots > 0;
        if run.returns > RETURNS_MAX {
            self.fail_run(arrival, FailReason::WorkerFailed, now);
        } else {
            self.wait_again(arrival);
        }
    }

    /// Puts a run back into the queue, first among equals by its arrival; or, where peers have
    /// asked for the same action meanwhile, into the run that was opened for them.
    ///
    /// The bound of the queue holds: a run here has freed its slot, for it or for what is more
    /// urgent, and a run at a peer has kept its place all the time.
    fn wait_again(&mut self, arrival: Arrival) {
        self.unlist(arrival);
        let run = self.runs.get_mut(&arrival).expect("a run that is not killed is in the books");
        run.whereabouts = Whereabouts::Waiting;
        let (joinable, action) = (run.joinable, run.action);
        if joinable && let Some(&other) = self.joinable.get(&action) {
            self.merge(arrival, other);
            return;
        }
        self.list(arrival);
        self.enter_queue(arrival);
        self.publish(arrival, ExecutionStage::Queued);
    }

    /// All who wait for one run wait for another from here on.
    fn merge(&mut self, from: Arrival, into: Arrival) {
        let from = self.close_run(from);
        self.leave_queue(into);
        let run = self.runs.get_mut(&into).expect("what is joinable is in the books");
        run.returns = run.returns.max(from.returns);
        let stage = run.stage;
        for (priority, operation) in from.operations {
            run.operations.insert((priority, operation));
            let held = self.operations.get_mut(&operation).expect("it waits, so it is live");
            held.run = into;
            if stage != from.stage {
                self.effects.push(Effect::Publish { operation, stage });
            }
        }
        self.enter_queue(into);
    }

    /// Gives to peers what waits, most urgent first, as long as one has room. Only to be called
    /// while nothing that waits can start here.
    pub(super) fn give_away(&mut self) {
        // What is being killed counts: it is at the peer until the peer says otherwise.
        while self.peers.have_room() && self.away.len() < self.config.operations_max {
            let Some((arrival, peer)) = self.next_to_give() else { return };
            self.leave_queue(arrival);
            self.unlist(arrival);
            self.attempts += 1;
            let attempt = RunId(self.attempts);
            let run = self.runs.get_mut(&arrival).expect("what is queued is in the books");
            let &(_, operation) = run.operations.first().expect("what is queued has an operation");
            run.whereabouts = Whereabouts::Away(attempt);
            let action = run.action;
            self.list(arrival);
            self.away.insert(attempt, peer, arrival);
            self.peers.give(peer, attempt);
            self.counters.sent += 1;
            self.effects.push(Effect::Send { run: attempt, operation, action, peer });
        }
    }

    fn next_to_give(&self) -> Option<(Arrival, PeerId)> {
        self.queue.offered().into_iter().find_map(|(Place { arrival, .. }, offer)| {
            let not = match offer {
                Offer::NotTo(peer) => Some(peer),
                Offer::Anybody | Offer::Nobody => None,
            };
            let peer = self.peers.choose(self.runs[&arrival].locality, not)?;
            Some((arrival, peer))
        })
    }
}
