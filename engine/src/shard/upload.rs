//! A blob on its way in: reserved, written where nobody sees it, made durable, then visible. Must
//! never enter a blob into the index before its source ended without an error.

use super::{
    Durability, Shard,
    index::Entry,
    layout::MODE_PLAIN,
    segment::{Kind, Record},
};
use crate::{
    blob::{BlobError, Result, source::Chunks},
    digest::Digest,
    env::disk::Writing,
    limits::IO_BYTES,
};
use bytes::{Bytes, BytesMut};

impl Shard {
    /// Keeps a blob that is here whole.
    pub(super) async fn keep_bytes(&self, digest: Digest, bytes: Bytes) -> Result<()> {
        self.reserve(digest.size())?;
        if digest.size() <= self.config.small_blob_bytes_max {
            return self.keep_small(digest, &bytes).await;
        }
        let file = self.temporary(&digest).await?;
        let mut at = 0;
        for piece in bytes.chunks(IO_BYTES) {
            self.env.disk.write(&file, piece.to_vec(), at).await?;
            at += piece.len() as u64;
        }
        self.publish(digest, file).await
    }

    /// Keeps a blob that comes in pieces.
    pub(super) async fn keep_chunks(&self, digest: Digest, mut chunks: Chunks) -> Result<()> {
        self.reserve(digest.size())?;
        if digest.size() <= self.config.small_blob_bytes_max {
            let mut whole = BytesMut::new();
            while let Some(pieces) = chunks.next().await? {
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            }
            return self.keep_small(digest, &whole).await;
        }
        let file = self.temporary(&digest).await?;
        let (mut at, mut gathered) = (0, Vec::with_capacity(IO_BYTES));
        while let Some(pieces) = chunks.next().await? {
            for piece in pieces {
                gathered.extend_from_slice(&piece);
            }
            if gathered.len() >= IO_BYTES {
                let length = gathered.len() as u64;
                let full = std::mem::replace(&mut gathered, Vec::with_capacity(IO_BYTES));
                self.env.disk.write(&file, full, at).await?;
                at += length;
            }
        }
        if !gathered.is_empty() {
            self.env.disk.write(&file, gathered, at).await?;
        }
        self.publish(digest, file).await
    }

    async fn keep_small(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        let (function, hash) = (digest.function(), digest.hash());
        let record = Record { kind: Kind::Blob, function, hash, payload: bytes };
        let place = self.segments.append(record).await?;
        let entry = Entry::in_segment(&digest, place, true);
        self.enter(&digest, entry, record.encoded_len() as u64);
        Ok(())
    }

    async fn temporary(&self, digest: &Digest) -> Result<Writing> {
        let directory = self.config.layout.prefix(digest.hash()[0]);
        self.env.disk.temporary(&directory).await.map_err(BlobError::from)
    }

    async fn publish(&self, digest: Digest, file: Writing) -> Result<()> {
        if self.config.durability == Durability::Sync {
            self.env.disk.sync(&file).await?;
        }
        let path = self.config.layout.blob(&digest, false);
        self.env.disk.publish(file, path, MODE_PLAIN).await?;
        let directory = self.config.layout.prefix(digest.hash()[0]);
        self.added(&digest, Entry::in_file(&digest, false, true), directory).await
    }
}
