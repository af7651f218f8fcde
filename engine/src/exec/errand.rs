//! An action on its way to a peer, and what the schedule is told of it. Must never decide who gets
//! it, or what follows when it fails: the scheduler does.

use super::{
    ExecuteOutcome, RunProgress, Timestamps, handle::Request, prepare::Prepared,
    scheduler::event::RunId,
};
use proto::reapi::ExecutedActionMetadata;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Errands that wait to be taken; beyond it an action stays here.
pub(super) const ERRANDS_MAX: usize = 4096;

/// One action that a peer is to execute. Whoever takes it has to end it, once.
pub struct Errand {
    /// The node that is to execute it.
    pub peer: Arc<str>,
    /// What it is to execute.
    pub prepared: Arc<Prepared>,
    /// How urgent it is: lower is sooner.
    pub priority: i32,
    pub(super) run: RunId,
    pub(super) requests: async_channel::Sender<Request>,
    pub(super) unwanted: oneshot::Receiver<()>,
}

/// How an errand ended.
#[derive(Debug)]
pub enum ErrandEnd {
    /// The peer executed the action, and what it gave back is here.
    Finished(Box<ExecuteOutcome>),
    /// The peer took the action and failed, or can't be asked any more.
    Returned(String),
    /// The peer took nothing: it has no room.
    Declined,
    /// The peer took nothing: it could not be asked, or takes nothing from this node.
    Unreached(String),
}

impl Errand {
    /// The peer has taken it.
    pub async fn accepted(&self) {
        self.tell(RunProgress::Accepted).await;
    }

    /// The action's process runs there.
    pub async fn executing(&self, times: Option<&ExecutedActionMetadata>) {
        let times = times.map(Timestamps::of).unwrap_or_default();
        self.tell(RunProgress::Executing(times)).await;
    }

    /// Waits until nobody wants it any more, or it was taken back.
    pub async fn unwanted(&mut self) {
        // Dropped where it was taken back.
        let _ = (&mut self.unwanted).await;
    }

    /// Says how it ended.
    pub async fn end(self, end: ErrandEnd) {
        let run = self.run;
        let request = match end {
            ErrandEnd::Finished(outcome) => Request::Finished { run, outcome },
            ErrandEnd::Returned(why) => Request::Returned { run, why, peer: self.peer },
            ErrandEnd::Declined => Request::Declined { run },
            ErrandEnd::Unreached(why) => Request::Unreached { run, why, peer: self.peer },
        };
        // A closed inbox means that the node is past caring.
        drop(self.requests.send(request).await);
    }

    async fn tell(&self, progress: RunProgress) {
        drop(self.requests.send(Request::Progress { run: self.run, progress }).await);
    }
}

/// What gossip says of a node that actions may be given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCapacity {
    /// Its name.
    pub node_id: Arc<str>,
    /// Actions that may run there at the same time.
    pub slots: u32,
    /// Actions that run there.
    pub running: u32,
    /// Actions that wait there.
    pub queued: u32,
    /// Whether it stops.
    pub draining: bool,
    /// Whether it runs the same actions as this node.
    pub fits: bool,
}

/// How busy this node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Actions that may run at the same time; 0 while the store has no room for what they give.
    pub slots: usize,
    /// Actions that run.
    pub running: usize,
    /// Actions that wait.
    pub queued: usize,
    /// Actions that peers have.
    pub away: usize,
    /// Whether the node takes no more.
    pub draining: bool,
}
