//! Bytes on their way into a store. Must never hand out more bytes than the digest has.

use super::{BlobError, Result};
use crate::{
    digest::{Digest, Hasher},
    env::alarms::Alarms,
};
use bytes::Bytes;
use futures_util::future::{Either, select};
use std::{fs::File, pin::pin, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Where a store takes a blob's bytes from.
pub enum Source {
    /// All of them.
    Bytes(Bytes),
    /// A piece at a time.
    Chunks(Chunks),
}

/// What an uploader sends.
#[derive(Debug)]
pub enum Chunk {
    /// The next bytes.
    Bytes(Pieces),
    /// There are no more.
    End,
    /// They proved wrong before their end.
    Wrong,
}

/// Bytes in the pieces in which they came, with what they take of the node's bound.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<Bytes>,
    /// Given back when the bytes are.
    _share: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    /// Pieces that count against a bound as long as they live.
    #[must_use]
    pub const fn new(bytes: Vec<Bytes>, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, _share: share }
    }

    /// The pieces in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.bytes.iter()
    }
}

/// How far a blob has come in that is read before it is whole.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// The file that grows, once there is one; small blobs have none.
    pub file: Option<Arc<File>>,
    /// Bytes of it that can be read. They went through the digest's hash, but only the last byte
    /// tells whether they are right.
    pub written: u64,
    /// How it ended: kept, or not.
    pub outcome: Option<Result<()>>,
}

/// The receiving end of an upload.
pub struct Chunks {
    digest: Digest,
    receiver: async_channel::Receiver<Chunk>,
    alarms: Alarms,
    idle: Duration,
    received: u64,
    hasher: Option<Hasher>,
    follower: Option<Follower>,
}

/// Who reads a blob while it comes in.
pub struct Follower {
    /// How far it is.
    pub growth: Arc<watch::Sender<Growth>>,
    /// Pieces as they were hashed, for one reader who keeps up; others read the file.
    pub live: async_channel::Sender<Vec<Bytes>>,
}

/// Tells whoever reads a blob while it grows how far it is; by default there is nobody.
#[derive(Clone, Default)]
pub struct Progress {
    growth: Option<Arc<watch::Sender<Growth>>>,
}

impl Progress {
    /// Whether somebody reads the blob while it grows.
    #[must_use]
    pub const fn is_followed(&self) -> bool {
        self.growth.is_some()
    }

    /// This is the file that grows.
    pub fn begun(&self, file: Arc<File>) {
        if let Some(growth) = &self.growth {
            growth.send_modify(|growth| growth.file = Some(file));
        }
    }

    /// So many bytes of it can be read.
    pub fn grown(&self, written: u64) {
        if let Some(growth) = &self.growth {
            growth.send_modify(|growth| growth.written = written);
        }
    }
}

impl Chunks {
    /// The upload of `digest` from `receiver`, given up after `idle` without a chunk.
    #[must_use]
    pub const fn new(
        digest: Digest,
        receiver: async_channel::Receiver<Chunk>,
        alarms: Alarms,
        idle: Duration,
    ) -> Self {
        Self { digest, receiver, alarms, idle, received: 0, hasher: None, follower: None }
    }

    /// The same, whose end is an error where the bytes are not those of `digest`.
    #[must_use]
    pub fn verifying(mut self, digest: Digest) -> Self {
        self.digest = digest;
        self.hasher = Some(Hasher::new(digest.function()));
        self
    }

    /// The same, watched while it grows.
    #[must_use]
    pub fn followed(mut self, follower: Follower) -> Self {
        self.follower = Some(follower);
        self
    }

    /// Where its growth is told to whoever follows it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { growth: self.follower.as_ref().map(|follower| follower.growth.clone()) }
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// `Incomplete` where the sender left or stalled, `Mismatch` where there are too many, too few
    /// or other bytes than the digest says.
    pub async fn next(&mut self) -> Result<Option<Pieces>> {
        let received = {
            let next = pin!(self.receiver.recv());
            let idle = pin!(self.alarms.sleep(self.idle));
            match select(next, idle).await {
                Either::Left((received, _)) => received.ok(),
                Either::Right(_) => None,
            }
        };
        match received {
            None => Err(BlobError::Incomplete(self.digest)),
            Some(Chunk::End) => self.end().map(|()| None),
            Some(Chunk::Wrong) => Err(BlobError::Mismatch(self.digest)),
            Some(Chunk::Bytes(pieces)) => self.take(&pieces).map(|()| Some(pieces)),
        }
    }

    fn take(&mut self, pieces: &Pieces) -> Result<()> {
        self.received += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if self.received > self.digest.size() {
            return Err(BlobError::Mismatch(self.digest));
        }
        if let Some(hasher) = &mut self.hasher {
            for piece in pieces.iter() {
                hasher.update(piece);
            }
        }
        if let Some(Follower { live, .. }) = &self.follower {
            // A reader that is behind goes on from the file.
            if !live.is_closed() && live.try_send(pieces.bytes.clone()).is_err() {
                live.close();
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let right = match self.hasher.take() {
            Some(hasher) => hasher.finish() == self.digest,
            None => self.received == self.digest.size(),
        };
        if right { Ok(()) } else { Err(BlobError::Mismatch(self.digest)) }
    }
}
