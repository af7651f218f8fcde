//! The loop around the scheduler: receives, lets it decide, performs. Owns every operation's
//! state; must never wait for anything but its inbox.

use super::{
    ExecError, ExecuteOutcome, RunProgress, Timestamps,
    handle::{ExecutionsConfig, Listening, OperationName, OperationState, Request, Stage},
    prepare::Prepared,
    scheduler::{
        Config, Scheduler,
        event::{
            ActionKey, Effect, Event, ExecutionStage, FailReason, OperationId, RefuseReason, RunId,
        },
    },
    worker::Job,
};
use crate::{blob::BlobError, env::clock::Clock, tier::action_cache};
use rustix::{event::EventfdFlags, fd::OwnedFd};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{oneshot, watch};

mod away;

pub(super) use away::Away;

/// How long an operation may wait without anybody listening: clients reconnect within seconds.
const ABANDON_AFTER: Duration = Duration::from_secs(60);
/// How long a node says that it has no slots after its store could not keep what an action needs
/// or gives: then the next one finds out.
const FULL_FOR: Duration = Duration::from_secs(10);

/// One operation, live or remembered.
pub(super) struct Held {
    pub(super) state: watch::Sender<OperationState>,
    /// What to run; `None` once it has ended, since a command may be large.
    prepared: Option<Arc<Prepared>>,
    priority: i32,
    queued: SystemTime,
    /// Who asked for it, until the scheduler has answered.
    asked: Option<(oneshot::Sender<Result<Listening, ExecError>>, Listening)>,
}

/// What ends a run.
enum Cancel {
    /// Readable once the worker is to end it.
    Worker(Arc<OwnedFd>),
    /// Dropped, it tells the errand to that peer.
    Peer { name: Arc<str>, _unwanted: oneshot::Sender<()> },
}

/// A run that a worker or a peer has: whoever joins it later is told of it as well.
struct Attempt {
    cancel: Cancel,
    /// When it went through which step, once its process runs.
    times: Timestamps,
}

impl Attempt {
    fn new(cancel: Cancel) -> Self {
        Self { cancel, times: Timestamps::default() }
    }

    fn peer(&self) -> Option<&Arc<str>> {
        match &self.cancel {
            Cancel::Worker(_) => None,
            Cancel::Peer { name, .. } => Some(name),
        }
    }
}

/// The state behind [`super::Executions`].
pub(super) struct Schedule {
    scheduler: Scheduler,
    clock: Clock,
    node_id: Arc<str>,
    jobs: crossbeam_channel::Sender<Job>,
    operations: BTreeMap<OperationId, Held>,
    names: HashMap<OperationName, OperationId>,
    /// The runs that workers and peers have.
    attempts: BTreeMap<RunId, Attempt>,
    away: Away,
    slots: usize,
    /// The store was full a moment ago: peers are to send nothing until then.
    full_until: Option<Duration>,
    /// What follows from effects, for their turn: a start that fails frees its slot for the next
    /// one, and a call for each would be a stack as deep as the queue is long. Empty between
    /// requests; holds no more than there are slots.
    pending: VecDeque<(Event, Option<Arc<ExecuteOutcome>>)>,
    next: u64,
    idle: Vec<oneshot::Sender<()>>,
}

impl Schedule {
    pub(super) fn new(
        config: &ExecutionsConfig,
        jobs: crossbeam_channel::Sender<Job>,
        away: Away,
        clock: Clock,
    ) -> Self {
        let scheduler = Scheduler::new(Config {
            slots: config.slots,
            accept_ahead: config.slots,
            queue_max: config.queue_max,
            operations_max: config.operations_max,
            abandon_after: ABANDON_AFTER,
            kept: config.operations_kept,
            kept_max: config.operations_max,
        });
        Self {
            scheduler,
            clock,
            node_id: config.node_id.clone(),
            jobs,
            operations: BTreeMap::new(),
            names: HashMap::new(),
            attempts: BTreeMap::new(),
            away,
            slots: config.slots,
            full_until: None,
            pending: VecDeque::new(),
            next: 0,
            idle: Vec::new(),
        }
    }

    /// Serves until the inbox is closed.
    pub(super) async fn run(mut self, inbox: async_channel::Receiver<Request>) {
        while let Ok(request) = inbox.recv().await {
            self.serve(request);
            self.publish_load();
            if self.scheduler.is_idle() {
                for idle in self.idle.drain(..) {
                    // Who asked may have gone.
                    let _ = idle.send(());
                }
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Execute { prepared, priority, forwarded, reply } => {
                self.execute(prepared, priority, forwarded, reply);
            }
            Request::Peers { peers } => self.peers(peers),
            Request::Returned { run, why, peer } => {
                self.attempts.remove(&run);
                tracing::info!(why, %peer, "a peer handed an action back");
                self.handle(Event::Returned { run }, None);
            }
            Request::Declined { run } => {
                self.attempts.remove(&run);
                self.handle(Event::Declined { run }, None);
            }
            Request::Unreached { run, why, peer } => {
                self.attempts.remove(&run);
                if self.away.is_news(&peer, self.clock.now()) {
                    tracing::warn!(why, %peer, "a peer takes nothing; it is left alone for a time");
                }
                self.handle(Event::Unreached { run }, None);
            }
            Request::Wait { name, reply } => {
                let held = self.names.get(name.as_str()).and_then(|id| self.operations.get(id));
                drop(reply.send(held.map(|held| held.state.subscribe())));
            }
            Request::List { reply } => {
                let states = self.operations.values().map(|held| held.state.borrow().clone());
                drop(reply.send(states.collect()));
            }
            Request::Cancel { name, reply } => {
                let operation = self.names.get(name.as_str()).copied();
                if let Some(operation) = operation {
                    self.handle(Event::Cancel { operation }, None);
                }
                let _ = reply.send(operation.is_some());
            }
            Request::Count { reply } => drop(reply.send(self.scheduler.snapshot())),
            Request::Tick => self.tick(),
            Request::Drain { idle } => {
                let before = self.scheduler.snapshot();
                tracing::info!(?before, "executions drain");
                self.handle(Event::Drain, None);
                self.idle.push(idle);
            }
            Request::Progress { run, progress } => self.progress(run, progress),
            Request::Finished { run, outcome } => {
                self.attempts.remove(&run);
                if matches!(outcome.error, Some(ExecError::Store(BlobError::Full))) {
                    self.full_until = Some(self.clock.now() + FULL_FOR);
                }
                match &outcome.error {
                    // The node's fault, not the action's: another worker may do better.
                    Some(ExecError::Worker(why)) => {
                        tracing::warn!(why, "a worker handed an action back");
                        self.handle(Event::Returned { run }, None);
                    }
                    _ => self.handle(Event::Finished { run }, Some(Arc::new(*outcome))),
                }
            }
        }
    }

    fn execute(
        &mut self,
        prepared: Arc<Prepared>,
        priority: i32,
        forwarded: bool,
        reply: oneshot::Sender<Result<Listening, ExecError>>,
    ) {
        if forwarded && self.is_full() {
            return drop(reply.send(Err(ExecError::Overloaded)));
        }
        self.next += 1;
        let operation = OperationId(self.next);
        let name: OperationName = format!("{}:{}", self.node_id, uuid::Uuid::new_v4()).into();
        let queued = self.clock.wall();
        let action = ActionKey(action_cache::key(&prepared.instance, prepared.digest));
        let joinable = prepared.cacheable;
        let state = OperationState::queued(name.clone(), prepared.digest, queued);
        let (state, listening) = watch::channel(state);
        let locality = away::front(prepared.input_root.hash());
        let prepared = Some(prepared);
        let held = Held { state, prepared, priority, queued, asked: Some((reply, listening)) };
        self.names.insert(name, operation);
        self.operations.insert(operation, held);
        let submit = Event::Submit { operation, action, priority, joinable, locality, forwarded };
        self.handle(submit, None);
    }

    /// Whether the store has no room, as far as is known.
    fn is_full(&self) -> bool {
        self.full_until.is_some_and(|until| self.clock.now() < until)
    }

    fn tick(&mut self) {
        let listened: Vec<(OperationId, usize)> = self
            .operations
            .iter()
            .filter(|(_, held)| held.state.borrow().stage != Stage::Completed)
            .map(|(&operation, held)| (operation, held.listeners()))
            .collect();
        for (operation, count) in listened {
            self.handle(Event::Listeners { operation, count }, None);
        }
        self.handle(Event::Tick, None);
    }

    fn progress(&mut self, run: RunId, progress: RunProgress) {
        let RunProgress::Executing(times) = progress else {
            return self.handle(Event::Stage { run, stage: ExecutionStage::Queued }, None);
        };
        if let Some(attempt) = self.attempts.get_mut(&run) {
            attempt.times = times;
        }
        self.handle(Event::Stage { run, stage: ExecutionStage::Executing }, None);
    }

    fn handle(&mut self, event: Event, outcome: Option<Arc<ExecuteOutcome>>) {
        self.pending.push_back((event, outcome));
        self.settle();
    }

    /// Handles what is pending, and what follows from it.
    fn settle(&mut self) {
        while let Some((event, outcome)) = self.pending.pop_front() {
            let effects = self.scheduler.handle(event, self.clock.now());
            self.perform(effects, outcome.as_ref());
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, outcome: Option<&Arc<ExecuteOutcome>>) {
        for effect in effects {
            match effect {
                Effect::Refuse { operation, reason } => self.refuse(operation, reason),
                Effect::Publish { operation, stage } => self.publish(operation, stage),
                Effect::Run { run, operation, .. } => self.start(run, operation),
                Effect::Send { run, operation, peer, .. } => self.send(run, operation, peer),
                Effect::Kill { run } => self.kill(run),
                Effect::Complete { operation } => {
                    let outcome = outcome.cloned().unwrap_or_default();
                    self.end(operation, outcome);
                }
                Effect::Fail { operation, reason } => {
                    let error = Some(match reason {
                        FailReason::Cancelled => ExecError::Cancelled,
                        FailReason::Draining => ExecError::Draining,
                        FailReason::WorkerFailed => {
                            ExecError::Worker("the action was handed back too often".to_owned())
                        }
                    });
                    let outcome = ExecuteOutcome { error, ..ExecuteOutcome::default() };
                    self.end(operation, Arc::new(outcome));
                }
                Effect::Forget { operation } => self.forget(operation),
            }
        }
    }

    fn refuse(&mut self, operation: OperationId, reason: RefuseReason) {
        let error = match reason {
            RefuseReason::Overloaded => ExecError::Overloaded,
            RefuseReason::Draining => ExecError::Draining,
        };
        let asked = self.operations.get_mut(&operation).and_then(|held| held.asked.take());
        if let Some((reply, _)) = asked {
            drop(reply.send(Err(error)));
        }
        self.forget(operation);
    }

    fn publish(&mut self, operation: OperationId, stage: ExecutionStage) {
        let attempt = self.scheduler.attempt(operation).and_then(|run| self.attempts.get(&run));
        let Some(held) = self.operations.get_mut(&operation) else { return };
        held.state.send_modify(|state| match (stage, attempt) {
            (ExecutionStage::Executing, Some(attempt)) => {
                state.stage = Stage::Executing;
                state.times = attempt.times;
                state.peer = attempt.peer().cloned();
            }
            _ => {
                state.stage = Stage::Queued;
                state.times = Timestamps::queued(held.queued);
                state.peer = None;
            }
        });
        // The first one says that the operation was accepted.
        if let Some((reply, listening)) = held.asked.take() {
            drop(reply.send(Ok(listening)));
        }
    }

    fn kill(&mut self, run: RunId) {
        match self.attempts.get(&run).map(|attempt| &attempt.cancel) {
            Some(Cancel::Worker(cancel)) => {
                // Cannot fail: the counter is written once.
                let _ = rustix::io::write(cancel, &1_u64.to_ne_bytes());
            }
            Some(Cancel::Peer { .. }) => drop(self.attempts.remove(&run)),
            None => {}
        }
    }

    fn start(&mut self, run: RunId, operation: OperationId) {
        let Some(held) = self.operations.get(&operation) else { return };
        let Some(prepared) = held.prepared.clone() else { return };
        let queued = held.queued;
        let cancel = match rustix::event::eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(cancel) => Arc::new(cancel),
            Err(error) => return self.cannot_start(run, &error.to_string()),
        };
        self.attempts.insert(run, Attempt::new(Cancel::Worker(cancel.clone())));
        if self.jobs.try_send(Job { run, prepared, queued, cancel }).is_err() {
            self.attempts.remove(&run);
            self.cannot_start(run, "no worker takes it");
        }
    }

    /// A run that no worker has ends as one that failed there.
    fn cannot_start(&mut self, run: RunId, why: &str) {
        let error = Some(ExecError::Worker(why.to_owned()));
        let outcome = Arc::new(ExecuteOutcome { error, ..ExecuteOutcome::default() });
        self.pending.push_back((Event::Finished { run }, Some(outcome)));
    }

    fn end(&mut self, operation: OperationId, outcome: Arc<ExecuteOutcome>) {
        let Some(held) = self.operations.get_mut(&operation) else { return };
        held.prepared = None;
        if let Some((reply, listening)) = held.asked.take() {
            drop(reply.send(Ok(listening)));
        }
        held.state.send_modify(|state| {
            state.stage = Stage::Completed;
            state.outcome = Some(outcome);
        });
    }

    fn forget(&mut self, operation: OperationId) {
        if let Some(held) = self.operations.remove(&operation) {
            self.names.remove(&held.state.borrow().name);
        }
    }
}

#[cfg(test)]
mod tests;
