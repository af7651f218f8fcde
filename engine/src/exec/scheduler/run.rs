//! The books of the scheduler: what an operation waits for, and where that stands.
//!
//! Must never hold a rule about what happens next: that is the scheduler's.

use super::{
    Scheduler,
    event::{ActionKey, ExecutionStage, OperationId, PeerId, RunId},
    queue::{Arrival, Offer, Place},
};
use std::{collections::BTreeSet, time::Duration};

/// What a new operation asks for.
pub(super) struct Wanted {
    pub(super) action: ActionKey,
    pub(super) priority: i32,
    pub(super) joinable: bool,
    pub(super) locality: u64,
    pub(super) forwarded: bool,
}

/// A live operation.
pub(super) struct Operation {
    pub(super) run: Arrival,
    pub(super) priority: i32,
    pub(super) unheard_since: Option<Duration>,
}

/// Where a run is. With a worker or at a peer it has an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In the queue, or on its way into it.
    Waiting,
    /// With a worker of this node.
    Here(RunId),
    /// Given to a peer.
    Away(RunId),
}

impl Whereabouts {
    pub(super) fn attempt(self) -> Option<RunId> {
        match self {
            Self::Waiting => None,
            Self::Here(run) | Self::Away(run) => Some(run),
        }
    }
}

/// What one or more operations wait for.
pub(super) struct Run {
    pub(super) arrival: Arrival,
    pub(super) action: ActionKey,
    pub(super) joinable: bool,
    /// Which peers are likely to have its inputs.
    pub(super) locality: u64,
    /// Most urgent first; empty only while it is made or unmade.
    pub(super) operations: BTreeSet<(i32, OperationId)>,
    pub(super) stage: ExecutionStage,
    pub(super) whereabouts: Whereabouts,
    pub(super) returns: u32,
    /// It is never given to a peer: once it has been asked for by one, for good. Two nodes that
    /// each wait for the other's run would wait for ever.
    pub(super) stays: bool,
    /// The peer that failed it last.
    pub(super) failed_at: Option<PeerId>,
}

impl Run {
    /// Where it stands in the queue, which its most urgent operation decides.
    pub(super) fn place(&self) -> Option<Place> {
        let &(priority, _) = self.operations.first()?;
        let waits = self.whereabouts == Whereabouts::Waiting;
        waits.then_some(Place { priority, arrival: self.arrival })
    }

    /// To whom it may be given while it waits.
    pub(super) fn offer(&self) -> Offer {
        match self.failed_at {
            _ if self.stays => Offer::Nobody,
            Some(peer) => Offer::NotTo(peer),
            None => Offer::Anybody,
        }
    }
}

impl Scheduler {
    /// The attempt that an operation waits for, where a worker or a peer has one.
    pub(crate) fn attempt(&self, operation: OperationId) -> Option<RunId> {
        let run = self.operations.get(&operation)?.run;
        self.runs.get(&run)?.whereabouts.attempt()
    }

    pub(super) fn open_run(&mut self, wanted: &Wanted) -> Arrival {
        self.arrivals += 1;
        let arrival = Arrival(self.arrivals);
        let run = Run {
            arrival,
            action: wanted.action,
            joinable: wanted.joinable,
            locality: wanted.locality,
            operations: BTreeSet::new(),
            stage: ExecutionStage::Queued,
            whereabouts: Whereabouts::Waiting,
            returns: 0,
            stays: false,
            failed_at: None,
        };
        self.runs.insert(arrival, run);
        self.list(arrival);
        arrival
    }

    /// Takes a run out of the books: it can't be joined or found any more.
    pub(super) fn close_run(&mut self, arrival: Arrival) -> Run {
        self.leave_queue(arrival);
        self.unlist(arrival);
        self.runs.remove(&arrival).expect("a run is closed once")
    }

    /// Lets others join a run, by where it is.
    pub(super) fn list(&mut self, arrival: Arrival) {
        let run = &self.runs[&arrival];
        match run.whereabouts {
            _ if !run.joinable => None,
            Whereabouts::Away(_) => self.joinable_away.insert(run.action, arrival),
            _ => self.joinable.insert(run.action, arrival),
        };
    }

    /// Undoes [`Scheduler::list`]; to be called before the run moves.
    pub(super) fn unlist(&mut self, arrival: Arrival) {
        let run = &self.runs[&arrival];
        let listed = match run.whereabouts {
            Whereabouts::Away(_) => &mut self.joinable_away,
            _ => &mut self.joinable,
        };
        if listed.get(&run.action) == Some(&arrival) {
            listed.remove(&run.action);
        }
    }

    pub(super) fn enter_queue(&mut self, arrival: Arrival) {
        let run = &self.runs[&arrival];
        if let Some(place) = run.place() {
            self.queue.insert(place, run.offer());
        }
    }

    /// Undoes [`Scheduler::enter_queue`]; to be called before the run changes.
    pub(super) fn leave_queue(&mut self, arrival: Arrival) {
        let run = &self.runs[&arrival];
        if let Some(place) = run.place() {
            self.queue.remove(place, run.offer());
        }
    }
}
