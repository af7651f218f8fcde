//! Nothing is kept whose bytes do not match its digest.
//!
//! REAPI makes this the server's duty; without it one client poisons a digest for all.

use super::{BlobError, BlobStore, Body, Result, Source};
use crate::digest::Digest;

/// Hashes on the way in.
pub struct Verified<S> {
    inner: S,
}

impl<S: BlobStore> Verified<S> {
    pub(super) const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: BlobStore> BlobStore for Verified<S> {
    async fn get(&self, digest: Digest) -> Result<Body> {
        self.inner.get(digest).await
    }

    async fn put(&self, digest: Digest, source: Source) -> Result<()> {
        let source = match source {
            Source::Bytes(bytes) if Digest::of(&bytes) == digest => Source::Bytes(bytes),
            Source::Bytes(_) => return Err(BlobError::Mismatch(digest)),
            // The store below reads to the end before it keeps anything, and the end is an
            // error where the hash differs.
            Source::Chunks(chunks) => Source::Chunks(chunks.verifying(digest)),
        };
        self.inner.put(digest, source).await
    }

    async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        self.inner.find_missing(digests).await
    }
}
