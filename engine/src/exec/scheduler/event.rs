//! What is said to the scheduler, and what it says: ids, events, effects.
//!
//! Must never hold a rule: what follows from what is the scheduler's.

use crate::digest::HASH_BYTES;

/// One Execute call. Chosen by the caller, each only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub(crate) u64);

/// One attempt of a worker at an action. A run that was handed back gets another one, so that
/// what the first attempt reports late is not taken for the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunId(pub(crate) u64);

/// What makes two actions the same: hash of instance name and action digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ActionKey(pub(crate) [u8; HASH_BYTES]);

/// Where a live operation stands. `COMPLETED` is said by [`Effect::Complete`] and
/// [`Effect::Fail`]; `CACHE_CHECK` comes before the scheduler is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExecutionStage {
    /// Waits for a slot, or its inputs are being laid out.
    Queued,
    /// The action's own process runs.
    Executing,
}

/// What the scheduler is told. What names an unknown or ended operation or run has no effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// An Execute call whose result is not in the cache. It counts as listened to until
    /// `Listeners` says otherwise.
    Submit {
        /// Its id; a live one is taken for a repetition and has no effect.
        operation: OperationId,
        /// What it wants run.
        action: ActionKey,
        /// Lower is sooner.
        priority: i32,
        /// Whether it may share a run with others: false for `do_not_cache`.
        joinable: bool,
    },
    /// A worker says how far its run has come.
    Stage {
        /// The run.
        run: RunId,
        /// Its stage from here on.
        stage: ExecutionStage,
    },
    /// A worker is done with a run, whatever the result; also after [`Effect::Kill`].
    Finished {
        /// The run.
        run: RunId,
    },
    /// A worker could not do a run, through no fault of the action.
    Returned {
        /// The run.
        run: RunId,
    },
    /// A client does not want the result any more.
    Cancel {
        /// The operation.
        operation: OperationId,
    },
    /// How many streams listen to an operation.
    Listeners {
        /// The operation.
        operation: OperationId,
        /// Execute and WaitExecution streams that are open.
        count: usize,
    },
    /// Time has passed. To be sent a few times within `abandon_after` and `kept`.
    Tick,
    /// The node stops: nothing is accepted or started from here on.
    Drain,
}

/// What the caller has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The operation was not accepted: answer its call, drop what is held for it.
    Refuse {
        /// The operation.
        operation: OperationId,
        /// Why.
        reason: RefuseReason,
    },
    /// Tell the operation's listeners its stage. The first one says that it was accepted.
    Publish {
        /// The operation.
        operation: OperationId,
        /// Its stage.
        stage: ExecutionStage,
    },
    /// Give the run to a worker.
    Run {
        /// The attempt, until `Finished` or `Returned`.
        run: RunId,
        /// One of the operations that wait for it: all of them want the same action.
        operation: OperationId,
        /// What to run.
        action: ActionKey,
    },
    /// Make the worker end the run at once; it still has to report `Finished`.
    Kill {
        /// The run.
        run: RunId,
    },
    /// The operation ends with the result of the run whose `Finished` is being handled.
    Complete {
        /// The operation.
        operation: OperationId,
    },
    /// The operation ends without a result.
    Fail {
        /// The operation.
        operation: OperationId,
        /// Why.
        reason: FailReason,
    },
    /// Nothing will be said of this ended operation again: drop what is held for it.
    Forget {
        /// The operation.
        operation: OperationId,
    },
}

/// Why an operation was not accepted. Both may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefuseReason {
    /// The queue or the table of operations is full.
    Overloaded,
    /// The node stops.
    Draining,
}

/// Why an operation ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailReason {
    /// Its client said so, or nobody listened for too long.
    Cancelled,
    /// It still waited when the node began to stop; may be tried again, elsewhere.
    Draining,
    /// Workers handed its run back more than [`super::RETURNS_MAX`] times.
    WorkerFailed,
}
