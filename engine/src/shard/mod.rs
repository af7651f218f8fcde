//! One range of digests, on one disk, by one core. Owns the index and the files it speaks of.
//!
//! Invariant: what `find_missing` calls present can be read.
//! Invariant: a blob's file is never changed once it has its name: not its content, not its mode.
//! Nothing here is locked, because nothing is shared; no borrow crosses an await.

mod append;
mod carry;
mod doubt;
mod evict;
mod index;
mod layout;
mod link;
mod names;
mod recovery;
mod scrub;
mod segment;
mod segments;
mod space;
mod stopped;
mod survey;
mod upload;
mod usage;

pub use self::{
    evict::Evictions,
    layout::{Layout, StoreLock},
    recovery::{Recovered, recover},
    scrub::Scrubbed,
    stopped::{Stat, Stopped, TENTHS, Verified},
    usage::{Allowance, Usage},
};

use self::{
    append::Segments,
    index::{ActionEntry, ActionIndex, Entry, Index, on_disk},
    names::Names,
    segment::{Kind, RECORD_HEADER_BYTES, Record},
    space::Space,
};
use crate::{
    blob::{BlobError, BlobStore, Body, Extent, Home, Result, Source},
    cores::{LossCounter, StoredAction},
    digest::{Digest, DigestFunction, HASH_BYTES},
    env::Env,
};
use std::{
    cell::{Cell, RefCell},
    fs::File,
    rc::Rc,
    time::Duration,
};
use tokio::sync::Semaphore;

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
    /// What all shards together read again in search of damage, in a second; 0 = nothing.
    pub scrub_bytes_per_second: u64,
}

/// What a shard holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Blobs.
    pub blobs: usize,
    /// Results of actions.
    pub results: usize,
    /// What the blobs and results of all shards take, in bytes.
    pub used_bytes: u64,
    /// Segments that it reads from.
    pub segments: usize,
    /// What was let go since the start.
    pub evictions: Evictions,
    /// What was read again since the start.
    pub scrubbed: Scrubbed,
}

/// One shard. Held by its core's pump, through `Rc`.
pub struct Shard {
    env: Rc<Env>,
    config: StoreConfig,
    index: RefCell<Index>,
    actions: RefCell<ActionIndex>,
    segments: Segments,
    losses: LossCounter,
    space: Rc<Space>,
    names: Names,
    evictions: Cell<Evictions>,
    scrubbed: Cell<Scrubbed>,
    dirty: Cell<bool>,
    /// One at a time.
    syncing: Semaphore,
    failed_syncs: Cell<u64>,
    /// Held open since the start: a sync reports the failures since its file was opened.
    root: File,
}

impl Shard {
    /// The shard over what recovery found for it.
    pub(crate) fn open(
        env: Rc<Env>,
        config: StoreConfig,
        recovered: Recovered,
        losses: LossCounter,
    ) -> Rc<Self> {
        let Recovered { index, actions, held, next_segment, usage, shard, root } = recovered;
        let space = Rc::new(Space::new(usage, shard));
        let segments =
            Segments::new(env.clone(), config.clone(), next_segment, space.clone(), held);
        Rc::new(Self {
            env,
            config,
            index: RefCell::new(index),
            actions: RefCell::new(actions),
            segments,
            losses,
            space,
            names: Names::default(),
            evictions: Cell::default(),
            scrubbed: Cell::default(),
            dirty: Cell::new(false),
            syncing: Semaphore::new(1),
            failed_syncs: Cell::new(0),
            root,
        })
    }

    /// What all shards use and may keep.
    #[cfg(test)]
    fn usage(&self) -> Usage {
        self.space.usage()
    }

    /// What it holds.
    pub(crate) fn holdings(&self) -> Holdings {
        Holdings {
            blobs: self.index.borrow().len(),
            results: self.actions.borrow().len(),
            used_bytes: self.space_used(),
            segments: self.segments.held.len(),
            evictions: self.evictions.get(),
            scrubbed: self.scrubbed.get(),
        }
    }

    /// Seals the open segment and syncs; a start after this has nothing to scan.
    pub(crate) async fn close(&self) {
        self.sync_epoch().await;
        if let Err(error) = self.segments.close().await {
            tracing::error!(%error, "the open segment could not be sealed");
        }
    }

    /// Makes what was acknowledged survive a power failure, if anything was. Says whether it does.
    pub(crate) async fn sync_epoch(&self) -> bool {
        if self.config.durability == Durability::Sync {
            return true;
        }
        // One after the other: a failure is told to one of those who sync, and the next one has to
        // know of it.
        let _turn = self.syncing.acquire().await;
        if !self.dirty.replace(false) {
            return true;
        }
        let synced = match self.root.try_clone() {
            Ok(root) => self.env.disk.sync_all(root).await,
            Err(error) => Err(error),
        };
        if let Err(error) = synced {
            // What the kernel says it holds may not be what the disk holds, and asking again would
            // be answered with success: everything is hashed again before it is served.
            tracing::error!(%error, "an epoch could not be synced: nothing is trusted unread");
            self.index.borrow_mut().doubt_all();
            self.segments.give_up();
            self.failed_syncs.set(self.failed_syncs.get() + 1);
            return false;
        }
        true
    }

    /// Makes a sealed output file this blob, by a link.
    pub(crate) async fn adopt(&self, digest: Digest, file: File, executable: bool) -> Result<()> {
        let home = Home::file(executable);
        if self.touch(&digest).is_ok_and(|entry| entry.has(home) && entry.is_verified(home)) {
            return Ok(());
        }
        let _share = self.reserve(on_disk(digest.size())).await?;
        let _naming = self.names.naming(digest).await;
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
        let now = self.env.clock.seconds();
        let entry = self.actions.borrow_mut().get_mut(key).map(|entry| {
            entry.used = now;
            *entry
        });
        let Some(entry) = entry else { return Ok(None) };
        let Some(file) = self.segments.reader(entry.place.segment) else { return Ok(None) };
        let start = u64::from(entry.place.offset).saturating_sub(RECORD_HEADER_BYTES as u64);
        let length = RECORD_HEADER_BYTES + entry.length as usize;
        let record = self.env.disk.read(&file, start, length).await?;
        let Some(bytes) = segment::checked_payload(&record, key) else {
            self.lose_result(key, entry.place);
            return Ok(None);
        };
        let record = (entry.place.segment, entry.place.offset);
        let complete_at = if now < entry.complete_until { entry.complete_at } else { 0 };
        Ok(Some(StoredAction { bytes, complete_at, record }))
    }

    /// Stores a result, over any other of the same key.
    pub(crate) async fn put_action(&self, key: &[u8; HASH_BYTES], bytes: &[u8]) -> Result<()> {
        let _share = self.reserve(segment::reserved_bytes(bytes.len() as u64)).await?;
        let function = DigestFunction::Sha256;
        let record = Record { kind: Kind::Action, function, hash: key, payload: bytes };
        let appended = self.segments.append(record).await?;
        self.dirty.set(true);
        let length = u32::try_from(bytes.len()).expect("a batch is bounded");
        let now = self.env.clock.seconds();
        let entry = ActionEntry::new(*key, appended.place, length, now);
        if let Some(segment) = self.actions.borrow_mut().insert(entry) {
            self.segments.held.overwritten(segment);
        }
        Ok(())
    }

    /// Remembers at which loss generation a result was complete, if it is still the same. Its
    /// blobs were promised for more than a lease by then: so long as what is left of that is a
    /// whole one, and none of them is lost, whoever is told of the result has his promise.
    pub(crate) fn complete_action(
        &self,
        key: &[u8; HASH_BYTES],
        record: (u32, u32),
        generation: u64,
    ) {
        if let Some(entry) = self.actions.borrow_mut().get_mut(key)
            && (entry.place.segment, entry.place.offset) == record
        {
            entry.complete_at = generation;
            entry.complete_until = self.env.clock.seconds().saturating_add(self.lease() / 2);
        }
    }

    /// The entry of a blob that is here, its use noted and its lease renewed.
    fn touch(&self, digest: &Digest) -> Result<Entry> {
        let now = self.env.clock.seconds();
        let lease = self.lease();
        let mut index = self.index.borrow_mut();
        let entry = index.get_mut(digest).ok_or(BlobError::NotFound(*digest))?;
        entry.touch(now, now.saturating_add(lease).saturating_add(lease / 2));
        Ok(*entry)
    }

    /// Promises blobs for so many seconds. A result has no promise: it counts as used, so that all
    /// others go before it.
    pub(crate) fn hold(&self, blobs: &[Digest], results: &[[u8; HASH_BYTES]], seconds: u32) {
        let now = self.env.clock.seconds();
        let mut index = self.index.borrow_mut();
        for digest in blobs {
            if let Some(entry) = index.get_mut(digest) {
                entry.leased = entry.leased.max(now.saturating_add(seconds));
            }
        }
        let mut actions = self.actions.borrow_mut();
        for key in results {
            if let Some(entry) = actions.get_mut(key) {
                entry.used = now;
            }
        }
    }

    /// Seconds for which what is reported present is promised.
    fn lease(&self) -> u32 {
        u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX)
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
        self.enter(digest, entry);
        Ok(())
    }

    /// The bytes of records are counted where they are appended.
    fn enter(&self, digest: &Digest, entry: Entry) {
        self.dirty.set(true);
        let gained = self.index.borrow_mut().insert(digest, entry);
        // A file replaces its like.
        if gained & (Home::Plain.bit() | Home::Executable.bit()) != 0 {
            self.space.add_file(on_disk(digest.size()));
        }
        drop(self.touch(digest));
    }
}

impl BlobStore for Rc<Shard> {
    async fn get(&self, digest: Digest) -> Result<Body> {
        loop {
            let entry = self.touch(&digest)?;
            let home = entry.best_home();
            let verified = entry.is_verified(home);
            let read = match entry.place().filter(|_| home == Home::Segment) {
                Some(place) => self.read_small(&digest, place, verified).await.map(Body::Bytes),
                None => self
                    .open_home(&digest, home)
                    .await
                    .map(|file| Body::Extent(Extent { file, digest, home, verified })),
            };
            match read {
                // That home is lost by now; another may be left.
                Err(BlobError::NotFound(_)) => {}
                other => return other,
            }
        }
    }

    async fn put(&self, digest: Digest, source: Source) -> Result<()> {
        if digest.size() > self.config.blob_bytes_max {
            let size_max = self.config.blob_bytes_max;
            return Err(BlobError::TooLarge { size: digest.size(), size_max });
        }
        match source {
            Source::Bytes(_) if self.touch(&digest).is_ok_and(|entry| entry.is_sure()) => Ok(()),
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
mod evict_tests;
#[cfg(test)]
mod tests;
