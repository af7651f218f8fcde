//! The `Send` side of the seam.
//!
//! tonic wants services, futures and streams that are `Send`; a shard is full of `Rc` and
//! `RefCell`. They meet here, without `unsafe`: nothing of a core is held across an await.

use super::{
    request::{Attached, CoreCounts, InboxCounts, Reply, Request, StoredAction},
    stream::Upload,
};
use crate::{
    blob::{BlobError, Body, Extent, Link, Result},
    digest::{Digest, HASH_BYTES, ShardId, owner},
    limits::UPLOAD_BYTES_MAX,
};
use bytes::Bytes;
use crossbeam_utils::CachePadded;
use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// All cores of this node, to be asked by digest from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Cores {
    inboxes: Arc<[async_channel::Sender<Request>]>,
    losses: Arc<[CachePadded<AtomicU64>]>,
    /// What uploads may still have on their way to their owners, in bytes.
    upload_bytes: Arc<Semaphore>,
}

/// The receiving end for one core; handed to its pump.
pub(super) struct Inbox {
    pub(super) requests: async_channel::Receiver<Request>,
    /// Counts blobs that this shard lost: evicted or quarantined.
    pub(super) losses: LossCounter,
}

/// One shard's count of blobs lost, readable from everywhere.
#[derive(Clone)]
pub(crate) struct LossCounter {
    all: Arc<[CachePadded<AtomicU64>]>,
    shard: usize,
}

impl LossCounter {
    /// A blob that was present is not any more.
    pub(crate) fn add(&self) {
        self.all[self.shard].fetch_add(1, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self { all: Arc::new([CachePadded::default()]), shard: 0 }
    }
}

impl Cores {
    /// The handle, and an inbox for each of `shards`.
    pub(super) fn new(shards: u16, inbox_len_max: usize) -> (Self, Vec<Inbox>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| async_channel::bounded(inbox_len_max)).unzip();
        let losses: Arc<[CachePadded<AtomicU64>]> =
            (0..shards).map(|_| CachePadded::default()).collect();
        let inboxes = receivers
            .into_iter()
            .enumerate()
            .map(|(shard, requests)| Inbox {
                requests,
                losses: LossCounter { all: losses.clone(), shard },
            })
            .collect();
        let upload_bytes = Arc::new(Semaphore::new(UPLOAD_BYTES_MAX));
        (Self { inboxes: senders.into(), losses, upload_bytes }, inboxes)
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        u16::try_from(self.inboxes.len()).expect("made from a u16")
    }

    /// How the inbox of a core is, without asking it; `None` where there is no such core.
    #[must_use]
    pub fn inbox(&self, core: u16) -> Option<InboxCounts> {
        let (inbox, losses) =
            (self.inboxes.get(usize::from(core))?, &self.losses[usize::from(core)]);
        let len_max = inbox.capacity().unwrap_or(usize::MAX);
        Some(InboxCounts { len: inbox.len(), len_max, losses: losses.load(Ordering::Relaxed) })
    }

    /// What a core does and holds. A core that is too busy answers late: the caller brings the
    /// patience.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`.
    ///
    /// # Panics
    /// Where there is no such core.
    pub async fn counts(&self, core: u16) -> Result<CoreCounts> {
        self.ask(ShardId(core), |reply| Request::Count { reply }).await
    }

    /// What a small blob holds, or where a large one lies.
    ///
    /// # Errors
    /// `NotFound`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn get(&self, digest: Digest) -> Result<Body> {
        self.ask(self.owner(&digest), |reply| Request::Get { digest, reply }).await?
    }

    /// Whole blobs, an answer for each in its place. The caller bounds the sum of their sizes.
    ///
    /// # Errors
    /// `Overloaded` or `Stopped` as a whole; `NotFound` and `Disk` for each blob.
    pub async fn get_many(&self, digests: Vec<Digest>) -> Result<Vec<Result<Bytes>>> {
        self.scatter(
            digests,
            |digest| *digest.hash(),
            |digests, reply| Request::GetMany { digests, reply },
        )
        .await
    }

    /// The whole blob, however it is stored, up to `size_max` bytes.
    ///
    /// # Errors
    /// `TooLarge`, `NotFound`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn read(&self, digest: Digest, size_max: u64) -> Result<Bytes> {
        if digest.size() > size_max {
            return Err(BlobError::TooLarge { size: digest.size(), size_max });
        }
        self.ask(self.owner(&digest), |reply| Request::Read { digest, size_max, reply }).await?
    }

    /// Keeps the blob; once this returns, it is found until evicted.
    ///
    /// # Errors
    /// `Mismatch`, `TooLarge`, `Full`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn put(&self, digest: Digest, bytes: Bytes) -> Result<()> {
        self.ask(self.owner(&digest), |reply| Request::Put { digest, bytes, reply }).await?
    }

    /// Keeps the blobs, an answer for each in its place.
    ///
    /// # Errors
    /// `Overloaded` or `Stopped` as a whole; the others of `put` for each blob.
    pub async fn put_many(&self, blobs: Vec<(Digest, Bytes)>) -> Result<Vec<Result<()>>> {
        self.scatter(blobs, |blob| *blob.0.hash(), |blobs, reply| Request::PutMany { blobs, reply })
            .await
    }

    /// Those that are absent, asked of all owners at once; the others are leased.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`.
    pub async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let mut by_owner = vec![Vec::new(); self.inboxes.len()];
        for digest in digests {
            by_owner[usize::from(self.owner(&digest).0)].push(digest);
        }
        let asked = by_owner.into_iter().enumerate().filter(|(_, digests)| !digests.is_empty());
        let answers = asked.map(|(shard, digests)| {
            self.ask(shard_id(shard), |reply| Request::FindMissing { digests, reply })
        });
        let mut missing = Vec::new();
        for answer in futures_util::future::try_join_all(answers).await? {
            missing.append(&mut answer?);
        }
        Ok(missing)
    }

    /// Promises those of these blobs and results that are here for so many seconds: they are owed
    /// to somebody. No use of them.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`; some may be promised then.
    pub async fn hold(
        &self,
        blobs: Vec<Digest>,
        results: Vec<[u8; HASH_BYTES]>,
        seconds: u32,
    ) -> Result<()> {
        let mut by_owner = vec![(Vec::new(), Vec::new()); self.inboxes.len()];
        for digest in blobs {
            by_owner[usize::from(self.owner(&digest).0)].0.push(digest);
        }
        for key in results {
            by_owner[usize::from(owner(&key, self.shards()).0)].1.push(key);
        }
        let asked = by_owner.into_iter().enumerate();
        let asked = asked.filter(|(_, (blobs, results))| !blobs.is_empty() || !results.is_empty());
        let answers = asked.map(|(shard, (blobs, results))| {
            let hold = |reply| Request::Hold { blobs, results, seconds, reply };
            self.ask(shard_id(shard), hold)
        });
        futures_util::future::try_join_all(answers).await.map(drop)
    }

    /// Begins, or goes on with, the upload that `name` names.
    ///
    /// # Errors
    /// `Overloaded` where too many are open or another stream holds this one; `TooLarge`, `Full`.
    pub async fn upload(&self, name: [u8; HASH_BYTES], digest: Digest) -> Result<Upload> {
        let attached = self
            .ask(self.owner(&digest), |reply| Request::Attach {
                name: Box::new(name),
                digest,
                reply,
            })
            .await??;
        Ok(Upload::new(self.clone(), Box::new(name), digest, attached))
    }

    /// Bytes that the upload `name` of `digest` has taken; `None` where there is no such upload.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`.
    pub async fn upload_status(
        &self,
        name: [u8; HASH_BYTES],
        digest: Digest,
    ) -> Result<Option<u64>> {
        self.ask(self.owner(&digest), |reply| Request::UploadStatus { name: Box::new(name), reply })
            .await
    }

    /// For each (blob, executable?): the file to link. All of them, or the error of the first that
    /// can't be had. Each is leased.
    ///
    /// # Errors
    /// `NotFound`, `Full`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn link(&self, wanted: Vec<(Digest, bool)>) -> Result<Vec<Link>> {
        let mut by_owner = vec![(Vec::new(), Vec::new()); self.inboxes.len()];
        let count = wanted.len();
        for (place, (digest, executable)) in wanted.into_iter().enumerate() {
            let shard = usize::from(self.owner(&digest).0);
            by_owner[shard].0.push(place);
            by_owner[shard].1.push((digest, executable));
        }
        let asked = by_owner.into_iter().enumerate().filter(|(_, (places, _))| !places.is_empty());
        let answers = asked.map(|(shard, (places, wanted))| async move {
            let reply =
                self.ask(shard_id(shard), |reply| Request::Link { wanted, reply }).await??;
            Ok::<_, BlobError>((places, reply))
        });
        let mut links = vec![None; count];
        for (places, answer) in futures_util::future::try_join_all(answers).await? {
            for (place, link) in places.into_iter().zip(answer) {
                links[place] = Some(link);
            }
        }
        Ok(links.into_iter().flatten().collect())
    }

    /// Makes a sealed output file the blob `digest` by linking it; its mode is 0444 or 0555 and
    /// its owner this process. The caller has hashed it after nobody could write it any more.
    ///
    /// # Errors
    /// `Full`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn adopt(&self, digest: Digest, file: File, executable: bool) -> Result<()> {
        self.ask(self.owner(&digest), |reply| Request::Adopt { digest, file, executable, reply })
            .await?
    }

    /// The stored result under this key.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`, `Disk`.
    pub async fn get_action(&self, key: [u8; HASH_BYTES]) -> Result<Option<StoredAction>> {
        self.ask(self.owner_of(&key), |reply| Request::GetAction { key: Box::new(key), reply })
            .await?
    }

    /// Stores a result under this key, over any other.
    ///
    /// # Errors
    /// `Full`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn put_action(&self, key: [u8; HASH_BYTES], bytes: Bytes) -> Result<()> {
        let key_owner = self.owner_of(&key);
        self.ask(key_owner, |reply| Request::PutAction { key: Box::new(key), bytes, reply }).await?
    }

    /// Remembers that every blob of this result was present at `generation`.
    pub fn complete_action(&self, key: [u8; HASH_BYTES], stored: &StoredAction, generation: u64) {
        // Lost where the inbox is full: it only saves work.
        let record = stored.record;
        let request = Request::CompleteAction { key: Box::new(key), record, generation };
        drop(self.submit(self.owner_of(&key), request));
    }

    /// Grows whenever any shard loses a blob; 1 where none was lost.
    #[must_use]
    pub fn generation(&self) -> u64 {
        1 + self.losses.iter().map(|losses| losses.load(Ordering::Acquire)).sum::<u64>()
    }

    /// Tells the owner what reading a blob's every byte showed.
    pub(super) fn checked(&self, extent: &Extent, good: bool) {
        let Extent { digest, home, .. } = *extent;
        // A full inbox loses it: the next reader checks again.
        drop(self.submit(self.owner(&digest), Request::Checked { digest, home, good }));
    }

    pub(super) fn park(&self, digest: &Digest, name: Box<[u8; HASH_BYTES]>, attached: Attached) {
        // A full inbox drops the upload, as a client may expect of a busy node.
        drop(self.submit(self.owner(digest), Request::Park { name, attached }));
    }

    /// Waits until `length` bytes more may be on their way to an owner.
    pub(super) async fn upload_share(&self, length: u64) -> Option<OwnedSemaphorePermit> {
        let length = usize::try_from(length).unwrap_or(UPLOAD_BYTES_MAX).min(UPLOAD_BYTES_MAX);
        let length = u32::try_from(length).expect("the bound is far below 4 GiB");
        // Never closed.
        self.upload_bytes.clone().acquire_many_owned(length).await.ok()
    }

    /// Takes no further requests; what is in flight is answered.
    pub fn close(&self) {
        for inbox in self.inboxes.iter() {
            inbox.close();
        }
    }

    /// Sends each item to its owner, and brings the answers back into the items' order.
    async fn scatter<T, A>(
        &self,
        items: Vec<T>,
        hash: impl Fn(&T) -> [u8; HASH_BYTES],
        request: impl Fn(Vec<T>, Reply<Vec<Result<A>>>) -> Request,
    ) -> Result<Vec<Result<A>>> {
        let count = items.len();
        let mut by_owner: Vec<(Vec<usize>, Vec<T>)> =
            self.inboxes.iter().map(|_| Default::default()).collect();
        for (place, item) in items.into_iter().enumerate() {
            let (places, owned) = &mut by_owner[usize::from(self.owner_of(&hash(&item)).0)];
            places.push(place);
            owned.push(item);
        }
        let asked = by_owner.into_iter().enumerate().filter(|(_, (places, _))| !places.is_empty());
        let request = &request;
        let answers = asked.map(|(shard, (places, items))| async move {
            let answer = self.ask(shard_id(shard), |reply| request(items, reply)).await?;
            Ok::<_, BlobError>((places, answer))
        });
        let mut ordered: Vec<Option<Result<A>>> = (0..count).map(|_| None).collect();
        for (places, answer) in futures_util::future::try_join_all(answers).await? {
            for (place, one) in places.into_iter().zip(answer) {
                ordered[place] = Some(one);
            }
        }
        Ok(ordered.into_iter().map(|one| one.unwrap_or(Err(BlobError::Stopped))).collect())
    }

    async fn ask<T>(&self, shard: ShardId, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.submit(shard, request(reply))?; // synchronous: nothing of a core is held
        answer.await.map_err(|_| BlobError::Stopped) // the only await
    }

    pub(super) fn submit(&self, shard: ShardId, request: Request) -> Result<()> {
        use async_channel::TrySendError::{Closed, Full};
        self.inboxes[usize::from(shard.0)].try_send(request).map_err(|refused| match refused {
            Full(_) => BlobError::Overloaded,
            Closed(_) => BlobError::Stopped,
        })
    }

    pub(super) fn owner(&self, digest: &Digest) -> ShardId {
        digest.owner(self.shards())
    }

    fn owner_of(&self, hash: &[u8; HASH_BYTES]) -> ShardId {
        owner(hash, self.shards())
    }
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("made from a u16"))
}

/// Proof, kept beside the claim: what a service awaits is `Send`.
const _: fn() = || {
    fn is_send<T: Send + 'static>(_: T) {}
    let ask = |cores: Cores, digest| is_send(async move { cores.get(digest).await.is_ok() });
    let _ = ask;
};
