//! A blob on its way in: reserved, written where nobody sees it, made durable, then visible. Must
//! never enter a blob into the index before its source ended without an error.

use super::{
    Durability, Shard,
    index::Entry,
    layout::MODE_PLAIN,
    segment::{Kind, Record},
};
use crate::{
    blob::{Result, source::Chunks},
    digest::Digest,
    env::{buffer::Buffer, disk::Temporary},
};
use bytes::{Bytes, BytesMut};

impl Shard {
    /// Keeps a blob that is here whole.
    pub(super) async fn keep_bytes(&self, digest: Digest, bytes: Bytes) -> Result<()> {
        let _share = self.reserve(digest.size()).await?;
        if digest.size() <= self.config.small_blob_bytes_max {
            return self.keep_small(digest, &bytes).await;
        }
        let mut growing = self.grow(&digest).await?;
        growing.push(self, &bytes).await?;
        self.publish(digest, growing).await
    }

    /// Keeps a blob that comes in pieces.
    pub(super) async fn keep_chunks(&self, digest: Digest, mut chunks: Chunks) -> Result<()> {
        let _share = self.reserve(digest.size()).await?;
        if digest.size() <= self.config.small_blob_bytes_max {
            let mut whole = BytesMut::new();
            while let Some(pieces) = chunks.next().await? {
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            }
            return self.keep_small(digest, &whole).await;
        }
        // Before the file is made: whoever follows has the first bytes as soon as they are hashed.
        let mut next = chunks.next().await?;
        let mut growing = self.grow(&digest).await?;
        if chunks.is_followed() {
            chunks.grown(Some(self.env.disk.reader(&growing.file).await?), 0);
        }
        while let Some(pieces) = next {
            for piece in pieces.iter() {
                growing.push(self, piece).await?;
                chunks.grown(None, growing.written);
            }
            next = chunks.next().await?;
        }
        self.publish(digest, growing).await
    }

    async fn keep_small(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        let (function, hash) = (digest.function(), digest.hash());
        let record = Record { kind: Kind::Blob, function, hash, payload: bytes };
        let appended = self.segments.append(record).await?;
        self.enter(&digest, Entry::in_segment(&digest, appended.place, true));
        Ok(())
    }

    async fn grow(&self, digest: &Digest) -> Result<Growing> {
        let directory = self.config.layout.prefix(digest.hash()[0]);
        let file = self.env.disk.temporary(directory).await?;
        Ok(Growing { file, written: 0, buffer: self.env.disk.buffer() })
    }

    async fn publish(&self, digest: Digest, growing: Growing) -> Result<()> {
        let Growing { file, written, buffer } = growing;
        self.env.disk.write_large(&file, buffer, written).await?;
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

/// A large blob that is written: what is in the file, and what waits to fill one write.
struct Growing {
    file: Temporary,
    written: u64,
    buffer: Buffer,
}

impl Growing {
    async fn push(&mut self, shard: &Shard, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = self.buffer.fill_from(bytes);
            bytes = &bytes[taken..];
            if self.buffer.is_full() {
                let full = std::mem::replace(&mut self.buffer, shard.env.disk.buffer());
                let length = full.filled().len() as u64;
                shard.env.disk.write_large(&self.file, full, self.written).await?;
                self.written += length;
            }
        }
        Ok(())
    }
}
