//! The tier below that is an object store: S3 and what speaks like it, GCS, Azure, a WebDAV
//! server, a directory. Must never hash bytes, nor ask anything twice: both are done above.
//!
//! What it wants of the store: reading, writing and, on S3, listing (`s3:ListBucket`), without
//! which S3 answers 403 where an object is missing. A rule that removes unfinished multipart
//! uploads: a node that is killed leaves one. A WebDAV server takes blobs of up to
//! `WHOLE_BYTES_MAX`, since there is no way to give it parts.

mod answer;
mod keys;
#[cfg(test)]
mod s3_tests;
mod settings;
#[cfg(test)]
mod tests;
mod upload;

pub(crate) use self::settings::{ObjectSettings, ObjectSettingsError};

use self::{
    keys::{Keys, RESULT_BYTES_MAX},
    upload::{Cutter, PART_BYTES_MIN, PARTS_IN_FLIGHT_MAX, Upload},
};
use bytes::Bytes;
use engine::{
    digest::Digest,
    tier::{Below, BelowError, BelowResult, Incoming, Outgoing},
};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use object_store::{
    GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutPayload, path::Path,
};
use proto::reapi::ActionResult;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// Bytes of blobs in one `read_many` or `write_many`. The store is asked for each by itself, so
/// that more would save no round trip; it bounds what such a call holds in memory.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// Bytes of a blob that goes whole into a store which takes no parts.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// An object store, asked as a tier.
pub(crate) struct ObjectTier {
    name: String,
    store: Arc<dyn ObjectStore>,
    keys: Keys,
    takes_parts: bool,
    permits: Semaphore,
    concurrency: usize,
    request_timeout: Duration,
    idle_timeout: Duration,
}

impl ObjectTier {
    /// Opens the store; it is asked nothing yet.
    ///
    /// # Errors
    /// [`ObjectSettingsError`] says what is wrong with the settings.
    pub(crate) fn new(settings: &ObjectSettings) -> Result<Self, ObjectSettingsError> {
        let opened = settings::open(settings)?;
        Ok(Self {
            name: settings.url.clone(),
            store: opened.store,
            keys: Keys::new(opened.prefix),
            takes_parts: opened.takes_parts,
            permits: Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS)),
            concurrency: settings.concurrency,
            request_timeout: settings.request_timeout,
            idle_timeout: settings.idle_timeout,
        })
    }

    /// One request. Its time starts when its turn comes: a queue of this node's own is no outage.
    async fn ask<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send,
    ) -> BelowResult<T> {
        let closed = |_| BelowError::Unreachable("it is closed".to_owned());
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let answer = timeout(self.request_timeout, request).await;
        answer.map_err(|_| BelowError::TimedOut)?.map_err(|error| answer::meaning(&error))
    }

    /// Whether the blob is there. An object of another size is none: half a copy, by whomever.
    async fn has(&self, digest: Digest) -> BelowResult<bool> {
        let key = self.keys.blob(digest);
        match self.ask(self.store.head(&key)).await {
            Ok(meta) => Ok(meta.size == digest.size()),
            Err(BelowError::Absent) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn missing(&self, digest: Digest) -> BelowResult<Option<Digest>> {
        Ok((!self.has(digest).await?).then_some(digest))
    }

    async fn open(&self, digest: Digest, offset: u64) -> BelowResult<Incoming> {
        let Some(left @ 1..) = digest.size().checked_sub(offset) else {
            // No store has a range of no bytes.
            let there = offset == digest.size() && self.has(digest).await?;
            return if there { Ok(stream::empty().boxed()) } else { Err(BelowError::Absent) };
        };
        let key = self.keys.blob(digest);
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        let options = GetOptions { range, ..GetOptions::default() };
        let got = match self.ask(self.store.get_opts(&key, options)).await {
            // A directory has no word for a range beyond the end of a file that was cut off.
            Err(BelowError::Unreachable(_)) if offset > 0 && !self.has(digest).await? => {
                return Err(BelowError::Absent);
            }
            got => got?,
        };
        if got.meta.size != digest.size() {
            return Err(BelowError::Absent);
        }
        let bytes = got.into_stream();
        Ok(stream::unfold(
            Some(Body { digest, bytes, left, idle_timeout: self.idle_timeout }),
            |body| async move {
                let mut body = body?;
                let piece = body.next().await?;
                let rest = piece.is_ok().then_some(body);
                Some((piece, rest))
            },
        )
        .boxed())
    }

    /// A whole object, if its size is one that is `expected`.
    async fn whole(
        &self,
        key: &Path,
        expected: impl Fn(u64) -> bool + Send + Sync,
    ) -> BelowResult<Bytes> {
        let whole = async {
            let got: GetResult = self.store.get(key).await?;
            if expected(got.meta.size) { got.bytes().await.map(Some) } else { Ok(None) }
        };
        self.ask(whole).await?.ok_or(BelowError::Absent)
    }

    async fn read_whole(&self, digest: Digest) -> BelowResult<Bytes> {
        self.whole(&self.keys.blob(digest), |size| size == digest.size()).await
    }

    /// Over whatever is there: the store's check for that would come after the bytes were sent,
    /// and keep half a copy for ever.
    async fn put(&self, key: &Path, bytes: PutPayload) -> BelowResult<()> {
        let put = self.ask(self.store.put(key, bytes)).await;
        put.map(drop).map_err(nowhere)
    }

    async fn write_blob(&self, digest: Digest, bytes: Outgoing) -> BelowResult<()> {
        if digest.size() > PART_BYTES_MIN && self.takes_parts {
            return self.write_parts(digest, bytes).await;
        }
        if digest.size() > WHOLE_BYTES_MAX {
            let why = format!("more than {WHOLE_BYTES_MAX} bytes into a store without uploads");
            return Err(BelowError::Refused(why));
        }
        let mut cutter = Cutter::new(digest, bytes, u64::MAX);
        let whole = cutter.next().await?.unwrap_or_default();
        self.put(&self.keys.blob(digest), whole).await
    }

    async fn write_parts(&self, digest: Digest, bytes: Outgoing) -> BelowResult<()> {
        // Not asked first whether it is there: whoever writes has asked, or knows that what is
        // there has its size and is wrong.
        let key = self.keys.blob(digest);
        let parts = self.ask(self.store.put_multipart(&key)).await.map_err(nowhere)?;
        let mut upload = Upload::new(parts, self.request_timeout);
        let mut cutter = Cutter::new(digest, bytes, upload::part_bytes(digest.size()));
        let mut flying = FuturesUnordered::new();
        let mut whole = false;
        // Parts fly while the next one fills: both are awaited at once.
        while !whole || !flying.is_empty() {
            tokio::select! {
                part = cutter.next(), if !whole && flying.len() < PARTS_IN_FLIGHT_MAX => {
                    match part? {
                        Some(part) => flying.push(self.ask(upload.parts()?.put_part(part))),
                        None => whole = true,
                    }
                }
                Some(sent) = flying.next(), if !flying.is_empty() => sent.map_err(nowhere)?,
            }
        }
        drop(flying);
        self.ask(upload.parts()?.complete()).await.map_err(nowhere)?;
        upload.finished();
        Ok(())
    }
}

impl Below for ObjectTier {
    fn name(&self) -> &str {
        &self.name
    }

    fn batch_bytes_max(&self) -> u64 {
        BATCH_BYTES_MAX
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        // Not HEAD: only with a body does "not found" say whether it is the bucket.
        Box::pin(async {
            match self.whole(&self.keys.nothing(), |_| false).await {
                Ok(_) | Err(BelowError::Absent) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        let questions = digests.into_iter().map(|digest| self.missing(digest));
        let mut answers = stream::iter(questions).buffered(self.concurrency);
        Box::pin(async move {
            let mut missing = Vec::new();
            while let Some(answer) = answers.next().await {
                missing.extend(answer?);
            }
            Ok(missing)
        })
    }

    fn read(&self, digest: Digest, offset: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        Box::pin(self.open(digest, offset))
    }

    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        let reads = digests.into_iter().map(|digest| self.read_whole(digest));
        let reads = stream::iter(reads).buffered(self.concurrency);
        Box::pin(async move { Ok(reads.collect().await) })
    }

    fn write(&self, digest: Digest, bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        Box::pin(self.write_blob(digest, bytes))
    }

    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        let writes = blobs
            .into_iter()
            .map(|(digest, bytes)| self.write_blob(digest, stream::iter([Ok(bytes)]).boxed()));
        let writes = stream::iter(writes).buffered(self.concurrency);
        Box::pin(async move { Ok(writes.collect().await) })
    }

    fn get_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        Box::pin(async move {
            let key = self.keys.result(instance, action);
            let sealed = match self.whole(&key, |size| size <= RESULT_BYTES_MAX).await {
                Ok(sealed) => sealed,
                Err(BelowError::Absent) => return Ok(None),
                Err(error) => return Err(error),
            };
            let result = keys::unseal(&sealed);
            if result.is_none() {
                tracing::warn!(tier = %self.name, %key, "a stored result is not whole: a miss");
            }
            Ok(result)
        })
    }

    fn put_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
        result: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        Box::pin(async move {
            let sealed = keys::seal(&result);
            if sealed.len() as u64 > RESULT_BYTES_MAX {
                let why = format!("a result of {} bytes, more than are read", sealed.len());
                return Err(BelowError::Refused(why));
            }
            self.put(&self.keys.result(instance, action), sealed.into()).await
        })
    }
}

/// A write finds "not found" only where there is nothing to write into.
fn nowhere(error: BelowError) -> BelowError {
    match error {
        BelowError::Absent => BelowError::Refused("there is no such bucket".to_owned()),
        error => error,
    }
}

/// The rest of a blob on its way up.
struct Body {
    digest: Digest,
    bytes: BoxStream<'static, object_store::Result<Bytes>>,
    left: u64,
    idle_timeout: Duration,
}

impl Body {
    /// The next piece. A body that ends early is no blob, and one that goes on is no end of work.
    async fn next(&mut self) -> Option<BelowResult<Bytes>> {
        match timeout(self.idle_timeout, self.bytes.next()).await {
            Err(_) => Some(Err(BelowError::TimedOut)),
            Ok(Some(Err(error))) => Some(Err(answer::meaning(&error))),
            Ok(None) if self.left == 0 => None,
            Ok(None) => Some(Err(BelowError::Unreachable("it ended early".to_owned()))),
            Ok(Some(Ok(piece))) => match self.left.checked_sub(piece.len() as u64) {
                None => Some(Err(BelowError::Wrong(self.digest))),
                Some(left) => {
                    self.left = left;
                    Some(Ok(piece))
                }
            },
        }
    }
}
