//! Blobs on their way down. Must never write a blob below whose bytes this node has not checked.

use super::{Outgoing, batch::batches, handle::LARGE_BYTES_MIN, serve::Shared};
use crate::{
    blob::{BlobError, Body, Extent, Result},
    cores::Cores,
    digest::Digest,
    limits::IO_BYTES,
};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::{collections::HashSet, os::unix::fs::FileExt};

/// Large blobs that one request writes at the same time.
const LARGE_AT_ONCE: usize = 4;

/// Those that below does not have.
pub(super) async fn find_missing(shared: &Shared, digests: Vec<Digest>) -> Result<Vec<Digest>> {
    let Some(&one) = digests.first() else { return Ok(Vec::new()) };
    let missing = shared.below.find_missing(digests).await;
    missing.map_err(|error| shared.failed(one, error))
}

/// Writes what below lacks of `digests`, and those of them that are `wrong` there.
pub(super) async fn push(shared: &Shared, digests: Vec<Digest>, wrong: Vec<Digest>) -> Result<()> {
    let unique: HashSet<Digest> = digests.into_iter().filter(|one| !one.is_empty()).collect();
    let asked = unique.iter().copied().filter(|digest| !wrong.contains(digest)).collect();
    let mut missing: HashSet<Digest> = find_missing(shared, asked).await?.into_iter().collect();
    missing.retain(|digest| unique.contains(digest));
    missing.extend(wrong);
    let (large, small): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|digest| digest.size() > LARGE_BYTES_MIN);
    for group in batches(small, Digest::size, shared.below.batch_bytes_max()) {
        let read = shared.cores.get_many(group.clone()).await?;
        let mut blobs = Vec::with_capacity(group.len());
        for (digest, bytes) in group.into_iter().zip(read) {
            blobs.push((digest, bytes?));
        }
        for written in push_many(shared, blobs).await {
            written?;
        }
    }
    let large = stream::iter(large.into_iter().map(Ok));
    large.try_for_each_concurrent(LARGE_AT_ONCE, |digest| push_large(shared, digest)).await
}

async fn push_large(shared: &Shared, digest: Digest) -> Result<()> {
    let bytes = outgoing(&shared.cores, digest).await?;
    let written = shared.below.write(digest, bytes).await;
    written.map_err(|error| shared.failed(digest, error))?;
    shared.counts.pushed.add(1);
    shared.counts.pushed_bytes.add(digest.size());
    Ok(())
}

/// Writes blobs that are at hand; an answer for each in its place.
pub(super) async fn push_many(shared: &Shared, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<()>> {
    let mut answers = Vec::with_capacity(blobs.len());
    for batch in batches(blobs, |one| one.0.size(), shared.below.batch_bytes_max()) {
        answers.append(&mut push_batch(shared, batch).await);
    }
    answers
}

async fn push_batch(shared: &Shared, batch: Vec<(Digest, Bytes)>) -> Vec<Result<()>> {
    let digests: Vec<Digest> = batch.iter().map(|(digest, _)| *digest).collect();
    let single = batch.first().filter(|one| one.0.size() > shared.below.batch_bytes_max()).cloned();
    let written = match single {
        Some((digest, bytes)) => {
            let pieces = stream::iter([Ok(bytes)]).boxed();
            Ok(vec![shared.below.write(digest, pieces).await])
        }
        None => shared.below.write_many(batch).await,
    };
    let written = match written {
        Ok(written) => written,
        Err(error) => digests.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut written = written.into_iter();
    let answers = digests.into_iter().map(|digest| match written.next() {
        Some(Ok(())) => {
            shared.counts.pushed.add(1);
            shared.counts.pushed_bytes.add(digest.size());
            Ok(())
        }
        Some(Err(error)) => Err(match shared.failed(digest, error) {
            // A tier that does not take a blob has not lost one.
            BlobError::NotFound(_) => BlobError::Below("it did not take a blob".into()),
            other => other,
        }),
        None => Err(BlobError::Below("it answered for fewer blobs than it was sent".into())),
    });
    answers.collect()
}

/// A blob of this node as a stream for below; read on the runtime's blocking threads.
///
/// # Errors
/// `NotFound`, `Overloaded`, `Stopped`, `Disk`.
pub async fn outgoing(cores: &Cores, digest: Digest) -> Result<Outgoing> {
    let extent = match cores.get(digest).await? {
        Body::Bytes(bytes) => return Ok(stream::iter([Ok(bytes)]).boxed()),
        Body::Extent(extent) => extent,
    };
    let pieces = stream::try_unfold((extent, 0_u64), |(extent, position)| async move {
        let rest = extent.digest.size() - position;
        if rest == 0 {
            return Ok(None);
        }
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(IO_BYTES);
        let piece = read_piece(&extent, position, length).await?;
        Ok(Some((piece, (extent, position + length as u64))))
    });
    Ok(pieces.boxed())
}

async fn read_piece(extent: &Extent, position: u64, length: usize) -> Result<Bytes> {
    let file = extent.file.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, position)?;
        Ok(Bytes::from(piece))
    });
    match read.await {
        Ok(read) => read.map_err(|error: std::io::Error| error.into()),
        // The runtime is ending.
        Err(_) => Err(BlobError::Stopped),
    }
}
