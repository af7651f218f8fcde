//! One attempt at some items: from the node's own store to the tier below. Must never write a
//! result below before every blob that it names is there, and never decide what an attempt's
//! failure means for others.

use super::{Item, Local, log::Numbered, queue::event::Outcome};
use crate::{
    blob::BlobError,
    digest::Digest,
    tier::{Below, BelowError},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

/// Blobs asked for, or written, in one call.
pub(super) const BATCH_LEN_MAX: usize = 512;
/// Calls for the blobs of one batch that is refused as a whole: enough to find two or three bad
/// ones among 512. Where all are refused, the rest of them waits as in an outage.
const SPLIT_CALLS_MAX: usize = 40;
/// Small blobs read from the node's own store at the same time.
const READS_MAX: usize = 16;

/// The two sides of a flight.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) below: Arc<dyn Below>,
    pub(super) local: Arc<dyn Local>,
    /// Bytes up to which a blob is read whole and sent together with others.
    pub(super) small_bytes_max: u64,
    /// Bytes of all blobs that are sent together.
    pub(super) batch_bytes_max: u64,
}

impl Route {
    /// Attempts items that fly together; an outcome for each.
    pub(super) async fn fly(self, items: Vec<Numbered>) -> Vec<(u64, Outcome)> {
        let mut blobs = Vec::new();
        let mut outcomes = Vec::with_capacity(items.len());
        for (number, item) in items {
            match &*item {
                Item::Blob(digest) => blobs.push((number, *digest)),
                Item::Action { instance, action } => {
                    let outcome = self.action(instance, *action).await;
                    outcomes.push((number, outcome.err().unwrap_or(Outcome::Kept)));
                }
            }
        }
        if !blobs.is_empty() {
            outcomes.extend(self.blobs(blobs).await);
        }
        outcomes
    }

    async fn blobs(&self, blobs: Vec<(u64, Digest)>) -> Vec<(u64, Outcome)> {
        let digests = blobs.iter().map(|(_, digest)| *digest).collect();
        let missing: BTreeSet<Digest> = match self.lacking(digests).await {
            Ok(missing) => missing.into_iter().collect(),
            Err(outcome) => {
                let outcome = if blobs.len() > 1 { together(outcome) } else { outcome };
                return blobs.into_iter().map(|(number, _)| (number, outcome.clone())).collect();
            }
        };
        let (absent, present): (Vec<_>, Vec<_>) =
            blobs.into_iter().partition(|(_, digest)| missing.contains(digest));
        let digests: Vec<Digest> = absent.iter().map(|(_, digest)| *digest).collect();
        let written = self.write(&digests).await;
        let kept = present.into_iter().map(|(number, _)| (number, Outcome::Kept));
        absent.into_iter().map(|(number, _)| number).zip(written).chain(kept).collect()
    }

    /// Writes a result after its blobs. The error is how the attempt ended otherwise.
    async fn action(&self, instance: &str, action: Digest) -> Result<(), Outcome> {
        let found = self.local.result(instance, action).await.map_err(|error| of_local(&error))?;
        let (result, needed) = found.ok_or(Outcome::Lost)?;
        let needed: BTreeSet<Digest> =
            needed.into_iter().filter(|digest| !digest.is_empty()).collect();
        let needed: Vec<Digest> = needed.into_iter().collect();
        for digests in needed.chunks(BATCH_LEN_MAX) {
            let mut missing = VecDeque::from(self.lacking(digests.to_vec()).await?);
            while let Some(first) = missing.pop_front() {
                let group = self.group(first, &mut missing);
                for outcome in self.write(&group).await {
                    if outcome != Outcome::Kept {
                        return Err(outcome);
                    }
                }
            }
        }
        let put = self.below.put_action(instance, action, result).await;
        put.map_err(|error| of_below(&error))
    }

    /// What is to be written of these: what below lacks, and what it is known to have wrong.
    async fn lacking(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Outcome> {
        let wrong = self.local.wrong_below(digests.clone()).await;
        let missing = self.below.find_missing(digests).await.map_err(|error| of_below(&error))?;
        let missing: BTreeSet<Digest> = missing.into_iter().chain(wrong).collect();
        Ok(missing.into_iter().collect())
    }

    /// What may be written together with `first`, taken from `others`.
    fn group(&self, first: Digest, others: &mut VecDeque<Digest>) -> Vec<Digest> {
        let mut group = vec![first];
        let mut bytes = first.size();
        if first.size() > self.small_bytes_max {
            return group;
        }
        while let Some(next) = others.front().copied() {
            bytes = bytes.saturating_add(next.size());
            if next.size() > self.small_bytes_max || bytes > self.batch_bytes_max {
                break;
            }
            group.push(next);
            others.pop_front();
        }
        group
    }

    /// Writes blobs that are not below: one of any size, or small ones. An outcome for each.
    async fn write(&self, digests: &[Digest]) -> Vec<Outcome> {
        let outcomes = match digests {
            [] => return Vec::new(),
            [large] if large.size() > self.small_bytes_max => vec![self.write_large(*large).await],
            _ => self.write_small(digests).await,
        };
        let kept = digests.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Kept);
        let kept: Vec<Digest> = kept.map(|(digest, _)| *digest).collect();
        if !kept.is_empty() {
            self.local.written_below(kept);
        }
        outcomes
    }

    async fn write_large(&self, digest: Digest) -> Outcome {
        let bytes = match self.local.open(digest).await {
            Ok(bytes) => bytes,
            Err(error) => return of_local(&error),
        };
        match self.below.write(digest, bytes).await {
            Ok(()) => Outcome::Kept,
            Err(error) => of_below(&error),
        }
    }

    async fn write_small(&self, digests: &[Digest]) -> Vec<Outcome> {
        let reads = digests.iter().copied().map(|digest| self.read(digest));
        let read: Vec<Result<Bytes, Outcome>> =
            stream::iter(reads).buffered(READS_MAX).collect().await;
        let blobs: Vec<(Digest, Bytes)> = digests
            .iter()
            .zip(&read)
            .filter_map(|(digest, bytes)| Some((*digest, bytes.as_ref().ok()?.clone())))
            .collect();
        let mut answers = self.send(blobs).await.into_iter();
        let silent = || failed("it gave no answer for this blob");
        read.into_iter()
            .map(|bytes| match bytes {
                Ok(_) => answers.next().unwrap_or_else(silent),
                Err(outcome) => outcome,
            })
            .collect()
    }

    /// Writes small blobs, an outcome for each. Where below refuses many of them as one, halves of
    /// them are tried: one that it will never take is not to hold up the others.
    async fn send(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(blobs.len());
        let mut calls = 0;
        // The rest of the blobs, as groups, the first of them last.
        let mut groups = vec![blobs];
        while let Some(mut group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            let len = group.len();
            calls += 1;
            let answers = match self.below.write_many(group.clone()).await {
                Ok(answers) => answers,
                Err(error) => match of_below(&error) {
                    Outcome::Refused(_) if len > 1 && calls < SPLIT_CALLS_MAX => {
                        let second = group.split_off(len / 2);
                        groups.extend([second, group]);
                        continue;
                    }
                    outcome => {
                        let outcome = if len > 1 { together(outcome) } else { outcome };
                        outcomes.extend(std::iter::repeat_n(outcome, len));
                        continue;
                    }
                },
            };
            let told = answers.into_iter().take(len);
            let told =
                told.map(|one| one.map_or_else(|error| of_below(&error), |()| Outcome::Kept));
            let expected = outcomes.len() + len;
            outcomes.extend(told);
            outcomes.resize_with(expected, || failed("it gave no answer for this blob"));
        }
        outcomes
    }

    async fn read(&self, digest: Digest) -> Result<Bytes, Outcome> {
        let bytes = self.local.read(digest).await.map_err(|error| of_local(&error))?;
        // The bytes of a batch are counted by what digests say.
        if bytes.len() as u64 != digest.size() {
            return Err(Outcome::Refused(BlobError::Mismatch(digest).to_string()));
        }
        Ok(bytes)
    }
}

/// What an outcome of several as one means for each: that together they were refused says nothing
/// of any one of them.
fn together(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(why) => failed(&why),
        other => other,
    }
}

fn failed(why: &str) -> Outcome {
    Outcome::Failed { why: why.to_owned(), retry_after: None }
}

fn of_below(error: &BelowError) -> Outcome {
    match error {
        BelowError::Busy { retry_after, .. } => {
            Outcome::Failed { why: error.to_string(), retry_after: *retry_after }
        }
        BelowError::Unreachable(_) | BelowError::TimedOut => failed(&error.to_string()),
        BelowError::Local(error) => of_local(error),
        BelowError::Absent | BelowError::Refused(_) | BelowError::Wrong(_) => {
            Outcome::Refused(error.to_string())
        }
    }
}

fn of_local(error: &BlobError) -> Outcome {
    match error {
        BlobError::NotFound(_) => Outcome::Lost,
        // This one blob can't be read here: others can, and it may be mended from elsewhere.
        BlobError::Mismatch(_)
        | BlobError::Incomplete(_)
        | BlobError::TooLarge { .. }
        | BlobError::Disk(_) => Outcome::Refused(format!("this node: {error}")),
        BlobError::Overloaded | BlobError::Full | BlobError::Stopped | BlobError::Below(_) => {
            failed(&format!("this node: {error}"))
        }
    }
}
