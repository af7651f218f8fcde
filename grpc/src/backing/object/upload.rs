//! Bytes on their way into an object store: whole, or in parts. Must never leave half an object
//! where it can be seen, nor hold more than the parts in flight and the one being filled.

use engine::{
    blob::BlobError,
    digest::Digest,
    tier::{BelowError, BelowResult, Outgoing},
};
use futures_util::StreamExt;
use object_store::{MultipartUpload, PutPayload};
use std::time::Duration;

/// Up to this size a blob goes in one request; parts are of this size or larger.
pub(super) const PART_BYTES_MIN: u64 = 8 << 20;

/// Parts of one object, at most, in every store that takes parts (S3, GCS: 10 000).
const PARTS_MAX: u64 = 10_000;

/// Parts of one blob that are being sent at a time.
pub(super) const PARTS_IN_FLIGHT_MAX: usize = 4;

/// Bytes of each part but the last. Some stores want all of one size (R2).
pub(super) const fn part_bytes(size: u64) -> u64 {
    let needed = size.div_ceil(PARTS_MAX);
    if needed > PART_BYTES_MIN { needed } else { PART_BYTES_MIN }
}

/// Cuts a blob into parts, and sees that it is as long as its digest says.
pub(super) struct Cutter {
    digest: Digest,
    bytes: Outgoing,
    part_bytes: u64,
    /// Of this blob's bytes, those that have not come yet.
    left: u64,
    part: Vec<bytes::Bytes>,
    filled: u64,
}

impl Cutter {
    pub(super) const fn new(digest: Digest, bytes: Outgoing, part_bytes: u64) -> Self {
        Self { digest, bytes, part_bytes, left: digest.size(), part: Vec::new(), filled: 0 }
    }

    /// The next part; nothing after the last. May be dropped and called again.
    pub(super) async fn next(&mut self) -> BelowResult<Option<PutPayload>> {
        loop {
            if self.filled >= self.part_bytes {
                return Ok(Some(self.cut()));
            }
            let Some(piece) = self.bytes.next().await.transpose()? else { break };
            let Some(left) = self.left.checked_sub(piece.len() as u64) else {
                return Err(BlobError::Mismatch(self.digest).into());
            };
            self.left = left;
            self.filled += piece.len() as u64;
            self.part.push(piece);
        }
        if self.left > 0 {
            return Err(BlobError::Incomplete(self.digest).into());
        }
        Ok((self.filled > 0).then(|| self.cut()))
    }

    fn cut(&mut self) -> PutPayload {
        let mut pieces = std::mem::take(&mut self.part);
        let over = self.filled.saturating_sub(self.part_bytes);
        self.filled = over;
        if let (true, Some(last)) = (over > 0, pieces.last_mut()) {
            let kept = last.len() - usize::try_from(over).unwrap_or(last.len()).min(last.len());
            self.part.push(last.split_off(kept));
        }
        pieces.into_iter().collect()
    }
}

/// An upload that is given up when it is dropped unfinished, by an error or with its caller: no
/// store does so by itself, and parts without an object cost what an object does.
pub(super) struct Upload {
    parts: Option<Box<dyn MultipartUpload>>,
    patience: Duration,
}

impl Upload {
    pub(super) const fn new(parts: Box<dyn MultipartUpload>, patience: Duration) -> Self {
        Self { parts: Some(parts), patience }
    }

    /// The store's upload, while it is unfinished.
    pub(super) fn parts(&mut self) -> BelowResult<&mut Box<dyn MultipartUpload>> {
        let ended = || BelowError::Unreachable("the upload has ended".to_owned());
        self.parts.as_mut().ok_or_else(ended)
    }

    /// The object is there: nothing is left to give up.
    pub(super) fn finished(mut self) {
        self.parts = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else { return };
        // Without a runtime the node is ending: the store's own rule for old parts is left.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let patience = self.patience;
        runtime.spawn(async move {
            match tokio::time::timeout(patience, parts.abort()).await {
                Ok(Ok(())) => {}
                _ => tracing::debug!("parts of an unfinished upload are left in the object store"),
            }
        });
    }
}
