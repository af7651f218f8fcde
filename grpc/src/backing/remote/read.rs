//! One blob from another server, by ByteStream.Read, without tonic's codec: what a frame brings is
//! passed on at once and as it is. Must never hold more of a blob than a frame, nor pass on more
//! bytes than its digest says.

use super::{
    Remote,
    failure::{below_error, http_error},
    offer::Offers,
    pace::Pace,
    payload::{ENVELOPE_BYTES, Messages},
};
use crate::backing::{channel::Connection, zstd::Unpacker};
use bytes::{BufMut, Bytes, BytesMut};
use engine::{
    digest::Digest,
    tier::{BelowError, BelowResult, Incoming},
};
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use prost::Message;
use proto::bytestream::ReadRequest;
use std::{collections::VecDeque, future::poll_fn, sync::Arc};
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, client::GrpcService};

/// The method.
const READ: &str = "/google.bytestream.ByteStream/Read";

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
        let response = timeout(self.settings.call_deadline, call(self.reads.clone(), &request));
        let response = response.await.map_err(|_| BelowError::TimedOut)?;
        let response = response.map_err(|error| self.offers.heard(error))?;
        Ok(Blob {
            body: Body::new(response.into_body()),
            messages: Messages::default(),
            ready: VecDeque::new(),
            unpacker,
            digest,
            left: digest.size() - offset,
            pace: Pace::new(self.settings.idle_deadline),
            offers: Arc::clone(&self.offers),
        })
    }
}

/// The beginning of the answer, which is no refusal.
async fn call(mut server: Connection, request: &ReadRequest) -> BelowResult<Response<Body>> {
    let mut message = Request::new(Body::new(Full::new(enveloped(request))));
    *message.method_mut() = http::Method::POST;
    *message.uri_mut() = http::Uri::from_static(READ);
    *message.version_mut() = Version::HTTP_2;
    message.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    let grpc = HeaderValue::from_static("application/grpc");
    message.headers_mut().insert(header::CONTENT_TYPE, grpc);
    let failed = |error| below_error(&Status::from_error(error));
    poll_fn(|context| server.poll_ready(context)).await.map_err(|error| failed(error.into()))?;
    let response = server.call(message).await.map_err(|error| failed(error.into()))?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(below_error(&status)),
        None if response.status() != StatusCode::OK => Err(http_error(response.status())),
        _ => Ok(response.map(Body::new)),
    }
}

/// The only message of a request, in its envelope.
fn enveloped(request: &ReadRequest) -> Bytes {
    let message = request.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(ENVELOPE_BYTES + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("names are short"));
    bytes.put_slice(&message);
    bytes.freeze()
}

/// A blob on its way here.
struct Blob {
    body: Body,
    messages: Messages,
    /// What the last frame brought and nobody has taken.
    ready: VecDeque<Bytes>,
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
            match (self.ready.pop_front(), &mut self.unpacker) {
                (Some(piece), Some(unpacker)) => {
                    unpacker.feed(piece).map_err(|_| BelowError::Wrong(self.digest))?;
                    continue;
                }
                (Some(piece), None) => return self.count(piece).map(Some),
                (None, _) => {}
            }
            let Some(frame) = self.pace.wait(self.body.frame()).await? else {
                return self.finish(None);
            };
            let frame = frame.map_err(|status| self.offers.heard(below_error(&status)))?;
            match frame.into_data() {
                Ok(bytes) => self.feed(bytes)?,
                Err(frame) => return self.finish(Some(&frame)),
            }
        }
    }

    fn feed(&mut self, bytes: Bytes) -> BelowResult<()> {
        let (ready, pace) = (&mut self.ready, &mut self.pace);
        let fed = self.messages.feed(bytes, |piece| {
            pace.moved(piece.len());
            ready.push_back(piece);
        });
        fed.map_err(|_| BelowError::Unreachable("it sends what is no ReadResponse".to_owned()))
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

    /// The end. Where no status comes with it the stream broke: what relays HTTP/2 often ends it
    /// like that. With one the server has said that this is all.
    fn finish(&mut self, trailers: Option<&Frame<Bytes>>) -> BelowResult<Option<Bytes>> {
        let status = trailers.and_then(Frame::trailers_ref).and_then(Status::from_header_map);
        let is_whole = self.left == 0 && self.unpacker.as_ref().is_none_or(Unpacker::is_whole);
        match status {
            Some(status) if status.code() != Code::Ok => {
                Err(self.offers.heard(below_error(&status)))
            }
            Some(_) if !self.messages.is_between() => self.broke(),
            Some(_) if is_whole => Ok(None),
            Some(_) => Err(BelowError::Wrong(self.digest)),
            None => self.broke(),
        }
    }

    fn broke<T>(&self) -> BelowResult<T> {
        let why = format!("{} ended {} bytes early, without a status", self.digest, self.left);
        Err(self.offers.heard(BelowError::Unreachable(why)))
    }
}

#[cfg(test)]
mod tests;
