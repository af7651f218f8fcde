//! Blobs on their way up: streamed while they are stored, or many small ones in one request. Must
//! never hand out bytes that were not hashed.

use super::{
    BelowError, BelowResult,
    handle::Phase,
    serve::{Known, Shared},
};
use crate::{
    blob::{BlobError, Result},
    cores::Fill,
    digest::Digest,
};
use bytes::Bytes;
use futures_util::{
    future::{Either, select},
    stream::StreamExt,
};
use std::pin::pin;
use tokio::sync::watch;

/// How often one fetch may go on where it broke off.
const RESUMES_MAX: u32 = 3;
/// Pieces that are handed to a data core at once, if so many are there: each time wakes it.
const PIECES_MAX: usize = 8;

/// A small blob, and those that wait for it.
pub(super) type Wanted = (Digest, watch::Sender<Option<Result<Bytes>>>);

/// One blob, streamed. Ends early when nobody waits for it any more.
pub(super) async fn large(shared: &Shared, digest: Digest, phase: &watch::Sender<Phase>) -> Known {
    let fetched = {
        let fetch = pin!(stream(shared, digest, phase));
        let left = pin!(phase.closed());
        match select(fetch, left).await {
            Either::Left((fetched, _)) => fetched,
            Either::Right(_) => {
                shared.counts.left.add(1);
                return Known::Nothing;
            }
        }
    };
    let known = match &fetched {
        Ok(()) => {
            shared.counts.fetched.add(1);
            shared.counts.fetched_bytes.add(digest.size());
            Known::Here
        }
        Err(BelowError::Absent) => {
            shared.counts.absent.add(1);
            Known::Absent
        }
        Err(BelowError::Wrong(_)) => {
            wrong(shared, digest);
            Known::Wrong
        }
        Err(_) => Known::Nothing,
    };
    if let Err(error) = fetched {
        let error = shared.failed(digest, error);
        // Those that already read learn it from the blob's own outcome.
        phase.send_modify(|phase| {
            if matches!(phase, Phase::Opening) {
                *phase = Phase::Failed(error);
            }
        });
    }
    known
}

async fn stream(
    shared: &Shared,
    digest: Digest,
    phase: &watch::Sender<Phase>,
) -> std::result::Result<(), BelowError> {
    let mut fill = None;
    let received = receive(shared, digest, phase, &mut fill).await;
    match (received, fill) {
        (Ok(()), Some(fill)) => fill.finish().await.map_err(|error| own(shared, error, digest)),
        (Ok(()), None) => Err(found_wrong(shared, digest)),
        (Err(BelowError::Wrong(_)), Some(fill)) => {
            // Those that read it already are told so, not that it may be had later.
            fill.refuse().await;
            Err(BelowError::Wrong(digest))
        }
        (Err(error), _) => Err(error),
    }
}

/// Hands over as many bytes as the digest says.
async fn receive(
    shared: &Shared,
    digest: Digest,
    phase: &watch::Sender<Phase>,
    fill: &mut Option<Fill>,
) -> std::result::Result<(), BelowError> {
    let mut pieces = shared.below.read(digest, 0).await?.ready_chunks(PIECES_MAX);
    let (mut received, mut resumes) = (0_u64, 0);
    while received < digest.size() {
        let Some(came) = pieces.next().await else { return Err(found_wrong(shared, digest)) };
        let (came, failed) = until_failure(came);
        received += came.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if received > digest.size() {
            return Err(found_wrong(shared, digest));
        }
        if !came.is_empty() {
            let fill = match fill {
                Some(fill) => fill,
                None => {
                    let begun = fill.insert(shared.cores.fill(digest)?);
                    phase.send_replace(Phase::Growing(begun.growing()));
                    begun
                }
            };
            fill.write(came).await.map_err(|error| own(shared, error, digest))?;
        }
        match failed {
            Some(BelowError::Wrong(_)) if received == digest.size() => {
                return Err(found_wrong(shared, digest));
            }
            // What fails behind the last byte fails nobody.
            Some(_) if received == digest.size() => return Ok(()),
            Some(error) if error.may_pass() && resumes < RESUMES_MAX => {
                resumes += 1;
                shared.counts.resumed.add(1);
                pieces = shared.below.read(digest, received).await?.ready_chunks(PIECES_MAX);
            }
            Some(error) => return Err(error),
            None => {}
        }
    }
    // Too many bytes are as wrong as too few. Whoever counts errors does not ask beyond the last
    // byte, so that what comes there is found here, whoever says it.
    let (more, failed) = until_failure(pieces.next().await.unwrap_or_default());
    let is_more = more.iter().any(|piece| !piece.is_empty());
    let is_wrong = is_more || matches!(failed, Some(BelowError::Wrong(_)));
    if is_wrong { Err(found_wrong(shared, digest)) } else { Ok(()) }
}

/// The pieces before the first failure, and that.
fn until_failure(came: Vec<BelowResult<Bytes>>) -> (Vec<Bytes>, Option<BelowError>) {
    let mut pieces = Vec::with_capacity(came.len());
    for one in came {
        match one {
            Ok(piece) => pieces.push(piece),
            Err(error) => return (pieces, Some(error)),
        }
    }
    (pieces, None)
}

fn own(shared: &Shared, error: BlobError, digest: Digest) -> BelowError {
    match error {
        BlobError::Mismatch(_) => found_wrong(shared, digest),
        other => BelowError::Local(other),
    }
}

/// Bytes that are found wrong here: whoever guards the tier is told of them. It counts by itself
/// what comes as an error.
fn found_wrong(shared: &Shared, digest: Digest) -> BelowError {
    shared.below.report_wrong();
    BelowError::Wrong(digest)
}

/// Small blobs in one request: hashed, kept, handed out.
pub(super) async fn small(shared: &Shared, group: Vec<Wanted>) -> Vec<(Digest, Known)> {
    let digests: Vec<Digest> = group.iter().map(|(digest, _)| *digest).collect();
    let read = match shared.below.read_many(digests.clone()).await {
        Ok(read) => read,
        Err(error) => digests.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut known = Vec::with_capacity(group.len());
    let mut kept = Vec::new();
    for (at, (digest, _)) in group.iter().enumerate() {
        match read.get(at) {
            Some(Ok(bytes)) if Digest::of(bytes) == *digest => {
                known.push((*digest, Known::Here));
                kept.push((*digest, bytes.clone()));
            }
            Some(one @ (Ok(_) | Err(BelowError::Wrong(_)))) => {
                if one.is_ok() {
                    shared.below.report_wrong();
                }
                wrong(shared, *digest);
                known.push((*digest, Known::Wrong));
            }
            Some(Err(BelowError::Absent)) => {
                shared.counts.absent.add(1);
                known.push((*digest, Known::Absent));
            }
            Some(Err(_)) | None => known.push((*digest, Known::Nothing)),
        }
    }
    shared.counts.fetched.add(kept.len() as u64);
    shared.counts.fetched_bytes.add(kept.iter().map(|(digest, _)| digest.size()).sum());
    // Who asked gets the bytes in any case: they were hashed. A store that is full keeps none.
    if let Err(error) = shared.cores.put_many(kept).await {
        tracing::debug!(%error, "blobs from below were not kept");
    }
    let mut read = read.into_iter();
    for ((digest, waiting), (_, known)) in group.into_iter().zip(&known) {
        let read = read.next().unwrap_or(Err(BelowError::Absent));
        let answer = match (known, read) {
            (Known::Here, Ok(bytes)) => Ok(bytes),
            (_, Err(error)) => Err(shared.failed(digest, error)),
            _ => Err(BlobError::NotFound(digest)),
        };
        waiting.send_replace(Some(answer));
    }
    known
}

fn wrong(shared: &Shared, digest: Digest) {
    shared.counts.wrong.add(1);
    tracing::error!(tier = shared.below.name(), %digest, "wrong bytes came from below");
}
