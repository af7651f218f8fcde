//! [`Tier`]: what one may ask of the tier below, from any thread. Must never hold what the loop
//! owns; an answer that nobody waits for any more is dropped.

use super::{
    Below,
    counts::TierCounts,
    serve::{Serving, TierConfig},
};
use crate::{
    blob::{BlobError, Result},
    cores::{Cores, Growing},
    digest::Digest,
};
use bytes::Bytes;
use proto::reapi::ActionResult;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// Requests that wait for the tier's loop; beyond it callers are refused.
const REQUESTS_MAX: usize = 4096;

/// How far a fetch is, to those that wait for it.
#[derive(Clone)]
pub(super) enum Phase {
    /// Below was asked.
    Opening,
    /// The first bytes are here.
    Growing(Growing),
    /// It can't be had, or not now.
    Failed(BlobError),
}

/// Whoever joined a fetch. The last one that lets go ends it.
pub(super) type Joined = watch::Receiver<Phase>;

type Reply<T> = oneshot::Sender<T>;

/// What the loop is asked.
pub(super) enum Request {
    Fetch {
        digest: Digest,
        /// Also where below did not have it a moment ago.
        anew: bool,
        reply: Reply<Joined>,
    },
    FetchMany {
        digests: Vec<Digest>,
        /// Also those that below did not have a moment ago.
        anew: bool,
        reply: Reply<Vec<Result<Bytes>>>,
    },
    FindMissing {
        digests: Vec<Digest>,
        reply: Reply<Result<Vec<Digest>>>,
    },
    /// Those that are known to be wrong below.
    Wrong {
        digests: Vec<Digest>,
        reply: Reply<Vec<Digest>>,
    },
    /// Somebody else wrote these below.
    Written {
        digests: Vec<Digest>,
    },
    Push {
        digests: Vec<Digest>,
        reply: Reply<Result<()>>,
    },
    PushMany {
        blobs: Vec<(Digest, Bytes)>,
        reply: Reply<Vec<Result<()>>>,
    },
    GetAction {
        instance: String,
        action: Digest,
        reply: Reply<Result<Option<ActionResult>>>,
    },
    PutAction {
        instance: String,
        action: Digest,
        result: Box<ActionResult>,
        reply: Reply<Result<()>>,
    },
}

/// A blob that is on its way here, readable while it grows. While one is held, the fetch goes on.
pub struct Following {
    growing: Growing,
    _joined: Joined,
}

impl Following {
    /// What has come so far.
    #[must_use]
    pub fn growing(&self) -> Growing {
        self.growing.clone()
    }

    /// Waits until the blob is kept here.
    ///
    /// # Errors
    /// `NotFound` where what came was something else; `Below` where it broke off; what the store
    /// says.
    pub async fn whole(mut self, digest: Digest) -> Result<()> {
        match self.growing.outcome().await {
            Err(BlobError::Mismatch(_)) => Err(BlobError::NotFound(digest)),
            Err(BlobError::Incomplete(_)) => Err(BlobError::broken_off()),
            outcome => outcome,
        }
    }
}

/// A tier below this node's store. Cheap to clone.
#[derive(Clone)]
pub struct Tier {
    requests: async_channel::Sender<Request>,
    below: Arc<dyn Below>,
    counts: Arc<TierCounts>,
    batch_bytes_max: u64,
    anew: bool,
}

impl Tier {
    /// The tier, and the loop that serves it, to be run on the tiers' runtime.
    pub fn new(
        below: Arc<dyn Below>,
        cores: Cores,
        config: TierConfig,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (requests, inbox) = async_channel::bounded(REQUESTS_MAX);
        let counts = Arc::new(TierCounts::default());
        let batch_bytes_max = below.batch_bytes_max();
        let serving = Serving::new(below.clone(), cores, config, counts.clone());
        (Self { requests, below, counts, batch_bytes_max, anew: false }, serving.run(inbox))
    }

    /// The same, asked also for what it did not have a moment ago.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { anew: true, ..self }
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.below.name()
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> &TierCounts {
        &self.counts
    }

    /// Whether a blob travels alone; smaller ones are better asked for many at a time.
    #[must_use]
    pub fn is_large(&self, digest: &Digest) -> bool {
        digest.size() > self.batch_bytes_max.min(LARGE_BYTES_MIN)
    }

    /// Begins to bring a blob here, or joins who did; returns when its first bytes are here.
    ///
    /// # Errors
    /// `NotFound` where below does not have it, `Below`, `Overloaded`.
    pub async fn fetch(&self, digest: Digest) -> Result<Following> {
        let anew = self.anew;
        let mut joined = self.ask(|reply| Request::Fetch { digest, anew, reply }).await?;
        let begun = joined.wait_for(|phase| !matches!(phase, Phase::Opening)).await;
        let begun = begun.map(|phase| phase.clone()).map_err(|_| BlobError::Stopped)?;
        match begun {
            Phase::Growing(growing) => Ok(Following { growing, _joined: joined }),
            Phase::Failed(error) => Err(error),
            Phase::Opening => Err(BlobError::Stopped),
        }
    }

    /// Brings small blobs here, and hands them out, an answer for each in its place.
    ///
    /// # Errors
    /// `Overloaded` as a whole; `NotFound` and `Below` for each.
    pub async fn fetch_many(&self, digests: Vec<Digest>) -> Result<Vec<Result<Bytes>>> {
        let anew = self.anew;
        self.ask(|reply| Request::FetchMany { digests, anew, reply }).await
    }

    /// Those that below does not have.
    ///
    /// # Errors
    /// `Below`, `Overloaded`.
    pub async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        self.ask(|reply| Request::FindMissing { digests, reply }).await?
    }

    /// Those of these blobs of which below is known to have other bytes, or none although it says
    /// so: whoever writes below writes them whatever it says. None where the tier is too busy.
    pub async fn wrong_among(&self, digests: Vec<Digest>) -> Vec<Digest> {
        self.ask(|reply| Request::Wrong { digests, reply }).await.unwrap_or_default()
    }

    /// Says that these blobs were written below, past this tier.
    pub fn written(&self, digests: Vec<Digest>) {
        // A full inbox loses it: they count as wrong for longer than they are.
        drop(self.requests.try_send(Request::Written { digests }));
    }

    /// Requests that wait for the tier's loop, and how many may.
    #[must_use]
    pub fn inbox(&self) -> (usize, usize) {
        (self.requests.len(), REQUESTS_MAX)
    }

    /// Writes below what it lacks of these blobs, which are here.
    ///
    /// # Errors
    /// `Below`, `Overloaded`, and the store's.
    pub async fn push(&self, digests: Vec<Digest>) -> Result<()> {
        self.ask(|reply| Request::Push { digests, reply }).await?
    }

    /// Writes these blobs below, an answer for each in its place.
    ///
    /// # Errors
    /// `Overloaded` as a whole; `Below` for each.
    pub async fn push_many(&self, blobs: Vec<(Digest, Bytes)>) -> Result<Vec<Result<()>>> {
        self.ask(|reply| Request::PushMany { blobs, reply }).await
    }

    /// The result that below has for an action; nobody has looked whether it is complete.
    ///
    /// # Errors
    /// `Below`, `Overloaded`.
    pub async fn get_action(&self, instance: &str, action: Digest) -> Result<Option<ActionResult>> {
        let instance = instance.to_owned();
        self.ask(|reply| Request::GetAction { instance, action, reply }).await?
    }

    /// Stores a result below; its blobs are there.
    ///
    /// # Errors
    /// `Below`, `Overloaded`.
    pub async fn put_action(
        &self,
        instance: &str,
        action: Digest,
        result: &ActionResult,
    ) -> Result<()> {
        let (instance, result) = (instance.to_owned(), Box::new(result.clone()));
        self.ask(|reply| Request::PutAction { instance, action, result, reply }).await?
    }

    /// Takes no further requests.
    pub fn close(&self) {
        self.requests.close();
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        use async_channel::TrySendError::{Closed, Full};
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|refused| match refused {
            Full(_) => BlobError::Overloaded,
            Closed(_) => BlobError::Stopped,
        })?;
        answer.await.map_err(|_| BlobError::Stopped)
    }
}

/// From this size on a blob is streamed: a batch of smaller ones is one request, and a larger one
/// would hold up all others of its batch.
pub(super) const LARGE_BYTES_MIN: u64 = 1 << 20;
