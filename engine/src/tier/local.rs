//! This node as the backlog sees it: where the bytes lie that are owed to the tier below. Must
//! never ask what is below: of that it knows only what the tier remembers.

use super::{
    Blobs, Local, Outgoing, Tier,
    action_cache::{self, TreeBounds},
    backlog::{BacklogError, StoredResult},
    push::outgoing,
};
use crate::{
    blob::{BlobError, Result},
    cores::Cores,
    digest::Digest,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;

/// A node's own blobs and results.
pub struct LocalBlobs {
    blobs: Blobs,
    bounds: TreeBounds,
    tier: Tier,
}

impl LocalBlobs {
    /// What `cores` keep, owed to `tier`.
    #[must_use]
    pub fn new(cores: Cores, bounds: TreeBounds, tier: Tier) -> Self {
        Self { blobs: cores.into(), bounds, tier }
    }
}

impl Local for LocalBlobs {
    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Outgoing>> {
        Box::pin(outgoing(self.blobs.cores(), digest))
    }

    fn read(&self, digest: Digest) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.blobs.cores().read(digest, u64::MAX))
    }

    fn wrong_below(&self, digests: Vec<Digest>) -> BoxFuture<'_, Vec<Digest>> {
        Box::pin(self.tier.wrong_among(digests))
    }

    fn written_below(&self, digests: Vec<Digest>) {
        self.tier.written(digests);
    }

    fn result<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, Result<Option<StoredResult>>> {
        Box::pin(async move {
            let Some(result) = action_cache::stored(&self.blobs, instance, action).await? else {
                return Ok(None);
            };
            let named = action_cache::closure(&self.blobs, &result, self.bounds).await?;
            Ok(named.map(|named| (result, named.into_iter().collect())))
        })
    }
}

impl From<BacklogError> for BlobError {
    fn from(error: BacklogError) -> Self {
        match error {
            BacklogError::Full => Self::Overloaded,
            BacklogError::Disk(error) => Self::Disk(error),
            BacklogError::Stopped => Self::Stopped,
            BacklogError::TooLong(_) => Self::Below(error.to_string().into()),
        }
    }
}
