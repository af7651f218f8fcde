//! The index rebuilt at start: from the footers of sealed segments, from the records of those that
//! were not, and from the names of files. Must never take a name or a record for proof of its
//! content: what is recovered counts as unverified until it is read once.

use super::{
    StoreConfig,
    index::{ActionEntry, ActionIndex, Entry, Index, on_disk},
    layout::Layout,
    segment::{self, HEADER_BYTES, Kind, Nonce, RecordEntry, TRAILER_BYTES},
    segments::{Held, SegmentFile},
    usage::Usage,
};
use crate::{
    digest::{Digest, DigestFunction, owner},
    env::clock::Clock,
};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

/// What one shard starts with.
pub struct Recovered {
    pub(super) index: Index,
    pub(super) actions: ActionIndex,
    pub(super) held: HashMap<u32, Held>,
    pub(super) next_segment: Arc<AtomicU32>,
    pub(super) usage: Usage,
    pub(super) shard: usize,
    /// The store's directory: what happens to its file system from here on is heard of.
    pub(super) root: File,
}

impl Recovered {
    /// Blobs found.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.index.len()
    }

    /// Results found.
    #[must_use]
    pub fn actions(&self) -> usize {
        self.actions.len()
    }

    /// What all shards use and may keep.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage.clone()
    }
}

/// Reads the store, for `shards` shards. Runs before any core does, and may block.
///
/// # Errors
/// Where a directory or a segment can't be read; damage is skipped, not an error.
pub fn recover(config: &StoreConfig, shards: u16) -> io::Result<Vec<Recovered>> {
    let next_segment = Arc::new(AtomicU32::new(1));
    let usage = Usage::new(shards);
    let shard = |shard| -> io::Result<Recovered> {
        Ok(Recovered {
            index: Index::default(),
            actions: ActionIndex::default(),
            held: HashMap::new(),
            next_segment: next_segment.clone(),
            usage: usage.clone(),
            shard: usize::from(shard),
            root: File::open(config.layout.root())?,
        })
    };
    let mut found = (0..shards).map(shard).collect::<io::Result<Vec<Recovered>>>()?;
    recover_segments(&config.layout, &mut found, &next_segment)?;
    recover_files(&config.layout, &mut found)?;
    Ok(found)
}

/// Reads every segment, oldest first, so that of two results of one action the later wins.
fn recover_segments(
    layout: &Layout,
    found: &mut [Recovered],
    next_segment: &AtomicU32,
) -> io::Result<()> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(layout.segments())? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(Layout::segment_id));
    }
    ids.sort_unstable();
    for id in ids {
        next_segment.store(id.saturating_add(1), Ordering::Relaxed);
        let path = layout.segment(id);
        let file = Arc::new(File::open(&path)?);
        let (length, used) = (file.metadata()?.len(), used_at(file.metadata()?.mtime()));
        let Some(entries) = read_segment(&path, &file, length)? else {
            // Nobody's, and it takes its space all the same.
            found[0].usage.add_bytes(0, length);
            continue;
        };
        if entries.is_empty() && length <= HEADER_BYTES as u64 {
            fs::remove_file(&path)?;
            continue;
        }
        let used_bytes = file.metadata()?.len();
        hold(id, &entries, (&SegmentFile::new(file, path), used_bytes), found);
        share_out(id, &entries, used, found);
    }
    Ok(())
}

/// Gives a segment to those that have records in it. What is not a record is the first one's to
/// count; a segment without records is the first shard's.
fn hold(
    id: u32,
    entries: &[RecordEntry],
    (file, length): (&Arc<SegmentFile>, u64),
    found: &mut [Recovered],
) {
    let mut shares = vec![0; found.len()];
    for entry in entries {
        shares[shard_of(entry, found.len())] += segment::record_bytes(entry.length);
    }
    let records: u64 = shares.iter().sum();
    let first = shares.iter().position(|&bytes| bytes > 0).unwrap_or(0);
    shares[first] += length.saturating_sub(records);
    for (shard, bytes) in found.iter_mut().zip(shares).filter(|(_, bytes)| *bytes > 0) {
        shard.usage.add_bytes(shard.shard, bytes);
        shard.held.insert(id, Held::new(file, bytes));
    }
}

fn shard_of(entry: &RecordEntry, shards: usize) -> usize {
    let shards = u16::try_from(shards).expect("the configuration allows 64");
    usize::from(owner(&entry.hash, shards).0)
}

/// The core's second that a time of the file system's was. Wall time, and good enough: it decides
/// no more than who goes first among those that were not used since the start.
fn used_at(seconds: i64) -> u32 {
    let then = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let age = Clock::start().wall().duration_since(then).unwrap_or_default();
    Clock::seconds_before_start(age)
}

/// A segment's records; `None` where not even its header is whole: it is left for people.
fn read_segment(path: &Path, file: &File, length: u64) -> io::Result<Option<Vec<RecordEntry>>> {
    let mut header = [0; HEADER_BYTES];
    if length < HEADER_BYTES as u64 {
        // Killed while it was begun.
        return Ok(Some(Vec::new()));
    }
    file.read_exact_at(&mut header, 0)?;
    let Some(nonce) = Nonce::read(&header) else {
        tracing::error!(segment = %path.display(), "the segment's header is damaged");
        return Ok(None);
    };
    if let Some(entries) = read_sealed(nonce, file, length)? {
        return Ok(Some(entries));
    }
    let (entries, end) = scan_remains(nonce, path, file)?;
    // Best effort: without a footer the next start scans again.
    if let Err(error) = seal_remains(nonce, path, &entries, end) {
        tracing::warn!(segment = %path.display(), %error, "the segment could not be sealed");
    }
    Ok(Some(entries))
}

/// The records of a segment that nobody writes to any more; changes nothing. May block.
///
/// # Errors
/// Where it can't be read; `InvalidData` where its header is damaged.
pub(super) fn records_of(path: &Path, file: &File) -> io::Result<Vec<RecordEntry>> {
    let length = file.metadata()?.len();
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let nonce = Nonce::read(&header).ok_or(io::ErrorKind::InvalidData)?;
    match read_sealed(nonce, file, length)? {
        Some(entries) => Ok(entries),
        None => Ok(scan_remains(nonce, path, &File::open(path)?)?.0),
    }
}

/// The records of a sealed segment, by its footer.
fn read_sealed(nonce: Nonce, file: &File, length: u64) -> io::Result<Option<Vec<RecordEntry>>> {
    let Some(trailer_at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut last = [0; TRAILER_BYTES];
    file.read_exact_at(&mut last, trailer_at)?;
    let Some(start) = segment::footer_start(&last).filter(|&start| start <= trailer_at) else {
        return Ok(None);
    };
    let size = usize::try_from(length - start).map_err(io::Error::other)?;
    let mut footer = vec![0; size];
    file.read_exact_at(&mut footer, start)?;
    Ok(segment::read_footer(nonce, &footer))
}

/// The good records of a segment without a good footer: its writer was stopped, or it is damaged.
fn scan_remains(nonce: Nonce, path: &Path, file: &File) -> io::Result<(Vec<RecordEntry>, u64)> {
    let mut bytes = Vec::new();
    let mut reader: &File = file;
    reader.read_to_end(&mut bytes)?;
    let (entries, end) = segment::scan(nonce, &bytes);
    tracing::info!(
        segment = %path.display(),
        records = entries.len(),
        cut_bytes = (bytes.len() as u64).saturating_sub(end),
        "scanned a segment that was open when its writer stopped"
    );
    Ok((entries, end))
}

fn seal_remains(nonce: Nonce, path: &Path, entries: &[RecordEntry], end: u64) -> io::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end)?;
    file.write_all_at(&segment::footer(nonce, entries, end), end)?;
    file.sync_data()
}

/// Gives each record to its shard.
fn share_out(id: u32, entries: &[RecordEntry], used: u32, found: &mut [Recovered]) {
    for entry in entries {
        let at = shard_of(entry, found.len());
        let (shard, place) = (&mut found[at], entry.place(id));
        match entry.kind {
            Kind::Blob => {
                let digest = Digest::from_parts(entry.function, entry.hash, entry.length);
                let blob = Entry::in_segment(&digest, place, false).used_at(used);
                shard.index.insert(&digest, blob);
            }
            Kind::Action => {
                let length = u32::try_from(entry.length).unwrap_or(u32::MAX);
                let result = ActionEntry::new(entry.hash, place, length, used);
                if let Some(segment) = shard.actions.insert(result)
                    && let Some(held) = shard.held.get_mut(&segment)
                {
                    held.overwritten += 1;
                }
            }
        }
    }
}

/// Takes the files of blobs by name and size; removes names that are none of ours.
fn recover_files(layout: &Layout, found: &mut [Recovered]) -> io::Result<()> {
    let shards = u16::try_from(found.len()).expect("the configuration allows 64");
    for prefix in 0..=u8::MAX {
        for entry in fs::read_dir(layout.prefix(prefix))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let size = metadata.len();
            let name = entry.file_name();
            let Some((digest, executable)) = name.to_str().and_then(|name| named(name, size))
            else {
                fs::remove_file(entry.path())?;
                continue;
            };
            let shard = &mut found[usize::from(owner(digest.hash(), shards).0)];
            // Its status changes when an action is given a link to it, and when that goes.
            let used = used_at(metadata.ctime());
            let blob = Entry::in_file(&digest, executable, false).used_at(used);
            shard.index.insert(&digest, blob);
            shard.usage.add_bytes(shard.shard, on_disk(size));
            shard.usage.add_files(shard.shard, 1);
        }
    }
    Ok(())
}

fn named(name: &str, size: u64) -> Option<(Digest, bool)> {
    let (hash, executable) = Layout::blob_name(name)?;
    let size = i64::try_from(size).ok()?;
    let digest = Digest::parse(DigestFunction::Sha256, hash, size).ok()?;
    Some((digest, executable))
}
