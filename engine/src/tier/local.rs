//! This node as the backlog sees it: where the bytes lie that are owed to the tier below. Must
//! never ask what is below: of that it knows only what the tier remembers.

use super::{
    Blobs, Item, Local, Outgoing, Tier,
    action_cache::{self, TreeBounds},
    backlog::{BacklogError, HELD, StoredResult},
    push::outgoing,
};
use crate::{
    blob::{BlobError, Result},
    cores::Cores,
    digest::Digest,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;

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

    fn hold(&self, items: Vec<Arc<Item>>) -> BoxFuture<'_, ()> {
        let (mut blobs, mut results) = (Vec::new(), Vec::new());
        for item in items {
            match &*item {
                Item::Blob(digest) => blobs.push(*digest),
                Item::Action { instance, action } => {
                    results.push(action_cache::key(instance, *action));
                }
            }
        }
        let seconds = u32::try_from(HELD.as_secs()).unwrap_or(u32::MAX);
        Box::pin(async move {
            if let Err(error) = self.blobs.cores().hold(blobs, results, seconds).await {
                tracing::debug!(%error, "what is owed below is not held; it is asked for again");
            }
        })
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
