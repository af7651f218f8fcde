//! Large blobs across the seam: bounded, cancelled by dropping. What crosses is a file and its
//! length, or a chunk as it came; never a copy. Must never let a blob's last byte leave before
//! the blob was hashed since the node started.

use super::{
    fill::Growing,
    follow::{Follow, Grown},
    handle::Cores,
    request::{Attached, UploadName},
};
use crate::{
    blob::{
        BlobError, Body, Extent, Result,
        source::{Chunk, Pieces},
    },
    digest::{Digest, Hasher},
    env::Env,
    limits::IO_BYTES,
};
use bytes::Bytes;
use std::{io, ops::Range, rc::Rc, sync::atomic::Ordering};

/// An upload in parts. Dropped before its end, it waits for a while to be gone on with.
pub struct Upload {
    cores: Cores,
    name: Option<UploadName>,
    digest: Digest,
    attached: Option<Attached>,
}

impl Upload {
    pub(super) const fn new(
        cores: Cores,
        name: UploadName,
        digest: Digest,
        attached: Attached,
    ) -> Self {
        Self { cores, name: Some(name), digest, attached: Some(attached) }
    }

    /// Bytes taken so far, over all streams that carried them.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.attached.as_ref().map_or(0, |attached| attached.committed.load(Ordering::Acquire))
    }

    /// Hands over the next bytes; waits while the owner is behind.
    ///
    /// # Errors
    /// What the owner says of the upload, if it gave it up.
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let share = self.cores.upload_share(length).await;
        let Some(attached) = &self.attached else { return Err(BlobError::Stopped) };
        if attached.chunks.send(Chunk::Bytes(Pieces::new(pieces, share))).await.is_err() {
            return Err(self.refused().await);
        }
        attached.committed.fetch_add(length, Ordering::Release);
        Ok(())
    }

    /// Says that there are no more bytes; returns once the blob is kept.
    ///
    /// # Errors
    /// `Mismatch`, `Full`, `Disk`, `Stopped`.
    pub async fn finish(mut self) -> Result<()> {
        let Some(attached) = &self.attached else { return Err(BlobError::Stopped) };
        if attached.chunks.send(Chunk::End).await.is_err() {
            return Err(self.refused().await);
        }
        self.outcome().await.unwrap_or(Err(BlobError::Stopped))
    }

    /// Why the owner takes no more.
    async fn refused(&mut self) -> BlobError {
        match self.outcome().await {
            Some(Err(error)) => error,
            _ => BlobError::Incomplete(self.digest),
        }
    }

    async fn outcome(&mut self) -> Option<Result<()>> {
        let mut attached = self.attached.take()?;
        let outcome = attached.outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(name), Some(attached)) = (self.name.take(), self.attached.take()) {
            self.cores.park(&self.digest, name, attached);
        }
    }
}

/// A range of a blob, read a piece at a time by the core that serves the connection.
pub struct BlobReader {
    cores: Cores,
    env: Rc<Env>,
    rest: Rest,
}

enum Rest {
    Bytes(Bytes),
    Extent { extent: Extent, range: Range<u64>, hasher: Option<Hasher> },
    Growing(Follow),
}

impl BlobReader {
    /// Opens `range` of the blob, which must lie within its size.
    ///
    /// # Errors
    /// `NotFound`, `Overloaded`, `Stopped`, `Disk`.
    pub async fn open(
        cores: Cores,
        env: Rc<Env>,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Self> {
        let rest = match cores.get(digest).await? {
            Body::Bytes(bytes) => {
                let range = cut(&range, bytes.len());
                Rest::Bytes(bytes.slice(range))
            }
            Body::Extent(extent) => {
                let whole = range.start == 0 && range.end == digest.size();
                if !extent.verified && !whole {
                    check_whole(&cores, &env, &extent).await?;
                }
                let hasher = (!extent.verified && whole).then(|| Hasher::new(digest.function()));
                Rest::Extent { extent, range, hasher }
            }
        };
        Ok(Self { cores, env, rest })
    }

    /// `range` of a blob that is here whole.
    #[must_use]
    pub fn whole(cores: Cores, env: Rc<Env>, bytes: &Bytes, range: &Range<u64>) -> Self {
        let rest = Rest::Bytes(bytes.slice(cut(range, bytes.len())));
        Self { cores, env, rest }
    }

    /// `range` of a blob that grows, each piece as soon as it is there, except the blob's last: it
    /// leaves when the whole proved to be right. The blob comes as long as `held` is.
    #[must_use]
    pub fn follow(
        cores: Cores,
        env: Rc<Env>,
        (digest, range): (Digest, Range<u64>),
        growing: Growing,
        held: Box<dyn Send>,
    ) -> Self {
        let follow = Follow::new(growing, digest, range, held);
        Self { cores, env, rest: Rest::Growing(follow) }
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// `Disk`; `NotFound` where the blob proves to be damaged, before its last piece leaves;
    /// `Below` where it breaks off on its way here.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match &mut self.rest {
            Rest::Growing(follow) => {
                let range = match follow.next(&self.env).await? {
                    Grown::Piece(piece) => return Ok(Some(piece)),
                    Grown::End => return Ok(None),
                    Grown::Kept(range) => range,
                };
                let digest = follow.digest();
                let bytes = self.cores.read(digest, digest.size()).await?;
                let mut bytes = bytes.slice(cut(&range, bytes.len()));
                let piece = bytes.split_to(bytes.len().min(IO_BYTES));
                self.rest = Rest::Bytes(bytes);
                Ok(Some(piece))
            }
            Rest::Bytes(bytes) if bytes.is_empty() => Ok(None),
            Rest::Bytes(bytes) => Ok(Some(bytes.split_to(bytes.len().min(IO_BYTES)))),
            Rest::Extent { range, .. } if range.is_empty() => Ok(None),
            Rest::Extent { extent, range, hasher } => {
                let length = length_of(range.end - range.start);
                let bytes = self.env.disk.read(&extent.file, range.start, length).await;
                let bytes = bytes.map_err(|error| unreadable(&self.cores, extent, error))?;
                range.start += length as u64;
                if let Some(state) = hasher {
                    state.update(&bytes);
                    if range.is_empty() {
                        let good = state.clone().finish() == extent.digest;
                        self.cores.checked(extent, good);
                        if !good {
                            return Err(BlobError::NotFound(extent.digest));
                        }
                    }
                }
                Ok(Some(bytes))
            }
        }
    }
}

/// Hashes the whole blob before a part of it may leave.
async fn check_whole(cores: &Cores, env: &Env, extent: &Extent) -> Result<()> {
    let mut hasher = Hasher::new(extent.digest.function());
    while hasher.size() < extent.digest.size() {
        let length = length_of(extent.digest.size() - hasher.size());
        match env.disk.read(&extent.file, hasher.size(), length).await {
            Ok(bytes) => hasher.update(&bytes),
            Err(error) => return Err(unreadable(cores, extent, error)),
        }
        futures_lite::future::yield_now().await;
    }
    let good = hasher.finish() == extent.digest;
    cores.checked(extent, good);
    if good { Ok(()) } else { Err(BlobError::NotFound(extent.digest)) }
}

/// Why a piece can't be had. A file that is too short is damaged; anything else says nothing about
/// the blob.
fn unreadable(cores: &Cores, extent: &Extent, error: io::Error) -> BlobError {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return error.into();
    }
    cores.checked(extent, false);
    BlobError::NotFound(extent.digest)
}

fn length_of(rest: u64) -> usize {
    usize::try_from(rest).unwrap_or(usize::MAX).min(IO_BYTES)
}

fn cut(range: &Range<u64>, length: usize) -> Range<usize> {
    let within = |at: u64| usize::try_from(at).unwrap_or(length).min(length);
    within(range.start)..within(range.end)
}
