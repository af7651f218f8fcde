//! What a core can do with blobs, and the layers that do it.
//!
//! Invariant: a layer never learns what it wraps; there is no downcast here.
//! Invariant: `find_missing` names every absent blob and no other.

#[cfg(test)]
pub(crate) mod contract;
mod empty;
mod home;
pub mod source;
mod stack;
mod verified;

pub use self::{
    home::Home,
    source::{Growth, Source},
    stack::stack,
};

use self::{empty::EmptyBlob, verified::Verified};
use crate::digest::Digest;
use bytes::Bytes;
use std::{fs::File, io, path::PathBuf, sync::Arc};

/// The result of asking a store.
pub type Result<T> = std::result::Result<T, BlobError>;

/// Why a store could not do what it was asked; each is something a caller acts on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlobError {
    /// No tier has this blob.
    #[error("blob {0} is not here")]
    NotFound(Digest),
    /// These bytes are not the ones the digest names.
    #[error("the bytes sent are not those of {0}")]
    Mismatch(Digest),
    /// The sender went away before the last byte.
    #[error("the upload of {0} ended early")]
    Incomplete(Digest),
    /// Larger than a bound of `limits.rs`; asking again will not help.
    #[error("{size} bytes are more than the {size_max} allowed")]
    TooLarge {
        /// What was asked for, in bytes.
        size: u64,
        /// The bound, in bytes.
        size_max: u64,
    },
    /// A bound of `limits.rs` was reached; the caller may try again.
    #[error("too much work in flight")]
    Overloaded,
    /// The disk, or the share of it that the store may use, is full.
    #[error("no space is left for blobs")]
    Full,
    /// The owning core is gone.
    #[error("the owner of this digest has stopped")]
    Stopped,
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(Arc<io::Error>),
    /// It is not here, and the tier below can't be asked; the caller may try again.
    #[error("the tier below can't be asked: {0}")]
    Below(Arc<str>),
}

impl BlobError {
    /// A blob from below stopped on its way here: no word about whether it is there.
    pub(crate) fn broken_off() -> Self {
        Self::Below("it broke off".into())
    }
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::StorageFull {
            return Self::Full;
        }
        Self::Disk(Arc::new(error))
    }
}

/// What a store has of a blob. Both cross between cores without a copy.
#[derive(Clone, Debug)]
pub enum Body {
    /// A small blob, whole and checked.
    Bytes(Bytes),
    /// A large blob, to be read by whoever holds this.
    Extent(Extent),
}

/// Where the bytes of a large blob lie. The file stays readable while this lives, evicted or not.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The file that holds them, from its first byte.
    pub file: Arc<File>,
    /// What they are.
    pub digest: Digest,
    /// Which of the blob's homes this is.
    pub home: Home,
    /// Whether they were hashed since the node started; if not, whoever reads them hashes them
    /// before the last byte leaves.
    pub verified: bool,
}

/// A file that actions may be given as a hard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it lies. It stays there while its lease runs.
    pub path: PathBuf,
}

/// Bytes under their digests. Futures are deliberately not `Send`: a store lives on one core.
#[expect(async_fn_in_trait, reason = "thread-per-core: no auto-trait bounds are wanted")]
pub trait BlobStore: Sized {
    /// The blob; its use counts for eviction.
    async fn get(&self, digest: Digest) -> Result<Body>;
    /// Keeps the blob; once this returns, `get` finds it until it is evicted.
    async fn put(&self, digest: Digest, source: Source) -> Result<()>;
    /// Those that are absent; the others are leased.
    async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>>;

    /// Bytes are hashed before they are kept, whoever brings them.
    fn verified(self) -> Verified<Self> {
        Verified::new(self)
    }
    /// REAPI: the blob of no bytes is always present, and never stored.
    fn with_empty_blob(self) -> EmptyBlob<Self> {
        EmptyBlob::new(self)
    }
}
