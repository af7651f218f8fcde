//! [`Blobs`]: what this node can give and take under one instance: its own cores first, then the
//! tiers. Owns the order in which they are asked and what a write promises. Must never call a blob
//! present that neither has.
//!
//! ```text
//! read:  cores -> the peer that sent the action, or the digest's home -> the tier below
//! write: cores -> the tier below, before the answer (sync) or after it (async)
//! ```

use super::{Backlog, Item, Tier};
use crate::{
    blob::{BlobError, Result},
    cores::{BlobReader, Cores},
    digest::Digest,
    env::Env,
};
use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use std::{fmt, ops::Range, rc::Rc};

/// Large blobs that one request brings here at the same time.
const LARGE_AT_ONCE: usize = 4;
/// Bytes of small blobs that one request holds in memory on their way here.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// When a blob that was written here is written below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Before the writer is told that it is kept.
    Sync,
    /// Later; until then its name is in the backlog, on this node's disk.
    Async,
    /// Never.
    LocalOnly,
}

/// The tier below, and what is promised of it.
#[derive(Clone)]
pub struct Backing {
    /// Where it is asked.
    pub tier: Tier,
    /// What a write promises.
    pub mode: WriteMode,
    /// Where writes wait for it.
    pub backlog: Backlog,
}

/// Blobs as one request sees them. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    cores: Cores,
    /// Nodes that are asked before the tier below.
    peers: Vec<Tier>,
    backing: Option<Backing>,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers: Vec<_> = self.sources().map(Tier::name).collect();
        out.debug_struct("Blobs").field("tiers", &tiers).finish_non_exhaustive()
    }
}

impl From<Cores> for Blobs {
    /// This node alone.
    fn from(cores: Cores) -> Self {
        Self { cores, peers: Vec::new(), backing: None }
    }
}

impl Blobs {
    /// This node and the tiers around it.
    #[must_use]
    pub const fn new(cores: Cores, peers: Vec<Tier>, backing: Option<Backing>) -> Self {
        Self { cores, peers, backing }
    }

    /// What is here.
    #[must_use]
    pub const fn cores(&self) -> &Cores {
        &self.cores
    }

    /// What is below, if anything is.
    #[must_use]
    pub const fn backing(&self) -> Option<&Backing> {
        self.backing.as_ref()
    }

    /// The same, with another node asked first.
    #[must_use]
    pub fn with_peer(mut self, peer: Tier) -> Self {
        self.peers.insert(0, peer);
        self
    }

    /// The same, whose tiers are asked also for what they did not have a moment ago: for requests
    /// that are refused because of it, as an execution is. What a client was told to upload it may
    /// have uploaded elsewhere.
    #[must_use]
    pub fn anew(mut self) -> Self {
        self.peers = self.peers.into_iter().map(Tier::anew).collect();
        self.backing = self.backing.map(|one| Backing { tier: one.tier.anew(), ..one });
        self
    }

    fn sources(&self) -> impl Iterator<Item = &Tier> {
        self.peers.iter().chain(self.backing.as_ref().map(|backing| &backing.tier))
    }

    /// Whole blobs, an answer for each in its place. The caller bounds the sum of their sizes.
    ///
    /// # Errors
    /// As [`Cores::get_many`]; `Below` for each that is not here where a tier can't be asked.
    pub async fn get_many(&self, digests: Vec<Digest>) -> Result<Vec<Result<Bytes>>> {
        let mut answers = self.cores.get_many(digests.clone()).await?;
        for tier in self.sources() {
            let absent: Vec<usize> =
                (0..answers.len()).filter(|&at| is_away(&answers[at])).collect();
            if absent.is_empty() {
                break;
            }
            let (large, small): (Vec<_>, Vec<_>) =
                absent.into_iter().partition(|&at| tier.is_large(&digests[at]));
            if !small.is_empty() {
                let asked = small.iter().map(|&at| digests[at]).collect();
                let fetched = tier.fetch_many(asked).await?;
                for (at, fetched) in small.into_iter().zip(fetched) {
                    answers[at] = worse(answers[at].as_ref().err(), fetched);
                }
            }
            for at in large {
                let fetched = self.fetch_whole(tier, digests[at]).await;
                answers[at] = worse(answers[at].as_ref().err(), fetched);
            }
        }
        Ok(answers)
    }

    async fn fetch_whole(&self, tier: &Tier, digest: Digest) -> Result<Bytes> {
        tier.fetch(digest).await?.whole(digest).await?;
        self.cores.read(digest, digest.size()).await
    }

    /// The whole blob, up to `size_max` bytes.
    ///
    /// # Errors
    /// As [`Cores::read`]; `Below`.
    pub async fn read(&self, digest: Digest, size_max: u64) -> Result<Bytes> {
        let here = self.cores.read(digest, size_max).await;
        if !is_away(&here) || self.sources().next().is_none() {
            return here;
        }
        let mut answers = self.get_many(vec![digest]).await?;
        answers.pop().unwrap_or(Err(BlobError::NotFound(digest)))
    }

    /// Opens `range` of a blob; one that is not here is read while it comes.
    ///
    /// # Errors
    /// As [`BlobReader::open`]; `Below`.
    pub async fn open(
        &self,
        env: Rc<Env>,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<BlobReader> {
        let cores = self.cores.clone();
        let mut answer = BlobReader::open(cores, env.clone(), digest, range.clone()).await;
        for tier in self.sources() {
            if !answer.as_ref().is_err_and(is_absence) {
                break;
            }
            let (cores, env) = (self.cores.clone(), env.clone());
            let fetched = if tier.is_large(&digest) {
                let following = tier.fetch(digest).await;
                following.map(|following| {
                    let growing = following.growing();
                    let held = Box::new(following);
                    BlobReader::follow(cores, env, (digest, range.clone()), growing, held)
                })
            } else {
                let fetched = tier.fetch_many(vec![digest]).await?.pop();
                let bytes = fetched.unwrap_or(Err(BlobError::NotFound(digest)));
                bytes.map(|bytes| BlobReader::whole(cores, env, &bytes, &range))
            };
            answer = worse(answer.as_ref().err(), fetched);
        }
        answer
    }

    /// Those that are neither here nor below. A tier that can't be asked has none of them: who
    /// asks sends them once more than needed.
    ///
    /// # Errors
    /// As [`Cores::find_missing`].
    pub async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let mut missing = self.cores.find_missing(digests).await?;
        for tier in self.sources() {
            if missing.is_empty() {
                break;
            }
            match tier.find_missing(missing.clone()).await {
                Ok(below) => missing = below,
                Err(error) => tracing::debug!(tier = tier.name(), %error, "taken as missing"),
            }
        }
        Ok(missing)
    }

    /// Brings here what is not; those that can't be had.
    ///
    /// # Errors
    /// As [`Cores::find_missing`]; `Full`, `Disk`, `Stopped` where a blob could not be kept.
    pub async fn bring(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let mut missing = self.cores.find_missing(digests).await?;
        for tier in self.sources() {
            if missing.is_empty() {
                break;
            }
            self.bring_from(tier, &missing).await?;
            missing = self.cores.find_missing(missing).await?;
        }
        Ok(missing)
    }

    async fn bring_from(&self, tier: &Tier, digests: &[Digest]) -> Result<()> {
        let (large, small): (Vec<_>, Vec<_>) =
            digests.iter().copied().partition(|digest| tier.is_large(digest));
        for batch in super::batch::batches(small, Digest::size, SMALL_BYTES_MAX) {
            let fetched = tier.fetch_many(batch.clone()).await?;
            let mut given = Vec::with_capacity(fetched.len());
            for (digest, fetched) in batch.into_iter().zip(fetched) {
                given.extend(keep_going(fetched)?.map(|bytes| (digest, bytes)));
            }
            self.keep_given(given).await?;
        }
        let large = stream::iter(large.into_iter().map(Ok));
        large
            .try_for_each_concurrent(LARGE_AT_ONCE, |digest| async move {
                match tier.fetch(digest).await {
                    Ok(following) => keep_going(following.whole(digest).await).map(drop),
                    Err(error) => keep_going::<()>(Err(error)).map(drop),
                }
            })
            .await
    }

    /// Sees to it that blobs which a tier gave are here: it hands out also what it could not keep.
    async fn keep_given(&self, mut given: Vec<(Digest, Bytes)>) -> Result<()> {
        let asked = given.iter().map(|(digest, _)| *digest).collect();
        let missing = self.cores.find_missing(asked).await?;
        given.retain(|(digest, _)| missing.contains(digest));
        for kept in self.cores.put_many(given).await? {
            kept?;
        }
        Ok(())
    }

    /// Keeps blobs here, and below as the instance's mode says; an answer for each in its place.
    ///
    /// # Errors
    /// As [`Cores::put_many`]; `Below` for each.
    pub async fn put_many(&self, blobs: Vec<(Digest, Bytes)>) -> Result<Vec<Result<()>>> {
        let Some(backing) = self.backing.as_ref().filter(|one| one.mode != WriteMode::LocalOnly)
        else {
            return self.cores.put_many(blobs).await;
        };
        let mut answers = self.cores.put_many(blobs.clone()).await?;
        let kept: Vec<usize> = (0..answers.len()).filter(|&at| answers[at].is_ok()).collect();
        let owed = kept.iter().map(|&at| blobs[at].clone());
        let owed: Vec<(Digest, Bytes)> = owed.filter(|(digest, _)| !digest.is_empty()).collect();
        if owed.is_empty() {
            return Ok(answers);
        }
        match backing.mode {
            WriteMode::Sync => {
                let mut pushed = backing.tier.push_many(owed).await?.into_iter();
                for at in kept.into_iter().filter(|&at| !blobs[at].0.is_empty()) {
                    answers[at] = pushed.next().unwrap_or(Err(BlobError::Stopped));
                }
            }
            _ => {
                let owed = owed.into_iter().map(|(digest, _)| Item::Blob(digest)).collect();
                if let Err(error) = backing.backlog.push(owed).await {
                    let error = BlobError::from(error);
                    kept.into_iter().for_each(|at| answers[at] = Err(error.clone()));
                }
            }
        }
        Ok(answers)
    }

    /// Writes below, as the instance's mode says, blobs that are kept here.
    ///
    /// # Errors
    /// `Below`, `Overloaded`, and the store's.
    pub async fn push(&self, digests: Vec<Digest>) -> Result<()> {
        match &self.backing {
            Some(Backing { tier, mode: WriteMode::Sync, .. }) => tier.push(digests).await,
            Some(Backing { backlog, mode: WriteMode::Async, .. }) => {
                let owed = digests.into_iter().filter(|digest| !digest.is_empty());
                Ok(backlog.push(owed.map(Item::Blob).collect()).await?)
            }
            _ => Ok(()),
        }
    }

    /// Whether a writer of this blob can be told that it is kept already: here, and below where
    /// the instance's mode promises it. That below alone says that it has it is not enough: it may
    /// be wrong, and the bytes are at hand now.
    ///
    /// # Errors
    /// As [`Blobs::push`].
    pub async fn is_kept(&self, digest: Digest) -> Result<bool> {
        let kept = self.cores.find_missing(vec![digest]).await?.is_empty();
        // It may not be below: an earlier write may have failed in between, or was another
        // instance's, which promised less.
        if kept && !digest.is_empty() {
            self.push(vec![digest]).await?;
        }
        Ok(kept)
    }
}

/// Whether a blob is not here, or was not to be had from the tiers asked so far.
fn is_away<T>(answer: &Result<T>) -> bool {
    answer.as_ref().is_err_and(is_absence)
}

const fn is_absence(error: &BlobError) -> bool {
    matches!(error, BlobError::NotFound(_) | BlobError::Below(_))
}

/// The answer of one more tier. NOT_FOUND is said only where each could be asked.
fn worse<T>(before: Option<&BlobError>, answer: Result<T>) -> Result<T> {
    match (before, answer) {
        (Some(BlobError::Below(why)), Err(BlobError::NotFound(_))) => {
            Err(BlobError::Below(why.clone()))
        }
        (_, answer) => answer,
    }
}

/// A blob that can't be had from one tier may be had from the next; a store that can't keep it
/// ends the search.
fn keep_going<T>(fetched: Result<T>) -> Result<Option<T>> {
    match fetched {
        Err(error) if is_absence(&error) => Ok(None),
        other => other.map(Some),
    }
}
