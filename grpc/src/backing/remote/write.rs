//! One blob to another server, by ByteStream.Write. Must never finish a blob whose source failed
//! or went on beyond its size.

use super::{Remote, failure::below_error, is_kept, pace::Pace};
use crate::backing::zstd::Packer;
use bytes::Bytes;
use engine::{
    blob::BlobError,
    digest::Digest,
    tier::{BelowError, BelowResult, Outgoing},
};
use futures_util::{StreamExt, stream};
use proto::bytestream::{WriteRequest, WriteResponse, byte_stream_client::ByteStreamClient};
use std::pin::pin;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Response, Status};
use uuid::Uuid;

/// Bytes of one message: what the store reads at a time, so that nothing is cut twice; larger ones
/// gain nothing, and on a slow link nobody sees for long whether they move.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Messages between the blob and the connection: none waits longer than its pace allows.
const PIECES_WAITING_MAX: usize = 1;

impl Remote {
    /// Sends the blob, unless the server has it meanwhile.
    pub(super) async fn send(&self, digest: Digest, bytes: Outgoing) -> BelowResult<()> {
        let packed = self.is_packed(digest).await;
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let messages = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let mut client = ByteStreamClient::new(self.writes.clone());
        let feed = Feed {
            name: self.upload_name(digest, packed),
            sender,
            offset: 0,
            pace: Pace::new(self.settings.idle_deadline),
        };
        // Declared after the feed, to be dropped before it: the server must see a reset, not an
        // end, of a write that is given up.
        let mut feeding = pin!(feed.all(digest, bytes, packed));
        let mut call = pin!(client.write(messages));
        let early = tokio::select! {
            biased;
            answer = &mut call => Err(answer),
            fed = &mut feeding => Ok(fed?),
        };
        let (sent, answer) = match early {
            Err(answer) => (None, answer),
            Ok(sent) => {
                let answer = timeout(self.settings.call_deadline, call).await;
                (Some(sent), answer.map_err(|_| BelowError::TimedOut)?)
            }
        };
        self.written(digest, packed, sent, answer)
    }

    fn upload_name(&self, digest: Digest, packed: bool) -> String {
        let kind = if packed { "compressed-blobs/zstd" } else { "blobs" };
        self.resource_name(&format!("uploads/{}/{kind}/{digest}", Uuid::new_v4()))
    }

    /// Whether the answer says that the blob is kept.
    fn written(
        &self,
        digest: Digest,
        packed: bool,
        sent: Option<u64>,
        answer: Result<Response<WriteResponse>, Status>,
    ) -> BelowResult<()> {
        let committed = match answer {
            Ok(response) => response.into_inner().committed_size,
            Err(status) if is_kept(status.code()) => return Ok(()),
            Err(status) => return Err(self.offers.heard(below_error(&status))),
        };
        let whole = committed == digest.size_i64();
        // Of a packed blob it is -1 where the blob was there before (REAPI), else what was sent;
        // some count what it became.
        let packed_whole =
            committed == -1 || sent.is_some_and(|sent| u64::try_from(committed) == Ok(sent));
        if whole || (packed && packed_whole) {
            return Ok(());
        }
        Err(BelowError::Unreachable(format!("it kept {committed} bytes of {digest}")))
    }
}

/// The messages of one write.
struct Feed {
    /// In the first message; then empty.
    name: String,
    sender: mpsc::Sender<WriteRequest>,
    offset: u64,
    pace: Pace,
}

/// The receiver is gone: the call has ended, and its answer says how.
struct Ended;

impl Feed {
    /// Sends all; how many bytes that were on the wire.
    async fn all(mut self, digest: Digest, mut source: Outgoing, packed: bool) -> BelowResult<u64> {
        let mut packer = if packed { Some(Packer::new().map_err(BlobError::from)?) } else { None };
        let mut left = digest.size();
        // The last piece waits until the source has said that it is the last: it may yet fail.
        let mut held = Bytes::new();
        while let Some(piece) = source.next().await {
            let piece = piece?;
            left = left.checked_sub(piece.len() as u64).ok_or(BlobError::Mismatch(digest))?;
            let piece = match &mut packer {
                Some(packer) => packer.pack(&piece).map_err(BlobError::from)?,
                None => piece,
            };
            if piece.is_empty() {
                continue;
            }
            if self.send(std::mem::replace(&mut held, piece), false).await?.is_err() {
                return Ok(self.offset);
            }
        }
        if left > 0 {
            return Err(BlobError::Incomplete(digest).into());
        }
        if let Some(packer) = packer {
            let rest = packer.finish().map_err(BlobError::from)?;
            if self.send(std::mem::replace(&mut held, rest), false).await?.is_err() {
                return Ok(self.offset);
            }
        }
        // Whether it arrives or not, the answer says.
        let _ = self.send(held, true).await?;
        Ok(self.offset)
    }

    /// Sends one piece, in as many messages as it takes.
    async fn send(&mut self, mut bytes: Bytes, finish: bool) -> BelowResult<Result<(), Ended>> {
        while finish || !bytes.is_empty() {
            let rest = bytes.split_off(bytes.len().min(PIECE_BYTES_MAX));
            let (length, last) = (bytes.len(), rest.is_empty());
            let message = WriteRequest {
                resource_name: std::mem::take(&mut self.name),
                write_offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
                finish_write: finish && last,
                data: std::mem::replace(&mut bytes, rest),
            };
            self.offset += length as u64;
            if self.pace.wait(self.sender.send(message)).await?.is_err() {
                return Ok(Err(Ended));
            }
            self.pace.moved(length);
            if last {
                break;
            }
        }
        Ok(Ok(()))
    }
}
