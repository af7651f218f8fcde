//! The segments that one shard reads: their files, what each takes, and who else has them. Must
//! never remove a segment's file while another shard has records in it.

use super::index::Shadow;
use std::{
    cell::RefCell,
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A segment's file, which several shards may have records in after their number was changed.
pub(super) struct SegmentFile {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    /// Shards that have it.
    holders: AtomicUsize,
}

/// A segment as one shard has it.
pub(super) struct Held {
    pub(super) file: Arc<SegmentFile>,
    /// What of its length is this shard's to count.
    pub(super) bytes: u64,
    /// Records that are written and not entered yet.
    entering: usize,
    /// Whether records are still appended to it.
    growing: bool,
    /// Results in it that were overwritten since.
    pub(super) overwritten: usize,
}

impl SegmentFile {
    pub(super) fn new(file: Arc<File>, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { file, path, holders: AtomicUsize::new(0) })
    }
}

impl Held {
    /// A segment of which a shard counts `bytes`.
    pub(super) fn new(file: &Arc<SegmentFile>, bytes: u64) -> Self {
        file.holders.fetch_add(1, Ordering::Relaxed);
        Self { file: file.clone(), bytes, entering: 0, growing: false, overwritten: 0 }
    }

    /// The same, and it grows.
    pub(super) fn growing(self) -> Self {
        Self { growing: true, ..self }
    }
}

/// All segments of one shard.
pub(super) struct HeldSegments {
    held: RefCell<HashMap<u32, Held>>,
    /// Let go by this shard, and still there for another.
    lingering: RefCell<Vec<(u32, Weak<SegmentFile>)>>,
}

impl HeldSegments {
    pub(super) fn new(held: HashMap<u32, Held>) -> Self {
        Self { held: RefCell::new(held), lingering: RefCell::default() }
    }

    pub(super) fn insert(&self, id: u32, held: Held) {
        self.held.borrow_mut().insert(id, held);
    }

    pub(super) fn reader(&self, id: u32) -> Option<Arc<File>> {
        self.held.borrow().get(&id).map(|held| held.file.file.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.held.borrow().len()
    }

    /// `bytes` were written to it, in `records` that are yet to be entered.
    pub(super) fn grown(&self, id: u32, bytes: u64, records: usize) {
        if let Some(held) = self.held.borrow_mut().get_mut(&id) {
            held.bytes += bytes;
            held.entering += records;
        }
    }

    /// One of its records is entered, or nobody waits for it.
    pub(super) fn entered(&self, id: u32) {
        if let Some(held) = self.held.borrow_mut().get_mut(&id) {
            held.entering = held.entering.saturating_sub(1);
        }
    }

    /// Nothing is appended to it from here on.
    pub(super) fn ended(&self, id: u32) {
        if let Some(held) = self.held.borrow_mut().get_mut(&id) {
            held.growing = false;
        }
    }

    /// Segments that no record is on its way to, and what this shard counts for each.
    pub(super) fn settled(&self) -> Vec<(u32, u64)> {
        let held = self.held.borrow();
        let settled = held.iter().filter(|(_, held)| held.entering == 0 && !held.growing);
        settled.map(|(&id, held)| (id, held.bytes)).collect()
    }

    /// The segment that grows, and what this shard counts for it.
    pub(super) fn growing(&self) -> Option<(u32, u64)> {
        let held = self.held.borrow();
        held.iter().find(|(_, held)| held.growing).map(|(&id, held)| (id, held.bytes))
    }

    /// A result in it was overwritten.
    pub(super) fn overwritten(&self, id: u32) {
        if let Some(held) = self.held.borrow_mut().get_mut(&id) {
            held.overwritten += 1;
        }
    }

    /// Its file, and whether another shard has it too.
    pub(super) fn file(&self, id: u32) -> Option<(Arc<SegmentFile>, bool)> {
        let held = self.held.borrow();
        let file = held.get(&id)?.file.clone();
        let shared = file.holders.load(Ordering::Acquire) > 1;
        Some((file, shared))
    }

    /// Whether an overwritten result may be left besides that in `current`, for whichever shard.
    pub(super) fn casts(&self, shadow: Shadow, current: u32) -> bool {
        let mut lingering = self.lingering.borrow_mut();
        lingering.retain(|(_, file)| file.strong_count() > 0);
        let held = self.held.borrow();
        match shadow {
            Shadow::None => false,
            Shadow::In(id) => {
                id != current
                    && (held.contains_key(&id) || lingering.iter().any(|(other, _)| *other == id))
            }
            Shadow::Since(first) => {
                let within = |id: &u32| *id != current && *id >= first;
                held.iter().any(|(id, held)| within(id) && held.overwritten > 0)
                    || lingering.iter().any(|(id, _)| within(id))
            }
        }
    }

    /// Lets a segment go to which no record is on its way: what this shard counted for it, and the
    /// path of its file where nobody has it any more and it is to be removed.
    pub(super) fn release(&self, id: u32) -> Option<(u64, Option<PathBuf>)> {
        let mut held = self.held.borrow_mut();
        let there = held.get(&id)?;
        if there.entering > 0 || there.growing {
            return None;
        }
        let let_go = held.remove(&id)?;
        if let_go.file.holders.fetch_sub(1, Ordering::AcqRel) == 1 {
            return Some((let_go.bytes, Some(let_go.file.path.clone())));
        }
        self.lingering.borrow_mut().push((id, Arc::downgrade(&let_go.file)));
        Some((let_go.bytes, None))
    }
}
