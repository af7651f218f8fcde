//! One range of digests, on one disk, by one core. Owns the index and the files it speaks of.
//!
//! Invariant: what `find_missing` calls present can be read.
//! Invariant: a blob's file is never changed once it has its name: not its content, not its mode.
//! Nothing here is locked, because nothing is shared; no borrow crosses an await.

mod append;
mod index;
mod layout;
mod link;
mod recovery;
mod segment;
mod upload;

pub use self::{
    layout::{Layout, StoreLock},
    recovery::{Recovered, recover},
};

use self::{
    append::Segments,
    index::{ActionEntry, ActionIndex, Entry, Index, Place},
    segment::{Kind, RECORD_HEADER_BYTES, Record},
};
use crate::{
    blob::{BlobError, BlobStore, Body, Extent, Result, Source},
    cores::{LossCounter, StoredAction},
    digest::{Digest, DigestFunction, HASH_BYTES, Hasher},
    env::Env,
    limits::IO_BYTES,
};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    fs::File,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// When a blob counts as kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged when written: a power failure may lose the last second, a killed process
    /// nothing.
    Epoch,
    /// Acknowledged when it would survive a power failure.
    Sync,
}

/// What a store is told. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where it lies.
    pub layout: Layout,
    /// A segment is sealed when the next record would make it larger.
    pub segment_bytes: u64,
    /// Blobs up to this size go to segments.
    pub small_blob_bytes_max: u64,
    /// Largest blob accepted.
    pub blob_bytes_max: u64,
    /// What the store may use; 0 = as much as there is.
    pub bytes_max: u64,
    /// What must stay free on the file system.
    pub free_bytes_min: u64,
    /// How long what was reported present is promised.
    pub lease: Duration,
    /// When a blob counts as kept.
    pub durability: Durability,
}

/// How often the file system is asked what is free.
const FREE_CHECK: Duration = Duration::from_secs(1);

/// One shard. Held by its core's pump, through `Rc`.
pub struct Shard {
    env: Rc<Env>,
    config: StoreConfig,
    index: RefCell<Index>,
    actions: RefCell<ActionIndex>,
    segments: Segments,
    losses: LossCounter,
    used_bytes: Arc<AtomicU64>,
    free: Cell<(Duration, u64)>,
    dirty: Cell<bool>,
}

impl Shard {
    /// The shard over what recovery found for it.
    pub(crate) fn open(
        env: Rc<Env>,
        config: StoreConfig,
        recovered: Recovered,
        losses: LossCounter,
    ) -> Rc<Self> {
        let Recovered { index, actions, readers, next_segment, used_bytes } = recovered;
        let segments = Segments::new(env.clone(), config.clone(), next_segment, readers);
        Rc::new(Self {
            env,
            config,
            index: RefCell::new(index),
            actions: RefCell::new(actions),
            segments,
            losses,
            used_bytes,
            free: Cell::new((Duration::ZERO, 0)),
            dirty: Cell::new(false),
        })
    }

    /// Seals the open segment and syncs; a start after this has nothing to scan.
    pub(crate) async fn close(&self) {
        self.sync_epoch().await;
        if let Err(error) = self.segments.close().await {
            tracing::error!(%error, "the open segment could not be sealed");
        }
    }

    /// Makes what was acknowledged survive a power failure, if anything was.
    pub(crate) async fn sync_epoch(&self) {
        if self.config.durability == Durability::Sync || !self.dirty.replace(false) {
            return;
        }
        if let Err(error) = self.env.disk.sync_all(self.config.layout.root().to_owned()).await {
            tracing::error!(%error, "an epoch could not be synced");
        }
    }

    /// Makes a sealed output file this blob, by a link.
    pub(crate) async fn adopt(&self, digest: Digest, file: File, executable: bool) -> Result<()> {
        if self.touch(&digest).is_ok_and(|entry| entry.has_file(executable)) {
            return Ok(());
        }
        self.reserve(digest.size())?;
        let path = self.config.layout.blob(&digest, executable);
        let directory = self.config.layout.prefix(digest.hash()[0]);
        if self.config.durability == Durability::Sync {
            let file = file.try_clone()?;
            self.env.disk.sync_file(file).await?;
        }
        self.env.disk.adopt(file, path).await?;
        self.added(&digest, Entry::in_file(&digest, executable, true), directory).await
    }

    /// The stored result under this key.
    pub(crate) async fn get_action(&self, key: &[u8; HASH_BYTES]) -> Result<Option<StoredAction>> {
        let entry = self.actions.borrow_mut().get_mut(key).copied();
        let Some(entry) = entry else { return Ok(None) };
        let Some(file) = self.segments.reader(entry.place.segment) else { return Ok(None) };
        let start = u64::from(entry.place.offset) - RECORD_HEADER_BYTES as u64;
        let length = RECORD_HEADER_BYTES + entry.length as usize;
        let record = self.env.disk.read(&file, start, length).await?;
        let Some(bytes) = segment::checked_payload(&record, key) else {
            tracing::error!(segment = entry.place.segment, "a result's record is damaged");
            self.actions.borrow_mut().remove(key);
            return Ok(None);
        };
        Ok(Some(StoredAction { bytes, complete_at: entry.complete_at }))
    }

    /// Stores a result, over any other of the same key.
    pub(crate) async fn put_action(&self, key: &[u8; HASH_BYTES], bytes: &[u8]) -> Result<()> {
        self.reserve(bytes.len() as u64)?;
        let function = DigestFunction::Sha256;
        let record = Record { kind: Kind::Action, function, hash: key, payload: bytes };
        let place = self.segments.append(record).await?;
        self.dirty.set(true);
        self.used_bytes.fetch_add(record.encoded_len() as u64, Ordering::Relaxed);
        let length = u32::try_from(bytes.len()).expect("a batch is bounded");
        let entry = ActionEntry { key: *key, place, length, complete_at: 0 };
        self.actions.borrow_mut().insert(entry);
        Ok(())
    }

    /// Remembers at which loss generation a result was complete.
    pub(crate) fn complete_action(&self, key: &[u8; HASH_BYTES], generation: u64) {
        if let Some(entry) = self.actions.borrow_mut().get_mut(key) {
            entry.complete_at = generation;
        }
    }

    /// What reading a blob's every byte showed.
    pub(crate) fn checked(&self, digest: Digest, good: bool) {
        if good {
            if let Some(entry) = self.index.borrow_mut().get_mut(&digest) {
                entry.set_verified();
            }
            return;
        }
        // Its file keeps its name until the next upload replaces it: whoever reads it now has
        // been told, and a damaged name that the index does not know is never served.
        if self.index.borrow_mut().remove(&digest).is_some() {
            tracing::error!(%digest, "a stored blob is damaged and counts as absent");
            self.losses.add();
        }
    }

    /// The entry of a blob that is here, its use noted and its lease renewed.
    fn touch(&self, digest: &Digest) -> Result<Entry> {
        let now = self.env.clock.seconds();
        let lease = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX);
        let mut index = self.index.borrow_mut();
        let entry = index.get_mut(digest).ok_or(BlobError::NotFound(*digest))?;
        entry.used = now;
        entry.leased = now.saturating_add(lease);
        Ok(*entry)
    }

    async fn read_small(&self, digest: &Digest, place: Place, verified: bool) -> Result<Bytes> {
        let gone = || BlobError::NotFound(*digest);
        let file = self.segments.reader(place.segment).ok_or_else(gone)?;
        let length = usize::try_from(digest.size()).map_err(|_| gone())?;
        let bytes = self.env.disk.read(&file, u64::from(place.offset), length).await?;
        if !verified {
            let good = Digest::of(&bytes) == *digest;
            self.checked(*digest, good);
            if !good {
                return Err(gone());
            }
        }
        Ok(bytes)
    }

    async fn open_file(&self, digest: &Digest, executable: bool) -> Result<Arc<File>> {
        let file = self.env.disk.open(self.config.layout.blob(digest, executable)).await;
        let whole = match &file {
            Ok(file) => file.metadata()?.len() == digest.size(),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        if !whole {
            self.checked(*digest, false);
            return Err(BlobError::NotFound(*digest));
        }
        Ok(file?)
    }

    async fn verify_file(&self, digest: &Digest, executable: bool) -> Result<()> {
        let file = self.open_file(digest, executable).await?;
        let mut hasher = Hasher::new(digest.function());
        while hasher.size() < digest.size() {
            let rest = usize::try_from(digest.size() - hasher.size()).unwrap_or(usize::MAX);
            let bytes = self.env.disk.read(&file, hasher.size(), rest.min(IO_BYTES)).await?;
            hasher.update(&bytes);
            futures_lite::future::yield_now().await;
        }
        let good = hasher.finish() == *digest;
        self.checked(*digest, good);
        if good { Ok(()) } else { Err(BlobError::NotFound(*digest)) }
    }

    /// Whether `bytes` more may be stored.
    fn reserve(&self, bytes: u64) -> Result<()> {
        let used = self.used_bytes.load(Ordering::Relaxed);
        if self.config.bytes_max > 0 && used.saturating_add(bytes) > self.config.bytes_max {
            return Err(BlobError::Full);
        }
        let now = self.env.clock.now();
        let (mut checked, mut free) = self.free.get();
        if checked == Duration::ZERO || now.saturating_sub(checked) > FREE_CHECK {
            (checked, free) = (now, self.env.disk.free_bytes(self.config.layout.root())?);
        }
        let left = free.checked_sub(bytes).filter(|left| *left >= self.config.free_bytes_min);
        self.free.set((checked, left.ok_or(BlobError::Full)?));
        Ok(())
    }

    /// Enters a blob whose bytes are written.
    async fn added(
        &self,
        digest: &Digest,
        entry: Entry,
        directory: std::path::PathBuf,
    ) -> Result<()> {
        if self.config.durability == Durability::Sync {
            self.env.disk.sync_directory(directory).await?;
        }
        self.enter(digest, entry, digest.size());
        Ok(())
    }

    fn enter(&self, digest: &Digest, entry: Entry, bytes: u64) {
        self.dirty.set(true);
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.index.borrow_mut().insert(digest, entry);
        drop(self.touch(digest));
    }
}

impl BlobStore for Rc<Shard> {
    async fn get(&self, digest: Digest) -> Result<Body> {
        let entry = self.touch(&digest)?;
        if let Some(place) = entry.place() {
            return self.read_small(&digest, place, entry.is_verified()).await.map(Body::Bytes);
        }
        let executable = !entry.has_file(false);
        let file = self.open_file(&digest, executable).await?;
        Ok(Body::Extent(Extent { file, digest, verified: entry.is_verified() }))
    }

    async fn put(&self, digest: Digest, source: Source) -> Result<()> {
        if digest.size() > self.config.blob_bytes_max {
            let size_max = self.config.blob_bytes_max;
            return Err(BlobError::TooLarge { size: digest.size(), size_max });
        }
        match source {
            Source::Bytes(_) if self.touch(&digest).is_ok_and(|entry| entry.is_verified()) => {
                Ok(())
            }
            Source::Bytes(bytes) => self.keep_bytes(digest, bytes).await,
            Source::Chunks(chunks) => self.keep_chunks(digest, chunks).await,
        }
    }

    async fn find_missing(&self, mut digests: Vec<Digest>) -> Result<Vec<Digest>> {
        digests.retain(|digest| self.touch(digest).is_err());
        Ok(digests)
    }
}

#[cfg(test)]
mod tests;
