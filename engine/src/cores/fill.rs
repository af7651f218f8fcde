//! A blob on its way in from another cache, which can be read while it grows. Must never count as
//! kept before its owner says so.

use super::{handle::Cores, request::Request};
use crate::{
    blob::{
        BlobError, Growth, Result,
        source::{Chunk, Pieces},
    },
    digest::Digest,
    limits::UPLOAD_CHUNKS_MAX,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// A view of a blob that grows.
pub type Growing = watch::Receiver<Growth>;

/// The sending end of a blob that comes from another cache. Dropped before its end, nothing is
/// kept.
pub struct Fill {
    cores: Cores,
    chunks: async_channel::Sender<Chunk>,
    growing: Growing,
}

impl Cores {
    /// Begins to fill a blob.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`.
    pub fn fill(&self, digest: Digest) -> Result<Fill> {
        let (chunks, receiver) = async_channel::bounded(UPLOAD_CHUNKS_MAX);
        let (growth, growing) = watch::channel(Growth::default());
        let request = Request::Fill { digest, chunks: receiver, growth: Arc::new(growth) };
        self.submit(self.owner(&digest), request)?;
        Ok(Fill { cores: self.clone(), chunks, growing })
    }
}

impl Fill {
    /// What has come so far.
    #[must_use]
    pub fn growing(&self) -> Growing {
        self.growing.clone()
    }

    /// Hands over the next bytes; waits while the owner is behind.
    ///
    /// # Errors
    /// What the owner says of the blob, if it gave it up.
    pub async fn write(&mut self, piece: Bytes) -> Result<()> {
        let share = self.cores.upload_share(piece.len() as u64).await;
        let chunk = Chunk::Bytes(Pieces::new(vec![piece], share));
        if self.chunks.send(chunk).await.is_err() {
            return self.outcome().await.and(Err(BlobError::Stopped));
        }
        Ok(())
    }

    /// Says that there are no more bytes; returns once the blob is kept.
    ///
    /// # Errors
    /// `Mismatch` where they are others than the digest says; `Full`, `Disk`, `Stopped`.
    pub async fn finish(mut self) -> Result<()> {
        // A closed channel has its reason in the outcome.
        drop(self.chunks.send(Chunk::End).await);
        self.outcome().await
    }

    async fn outcome(&mut self) -> Result<()> {
        let ended = self.growing.wait_for(|growth| growth.outcome.is_some()).await;
        let outcome = ended.ok().and_then(|growth| growth.outcome.clone());
        outcome.unwrap_or(Err(BlobError::Stopped))
    }
}
