//! The blob of no bytes is always present, and must never be stored.
//!
//! Clients neither write nor read it, yet input roots and results name it; without this layer
//! such an action fails with a missing input (bazelbuild/bazel#11063).

use super::{BlobError, BlobStore, Body, Result, Source};
use crate::digest::Digest;
use bytes::Bytes;

/// Answers for the empty blob itself; asks the inner store for all others.
pub struct EmptyBlob<S> {
    inner: S,
}

impl<S: BlobStore> EmptyBlob<S> {
    pub(super) const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: BlobStore> BlobStore for EmptyBlob<S> {
    async fn get(&self, digest: Digest) -> Result<Body> {
        if digest.is_empty() {
            return Ok(Body::Bytes(Bytes::new()));
        }
        self.inner.get(digest).await
    }

    async fn put(&self, digest: Digest, source: Source) -> Result<()> {
        if !digest.is_empty() {
            return self.inner.put(digest, source).await;
        }
        match source {
            Source::Bytes(bytes) if bytes.is_empty() => Ok(()),
            Source::Bytes(_) => Err(BlobError::Mismatch(digest)),
            Source::Chunks(mut chunks) => match chunks.next().await? {
                Some(_) => Err(BlobError::Mismatch(digest)),
                None => Ok(()),
            },
        }
    }

    async fn find_missing(&self, mut digests: Vec<Digest>) -> Result<Vec<Digest>> {
        digests.retain(|digest| !digest.is_empty());
        self.inner.find_missing(digests).await
    }
}
