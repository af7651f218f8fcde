//! The segment that a shard writes, and those it reads. What arrives while a write is under way is
//! gathered and goes out as one write and, where durability asks for it, one sync.
//!
//! Invariant: a record is acknowledged only after the write (and sync) that held it succeeded.
//! After a failed write or sync the segment is given up: nothing is appended behind the damage,
//! and the sync is never repeated.
//! Invariant: a segment is let go only when every record that was appended to it is entered.

use super::{
    Durability, StoreConfig,
    index::Place,
    segment::{self, HEADER_BYTES, Nonce, Record, RecordEntry},
    segments::{Held, HeldSegments, SegmentFile},
    space::Space,
};
use crate::{
    blob::{BlobError, Result},
    env::{Env, disk::Writing},
    limits::APPEND_BYTES_MAX,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::File,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::sync::oneshot;

/// The segments of one shard.
pub(super) struct Segments {
    env: Rc<Env>,
    config: StoreConfig,
    next_id: Arc<AtomicU32>,
    space: Rc<Space>,
    pub(super) held: HeldSegments,
    active: RefCell<Option<Active>>,
    pending: RefCell<Batch>,
    writing: Cell<bool>,
    /// Of every segment that this process begins.
    nonce: Nonce,
}

/// The segment that grows.
struct Active {
    id: u32,
    file: Writing,
    end: u64,
    entries: Vec<RecordEntry>,
}

/// Records that wait for one write; their offsets are within `bytes`.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    entries: Vec<RecordEntry>,
    waiters: Vec<oneshot::Sender<Turn>>,
}

/// A record that is written and not entered into the index yet.
pub(super) struct Appended<'a> {
    pub(super) place: Place,
    held: &'a HeldSegments,
}

impl Drop for Appended<'_> {
    fn drop(&mut self) {
        self.held.entered(self.place.segment);
    }
}

/// What a waiter is told.
enum Turn {
    /// The write before is done; write the next one.
    Lead,
    /// The record is written: in which segment, and where its batch began.
    Written(Result<(u32, u32)>),
}

impl Segments {
    pub(super) fn new(
        env: Rc<Env>,
        config: StoreConfig,
        next_id: Arc<AtomicU32>,
        space: Rc<Space>,
        held: HashMap<u32, Held>,
    ) -> Self {
        Self {
            env,
            config,
            next_id,
            space,
            held: HeldSegments::new(held),
            active: RefCell::default(),
            pending: RefCell::default(),
            writing: Cell::new(false),
            nonce: Nonce::new(),
        }
    }

    /// The file of a segment, to read from.
    pub(super) fn reader(&self, segment: u32) -> Option<Arc<File>> {
        self.held.reader(segment)
    }

    /// Appends a record and says where its payload lies. Its segment stays as long as the caller
    /// has not dropped that: by then the record is entered, or of no use.
    pub(super) async fn append(&self, record: Record<'_>) -> Result<Appended<'_>> {
        let (entry, turn) = self.enqueue(record)?;
        let (segment, start) = match turn {
            None => self.lead().await?,
            Some(turn) => match turn.await.map_err(|_| BlobError::Stopped)? {
                Turn::Written(written) => written?,
                Turn::Lead => self.lead().await?,
            },
        };
        let place = Place { segment, offset: start + entry.offset };
        Ok(Appended { place, held: &self.held })
    }

    /// Puts a record into the batch; nothing to wait for means that the caller is to write it.
    fn enqueue(
        &self,
        record: Record<'_>,
    ) -> Result<(RecordEntry, Option<oneshot::Receiver<Turn>>)> {
        let mut pending = self.pending.borrow_mut();
        if pending.bytes.len() + record.encoded_len() > APPEND_BYTES_MAX {
            return Err(BlobError::Overloaded);
        }
        let entry = record.encode(self.nonce, &mut pending.bytes);
        pending.entries.push(entry);
        if !self.writing.replace(true) {
            return Ok((entry, None));
        }
        let (waiter, turn) = oneshot::channel();
        pending.waiters.push(waiter);
        Ok((entry, Some(turn)))
    }

    /// Writes what has gathered, tells who waited, and hands over to the first who came meanwhile.
    async fn lead(&self) -> Result<(u32, u32)> {
        // One turn for the others of the same request to put their records beside this one.
        futures_lite::future::yield_now().await;
        let batch = self.pending.take();
        let written = self.write(batch.bytes, batch.entries).await;
        for waiter in batch.waiters {
            if waiter.send(Turn::Written(written.clone())).is_err()
                && let Ok((segment, _)) = written
            {
                self.held.entered(segment);
            }
        }
        self.hand_over();
        written
    }

    /// Makes the first who still waits the next to write; nobody, where nobody does.
    fn hand_over(&self) {
        let mut pending = self.pending.borrow_mut();
        while !pending.waiters.is_empty() {
            if pending.waiters.remove(0).send(Turn::Lead).is_ok() {
                return;
            }
        }
        self.writing.set(false);
    }

    async fn write(&self, bytes: Vec<u8>, entries: Vec<RecordEntry>) -> Result<(u32, u32)> {
        let mut active = self.active_with_room(bytes.len()).await?;
        let begin = u32::try_from(active.end).expect("a segment is far below 4 GiB");
        let (length, count) = (bytes.len() as u64, entries.len());
        if let Err(error) = self.write_durably(&active, bytes).await {
            // A segment with damage at its end is given up.
            self.held.ended(active.id);
            return Err(error.into());
        }
        active.end += length;
        active.entries.extend(entries.into_iter().map(|mut entry| {
            entry.offset += begin;
            entry
        }));
        let id = active.id;
        self.held.grown(id, length, count);
        self.space.add(length);
        *self.active.borrow_mut() = Some(active);
        Ok((id, begin))
    }

    async fn write_durably(&self, active: &Active, bytes: Vec<u8>) -> io::Result<()> {
        self.env.disk.write(&active.file, bytes, active.end).await?;
        match self.config.durability {
            Durability::Sync => self.env.disk.sync(&active.file).await,
            Durability::Epoch => Ok(()),
        }
    }

    /// The segment to append to, taken out of its place while it is written.
    async fn active_with_room(&self, bytes: usize) -> Result<Active> {
        let active = self.active.borrow_mut().take();
        match active {
            Some(active) if active.end + bytes as u64 <= self.config.segment_bytes => {
                return Ok(active);
            }
            Some(full) => {
                // Its records are kept, footer or not: a start would scan for them.
                if let Err(error) = self.seal(full).await {
                    tracing::error!(%error, "a full segment could not be sealed");
                }
            }
            None => {}
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let begun = self.begin(id).await;
        if begun.is_err() {
            // Nothing is in it; the next append makes another.
            drop(self.env.disk.remove(self.config.layout.segment(id)).await);
        }
        Ok(begun?)
    }

    async fn begin(&self, id: u32) -> io::Result<Active> {
        let file = self.env.disk.create(&self.config.layout.segment(id)).await?;
        self.env.disk.write(&file, self.nonce.header(), 0).await?;
        self.space.add(HEADER_BYTES as u64);
        if self.config.durability == Durability::Sync {
            self.env.disk.sync_directory(self.config.layout.segments()).await?;
        }
        let path = self.config.layout.segment(id);
        let reader = self.env.disk.open(path.clone()).await?;
        let shared = SegmentFile::new(reader, path);
        self.held.insert(id, Held::new(&shared, HEADER_BYTES as u64).growing());
        Ok(Active { id, file, end: HEADER_BYTES as u64, entries: Vec::new() })
    }

    /// Begins anew with the next record: what was written to the open segment may be lost.
    pub(super) fn give_up(&self) {
        if let Some(active) = self.active.borrow_mut().take() {
            self.held.ended(active.id);
        }
    }

    /// Writes a segment's own index behind its records.
    async fn seal(&self, full: Active) -> io::Result<()> {
        let sealed = self.write_footer(&full).await;
        self.held.ended(full.id);
        sealed
    }

    async fn write_footer(&self, full: &Active) -> io::Result<()> {
        let footer = segment::footer(self.nonce, &full.entries, full.end);
        let length = footer.len() as u64;
        self.env.disk.write(&full.file, footer, full.end).await?;
        self.held.grown(full.id, length, 0);
        self.space.add(length);
        self.env.disk.sync(&full.file).await
    }

    /// Seals the segment that grows, if it is not being written at the moment: the next record
    /// begins another. Whether it was.
    pub(super) async fn rotate(&self) -> io::Result<bool> {
        let active = self.active.borrow_mut().take();
        match active {
            Some(active) => self.seal(active).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Seals what is open.
    pub(super) async fn close(&self) -> io::Result<()> {
        self.rotate().await.map(drop)
    }
}
