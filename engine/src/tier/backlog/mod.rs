//! What was acknowledged to clients and still has to be written to the tier below: bounded, on
//! disk, in order. Must never hold a blob's bytes (they lie in the node's own store), and never
//! let go silently of what it acknowledged.
//!
//! Owner – request – handle: [`Drain`] owns the log and the queue and runs on the thread of
//! tiers; [`Backlog`] asks it from any thread.
//!
//! ```text
//! Backlog::push --> Drain --> log      on disk: survives kill -9; then the push is answered
//!                     |
//!                     +-----> queue    pure: what next, when, after which pause
//!                     |
//!                     +-----> flight   local store --> below
//! ```
//!
//! Invariant: a push is answered after its items are on disk, and either all of them are or the
//! caller is told that none is promised.
//! Invariant: an item leaves when below has it, or when this node does not have it any more, and
//! of the latter each is logged and counted. What below refuses stays, and is tried again.

mod drain;
mod flight;
mod log;
mod queue;
mod record;

pub use self::drain::Drain;

use crate::{blob::BlobError, digest::Digest, tier::Outgoing};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use log::Log;
use proto::reapi::ActionResult;
use std::{fmt, io, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Pushes that wait to be written; beyond it the caller waits.
const INBOX_LEN_MAX: usize = 1024;

/// How long what is pending is kept from being evicted; it is asked for anew in time.
pub(super) const HELD: Duration = Duration::from_secs(180);

/// Something to be written below. Blobs sort before actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A blob of the node's own store.
    Blob(Digest),
    /// The result that is stored for an action.
    Action {
        /// The instance that it is stored under.
        instance: String,
        /// The action.
        action: Digest,
    },
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Action { instance, action } => {
                write!(f, "result of {action} in {instance:?}")
            }
        }
    }
}

/// Bounds of a backlog.
#[derive(Clone, Debug)]
pub struct BacklogConfig {
    /// Items that may be pending; beyond it pushes are refused. About 300 bytes of memory each.
    pub items_max: usize,
    /// Whether a push is answered once the disk has it. Without it a power failure, and only
    /// that, may lose the last second.
    pub sync: bool,
    /// Writes below at the same time: batches of small blobs, large blobs, actions.
    pub in_flight_max: usize,
}

/// Why a push promises nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BacklogError {
    /// As much is pending as may be.
    #[error("too much waits to be written to the tier below")]
    Full,
    /// The name of an instance is longer than a record may be.
    #[error("the instance name has {0} bytes, more than {max}", max = record::INSTANCE_BYTES_MAX)]
    TooLong(usize),
    /// The disk failed.
    #[error("backlog: {0}")]
    Disk(Arc<io::Error>),
    /// The drain is gone.
    #[error("the backlog has stopped")]
    Stopped,
}

/// What a backlog holds and did, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BacklogSnapshot {
    /// Blobs pending.
    pub blobs: usize,
    /// Results of actions pending.
    pub actions: usize,
    /// Those of both that below refused; they are tried again hourly and at each start.
    pub parked: usize,
    /// How long the oldest has been pending, within this process.
    pub oldest_age: Option<Duration>,
    /// Items that may be pending.
    pub items_max: usize,
    /// Bytes of the log on disk.
    pub disk_bytes: u64,
    /// Attempts at items since the start.
    pub attempts: u64,
    /// Attempts that below did not take.
    pub failures: u64,
    /// Items written below since the start.
    pub written: u64,
    /// Items given up since the start, because this node did not have them any more.
    pub lost: u64,
    /// Damaged stretches of the log found at the start; each may have been an item.
    pub damaged: u64,
}

/// The result stored for an action, and every blob that it needs.
pub type StoredResult = (ActionResult, Vec<Digest>);

/// What the backlog asks of its own node.
pub trait Local: Send + Sync + 'static {
    /// A blob to be streamed.
    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Outgoing, BlobError>>;

    /// A whole small blob.
    fn read(&self, digest: Digest) -> BoxFuture<'_, Result<Bytes, BlobError>>;

    /// Keeps these from being evicted for a while; it is asked for anew in time.
    fn hold(&self, items: Vec<Arc<Item>>) -> BoxFuture<'_, ()>;

    /// Those that below is known to have wrong: they are written whatever it says.
    fn wrong_below(&self, digests: Vec<Digest>) -> BoxFuture<'_, Vec<Digest>>;

    /// These are right below from now on.
    fn written_below(&self, digests: Vec<Digest>);

    /// The result stored for an action; `None` where none is stored any more.
    fn result<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, Result<Option<StoredResult>, BlobError>>;
}

/// The handle of a backlog. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backlog {
    pushes: mpsc::Sender<Push>,
    state: watch::Receiver<Published>,
}

/// Items to be kept, and who waits for it.
#[derive(Debug)]
struct Push {
    items: Vec<Item>,
    reply: oneshot::Sender<Result<(), BacklogError>>,
}

/// A snapshot, and the moment from which its age counts.
#[derive(Clone, Copy, Debug, Default)]
struct Published {
    snapshot: BacklogSnapshot,
    oldest: Option<Instant>,
}

impl Published {
    const fn pending(&self) -> usize {
        self.snapshot.blobs + self.snapshot.actions
    }
}

impl Backlog {
    /// Reads the log in `directory`, making it where it is absent. Nothing is written below and
    /// no push is answered until [`Drain::run`] runs.
    ///
    /// # Errors
    /// The disk's; `InvalidData` where the log is of another version.
    pub fn open(directory: &Path, config: BacklogConfig) -> io::Result<(Self, Drain)> {
        let (log, damage) = Log::open(directory, config.sync)?;
        let pending = log.pending();
        if damage != log::Damage::default() {
            tracing::error!(
                directory = %directory.display(),
                damaged = damage.damaged,
                torn = damage.torn,
                strangers = damage.strangers,
                pending = pending.len(),
                "the backlog was not left in order; the rest of it is used",
            );
        }
        let blobs = pending.iter().filter(|(_, item)| matches!(**item, Item::Blob(_))).count();
        let snapshot = BacklogSnapshot {
            blobs,
            actions: pending.len() - blobs,
            items_max: config.items_max,
            disk_bytes: log.disk_bytes(),
            damaged: damage.damaged,
            ..BacklogSnapshot::default()
        };
        let oldest = (!pending.is_empty()).then(Instant::now);
        let (pushes, inbox) = mpsc::channel(INBOX_LEN_MAX);
        let (publish, state) = watch::channel(Published { snapshot, oldest });
        Ok((Self { pushes, state }, Drain::new(log, config, inbox, publish)))
    }

    /// Keeps items until they are written below; those that are pending already are kept once.
    /// Returns when all are on disk.
    ///
    /// # Errors
    /// Nothing is promised: whoever asks writes below by itself, or refuses its client.
    pub async fn push(&self, items: Vec<Item>) -> Result<(), BacklogError> {
        let (reply, answer) = oneshot::channel();
        let push = Push { items, reply };
        self.pushes.send(push).await.map_err(|_| BacklogError::Stopped)?;
        answer.await.map_err(|_| BacklogError::Stopped)?
    }

    /// Items pending, parked ones included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.state.borrow().pending()
    }

    /// What it holds and did.
    #[must_use]
    pub fn snapshot(&self) -> BacklogSnapshot {
        let published = *self.state.borrow();
        let oldest_age = published.oldest.map(|oldest| oldest.elapsed());
        BacklogSnapshot { oldest_age, ..published.snapshot }
    }

    /// Waits until nothing is pending but what is parked, or the drain is gone. During an outage
    /// that may be long: the caller brings the patience.
    pub async fn idle(&self) {
        let mut state = self.state.clone();
        // An error says that the drain is gone.
        let _ = state.wait_for(|state| state.pending() == state.snapshot.parked).await;
    }
}

#[cfg(test)]
mod tests;
