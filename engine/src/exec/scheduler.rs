//! Which action runs when, and how every Execute call ends: a pure state machine, an [`Event`]
//! in, [`Effect`]s out.
//!
//! Must never read a clock, wait, draw a random number, or decide by the order of a hash table:
//! the same events at the same times give the same effects. Must never hold a result.
//!
//! ```text
//! Submit --> joins a run of the same action | opens one
//!                                                |
//!     Returned, Declined, Unreached: again       v
//!   worker, peer ----------------------------> queue
//!     ^  |                                       |
//!     |  Finished, or too often Returned         | a slot is free, or else a peer has room
//!     |  v                                       v
//!     |  Complete | Fail --> Forget          Run | Send
//!     +------------------------------------------+
//! ```
//!
//! Invariants: an accepted operation ends exactly once, by `Complete` or `Fail`, and is later
//! forgotten exactly once. A slot is free only while nothing waits. A run whose
//! operations have all ended is not in `runs`; it may hold its slot in `running`, or its place at
//! a peer in `away`, until that lets go. What waits and what may come back from peers is within
//! `queue_max`, until the node stops: nothing waits then. What a peer asked for is never given to
//! a peer.

pub(crate) mod event;
mod offload;
mod peers;
mod queue;
mod run;

use event::{
    ActionKey, Effect, Event, ExecutionStage, FailReason, OperationId, RefuseReason, RunId,
};
use offload::AwayRuns;
use peers::Peers;
use queue::{Arrival, Place, Queue};
use run::{Operation, Run, Wanted, Whereabouts};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How often workers and peers may hand a run back before its operations fail. An action that
/// takes its workers down with it must not go round for ever.
pub(crate) const RETURNS_MAX: u32 = 3;

/// Bounds and times of the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Runs that may be with workers at the same time.
    pub(crate) slots: usize,
    /// Runs that a peer may make wait here for a slot, beside the ones that are busy: enough that
    /// no worker waits for the network between two small actions.
    pub(crate) accept_ahead: usize,
    /// Runs that may wait for a slot or be at peers; beyond it new ones are refused.
    pub(crate) queue_max: usize,
    /// Operations that may be live, joined ones included; beyond it new ones are refused. Also
    /// runs that may be at peers.
    pub(crate) operations_max: usize,
    /// How long an operation may be without listeners before it is given up.
    pub(crate) abandon_after: Duration,
    /// How long an ended operation is remembered.
    pub(crate) kept: Duration,
    /// Ended operations remembered; beyond it the oldest is forgotten at once.
    pub(crate) kept_max: usize,
}

/// Counts for metrics and for deciding when a stop is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Runs that may execute at the same time.
    pub slots: usize,
    /// Runs that may wait for a slot.
    pub queue_max: usize,
    /// Runs that wait for a slot.
    pub queued: usize,
    /// Slots that are taken, by runs that are being killed too.
    pub executing: usize,
    /// Runs at peers, those that are being killed too.
    pub away: usize,
    /// Operations that have not ended.
    pub operations: usize,
    /// Ended operations that are remembered.
    pub kept: usize,
    /// Whether the node stops.
    pub draining: bool,
    /// Operations that joined the run of another since the start.
    pub joined: u64,
    /// What has passed between this node and its peers.
    pub offload: Counters,
}

/// What has passed between this node and its peers since it started; these only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Runs given to peers, each time counted.
    pub sent: u64,
    /// Runs taken back from peers that failed, drained or were gone.
    pub taken_back: u64,
    /// Runs for which a peer had no room.
    pub declined: u64,
    /// Runs that no peer was told of, because it could not be asked or takes nothing from here.
    pub unreached: u64,
    /// Operations accepted from peers.
    pub received: u64,
}

/// The state machine. See the drawing above.
pub(crate) struct Scheduler {
    config: Config,
    draining: bool,
    arrivals: u64,
    attempts: u64,
    operations: BTreeMap<OperationId, Operation>,
    runs: BTreeMap<Arrival, Run>,
    /// The run on this node that others of the same action join.
    joinable: BTreeMap<ActionKey, Arrival>,
    /// The run at a peer that others of the same action join, unless a peer asks for them.
    joinable_away: BTreeMap<ActionKey, Arrival>,
    queue: Queue,
    /// Slots that are taken; `None` where the run is being killed and nobody waits for it.
    running: BTreeMap<RunId, Option<Arrival>>,
    away: AwayRuns,
    peers: Peers,
    joined: u64,
    counters: Counters,
    /// Ended operations and when they ended, oldest first.
    ended: VecDeque<(Duration, OperationId)>,
    /// Gathered while an event is handled, empty between events.
    effects: Vec<Effect>,
}

impl Scheduler {
    /// A scheduler that has seen nothing.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            draining: false,
            arrivals: 0,
            attempts: 0,
            operations: BTreeMap::new(),
            runs: BTreeMap::new(),
            joinable: BTreeMap::new(),
            joinable_away: BTreeMap::new(),
            queue: Queue::default(),
            running: BTreeMap::new(),
            away: AwayRuns::default(),
            peers: Peers::default(),
            joined: 0,
            counters: Counters::default(),
            ended: VecDeque::new(),
            effects: Vec::new(),
        }
    }

    /// What follows from an event. `now` is monotonic, from any origin.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.peers.pass(now);
        match event {
            Event::Submit { operation, action, priority, joinable, locality, forwarded } => {
                self.submit(operation, Wanted { action, priority, joinable, locality, forwarded });
            }
            Event::Stage { run, stage } => self.stage(run, stage),
            Event::Finished { run } => self.finished(run, now),
            Event::Returned { run } => self.returned(run, now),
            Event::Declined { run } => self.declined(run, now),
            Event::Unreached { run } => self.unreached(run, now),
            Event::Peers { peers } => self.peers(&peers, now),
            Event::PeerGone { peer } => self.peer_gone(peer, now),
            Event::Cancel { operation } => self.cancel(operation, now),
            Event::Listeners { operation, count } => self.listeners(operation, count, now),
            Event::Tick => self.tick(now),
            Event::Drain => self.draining = true,
        }
        self.place_waiting(now);
        std::mem::take(&mut self.effects)
    }

    /// Counts at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            slots: self.config.slots,
            queue_max: self.config.queue_max,
            queued: self.queue.len(),
            executing: self.running.len(),
            away: self.away.len(),
            operations: self.operations.len(),
            kept: self.ended.len(),
            draining: self.draining,
            joined: self.joined,
            offload: self.counters,
        }
    }

    /// Whether no operation is live, no worker is busy and no peer holds anything of this node;
    /// ended operations may still be remembered.
    pub(crate) fn is_idle(&self) -> bool {
        self.operations.is_empty() && self.running.is_empty() && self.away.is_empty()
    }

    fn submit(&mut self, operation: OperationId, wanted: Wanted) {
        if self.operations.contains_key(&operation) {
            return;
        }
        let joined = self.joined(&wanted);
        if let Some(reason) = self.refusal(joined.is_some(), wanted.forwarded) {
            self.effects.push(Effect::Refuse { operation, reason });
            return;
        }
        self.counters.received += u64::from(wanted.forwarded);
        self.joined += u64::from(joined.is_some());
        let priority = wanted.priority;
        let arrival = joined.unwrap_or_else(|| self.open_run(&wanted));
        self.operations
            .insert(operation, Operation { run: arrival, priority, unheard_since: None });
        self.leave_queue(arrival);
        let run = self.runs.get_mut(&arrival).expect("was just found or opened");
        run.operations.insert((priority, operation));
        run.stays |= wanted.forwarded;
        self.effects.push(Effect::Publish { operation, stage: run.stage });
        self.enter_queue(arrival);
    }

    /// The run that a new operation shares. What a peer asks for never waits for another peer:
    /// that one may be waiting for this node.
    fn joined(&self, wanted: &Wanted) -> Option<Arrival> {
        let here = self.joinable.get(&wanted.action).filter(|_| wanted.joinable);
        let away = self.joinable_away.get(&wanted.action);
        here.or(away.filter(|_| wanted.joinable && !wanted.forwarded)).copied()
    }

    /// Why a new operation is not accepted, if so.
    fn refusal(&self, joins: bool, forwarded: bool) -> Option<RefuseReason> {
        if self.draining {
            return Some(RefuseReason::Draining);
        }
        let Config { slots, accept_ahead, queue_max, operations_max, .. } = self.config;
        let waits = !joins && self.running.len() >= slots;
        let ahead = self.running.len() + self.queue.len();
        let full = self.operations.len() >= operations_max
            || (waits && self.queue.len() + self.away.wanted() >= queue_max)
            || (waits && forwarded && ahead >= slots.saturating_add(accept_ahead));
        full.then_some(RefuseReason::Overloaded)
    }

    fn stage(&mut self, attempt: RunId, stage: ExecutionStage) {
        let arrival = if let Some(away) = self.away.get(attempt) {
            self.peers.show_work(away.peer);
            away.run
        } else {
            self.running.get(&attempt).copied().flatten()
        };
        if let Some(arrival) = arrival {
            self.publish(arrival, stage);
        }
    }

    /// Tells all operations of a run its stage, if that is not what they know.
    fn publish(&mut self, arrival: Arrival, stage: ExecutionStage) {
        let run = self.runs.get_mut(&arrival).expect("a run that is not killed is in the books");
        if run.stage == stage {
            return;
        }
        run.stage = stage;
        let operations = run.operations.iter();
        self.effects.extend(operations.map(|&(_, operation)| Effect::Publish { operation, stage }));
    }

    fn finished(&mut self, attempt: RunId, now: Duration) {
        let arrival = if let Some(away) = self.away.remove(attempt) {
            self.peers.finish(away.peer, attempt);
            away.run
        } else {
            self.running.remove(&attempt).flatten()
        };
        let Some(arrival) = arrival else { return };
        for (_, operation) in self.close_run(arrival).operations {
            self.end(operation, Effect::Complete { operation }, now);
        }
    }

    fn fail_run(&mut self, arrival: Arrival, reason: FailReason, now: Duration) {
        for (_, operation) in self.close_run(arrival).operations {
            self.end(operation, Effect::Fail { operation, reason }, now);
        }
    }

    fn cancel(&mut self, operation: OperationId, now: Duration) {
        let Some(&Operation { run: arrival, priority, .. }) = self.operations.get(&operation)
        else {
            return;
        };
        self.leave_queue(arrival);
        let run = self.runs.get_mut(&arrival).expect("a live operation has a run");
        run.operations.remove(&(priority, operation));
        let unwanted = run.operations.is_empty();
        self.enter_queue(arrival);
        if unwanted {
            self.kill(arrival);
        }
        self.end(operation, Effect::Fail { operation, reason: FailReason::Cancelled }, now);
    }

    /// Nobody waits for a run any more.
    fn kill(&mut self, arrival: Arrival) {
        let whereabouts = self.close_run(arrival).whereabouts;
        match whereabouts {
            Whereabouts::Waiting => return,
            Whereabouts::Here(run) => _ = self.running.insert(run, None),
            Whereabouts::Away(run) => self.away.disown(run),
        }
        self.effects.extend(whereabouts.attempt().map(|run| Effect::Kill { run }));
    }

    /// The only place where an operation ends.
    fn end(&mut self, operation: OperationId, effect: Effect, now: Duration) {
        self.operations.remove(&operation).expect("an operation ends once");
        self.effects.push(effect);
        self.ended.push_back((now, operation));
        if self.ended.len() > self.config.kept_max {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, operation)) = self.ended.pop_front() {
            self.effects.push(Effect::Forget { operation });
        }
    }

    fn listeners(&mut self, operation: OperationId, count: usize, now: Duration) {
        if let Some(operation) = self.operations.get_mut(&operation) {
            let since = operation.unheard_since.unwrap_or(now);
            operation.unheard_since = (count == 0).then_some(since);
        }
    }

    fn tick(&mut self, now: Duration) {
        let live = self.operations.iter();
        let abandoned: Vec<_> = live
            .filter(|(_, operation)| self.is_abandoned(operation, now))
            .map(|(&id, _)| id)
            .collect();
        for operation in abandoned {
            self.cancel(operation, now);
        }
        while let Some(&(at, _)) = self.ended.front()
            && now.saturating_sub(at) >= self.config.kept
        {
            self.forget_oldest();
        }
    }

    /// Whether nobody has listened for too long. A run that has begun goes on where its result
    /// can be cached: most of its price is paid, and the client that lost its connection comes
    /// back for it.
    fn is_abandoned(&self, operation: &Operation, now: Duration) -> bool {
        let Some(since) = operation.unheard_since else { return false };
        let goes_on = self
            .runs
            .get(&operation.run)
            .is_some_and(|run| run.joinable && run.whereabouts.attempt().is_some());
        !goes_on && now.saturating_sub(since) >= self.config.abandon_after
    }

    /// Sees to what waits. On a node that stops, what no peer takes ends.
    fn place_waiting(&mut self, now: Duration) {
        if self.draining {
            self.give_away();
            while let Some(Place { arrival, .. }) = self.queue.first() {
                self.fail_run(arrival, FailReason::Draining, now);
            }
        } else {
            self.fill_slots();
            if !self.queue.is_empty() {
                self.give_away();
            }
        }
    }

    /// Starts what waits while a slot is free: at most one of the two is left after any event.
    fn fill_slots(&mut self) {
        while self.running.len() < self.config.slots {
            let Some(Place { arrival, .. }) = self.queue.first() else { return };
            self.leave_queue(arrival);
            let waiting = self.runs.get_mut(&arrival).expect("what is queued is in the books");
            let &(_, operation) =
                waiting.operations.first().expect("what is queued has an operation");
            self.attempts += 1;
            let run = RunId(self.attempts);
            waiting.whereabouts = Whereabouts::Here(run);
            self.running.insert(run, Some(arrival));
            self.effects.push(Effect::Run { run, operation, action: waiting.action });
        }
    }
}

#[cfg(test)]
mod tests;
