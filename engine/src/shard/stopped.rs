//! A store without a node: what is in it, whether it is whole, and one blob of it. Holds the
//! store's lock as long as it lives. Must never make a store where there is none, nor change what
//! a blob holds.

use super::{
    Layout, StoreConfig, StoreLock,
    index::{Entry, PARTS},
    recovery::{Recovered, recover},
};
use crate::{
    blob::Home,
    digest::{Digest, DigestFunction, Hasher},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Parts into which segments are sorted by how much of them is used.
pub const TENTHS: usize = 10;

/// A store that this process has for itself.
pub struct Stopped {
    found: Recovered,
    layout: Layout,
    _lock: StoreLock,
}

/// What is in a store. Bytes are those on disk, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of all blobs, each counted once, without what keeping them costs.
    pub content_bytes: u64,
    /// Results of actions.
    pub results: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of all segments.
    pub segment_bytes: u64,
    /// Bytes of the records in them that are some blob's or action's.
    pub live_bytes: u64,
    /// How many segments are how full of those, in tenths: the first up to a tenth.
    pub segments_by_use: [u64; TENTHS],
    /// Files of blobs.
    pub files: u64,
    /// Bytes of all those files, in whole blocks.
    pub file_bytes: u64,
}

/// What reading everything found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records and files that were read.
    pub read: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Records and files that are not what they should be, or can't be read; with the reason.
    pub damaged: Vec<(Digest, Home, String)>,
}

impl Stopped {
    /// Takes a store.
    ///
    /// # Errors
    /// `NotFound` where there is none, `WouldBlock` where a node has it, `InvalidData` where it has
    /// another format; what reading it says.
    pub fn open(config: &StoreConfig) -> io::Result<Self> {
        if !config.layout.is_there() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let lock = config.layout.take()?;
        let found = recover(config, 1)?.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { found, layout: config.layout.clone(), _lock: lock })
    }

    /// What is in it.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let mut stat = Stat { segments: self.found.held.len() as u64, ..Default::default() };
        let mut live: HashMap<u32, u64> = HashMap::new();
        for entry in self.entries() {
            let (files, file_bytes) = entry.files();
            stat.blobs += 1;
            stat.content_bytes += entry.digest().size();
            stat.files += files;
            stat.file_bytes += file_bytes;
            if let Some(place) = entry.place() {
                *live.entry(place.segment).or_default() += entry.record_bytes();
            }
        }
        for result in (0..PARTS).flat_map(|part| self.found.actions.part(part)) {
            stat.results += 1;
            *live.entry(result.place.segment).or_default() += result.record_bytes();
        }
        for (id, held) in &self.found.held {
            let used = live.get(id).copied().unwrap_or_default();
            stat.segment_bytes += held.bytes;
            stat.live_bytes += used;
            let tenth = used.saturating_sub(1) * TENTHS as u64 / held.bytes.max(1);
            let last = TENTHS - 1;
            stat.segments_by_use[usize::try_from(tenth).unwrap_or(last).min(last)] += 1;
        }
        stat
    }

    /// Bytes that [`Stopped::verify`] will read.
    #[must_use]
    pub fn bytes_to_verify(&self) -> u64 {
        let homes = |entry: &Entry| u64::from(entry.homes());
        self.entries().map(|entry| homes(entry) * entry.digest().size()).sum()
    }

    /// Reads everything; `seen` is told how many bytes were read so far.
    pub fn verify(&self, mut seen: impl FnMut(u64)) -> Verified {
        let mut verified = Verified::default();
        for entry in self.entries() {
            for home in Home::ALL.into_iter().filter(|home| entry.has(*home)) {
                let digest = entry.digest();
                let mut hasher = Hasher::new(digest.function());
                let read = self.read(entry, home, |bytes| {
                    hasher.update(bytes);
                    Ok(())
                });
                let why = match read {
                    Ok(()) if hasher.finish() == digest => None,
                    Ok(()) => Some("its bytes are others".to_owned()),
                    Err(error) => Some(error.to_string()),
                };
                verified.damaged.extend(why.map(|why| (digest, home, why)));
                verified.read += 1;
                verified.bytes += digest.size();
                seen(verified.bytes);
            }
        }
        verified
    }

    /// The blobs of this hash: of one content there is one, but two lengths may be claimed of it.
    #[must_use]
    pub fn find(&self, hash: &[u8; 32]) -> Vec<Digest> {
        let digests = self.entries().map(Entry::digest);
        let same =
            |digest: &Digest| digest.hash() == hash && digest.function() == DigestFunction::Sha256;
        digests.filter(same).collect()
    }

    /// Writes a blob to `to`, from a home that is whole.
    ///
    /// # Errors
    /// `NotFound` where it is not here, `InvalidData` where every home is damaged (what was written
    /// is of no use then), what `to` says.
    pub fn copy(&self, digest: &Digest, to: &mut impl Write) -> io::Result<()> {
        let entry = self.entries().find(|entry| entry.digest() == *digest);
        let entry = entry.ok_or(io::ErrorKind::NotFound)?;
        for home in Home::ALL.into_iter().filter(|home| entry.has(*home)) {
            // First to see whether it is whole: what is on its way to somebody can't be taken back.
            let mut hasher = Hasher::new(digest.function());
            let hashed = self.read(entry, home, |bytes| {
                hasher.update(bytes);
                Ok(())
            });
            if hashed.is_ok() && hasher.finish() == *digest {
                return self.read(entry, home, |bytes| to.write_all(bytes));
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        (0..PARTS).flat_map(|part| self.found.index.part(part))
    }

    fn read(
        &self,
        entry: &Entry,
        home: Home,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let digest = entry.digest();
        let mut room = vec![0; READ_BYTES];
        if let Some(place) = entry.place().filter(|_| home == Home::Segment) {
            let held = self.found.held.get(&place.segment).ok_or(io::ErrorKind::NotFound)?;
            let mut at = 0;
            while at < digest.size() {
                let length = usize::try_from(digest.size() - at).unwrap_or(READ_BYTES);
                let piece = &mut room[..length.min(READ_BYTES)];
                held.file.file.read_exact_at(piece, u64::from(place.offset) + at)?;
                take(piece)?;
                at += piece.len() as u64;
            }
            return Ok(());
        }
        let mut file = File::open(self.layout.blob(&digest, home == Home::Executable))?;
        loop {
            match file.read(&mut room)? {
                0 => return Ok(()),
                count => take(&room[..count])?,
            }
        }
    }
}

impl Stat {
    /// Bytes of the store on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segment_bytes + self.file_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{
        index::on_disk,
        segment,
        tests::{config, fill, with_shards},
    };

    #[test]
    fn a_store_is_counted_read_and_copied_from_without_a_node() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        assert_eq!(Stopped::open(&config).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
        with_shards(config.clone(), 2, true, async |shards| fill(&shards).await);
        let store = Stopped::open(&config).unwrap();
        assert_eq!(Stopped::open(&config).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        let stat = store.stat();
        assert_eq!((stat.blobs, stat.results, stat.files), (5, 1, 2));
        assert_eq!(stat.content_bytes, 1 + 1000 + 60_000 + 70_000 + 300_000);
        assert_eq!(stat.file_bytes, on_disk(70_000) + on_disk(300_000));
        let records: u64 = [1, 1000, 60_000, 6].iter().map(|&n| segment::record_bytes(n)).sum();
        assert_eq!(stat.live_bytes, records);
        assert!(stat.segment_bytes > stat.live_bytes);
        assert_eq!(stat.segments_by_use.iter().sum::<u64>(), stat.segments);
        let mut last = 0;
        let verified = store.verify(|bytes| last = bytes);
        assert_eq!((verified.read, verified.bytes), (5, stat.content_bytes));
        assert_eq!((verified.damaged, last), (vec![], store.bytes_to_verify()));
        for size in [1, 1000, 60_000, 70_000, 300_000] {
            let blob = crate::blob::contract::blob_of(size);
            let digest = Digest::of(&blob);
            assert_eq!(store.find(digest.hash()), [digest]);
            let mut copy = Vec::new();
            store.copy(&digest, &mut copy).unwrap();
            assert_eq!(copy, blob);
        }
    }

    #[test]
    fn what_is_damaged_is_named_and_never_copied() {
        for size in [1000, 300_000] {
            let directory = tempfile::tempdir().unwrap();
            let config = config(directory.path());
            with_shards(config.clone(), 1, true, async |shards| fill(&shards).await);
            let blob = crate::blob::contract::blob_of(size);
            crate::shard::tests::flip_a_byte_of(&blob, directory.path());
            let store = Stopped::open(&config).unwrap();
            let damaged = store.verify(|_| ()).damaged;
            assert_eq!(damaged.len(), 1);
            assert_eq!(damaged[0].0, Digest::of(&blob));
            let mut copy = Vec::new();
            let copied = store.copy(&Digest::of(&blob), &mut copy);
            assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(copy, []);
        }
    }
}
