//! What a tier is asked, whatever it is made of: a REAPI server, an object store, a directory.
//! Must never say how; and nobody may believe its bytes unhashed.

use crate::{blob::BlobError, digest::Digest};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use proto::reapi::ActionResult;
use std::time::Duration;

/// The result of asking below.
pub type BelowResult<T> = Result<T, BelowError>;

/// A blob on its way up, in order, in pieces of any size. Nobody has hashed them yet.
pub type Incoming = BoxStream<'static, BelowResult<Bytes>>;

/// A blob on its way down. An error here is this node's own: the write is to be given up.
pub type Outgoing = BoxStream<'static, Result<Bytes, BlobError>>;

/// Why below could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BelowError {
    /// It is there and does not have it. No outage.
    #[error("it does not have it")]
    Absent,
    /// It is there and asks to be left alone for a while.
    #[error("it is busy: {why}")]
    Busy {
        /// What it says.
        why: String,
        /// When it may be asked again (google.rpc.RetryInfo, Retry-After), if it says.
        retry_after: Option<Duration>,
    },
    /// It can't be reached, or the connection broke: TCP, TLS, a reset, an answer that is none.
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    /// It did not answer, or did not go on, within its time.
    #[error("it took too long")]
    TimedOut,
    /// It understood and says no, now and later: permissions, an unknown instance, a bound.
    #[error("it refuses: {0}")]
    Refused(String),
    /// What it sent are not the bytes that the digest names.
    #[error("its bytes are not those of {0}")]
    Wrong(Digest),
    /// This node's own store failed meanwhile.
    #[error("this node: {0}")]
    Local(#[from] BlobError),
}

impl BelowError {
    /// Whether it speaks against the tier itself, rather than of one blob or one request: what a
    /// circuit breaker counts.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Unreachable(_) | Self::TimedOut => true,
            Self::Absent | Self::Refused(_) | Self::Wrong(_) | Self::Local(_) => false,
        }
    }

    /// Whether the same question may be answered differently a little later.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        self.is_outage()
    }
}

/// A tier below, asked from the thread of tiers (a tokio runtime). The empty blob is never asked
/// for. Dropping a future ends what it does.
pub trait Below: Send + Sync + 'static {
    /// What people call it in logs and metrics: a URL without secrets.
    fn name(&self) -> &str;

    /// Bytes of blobs that one `read_many` or `write_many` may carry.
    fn batch_bytes_max(&self) -> u64;

    /// Whether it is there; cheap, changes nothing. What a half-open breaker sends first.
    fn probe(&self) -> BoxFuture<'_, BelowResult<()>>;

    /// Those that it does not have. Where it can't be asked in one go (object stores), it asks for
    /// each, with a bounded number at a time.
    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>>;

    /// The blob from byte `offset` on.
    fn read(&self, digest: Digest, offset: u64) -> BoxFuture<'_, BelowResult<Incoming>>;

    /// Whole small blobs, an answer for each in its place; their sizes add up to no more than
    /// `batch_bytes_max`. Nobody has hashed them yet.
    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>>;

    /// Keeps a blob. Returns once it is kept there; it may be there already.
    fn write(&self, digest: Digest, bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>>;

    /// Keeps small blobs, an answer for each in its place; same bound as `read_many`.
    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>>;

    /// The result stored for an action under an instance; nobody has looked yet whether it is
    /// complete.
    fn get_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>>;

    /// Whoever hashes found that bytes of this tier were not those of their digest.
    fn report_wrong(&self) {}

    /// Stores the result of an action, over any other.
    fn put_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
        result: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>>;
}
