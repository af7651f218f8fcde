//! The index rebuilt at start: from the footers of sealed segments, from the records of those that
//! were not, and from the names of files. Must never take a name or a record for proof of its
//! content: what is recovered counts as unverified until it is read once.

use super::{
    StoreConfig,
    index::{ActionEntry, ActionIndex, Entry, Index},
    layout::Layout,
    segment::{self, HEADER_BYTES, Kind, Nonce, RecordEntry, TRAILER_BYTES},
};
use crate::digest::{Digest, DigestFunction, owner};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// What one shard starts with.
pub struct Recovered {
    pub(super) index: Index,
    pub(super) actions: ActionIndex,
    pub(super) readers: HashMap<u32, Arc<File>>,
    pub(super) next_segment: Arc<AtomicU32>,
    pub(super) used_bytes: Arc<AtomicU64>,
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
}

/// Reads the store, for `shards` shards. Runs before any core does, and may block.
///
/// # Errors
/// Where a directory or a segment can't be read; damage is skipped, not an error.
pub fn recover(config: &StoreConfig, shards: u16) -> io::Result<Vec<Recovered>> {
    let next_segment = Arc::new(AtomicU32::new(1));
    let used_bytes = Arc::new(AtomicU64::new(0));
    let shard = |_| -> io::Result<Recovered> {
        Ok(Recovered {
            index: Index::default(),
            actions: ActionIndex::default(),
            readers: HashMap::new(),
            next_segment: next_segment.clone(),
            used_bytes: used_bytes.clone(),
            root: File::open(config.layout.root())?,
        })
    };
    let mut found = (0..shards).map(shard).collect::<io::Result<Vec<Recovered>>>()?;
    let mut used = recover_segments(&config.layout, &mut found, &next_segment)?;
    used += recover_files(&config.layout, &mut found)?;
    used_bytes.store(used, Ordering::Relaxed);
    Ok(found)
}

/// Reads every segment, oldest first, so that of two results of one action the later wins.
fn recover_segments(
    layout: &Layout,
    found: &mut [Recovered],
    next_segment: &AtomicU32,
) -> io::Result<u64> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(layout.segments())? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(Layout::segment_id));
    }
    ids.sort_unstable();
    let mut used = 0;
    for id in ids {
        next_segment.store(id.saturating_add(1), Ordering::Relaxed);
        let path = layout.segment(id);
        let file = Arc::new(File::open(&path)?);
        let length = file.metadata()?.len();
        used += length;
        let Some(entries) = read_segment(&path, &file, length)? else { continue };
        if entries.is_empty() && length <= HEADER_BYTES as u64 {
            fs::remove_file(&path)?;
        }
        share_out(id, &entries, &file, found);
    }
    Ok(used)
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
    scan_remains(nonce, path, file).map(Some)
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
fn scan_remains(nonce: Nonce, path: &Path, file: &File) -> io::Result<Vec<RecordEntry>> {
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
    // Best effort: without a footer the next start scans again.
    if let Err(error) = seal_remains(nonce, path, &entries, end) {
        tracing::warn!(segment = %path.display(), %error, "the segment could not be sealed");
    }
    Ok(entries)
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
fn share_out(id: u32, entries: &[RecordEntry], file: &Arc<File>, found: &mut [Recovered]) {
    let shards = u16::try_from(found.len()).expect("the configuration allows 64");
    for entry in entries {
        let shard = &mut found[usize::from(owner(&entry.hash, shards).0)];
        shard.readers.entry(id).or_insert_with(|| file.clone());
        let place = entry.place(id);
        match entry.kind {
            Kind::Blob => {
                let digest = Digest::from_parts(entry.function, entry.hash, entry.length);
                shard.index.insert(&digest, Entry::in_segment(&digest, place, false));
            }
            Kind::Action => shard.actions.insert(ActionEntry {
                key: entry.hash,
                place,
                length: u32::try_from(entry.length).unwrap_or(u32::MAX),
                complete_at: 0,
            }),
        }
    }
}

/// Takes the files of blobs by name and size; removes names that are none of ours.
fn recover_files(layout: &Layout, found: &mut [Recovered]) -> io::Result<u64> {
    let shards = u16::try_from(found.len()).expect("the configuration allows 64");
    let mut used = 0;
    for prefix in 0..=u8::MAX {
        for entry in fs::read_dir(layout.prefix(prefix))? {
            let entry = entry?;
            let size = entry.metadata()?.len();
            let name = entry.file_name();
            let Some((digest, executable)) = name.to_str().and_then(|name| named(name, size))
            else {
                fs::remove_file(entry.path())?;
                continue;
            };
            used += size;
            let shard = &mut found[usize::from(owner(digest.hash(), shards).0)];
            let blob = Entry::in_file(&digest, executable, false);
            shard.index.insert(&digest, blob);
        }
    }
    Ok(used)
}

fn named(name: &str, size: u64) -> Option<(Digest, bool)> {
    let (hash, executable) = Layout::blob_name(name)?;
    let size = i64::try_from(size).ok()?;
    let digest = Digest::parse(DigestFunction::Sha256, hash, size).ok()?;
    Some((digest, executable))
}
