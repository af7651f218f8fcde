//! What is pending, on disk: segments that records are appended to. Must never forget an item
//! that was appended and not finished, and never keep a segment that nothing needs.
//!
//! ```text
//! DATA/backlog/  0000000000000001.log   sealed: read at start, else only deleted
//!                0000000000000002.log   the active one: appended to
//! ```
//!
//! Invariant: a segment goes, oldest first, when no live item lies in it. Where few live items
//! hold much space, those of the oldest are appended again, with their sequence, and made durable
//! before it goes; so the directory stays in proportion to what is pending.
//! Invariant: what a failed sync covered is not trusted: its live items are appended again.
//! An item that comes back because its done-record was lost is written below once more: harmless.

use super::{
    Item,
    record::{self, HEADER_BYTES, Header, Record},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes after which a segment is sealed.
pub(super) const SEGMENT_BYTES: u64 = 1024 * 1024;
/// Segments that are kept however little is live.
const SEGMENTS_SPARE: u64 = 8;

/// An item with the number that it was pushed under.
pub(super) type Numbered = (u64, Arc<Item>);

/// The log of one backlog.
pub(super) struct Log {
    directory: PathBuf,
    sync: bool,
    /// Oldest first. The last one is the active one, if `active` is there.
    segments: VecDeque<Segment>,
    active: Option<File>,
    live: BTreeMap<u64, Live>,
    live_bytes: u64,
    sequence_next: u64,
    segment_next: u64,
    /// Whether the active segment has bytes that were not synced.
    dirty: bool,
    /// Whether the directory has names that were not synced.
    names_dirty: bool,
    /// Segments that a sync failed on.
    doubtful: Vec<u64>,
}

/// What opening found besides items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Stretches of bytes between good records that are none.
    pub(super) damaged: u64,
    /// Segments whose end was cut off.
    pub(super) torn: u64,
    /// Names in the directory that are not the log's; they are left alone.
    pub(super) strangers: u64,
}

struct Segment {
    id: u64,
    bytes: u64,
    live: BTreeSet<u64>,
}

struct Live {
    item: Arc<Item>,
    segment: u64,
    bytes: u64,
}

impl Log {
    /// Reads what is pending, in order of sequence. `sync` is whether `append` waits for the
    /// disk itself; without it the last second before a power failure may be lost.
    ///
    /// # Errors
    /// `InvalidData` where a segment is of a version that this program does not know.
    pub(super) fn open(directory: &Path, sync: bool) -> io::Result<(Self, Damage)> {
        fs::create_dir_all(directory)?;
        let mut damage = Damage::default();
        let ids = segment_ids(directory, &mut damage)?;
        let mut log = Self {
            directory: directory.to_owned(),
            sync,
            segments: VecDeque::new(),
            active: None,
            live: BTreeMap::new(),
            live_bytes: 0,
            sequence_next: 1,
            segment_next: ids.last().map_or(1, |last| last + 1),
            dirty: false,
            names_dirty: true,
            doubtful: Vec::new(),
        };
        for id in ids {
            log.replay(id, &mut damage)?;
        }
        log.reclaim()?;
        Ok((log, damage))
    }

    /// What is pending, in order.
    pub(super) fn pending(&self) -> Vec<Numbered> {
        self.live.iter().map(|(sequence, live)| (*sequence, Arc::clone(&live.item))).collect()
    }

    /// Bytes of all segments.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Keeps items, by one write. Once this returns they survive the end of this process.
    ///
    /// # Errors
    /// None of them is kept (a restart may still find them).
    pub(super) fn append(&mut self, items: Vec<Arc<Item>>) -> io::Result<Vec<Numbered>> {
        self.carry_doubtful()?;
        let first = self.sequence_next;
        let numbered: Vec<Numbered> = (first..).zip(items).collect();
        // A number is never given twice: a failed write may be found at the next start.
        self.sequence_next += numbered.len() as u64;
        self.keep(&numbered)?;
        if self.sync
            && let Err(error) = self.flush()
        {
            numbered.iter().for_each(|(sequence, _)| self.forget(*sequence));
            return Err(error);
        }
        Ok(numbered)
    }

    /// Marks items as settled, by one write.
    ///
    /// # Errors
    /// They are settled all the same; a restart may find them pending once more.
    pub(super) fn finish(&mut self, sequences: &[u64]) -> io::Result<()> {
        let mut buffer = Vec::new();
        for sequence in sequences {
            self.forget(*sequence);
            record::done(&mut buffer, *sequence);
        }
        self.write(&buffer)?;
        self.reclaim()
    }

    /// Whether `flush` has something to do.
    pub(super) const fn is_dirty(&self) -> bool {
        self.dirty || self.names_dirty || !self.doubtful.is_empty()
    }

    /// Makes everything appended so far survive a power failure.
    ///
    /// # Errors
    /// What was appended since the last sync may not survive one.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.carry_doubtful()?;
        self.flush_active()?;
        if self.names_dirty {
            File::open(&self.directory)?.sync_all()?;
            self.names_dirty = false;
        }
        Ok(())
    }

    fn flush_active(&mut self) -> io::Result<()> {
        if let Some(file) = &self.active
            && self.dirty
            && let Err(error) = file.sync_data()
        {
            self.doubtful.extend(self.segments.back().map(|segment| segment.id));
            self.seal();
            return Err(error);
        }
        self.dirty = false;
        Ok(())
    }

    /// Appends again what lies where a sync failed, as one whole.
    fn carry_doubtful(&mut self) -> io::Result<()> {
        while let Some(id) = self.doubtful.last().copied() {
            self.carry(id)?;
            self.doubtful.pop();
        }
        Ok(())
    }

    /// Deletes the oldest segments while nothing live lies in them, or they hold too much room.
    fn reclaim(&mut self) -> io::Result<()> {
        if !self.doubtful.is_empty() {
            // What was carried away from the oldest may lie in one of these.
            return Ok(());
        }
        for _ in 0..self.segments.len() {
            let sealed = self.segments.len() - usize::from(self.active.is_some());
            let Some(oldest) = self.segments.front().filter(|_| sealed > 0) else { break };
            let id = oldest.id;
            if oldest.live.is_empty() {
                self.unlink(id)?;
            } else if self.is_sparse() {
                self.carry(id)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn is_sparse(&self) -> bool {
        let files_max = SEGMENTS_SPARE + 4 * self.live_bytes / SEGMENT_BYTES;
        self.disk_bytes() > 2 * self.live_bytes + 2 * SEGMENT_BYTES
            || self.segments.len() as u64 > files_max
    }

    /// Appends the live items of a segment again, and deletes it once they are durable.
    fn carry(&mut self, id: u64) -> io::Result<()> {
        let Some(segment) = self.segments.iter().find(|segment| segment.id == id) else {
            return Ok(());
        };
        let live: Vec<Numbered> = segment
            .live
            .iter()
            .filter_map(|sequence| Some((*sequence, Arc::clone(&self.live.get(sequence)?.item))))
            .collect();
        if !live.is_empty() {
            self.keep(&live)?;
            self.flush_active()?;
            File::open(&self.directory)?.sync_all()?;
        }
        self.unlink(id)
    }

    fn unlink(&mut self, id: u64) -> io::Result<()> {
        match fs::remove_file(path(&self.directory, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.retain(|segment| segment.id != id);
        Ok(())
    }

    /// Writes records of items and remembers where they lie.
    fn keep(&mut self, items: &[Numbered]) -> io::Result<()> {
        let mut buffer = Vec::new();
        let lengths: Vec<usize> = items
            .iter()
            .map(|(sequence, item)| record::push(&mut buffer, *sequence, item))
            .collect();
        self.write(&buffer)?;
        for ((sequence, item), length) in items.iter().zip(lengths) {
            self.place(*sequence, Arc::clone(item), length as u64);
        }
        Ok(())
    }

    /// Remembers that an item lies in the last segment.
    fn place(&mut self, sequence: u64, item: Arc<Item>, bytes: u64) {
        self.forget(sequence);
        if let Some(segment) = self.segments.back_mut() {
            segment.live.insert(sequence);
            self.live_bytes += bytes;
            self.live.insert(sequence, Live { item, segment: segment.id, bytes });
        }
    }

    fn forget(&mut self, sequence: u64) {
        let Some(live) = self.live.remove(&sequence) else { return };
        self.live_bytes -= live.bytes;
        // Segments are in order of their numbers.
        if let Ok(at) = self.segments.binary_search_by_key(&live.segment, |segment| segment.id) {
            self.segments[at].live.remove(&sequence);
        }
    }

    /// Appends bytes to the active segment, all or, for whoever reads it, none.
    fn write(&mut self, buffer: &[u8]) -> io::Result<()> {
        if self.segments.back().is_some_and(|segment| segment.bytes >= SEGMENT_BYTES) {
            self.flush_active()?;
            self.seal();
        }
        if self.active.is_none() {
            self.start_segment()?;
        }
        let (Some(file), Some(segment)) = (&mut self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment is active"));
        };
        if let Err(error) = file.write_all(buffer) {
            // Half a record would be taken for damage by the next start if more came after it.
            if file.set_len(segment.bytes).is_err() {
                self.seal();
            }
            return Err(error);
        }
        segment.bytes += buffer.len() as u64;
        self.dirty = true;
        Ok(())
    }

    fn seal(&mut self) {
        self.active = None;
        self.dirty = false;
    }

    fn start_segment(&mut self) -> io::Result<()> {
        let id = self.segment_next;
        self.segment_next += 1;
        let name = path(&self.directory, id);
        // O_APPEND: after a cut the next write begins where the file ends.
        let mut file = OpenOptions::new().append(true).create_new(true).open(&name)?;
        if let Err(error) = file.write_all(&record::header()) {
            // One without a header has no records; a start removes it too.
            let _ = fs::remove_file(&name);
            return Err(error);
        }
        self.active = Some(file);
        self.names_dirty = true;
        let bytes = HEADER_BYTES as u64;
        self.segments.push_back(Segment { id, bytes, live: BTreeSet::new() });
        Ok(())
    }

    /// Reads a segment of an earlier start, and cuts off what is half written at its end.
    fn replay(&mut self, id: u64, damage: &mut Damage) -> io::Result<()> {
        let name = path(&self.directory, id);
        let bytes = fs::read(&name)?;
        match record::read_header(&bytes) {
            Header::Known => {}
            Header::Foreign(version) => {
                let message = format!("{} is of version {version}", name.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // Killed before the header was whole; the records of a damaged one are still good.
            Header::Damaged if bytes.len() < HEADER_BYTES => damage.torn += 1,
            Header::Damaged => damage.damaged += 1,
        }
        let reading = record::read_all(&bytes);
        damage.damaged += reading.damaged;
        if bytes.len() > reading.end {
            OpenOptions::new().write(true).open(&name)?.set_len(reading.end as u64)?;
            damage.torn += 1;
        }
        let end = reading.end.min(bytes.len()) as u64;
        self.segments.push_back(Segment { id, bytes: end, live: BTreeSet::new() });
        for found in reading.records {
            let sequence = match found {
                Record::Pushed(sequence, item) => {
                    let length = record::push(&mut Vec::new(), sequence, &item);
                    self.place(sequence, Arc::new(item), length as u64);
                    sequence
                }
                Record::Done(sequence) => {
                    self.forget(sequence);
                    sequence
                }
            };
            self.sequence_next = self.sequence_next.max(sequence.saturating_add(1));
        }
        Ok(())
    }
}

fn path(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:016x}.log"))
}

/// The numbers of the segments in a directory, in order.
fn segment_ids(directory: &Path, damage: &mut Damage) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_suffix(".log"))
            .filter(|stem| stem.len() == 16)
            .and_then(|stem| u64::from_str_radix(stem, 16).ok())
            // Only the name that this number is given; there is one more after each.
            .filter(|id| *id < u64::MAX && path(directory, *id).file_name() == Some(&name));
        match id {
            Some(id) if entry.file_type()?.is_file() => ids.push(id),
            _ => damage.strangers += 1,
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests;
