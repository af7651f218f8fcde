//! A blob on its way in: reserved, written where nobody sees it, made durable, then visible. Must
//! never enter a blob into the index before its source ended without an error.

use super::{
    Durability, Shard,
    index::{Entry, on_disk},
    layout::MODE_PLAIN,
    segment::{self, Kind, Record},
};
use crate::{
    blob::{
        BlobError, Result,
        source::{Chunks, Progress},
    },
    digest::Digest,
    env::{
        buffer::Buffer,
        disk::{Disk, Temporary},
    },
};
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join;

/// Full buffers of one blob that wait for the write before them. One is enough: a piece is hashed
/// in about the time that the last one is written in.
const WRITES_WAITING_MAX: usize = 1;

impl Shard {
    /// Keeps a blob that is here whole.
    pub(super) async fn keep_bytes(&self, digest: Digest, bytes: Bytes) -> Result<()> {
        let _share = self.reserve(self.cost(&digest)).await?;
        if digest.size() <= self.config.small_blob_bytes_max {
            return self.keep_small(digest, &bytes).await;
        }
        let file = self.new_file(&digest).await?;
        let gather = async |gathered: &mut Gathered<'_>| gathered.push(&bytes).await;
        let written = self.write_gathered(&file, &Progress::default(), gather).await?;
        self.publish(digest, file, written).await
    }

    /// Keeps a blob that comes in pieces.
    pub(super) async fn keep_chunks(&self, digest: Digest, mut chunks: Chunks) -> Result<()> {
        let _share = self.reserve(self.cost(&digest)).await?;
        if digest.size() <= self.config.small_blob_bytes_max {
            let mut whole = BytesMut::new();
            while let Some(pieces) = chunks.next().await? {
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            }
            return self.keep_small(digest, &whole).await;
        }
        // Before the file is made: whoever follows has the first bytes as soon as they are hashed.
        let mut next = chunks.next().await?;
        let file = self.new_file(&digest).await?;
        let progress = chunks.progress();
        if progress.is_followed() {
            progress.begun(self.env.disk.reader(&file).await?);
        }
        let gather = async move |gathered: &mut Gathered<'_>| {
            while let Some(pieces) = next {
                for piece in pieces.iter() {
                    gathered.push(piece).await?;
                }
                next = chunks.next().await?;
            }
            Ok(())
        };
        let written = self.write_gathered(&file, &progress, gather).await?;
        self.publish(digest, file, written).await
    }

    /// Bytes that keeping a blob takes on disk.
    fn cost(&self, digest: &Digest) -> u64 {
        if digest.size() <= self.config.small_blob_bytes_max {
            segment::reserved_bytes(digest.size())
        } else {
            on_disk(digest.size())
        }
    }

    async fn keep_small(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        let (function, hash) = (digest.function(), digest.hash());
        let record = Record { kind: Kind::Blob, function, hash, payload: bytes };
        let appended = self.segments.append(record).await?;
        self.enter(&digest, Entry::in_segment(&digest, appended.place, true));
        Ok(())
    }

    async fn new_file(&self, digest: &Digest) -> Result<Temporary> {
        let directory = self.config.layout.prefix(digest.hash()[0]);
        Ok(self.env.disk.temporary(directory).await?)
    }

    /// Writes what `gather` brings, one buffer while the next is filled: taking and hashing a
    /// piece costs as much as writing it. What is left fills no buffer and is not written yet.
    async fn write_gathered(
        &self,
        file: &Temporary,
        progress: &Progress,
        gather: impl AsyncFnOnce(&mut Gathered<'_>) -> Result<()>,
    ) -> Result<Written> {
        let (full, waiting) = async_channel::bounded(WRITES_WAITING_MAX);
        let disk = &self.env.disk;
        let filled = async move {
            let mut gathered = Gathered { disk, buffer: disk.buffer(), full };
            gather(&mut gathered).await?;
            // Lets go of the channel, so that the writes end.
            Ok(gathered.buffer)
        };
        let (rest, length) = try_join(filled, write_all(disk, file, waiting, progress)).await?;
        Ok(Written { length, rest })
    }

    async fn publish(&self, digest: Digest, file: Temporary, written: Written) -> Result<()> {
        self.env.disk.write_large(&file, written.rest, written.length).await?;
        if self.config.durability == Durability::Sync {
            self.env.disk.sync_large(&file).await?;
        }
        let _naming = self.names.naming(digest).await;
        let path = self.config.layout.blob(&digest, false);
        self.env.disk.publish(file, path, MODE_PLAIN).await?;
        let directory = self.config.layout.prefix(digest.hash()[0]);
        self.added(&digest, Entry::in_file(&digest, false, true), directory).await
    }
}

/// What of a large blob is in its file, and what waits behind it.
struct Written {
    length: u64,
    rest: Buffer,
}

/// The bytes of a large blob that fill one write after the other.
struct Gathered<'a> {
    disk: &'a Disk,
    buffer: Buffer,
    full: async_channel::Sender<Buffer>,
}

impl Gathered<'_> {
    async fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = self.buffer.fill_from(bytes);
            bytes = &bytes[taken..];
            if self.buffer.is_full() {
                let full = std::mem::replace(&mut self.buffer, self.disk.buffer());
                // Refused only where a write failed, which then is what the blob fails of.
                self.full.send(full).await.map_err(|_| BlobError::Stopped)?;
            }
        }
        Ok(())
    }
}

/// Writes buffers one behind the other, until no more come; how many bytes that were.
async fn write_all(
    disk: &Disk,
    file: &Temporary,
    waiting: async_channel::Receiver<Buffer>,
    progress: &Progress,
) -> Result<u64> {
    let mut length = 0;
    // Ends with whoever gathers; only that one knows whether the blob is whole.
    while let Ok(buffer) = waiting.recv().await {
        let end = length + buffer.filled().len() as u64;
        disk.write_large(file, buffer, length).await?;
        length = end;
        progress.grown(length);
    }
    Ok(length)
}
