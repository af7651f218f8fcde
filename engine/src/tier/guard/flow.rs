//! Blobs that flow through: time between their pieces, bytes counted, the place held to the end.
//! Must never keep a piece, nor blame a tier for the slowness of whoever is at the other end.

use super::entry::{Door, Entry, Over};
use crate::{
    blob::BlobError,
    tier::{BelowError, BelowResult, Incoming, Outgoing},
};
use bytes::Bytes;
use futures_util::{
    future::{Either, select},
    stream::{self, Stream, StreamExt},
};
use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};

/// A blob on its way up of which the first piece is here already.
pub(super) struct Opened {
    first: Option<Bytes>,
    rest: Incoming,
}

impl Opened {
    /// Waits for the first piece: before it, a stream is no answer.
    pub(super) async fn of(mut stream: Incoming) -> BelowResult<Self> {
        let first = stream.next().await.transpose()?;
        Ok(Self { first, rest: stream })
    }

    /// The whole blob, of which so many bytes are to come. It counts as one answer, once all of
    /// them came: readers who count them do not ask for the end.
    pub(super) fn watched(self, entry: Entry, left: u64) -> Incoming {
        let mut watched = Watched { rest: self.rest, entry, left };
        let Some(piece) = self.first else {
            watched.entry.answered(1);
            return stream::empty().boxed();
        };
        watched.passed(&piece);
        let rest = stream::unfold(Some(watched), |watched| async { watched?.next().await });
        stream::once(async { Ok(piece) }).chain(rest).boxed()
    }
}

struct Watched {
    rest: Incoming,
    entry: Entry,
    left: u64,
}

impl Watched {
    /// The next piece, and what is left to watch: nothing after the end and after an error.
    async fn next(mut self) -> Option<(BelowResult<Bytes>, Option<Self>)> {
        let idle_timeout = self.entry.door().config.idle_timeout;
        let error = match timeout(idle_timeout, self.rest.next()).await {
            Ok(Some(Ok(piece))) => {
                self.passed(&piece);
                return Some((Ok(piece), Some(self)));
            }
            Ok(None) => {
                self.entry.answered(1);
                return None;
            }
            Ok(Some(Err(error))) => error,
            Err(_) => BelowError::TimedOut,
        };
        self.entry.failed(&error);
        Some((Err(error), None))
    }

    fn passed(&mut self, piece: &Bytes) {
        let bytes = piece.len() as u64;
        self.entry.door().ledger().bytes_in(bytes);
        self.left = self.left.saturating_sub(bytes);
        if self.left == 0 {
            self.entry.answered(1);
        }
    }
}

/// Who is to move next while a blob goes down.
enum Turn {
    /// The tier, since then: to take the next piece.
    Tier(Instant),
    /// The tier, since then: to say that it is kept. Also before it took the first piece.
    Acknowledge(Instant),
    /// Whoever brings the blob; how long that may take is not for here to say.
    Source,
    /// Nobody: the source failed.
    Failed(BlobError),
}

/// How far a blob on its way down is.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Turn>>);

impl Progress {
    /// The blob as the tier gets it, and how far it is.
    pub(super) fn of(source: Outgoing, door: Arc<Door>) -> (Outgoing, Self) {
        let progress = Self(Arc::new(Mutex::new(Turn::Acknowledge(Instant::now()))));
        let paced = Paced { source, progress: progress.clone(), door };
        (paced.boxed(), progress)
    }

    /// Ends when the tier has let its time pass. It has less of it once the breaker has opened;
    /// what goes on then may still go on.
    pub(super) async fn stalled(&self, door: &Door) -> Over {
        let (idle, whole) = (door.config.idle_timeout, door.config.timeout);
        let patience = door.config.breaker.open_for;
        let opened = async {
            door.opened().await;
            self.unmoved(idle.min(patience), whole.min(patience)).await;
        };
        match select(pin!(self.unmoved(idle, whole)), pin!(opened)).await {
            Either::Left(_) => Over::Stalled,
            Either::Right(_) => Over::Cut,
        }
    }

    async fn unmoved(&self, idle: Duration, whole: Duration) {
        loop {
            let due = match &*self.turn() {
                Turn::Tier(since) => *since + idle,
                Turn::Acknowledge(since) => *since + whole,
                Turn::Source | Turn::Failed(_) => Instant::now() + idle,
            };
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }

    /// The error to report for one of the tier's: the source's own, where that came first.
    pub(super) fn blame(&self, error: BelowError) -> BelowError {
        match &*self.turn() {
            Turn::Failed(failed) => BelowError::Local(failed.clone()),
            _ => error,
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Paced {
    source: Outgoing,
    progress: Progress,
    door: Arc<Door>,
}

impl Stream for Paced {
    type Item = Result<Bytes, BlobError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        *self.progress.turn() = Turn::Source;
        let item = ready!(self.source.poll_next_unpin(context));
        *self.progress.turn() = match &item {
            Some(Ok(_)) => Turn::Tier(Instant::now()),
            Some(Err(error)) => Turn::Failed(error.clone()),
            None => Turn::Acknowledge(Instant::now()),
        };
        if let Some(Ok(piece)) = &item {
            self.door.ledger().bytes_out(piece.len() as u64);
        }
        Poll::Ready(item)
    }
}
