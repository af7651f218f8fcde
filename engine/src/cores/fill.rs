//! A blob on its way in from another cache, which can be read while it grows. Must never count as
//! kept before its owner says so.

use super::{handle::Cores, request::Request};
use crate::{
    blob::{
        BlobError, Growth, Result,
        source::{Chunk, Follower, Pieces},
    },
    digest::Digest,
    limits::UPLOAD_CHUNKS_MAX,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What waits for the reader who takes pieces as they come, in writes to a [`Fill`]; one that is
/// further behind reads the file.
const LIVE_LEN_MAX: usize = 16;

/// A view of a blob that grows.
#[derive(Clone)]
pub struct Growing {
    /// How far it is, and how it ended.
    pub(crate) growth: watch::Receiver<Growth>,
    /// Its pieces from the first on, for whoever takes them; a second reader reads the file.
    live: Arc<Mutex<Option<Live>>>,
}

/// Pieces of a blob as they come, hashed.
pub(super) type Live = async_channel::Receiver<Vec<Bytes>>;

impl Growing {
    /// The pieces, for the first that asks.
    pub(super) fn take_live(&self) -> Option<Live> {
        self.live.lock().ok()?.take()
    }

    /// Waits until the blob is kept, or not.
    pub(crate) async fn outcome(&mut self) -> Result<()> {
        let ended = self.growth.wait_for(|growth| growth.outcome.is_some()).await;
        let outcome = ended.ok().and_then(|growth| growth.outcome.clone());
        outcome.unwrap_or(Err(BlobError::Stopped))
    }
}

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
        let (sender, growth) = watch::channel(Growth::default());
        let (live, pieces) = async_channel::bounded(LIVE_LEN_MAX);
        let follower = Follower { growth: Arc::new(sender), live };
        let request = Request::Fill { digest, chunks: receiver, follower };
        self.submit(self.owner(&digest), request)?;
        let growing = Growing { growth, live: Arc::new(Mutex::new(Some(pieces))) };
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
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let share = self.cores.upload_share(length).await;
        let chunk = Chunk::Bytes(Pieces::new(pieces, share));
        if self.chunks.send(chunk).await.is_err() {
            return self.growing.outcome().await.and(Err(BlobError::Stopped));
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
        self.growing.outcome().await
    }

    /// Says that the bytes are wrong, however many came: nothing is kept, and whoever reads them
    /// learns it.
    pub async fn refuse(self) {
        // An owner that takes no more has found something wrong itself.
        drop(self.chunks.send(Chunk::Wrong).await);
    }
}
