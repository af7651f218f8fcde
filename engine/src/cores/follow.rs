//! Reading a blob while it comes in: pieces as they are hashed, and from the file where the reader
//! is behind. Must never let a blob's last piece go before the whole proved to be right.

use super::fill::{Growing, Live};
use crate::{
    blob::{BlobError, Growth, Result},
    digest::Digest,
    env::Env,
    limits::IO_BYTES,
};
use bytes::Bytes;
use std::{collections::VecDeque, ops::Range};

/// A range of a blob that grows.
pub(super) struct Follow {
    growing: Growing,
    digest: Digest,
    range: Range<u64>,
    live: Option<LivePieces>,
    /// Keeps the blob coming.
    _held: Box<dyn Send>,
}

/// Pieces as they come.
struct LivePieces {
    live: Live,
    ready: VecDeque<Bytes>,
    /// Where the next one begins.
    at: u64,
}

impl LivePieces {
    /// The next piece and where it begins; `None` where the blob ended, or this reader was too
    /// slow for it.
    async fn next(&mut self) -> Option<(Bytes, u64)> {
        while self.ready.is_empty() {
            self.ready = self.live.recv().await.ok()?.into();
        }
        let piece = self.ready.pop_front()?;
        let start = self.at;
        self.at += piece.len() as u64;
        Some((piece, start))
    }
}

/// What there is to read next.
pub(super) enum Grown {
    /// These bytes.
    Piece(Bytes),
    /// The rest of the range, of a blob that is kept but so small that it has no file.
    Kept(Range<u64>),
    /// No more.
    End,
}

impl Follow {
    pub(super) fn new(
        growing: Growing,
        digest: Digest,
        range: Range<u64>,
        held: Box<dyn Send>,
    ) -> Self {
        let live = growing.take_live();
        let live = live.map(|live| LivePieces { live, ready: VecDeque::new(), at: 0 });
        Self { growing, digest, range, live, _held: held }
    }

    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }

    /// The next piece, once it may leave.
    pub(super) async fn next(&mut self, env: &Env) -> Result<Grown> {
        if self.range.is_empty() {
            return Ok(Grown::End);
        }
        while let Some(live) = &mut self.live {
            let Some((mut piece, start)) = live.next().await else {
                self.live = None;
                break;
            };
            let end = start + piece.len() as u64;
            let (from, to) = (self.range.start.max(start), self.range.end.min(end));
            if from != self.range.start || from >= to {
                // Not there yet; pieces have no gaps.
                continue;
            }
            let piece = cut(&mut piece, from - start, to - from);
            if to == self.digest.size() {
                self.growing.outcome().await.map_err(|error| self.of_sender(error))?;
            }
            self.range.start = to;
            return Ok(Grown::Piece(piece));
        }
        self.next_in_file(env).await
    }

    async fn next_in_file(&mut self, env: &Env) -> Result<Grown> {
        loop {
            let Growth { file, written, outcome } = self.growing.growth.borrow_and_update().clone();
            let is_whole = match outcome {
                Some(Ok(())) => true,
                Some(Err(error)) => return Err(self.of_sender(error)),
                None => false,
            };
            let rest = self.range.end - self.range.start;
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(IO_BYTES);
            let end = self.range.start + length as u64;
            if is_whole || (end <= written && end < self.digest.size()) {
                let Some(file) = file else { return Ok(Grown::Kept(self.range.clone())) };
                let bytes = env.disk.read(&file, self.range.start, length).await?;
                self.range.start = end;
                return Ok(Grown::Piece(bytes));
            }
            if self.growing.growth.changed().await.is_err() {
                return Err(BlobError::Stopped);
            }
        }
    }

    /// Whoever sent it is at fault, not who asks: wrong bytes are no such blob, and one that broke
    /// off may be had later.
    fn of_sender(&self, error: BlobError) -> BlobError {
        match error {
            BlobError::Mismatch(_) => BlobError::NotFound(self.digest),
            BlobError::Incomplete(_) => BlobError::broken_off(),
            other => other,
        }
    }
}

/// `length` bytes of a piece, from `start` on; both lie within it.
fn cut(piece: &mut Bytes, start: u64, length: u64) -> Bytes {
    let within = |at: u64| usize::try_from(at).unwrap_or(piece.len()).min(piece.len());
    piece.slice(within(start)..within(start + length))
}
