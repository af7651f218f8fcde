//! Which action runs when, and how every Execute call ends: a pure state machine, an [`Event`]
//! in, [`Effect`]s out.
//!
//! Must never read a clock, wait, draw a random number, or decide by the order of a hash table:
//! the same events at the same times give the same effects. Must never hold a result.
//!
//! ```text
//! Submit --> joins a run of the same action | opens one
//!                                                |
//!              Returned: waits again             v
//!   worker ----------------------------------> queue
//!     ^  |                                       |
//!     |  Finished, or too often Returned         | a slot is free
//!     |  v                                       v
//!     |  Complete | Fail --> Forget             Run
//!     +------------------------------------------+
//! ```
//!
//! Invariants: an accepted operation ends exactly once, by `Complete` or `Fail`, and is later
//! forgotten exactly once. A slot is free only while nothing waits. A run whose
//! operations have all ended is not in `runs`; it may hold its slot in `running` until its worker
//! lets go.

pub(crate) mod event;

use event::{
    ActionKey, Effect, Event, ExecutionStage, FailReason, OperationId, RefuseReason, RunId,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How often a worker may hand a run back before its operations fail. An action that takes its
/// workers down with it must not go round for ever.
pub(crate) const RETURNS_MAX: u32 = 3;

/// Bounds and times of the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Runs that may be with workers at the same time.
    pub(crate) slots: usize,
    /// Runs that may wait for a slot; beyond it new ones are refused.
    pub(crate) queue_max: usize,
    /// Operations that may be live, joined ones included; beyond it new ones are refused.
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
pub(crate) struct Snapshot {
    /// Runs that wait for a slot.
    pub(crate) queued: usize,
    /// Slots that are taken, by runs that are being killed too.
    pub(crate) executing: usize,
    /// Operations that have not ended.
    pub(crate) operations: usize,
    /// Ended operations that are remembered.
    pub(crate) kept: usize,
    /// Whether the node stops.
    pub(crate) draining: bool,
}

/// The state machine. See the drawing above.
pub(crate) struct Scheduler {
    config: Config,
    draining: bool,
    arrivals: u64,
    attempts: u64,
    operations: BTreeMap<OperationId, Operation>,
    runs: BTreeMap<Arrival, Run>,
    /// The run that others of the same action join.
    joinable: BTreeMap<ActionKey, Arrival>,
    queue: BTreeSet<Place>,
    /// Slots that are taken; `None` where the run is being killed and nobody waits for it.
    running: BTreeMap<RunId, Option<Arrival>>,
    /// Ended operations and when they ended, oldest first.
    ended: VecDeque<(Duration, OperationId)>,
    /// Gathered while an event is handled, empty between events.
    effects: Vec<Effect>,
}

/// A live operation.
struct Operation {
    run: Arrival,
    priority: i32,
    unheard_since: Option<Duration>,
}

/// What one or more operations wait for.
struct Run {
    arrival: Arrival,
    action: ActionKey,
    joinable: bool,
    /// Most urgent first; empty only while it is made or unmade.
    operations: BTreeSet<(i32, OperationId)>,
    stage: ExecutionStage,
    /// The worker's attempt; `None` while it waits for a slot.
    attempt: Option<RunId>,
    returns: u32,
}

/// The number of a run in order of arrival, which it keeps when it is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival(u64);

/// A place in the queue; the order of the fields is the order of the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: i32,
    arrival: Arrival,
}

impl Run {
    /// Where it stands in the queue, which its most urgent operation decides.
    fn place(&self) -> Option<Place> {
        let &(priority, _) = self.operations.first()?;
        self.attempt.is_none().then_some(Place { priority, arrival: self.arrival })
    }
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
            queue: BTreeSet::new(),
            running: BTreeMap::new(),
            ended: VecDeque::new(),
            effects: Vec::new(),
        }
    }

    /// What follows from an event. `now` is monotonic, from any origin.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        match event {
            Event::Submit { operation, action, priority, joinable } => {
                self.submit(operation, action, priority, joinable);
            }
            Event::Stage { run, stage } => self.stage(run, stage),
            Event::Finished { run } => self.finished(run, now),
            Event::Returned { run } => self.returned(run, now),
            Event::Cancel { operation } => self.cancel(operation, now),
            Event::Listeners { operation, count } => self.listeners(operation, count, now),
            Event::Tick => self.tick(now),
            Event::Drain => self.drain(now),
        }
        self.fill_slots();
        std::mem::take(&mut self.effects)
    }

    /// Counts at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            queued: self.queue.len(),
            executing: self.running.len(),
            operations: self.operations.len(),
            kept: self.ended.len(),
            draining: self.draining,
        }
    }

    /// Whether no operation is live and no worker is busy; ended ones may still be remembered.
    pub(crate) fn is_idle(&self) -> bool {
        self.operations.is_empty() && self.running.is_empty()
    }

    fn submit(&mut self, operation: OperationId, action: ActionKey, priority: i32, joinable: bool) {
        if self.operations.contains_key(&operation) {
            return;
        }
        let joined = self.joinable.get(&action).copied().filter(|_| joinable);
        if let Some(reason) = self.refusal(joined.is_some()) {
            self.effects.push(Effect::Refuse { operation, reason });
            return;
        }
        let arrival = joined.unwrap_or_else(|| self.open_run(action, joinable));
        self.operations
            .insert(operation, Operation { run: arrival, priority, unheard_since: None });
        let run = self.runs.get_mut(&arrival).expect("was just found or opened");
        let before = run.place();
        run.operations.insert((priority, operation));
        let after = run.place();
        self.effects.push(Effect::Publish { operation, stage: run.stage });
        self.move_in_queue(before, after);
    }

    /// Why a new operation is not accepted, if so.
    fn refusal(&self, joins: bool) -> Option<RefuseReason> {
        if self.draining {
            return Some(RefuseReason::Draining);
        }
        let waits = !joins && self.running.len() >= self.config.slots;
        let full = self.operations.len() >= self.config.operations_max
            || (waits && self.queue.len() >= self.config.queue_max);
        full.then_some(RefuseReason::Overloaded)
    }

    fn open_run(&mut self, action: ActionKey, joinable: bool) -> Arrival {
        self.arrivals += 1;
        let arrival = Arrival(self.arrivals);
        if joinable {
            self.joinable.insert(action, arrival);
        }
        let run = Run {
            arrival,
            action,
            joinable,
            operations: BTreeSet::new(),
            stage: ExecutionStage::Queued,
            attempt: None,
            returns: 0,
        };
        self.runs.insert(arrival, run);
        arrival
    }

    /// Takes a run out of the books: it can't be joined or found any more.
    fn close_run(&mut self, arrival: Arrival) -> Run {
        let run = self.runs.remove(&arrival).expect("a run is closed once");
        if run.joinable {
            self.joinable.remove(&run.action);
        }
        if let Some(place) = run.place() {
            self.queue.remove(&place);
        }
        run
    }

    fn move_in_queue(&mut self, before: Option<Place>, after: Option<Place>) {
        if let Some(place) = before {
            self.queue.remove(&place);
        }
        if let Some(place) = after {
            self.queue.insert(place);
        }
    }

    fn stage(&mut self, attempt: RunId, stage: ExecutionStage) {
        if let Some(arrival) = self.running.get(&attempt).copied().flatten() {
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
        let Some(arrival) = self.running.remove(&attempt).flatten() else { return };
        for (_, operation) in self.close_run(arrival).operations {
            self.end(operation, Effect::Complete { operation }, now);
        }
    }

    fn returned(&mut self, attempt: RunId, now: Duration) {
        let Some(arrival) = self.running.remove(&attempt).flatten() else { return };
        let run = self.runs.get_mut(&arrival).expect("a run that is not killed is in the books");
        run.attempt = None;
        run.returns += 1;
        if self.draining {
            self.fail_run(arrival, FailReason::Draining, now);
        } else if run.returns > RETURNS_MAX {
            self.fail_run(arrival, FailReason::WorkerFailed, now);
        } else {
            // With its arrival it is first among equals. Its slot is free, so that either it or
            // what is more urgent leaves the queue at once: the bound of the queue holds.
            let place = run.place();
            self.move_in_queue(None, place);
            self.publish(arrival, ExecutionStage::Queued);
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
        let run = self.runs.get_mut(&arrival).expect("a live operation has a run");
        let before = run.place();
        run.operations.remove(&(priority, operation));
        let (after, attempt) = (run.place(), run.attempt);
        let unwanted = run.operations.is_empty();
        self.move_in_queue(before, after);
        if unwanted {
            self.close_run(arrival);
            if let Some(run) = attempt {
                self.running.insert(run, None);
                self.effects.push(Effect::Kill { run });
            }
        }
        self.end(operation, Effect::Fail { operation, reason: FailReason::Cancelled }, now);
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
        let goes_on =
            self.runs.get(&operation.run).is_some_and(|run| run.joinable && run.attempt.is_some());
        !goes_on && now.saturating_sub(since) >= self.config.abandon_after
    }

    fn drain(&mut self, now: Duration) {
        self.draining = true;
        while let Some(&Place { arrival, .. }) = self.queue.first() {
            self.fail_run(arrival, FailReason::Draining, now);
        }
    }

    /// Starts what waits while a slot is free: at most one of the two is left after any event.
    fn fill_slots(&mut self) {
        while self.running.len() < self.config.slots {
            let Some(Place { arrival, .. }) = self.queue.pop_first() else { return };
            let waiting = self.runs.get_mut(&arrival).expect("what is queued is in the books");
            let &(_, operation) =
                waiting.operations.first().expect("what is queued has an operation");
            self.attempts += 1;
            let run = RunId(self.attempts);
            waiting.attempt = Some(run);
            self.running.insert(run, Some(arrival));
            self.effects.push(Effect::Run { run, operation, action: waiting.action });
        }
    }
}

#[cfg(test)]
mod tests;
