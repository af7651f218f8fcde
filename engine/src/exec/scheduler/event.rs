//! What is said to the scheduler, and what it says: ids, events, effects.
//!
//! Must never hold a rule: what follows from what is the scheduler's.

use crate::digest::HASH_BYTES;

/// One Execute call. Chosen by the caller, each only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub(crate) u64);

/// One attempt of a worker or a peer at an action. A run that was handed back gets another one, so
/// that what the first attempt reports late is not taken for the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunId(pub(crate) u64);

/// What makes two actions the same: hash of instance name and action digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ActionKey(pub(crate) [u8; HASH_BYTES]);

/// A node that actions may be given to. To be derived from the node's id by a hash, so that every
/// node calls it the same and finds the same inputs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) u64);

/// What gossip says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerLoad {
    /// Whose load.
    pub(crate) peer: PeerId,
    /// Runs it can execute at the same time; 0 for a node that executes nothing.
    pub(crate) slots: u32,
    /// Slots that are taken.
    pub(crate) running: u32,
    /// Runs that wait there for a slot.
    pub(crate) queued: u32,
    /// Whether it stops: it is given nothing, but may finish what it has.
    pub(crate) draining: bool,
    /// Whether it runs the same actions as this node, by platform and version.
    pub(crate) fits: bool,
}

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
#[derive(Clone, Debug)]
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
        /// Stands for its inputs: a hash of the digest of the input root. Actions of the same
        /// inputs go to the same peers.
        locality: u64,
        /// Whether a peer has given it to this node. It is never given to another; and refused
        /// where it would wait behind more than `accept_ahead`, for the peer to look elsewhere.
        forwarded: bool,
    },
    /// A worker or a peer says how far its run has come. Of a peer also that it has accepted the
    /// run, which stays `Queued` then: it proves that the peer works.
    Stage {
        /// The run.
        run: RunId,
        /// Its stage from here on.
        stage: ExecutionStage,
    },
    /// A worker or a peer is done with a run, whatever the result; also after [`Effect::Kill`].
    Finished {
        /// The run.
        run: RunId,
    },
    /// A worker or a peer could not do a run, through no fault of the action; or the peer can't
    /// be asked any more. It counts against the run, and against the peer.
    Returned {
        /// The run.
        run: RunId,
    },
    /// A peer has refused a run, so that nothing was tried: it counts for nothing.
    Declined {
        /// The run.
        run: RunId,
    },
    /// A peer could not be asked, or takes nothing from this node: nothing was tried. It counts
    /// against the peer alone.
    Unreached {
        /// The run.
        run: RunId,
    },
    /// What is known of all peers by now, this node not among them. One that is not named is gone.
    /// To be sent a few times a second, also where nothing has changed.
    Peers {
        /// Each peer once; more than [`super::peers::PEERS_MAX`] are cut off.
        peers: Vec<PeerLoad>,
    },
    /// A peer is gone: all it was given comes back, as by `Returned`. It is not asked again before
    /// `Peers` names it.
    #[cfg_attr(not(test), expect(dead_code, reason = "Peers without the peer says the same"))]
    PeerGone {
        /// The peer.
        peer: PeerId,
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
    /// The node stops: nothing is accepted or started from here on. What waits is given to peers
    /// as far as they have room; the rest of it ends.
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
    /// Give the run to a peer, which no slot here is free for.
    Send {
        /// The attempt, until `Finished`, `Returned`, `Declined`, `Unreached`, `PeerGone`, or
        /// `Peers` without the peer.
        run: RunId,
        /// One of the operations that wait for it: all of them want the same action.
        operation: OperationId,
        /// What to run.
        action: ActionKey,
        /// Where.
        peer: PeerId,
    },
    /// Make the worker or the peer end the run at once; `Finished`, or what else ends a run, still
    /// has to be reported, or its place there stays taken.
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
    /// Workers and peers handed its run back more than [`super::RETURNS_MAX`] times.
    WorkerFailed,
}
