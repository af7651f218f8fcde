//! Many small blobs in few messages. Must never let an answer stand for a digest that it does not
//! name, nor miss that one is missing.

use super::{Remote, SHA256, failure::answer_error, is_kept, to_wire};
use bytes::{Bytes, BytesMut};
use engine::{
    digest::{Digest, DigestFunction},
    tier::{BelowError, BelowResult},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{
    reapi::{
        self, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest,
        batch_update_blobs_request, compressor,
    },
    rpc,
};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};
use tonic::Code;

/// Digests of one request: at 80 bytes each, a fifth of the 4 MiB that servers take.
const DIGESTS_MAX: usize = 10_000;
/// Bytes that a blob takes in a message besides its own: hash, sizes, tags, a status.
const ENTRY_BYTES: u64 = 160;

impl Remote {
    pub(super) async fn missing_of(&self, digests: Vec<Digest>) -> BelowResult<Vec<Digest>> {
        let mut missing = HashSet::new();
        for digests in digests.chunks(DIGESTS_MAX) {
            let request = FindMissingBlobsRequest {
                instance_name: self.settings.instance.clone(),
                blob_digests: digests.iter().copied().map(to_wire).collect(),
                digest_function: SHA256,
            };
            let mut client = self.cas();
            let call = self.answer(client.find_missing_blobs(self.request(request)));
            let named = call.await?.missing_blob_digests;
            // One that can't be read could be any of those asked for: nobody knows what is there.
            for digest in named {
                let known = from_wire(Some(&digest)).ok_or_else(|| {
                    let why = format!("it misses {:?}, which is no digest", digest.hash);
                    BelowError::Unreachable(crate::status::short(why))
                })?;
                missing.insert(known);
            }
        }
        Ok(digests.into_iter().filter(|digest| missing.remove(digest)).collect())
    }

    pub(super) async fn receive_many(
        &self,
        digests: Vec<Digest>,
    ) -> BelowResult<Vec<BelowResult<Bytes>>> {
        let bytes_max = self.offer().await.batch_bytes_max;
        let mut answers = Vec::with_capacity(digests.len());
        for range in groups(digests.iter().map(Digest::size), bytes_max) {
            let group = &digests[range];
            let answered = match group {
                [one] if one.size() > bytes_max => alone(self.receive_whole(*one).await),
                _ => self.receive_batch(group).await,
            };
            if !extend(&mut answers, answered, digests.len())? {
                break;
            }
        }
        Ok(answers)
    }

    async fn receive_batch(&self, digests: &[Digest]) -> BelowResult<Vec<BelowResult<Bytes>>> {
        let request = BatchReadBlobsRequest {
            instance_name: self.settings.instance.clone(),
            digests: digests.iter().copied().map(to_wire).collect(),
            acceptable_compressors: Vec::new(),
            digest_function: SHA256,
        };
        let mut client = self.cas();
        let call = self.answer(client.batch_read_blobs(self.request(request)));
        let answers = call.await?.responses.into_iter().filter_map(|one| {
            let digest = from_wire(one.digest.as_ref())?;
            let plain = one.compressor == compressor::Value::Identity as i32;
            let bytes = match failed(one.status.as_ref()) {
                Some(error) => Err(error),
                None if !plain || one.data.len() as u64 != digest.size() => {
                    Err(BelowError::Wrong(digest))
                }
                None => Ok(one.data),
            };
            Some((digest, bytes))
        });
        Ok(in_place(digests.iter().copied(), answers))
    }

    /// A blob that fits no batch of this server.
    async fn receive_whole(&self, digest: Digest) -> BelowResult<Bytes> {
        let pieces = self.receive(digest, 0).await?;
        let add = |mut whole: BytesMut, piece: Bytes| async move {
            whole.extend_from_slice(&piece);
            Ok(whole)
        };
        pieces.try_fold(BytesMut::new(), add).await.map(BytesMut::freeze)
    }

    pub(super) async fn send_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BelowResult<Vec<BelowResult<()>>> {
        let bytes_max = self.offer().await.batch_bytes_max;
        let mut answers = Vec::with_capacity(blobs.len());
        for range in groups(blobs.iter().map(|(_, bytes)| bytes.len() as u64), bytes_max) {
            let group = &blobs[range];
            let answered = match group {
                [(digest, bytes)] if bytes.len() as u64 > bytes_max => {
                    let piece = stream::iter([Ok(bytes.clone())]).boxed();
                    alone(self.send(*digest, piece).await)
                }
                _ => self.send_batch(group).await,
            };
            if !extend(&mut answers, answered, blobs.len())? {
                break;
            }
        }
        Ok(answers)
    }

    async fn send_batch(&self, blobs: &[(Digest, Bytes)]) -> BelowResult<Vec<BelowResult<()>>> {
        let requests = blobs.iter().map(|(digest, bytes)| batch_update_blobs_request::Request {
            digest: Some(to_wire(*digest)),
            data: bytes.clone(),
            compressor: compressor::Value::Identity as i32,
        });
        let request = BatchUpdateBlobsRequest {
            instance_name: self.settings.instance.clone(),
            requests: requests.collect(),
            digest_function: SHA256,
        };
        let mut client = self.cas();
        let call = self.answer(client.batch_update_blobs(self.request(request)));
        let answers = call.await?.responses.into_iter().filter_map(|one| {
            let digest = from_wire(one.digest.as_ref())?;
            Some((digest, failed(one.status.as_ref()).map_or(Ok(()), Err)))
        });
        Ok(in_place(blobs.iter().map(|(digest, _)| *digest), answers))
    }
}

/// The answer for a blob that was asked for by itself, as that of a batch.
fn alone<T>(answer: BelowResult<T>) -> BelowResult<Vec<BelowResult<T>>> {
    match answer {
        Err(error) if error.is_outage() => Err(error),
        answer => Ok(vec![answer]),
    }
}

/// Adds the answers of one request. Whether to go on: where it failed, so would the rest, and each
/// of them says so; where it was the first, all did.
fn extend<T>(
    answers: &mut Vec<BelowResult<T>>,
    answered: BelowResult<Vec<BelowResult<T>>>,
    expected: usize,
) -> BelowResult<bool> {
    match answered {
        Ok(more) => answers.extend(more),
        Err(error) if answers.is_empty() => return Err(error),
        Err(error) => {
            answers.resize_with(expected, || Err(error.clone()));
            return Ok(false);
        }
    }
    Ok(true)
}

/// An answer for each that was asked for, whatever was answered, in whatever order.
fn in_place<T: Clone>(
    asked: impl Iterator<Item = Digest>,
    answers: impl Iterator<Item = (Digest, BelowResult<T>)>,
) -> Vec<BelowResult<T>> {
    let mut by_digest = HashMap::new();
    for (digest, answer) in answers {
        by_digest.entry(digest).or_insert(answer);
    }
    let left_out = |digest| Err(BelowError::Unreachable(format!("it did not answer for {digest}")));
    asked.map(|one| by_digest.get(&one).cloned().unwrap_or_else(|| left_out(one))).collect()
}

/// Consecutive blobs that fit one message each time; what fits none is alone.
fn groups(sizes: impl Iterator<Item = u64>, bytes_max: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes: u64 = 0;
    for (at, size) in sizes.enumerate() {
        let more = size.saturating_add(ENTRY_BYTES);
        bytes = bytes.saturating_add(more);
        match groups.last_mut() {
            Some(group) if bytes <= bytes_max && group.len() < DIGESTS_MAX => group.end = at + 1,
            _ => {
                groups.push(at..at + 1);
                bytes = more;
            }
        }
    }
    groups
}

/// What is wrong with one of many; no status is a good one.
fn failed(status: Option<&rpc::Status>) -> Option<BelowError> {
    let status = status.filter(|status| !is_kept(Code::from_i32(status.code)))?;
    Some(answer_error(status))
}

fn from_wire(digest: Option<&reapi::Digest>) -> Option<Digest> {
    let digest = digest?;
    Digest::parse(DigestFunction::Sha256, &digest.hash, digest.size_bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_split_so_that_each_group_fits_a_message() {
        let e = ENTRY_BYTES;
        for (sizes, bytes_max, ends) in [
            (vec![], 1000, vec![]),
            (vec![1], 0, vec![1]),
            (vec![1, 1], 2 * (e + 1), vec![2]),
            (vec![1, 1], 2 * e + 1, vec![1, 2]),
            (vec![1, 5000, 1, 1], 1000, vec![1, 2, 4]),
            (vec![u64::MAX, u64::MAX, 1], 1000, vec![1, 2, 3]),
            (vec![0; DIGESTS_MAX + 1], u64::MAX, vec![DIGESTS_MAX, DIGESTS_MAX + 1]),
        ] {
            let mut start = 0;
            let groups = groups(sizes.into_iter(), bytes_max).into_iter().map(|group| {
                assert_eq!(group.start, std::mem::replace(&mut start, group.end));
                group.end
            });
            assert_eq!(groups.collect::<Vec<_>>(), ends);
        }
    }

    #[test]
    fn answers_go_to_their_digests_whatever_comes() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let answers = [(c, Ok(9)), (b, Ok(2)), (b, Ok(3)), (b, Err(BelowError::Absent))];
        let placed = in_place([a, b, b].into_iter(), answers.into_iter());
        assert!(matches!(placed[..], [Err(BelowError::Unreachable(_)), Ok(2), Ok(2)]));
    }

    #[test]
    fn what_failed_later_leaves_what_came_before() {
        let mut answers: Vec<BelowResult<u8>> = Vec::new();
        assert!(extend(&mut answers, Err(BelowError::TimedOut), 3).is_err());
        assert!(extend(&mut answers, Ok(vec![Ok(1)]), 3).unwrap());
        assert!(!extend(&mut answers, Err(BelowError::TimedOut), 3).unwrap());
        assert!(matches!(
            answers[..],
            [Ok(1), Err(BelowError::TimedOut), Err(BelowError::TimedOut)]
        ));
    }
}
