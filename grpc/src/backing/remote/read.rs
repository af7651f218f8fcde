//! One blob from another server, by ByteStream.Read. Must never hold more of it than a message,
//! nor pass on more bytes than its digest says.

use super::{RECEIVED_BYTES_MAX, Remote, failure::below_error, offer::Offers, pace::Pace};
use crate::backing::zstd::Unpacker;
use bytes::Bytes;
use engine::{
    digest::Digest,
    tier::{BelowError, BelowResult, Incoming},
};
use futures_util::{StreamExt, stream};
use proto::bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient};
use std::sync::Arc;
use tokio::time::timeout;
use tonic::Streaming;

impl Remote {
    /// The blob from `offset` on. Its first piece is here when this returns, so that all that is
    /// usually wrong is known by then.
    pub(super) async fn receive(&self, digest: Digest, offset: u64) -> BelowResult<Incoming> {
        let Some(left) = digest.size().checked_sub(offset) else {
            return Err(BelowError::Refused(format!("{digest} has no byte {offset}")));
        };
        if left == 0 {
            return Ok(stream::empty().boxed());
        }
        let opened = timeout(self.settings.call_deadline, async {
            let mut blob = self.open(digest, offset).await?;
            let first = blob.next().await?;
            BelowResult::Ok((blob, first))
        });
        let (blob, first) = opened.await.map_err(|_| BelowError::TimedOut)??;
        let pieces = stream::try_unfold((blob, first), |(mut blob, first)| async move {
            let piece = match first {
                Some(piece) => Some(piece),
                None => blob.next().await?,
            };
            Ok(piece.map(|piece| (piece, (blob, None))))
        });
        Ok(pieces.boxed())
    }

    async fn open(&self, digest: Digest, offset: u64) -> BelowResult<Blob> {
        // From the start alone: what an offset means in a packed blob is not agreed on everywhere.
        let packed = offset == 0 && self.is_packed(digest).await;
        let (kind, unpacker) = if packed {
            let unpacker = Unpacker::new(digest.size());
            ("compressed-blobs/zstd", Some(unpacker.map_err(|_| BelowError::Wrong(digest))?))
        } else {
            ("blobs", None)
        };
        let request = ReadRequest {
            resource_name: self.resource_name(&format!("{kind}/{digest}")),
            read_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let mut client =
            ByteStreamClient::new(self.reads.clone()).max_decoding_message_size(RECEIVED_BYTES_MAX);
        Ok(Blob {
            messages: self.answer(client.read(request)).await?,
            unpacker,
            digest,
            left: digest.size() - offset,
            pace: Pace::new(self.settings.idle_deadline),
            offers: Arc::clone(&self.offers),
        })
    }
}

/// A blob on its way here.
struct Blob {
    messages: Streaming<ReadResponse>,
    unpacker: Option<Unpacker>,
    digest: Digest,
    /// Bytes that are still to come, unpacked.
    left: u64,
    pace: Pace,
    offers: Arc<Offers>,
}

impl Blob {
    /// The next piece, never empty; `None` once the blob is whole.
    async fn next(&mut self) -> BelowResult<Option<Bytes>> {
        loop {
            if let Some(piece) = self.unpacked()? {
                return Ok(Some(piece));
            }
            let message = self.pace.wait(self.messages.message()).await?;
            let message = message.map_err(|status| self.offers.heard(below_error(&status)))?;
            let Some(ReadResponse { data }) = message else {
                return self.finish().await;
            };
            self.pace.moved(data.len());
            match &mut self.unpacker {
                Some(unpacker) => {
                    unpacker.feed(data).map_err(|_| BelowError::Wrong(self.digest))?;
                }
                None if data.is_empty() => {}
                None => return self.count(data).map(Some),
            }
        }
    }

    fn unpacked(&mut self) -> BelowResult<Option<Bytes>> {
        let Some(unpacker) = &mut self.unpacker else { return Ok(None) };
        let piece = unpacker.next().map_err(|_| BelowError::Wrong(self.digest))?;
        piece.map(|piece| self.count(piece)).transpose()
    }

    fn count(&mut self, piece: Bytes) -> BelowResult<Bytes> {
        let left = self.left.checked_sub(piece.len() as u64);
        self.left = left.ok_or(BelowError::Wrong(self.digest))?;
        Ok(piece)
    }

    /// A stream that ends early without trailers is one that broke: what relays HTTP/2 often ends
    /// it like that. With them the server has said that this is all.
    async fn finish(&mut self) -> BelowResult<Option<Bytes>> {
        let is_whole = self.left == 0 && self.unpacker.as_ref().is_none_or(Unpacker::is_whole);
        if is_whole {
            return Ok(None);
        }
        if matches!(self.messages.trailers().await, Ok(Some(_))) {
            return Err(BelowError::Wrong(self.digest));
        }
        let why = format!("{} ended {} bytes early", self.digest, self.left);
        Err(BelowError::Unreachable(why))
    }
}
