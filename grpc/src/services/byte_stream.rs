//! ByteStream, by the direct path: HTTP/2 frames in, shard out, and back, without tonic's codec
//! between them. Must never answer a write before its blob is kept, nor keep one that was not
//! finished.

use super::{
    Node,
    messages::{MessageReader, WriteMessage, enveloped, read_response},
};
use crate::{
    resource_name::{parse_read, parse_write},
    status,
};
use bytes::{Bytes, BytesMut};
use engine::{
    blob::BlobError,
    cores::{BlobReader, CoreContext, Upload},
    digest::{Digest, DigestFunction, HASH_BYTES, Hasher},
    tier::Blobs,
};
use futures_util::{
    future::{Either, select},
    stream,
};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use hyper::body::{Frame, Incoming};
use prost::Message;
use proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteResponse,
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tonic::Status;

/// Where the methods of this service lie.
pub(crate) const PATH: &str = "/google.bytestream.ByteStream/";
/// Must equal the request's resource name where a client sends it (REAPI, ByteStream headers).
const NAME_HEADER: &str = "build.bazel.remote.execution.v2.resource-name";
/// How long a client may take to close its stream after finish_write.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Largest request of the methods that carry no payload, in bytes.
const SMALL_MESSAGE_BYTES_MAX: usize = 16 << 10;

/// The frames of a reply. A reply that is nothing but its status has none, and says so: clients
/// take a status in the headers only from a stream that ends there.
pub(crate) struct ReplyBody {
    frames: Option<Frames>,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.frames {
            Some(frames) => frames.as_mut().poll_next(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none()
    }
}

/// The service, on one core.
#[derive(Clone)]
pub(crate) struct ByteStreamService {
    pub(crate) node: Node,
    pub(crate) core: CoreContext,
}

impl ByteStreamService {
    /// One call, by its path.
    pub(crate) async fn call(self, request: Request<Incoming>) -> Response<ReplyBody> {
        let method = request.uri().path().strip_prefix(PATH).unwrap_or_default().to_owned();
        let (head, body) = request.into_parts();
        let message_bytes_max = match method.as_str() {
            "Write" => self.node.bounds.message_bytes_max,
            _ => SMALL_MESSAGE_BYTES_MAX,
        };
        let reader = MessageReader::new(body, message_bytes_max);
        let replied = match method.as_str() {
            "Read" => self.read(&head.headers, reader).await,
            "Write" => self.write(&head.headers, reader).await.map(|written| unary(&written)),
            "QueryWriteStatus" => {
                self.query(&head.headers, reader).await.map(|status| unary(&status))
            }
            _ => {
                let message = status::short(format!("ByteStream has no method {method:?}"));
                Err(Status::unimplemented(message))
            }
        };
        replied.map_or_else(|error| refusal(&error), |frames| reply(HeaderMap::new(), Some(frames)))
    }

    async fn read(
        self,
        headers: &HeaderMap,
        mut reader: MessageReader<Incoming>,
    ) -> Result<Frames, Status> {
        let request: ReadRequest = only_message(&mut reader).await?;
        check_header(headers, &request.resource_name)?;
        let name = parse_read(&request.resource_name).map_err(|bad| status::name_status(&bad))?;
        let blobs = self.node.blobs(&name.instance, headers)?;
        let size = name.digest.size();
        let start = u64::try_from(request.read_offset).ok().filter(|&start| start <= size);
        let start = start.ok_or_else(|| {
            let offset = request.read_offset;
            Status::out_of_range(format!("read_offset {offset} is outside a blob of {size} bytes"))
        })?;
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| Status::out_of_range("read_limit is negative"))?;
        let end = if limit == 0 { size } else { start.saturating_add(limit).min(size) };
        let mut blob = blobs
            .open(self.core.env, name.digest, start..end)
            .await
            .map_err(|error| status::blob_status(&error))?;
        // The first piece before the headers: damage found in it is a plain error.
        let first = blob.next().await.map_err(|error| status::blob_status(&error))?;
        Ok(read_frames(blob, first))
    }

    async fn write(
        self,
        headers: &HeaderMap,
        mut reader: MessageReader<Incoming>,
    ) -> Result<WriteResponse, Status> {
        let first = next_write(&mut reader).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a write without a message"))?;
        check_header(headers, &first.resource_name)?;
        let name = parse_write(&first.resource_name).map_err(|bad| status::name_status(&bad))?;
        let blobs = self.node.blobs(&name.instance, headers)?;
        if name.digest.size() > self.node.limits.blob_bytes_max {
            let size_max = self.node.limits.blob_bytes_max;
            let error = BlobError::TooLarge { size: name.digest.size(), size_max };
            return Err(status::blob_status(&error));
        }
        if is_kept(&blobs, name.digest).await? {
            return Ok(WriteResponse { committed_size: name.digest.size_i64() });
        }
        if first.finish_write && first.write_offset == 0 {
            return self.write_whole(&blobs, name.digest, first, reader).await;
        }
        let written = self.write_parts(name.digest, first, reader).await?;
        if written.committed_size == name.digest.size_i64() {
            let pushed = blobs.push(vec![name.digest]).await;
            pushed.map_err(|error| status::blob_status(&error))?;
        }
        Ok(written)
    }

    /// A blob that came in one message.
    async fn write_whole(
        self,
        blobs: &Blobs,
        digest: Digest,
        message: WriteMessage,
        mut reader: MessageReader<Incoming>,
    ) -> Result<WriteResponse, Status> {
        if message.data_len() != digest.size() {
            return Err(status::blob_status(&BlobError::Mismatch(digest)));
        }
        self.expect_end(&mut reader).await?;
        let bytes = joined(message.data);
        let kept = blobs.put_many(vec![(digest, bytes)]).await;
        let kept = kept.and_then(|mut kept| kept.pop().unwrap_or(Err(BlobError::Stopped)));
        kept.map_err(|error| status::blob_status(&error))?;
        Ok(WriteResponse { committed_size: digest.size_i64() })
    }

    /// A blob that comes in parts, perhaps over several calls.
    async fn write_parts(
        self,
        digest: Digest,
        first: WriteMessage,
        mut reader: MessageReader<Incoming>,
    ) -> Result<WriteResponse, Status> {
        let upload = self.node.cores.upload(upload_name(&first.resource_name), digest).await;
        let mut upload = upload.map_err(|error| status::blob_status(&error))?;
        let own_name = first.resource_name.clone();
        // A client that begins anew sends again what is here: passed over, and hashed with the
        // rest all the same, because what is here was hashed.
        let mut position = if first.write_offset == 0 { 0 } else { upload.committed() };
        let mut next = Some(first);
        while let Some(message) = next {
            if !message.resource_name.is_empty() && message.resource_name != own_name {
                return Err(Status::invalid_argument("resource_name changed within a write"));
            }
            if u64::try_from(message.write_offset) != Ok(position) {
                return Err(wrong_offset(message.write_offset, position));
            }
            position += message.data_len();
            if position > digest.size() {
                return Err(status::blob_status(&BlobError::Mismatch(digest)));
            }
            let finish = message.finish_write;
            write_rest(&mut upload, message, position).await?;
            if finish {
                self.expect_end(&mut reader).await?;
                upload.finish().await.map_err(|error| status::blob_status(&error))?;
                return Ok(WriteResponse { committed_size: digest.size_i64() });
            }
            next = next_write(&mut reader).await?;
        }
        Ok(WriteResponse { committed_size: i64::try_from(upload.committed()).unwrap_or(i64::MAX) })
    }

    async fn query(
        self,
        headers: &HeaderMap,
        mut reader: MessageReader<Incoming>,
    ) -> Result<QueryWriteStatusResponse, Status> {
        let request: QueryWriteStatusRequest = only_message(&mut reader).await?;
        let name = parse_write(&request.resource_name).map_err(|bad| status::name_status(&bad))?;
        let blobs = self.node.blobs(&name.instance, headers)?;
        if is_kept(&blobs, name.digest).await? {
            let committed_size = name.digest.size_i64();
            return Ok(QueryWriteStatusResponse { committed_size, complete: true });
        }
        let open = upload_name(&request.resource_name);
        let committed = self.node.cores.upload_status(open, name.digest).await;
        let committed = committed.map_err(|error| status::blob_status(&error))?;
        let committed = committed.ok_or_else(|| Status::not_found("there is no such write"))?;
        let committed_size = i64::try_from(committed).unwrap_or(i64::MAX);
        Ok(QueryWriteStatusResponse { committed_size, complete: false })
    }

    /// Refuses messages behind finish_write; a client that leaves its stream open is answered.
    async fn expect_end(&self, reader: &mut MessageReader<Incoming>) -> Result<(), Status> {
        let next = pin!(reader.next());
        let wait = pin!(self.core.env.alarms.sleep(CLOSE_WAIT));
        match select(next, wait).await {
            Either::Left((Ok(Some(_)), _)) => {
                Err(Status::invalid_argument("a message after finish_write"))
            }
            Either::Left((Err(error), _)) => Err(error),
            Either::Left((Ok(None), _)) | Either::Right(_) => Ok(()),
        }
    }
}

async fn is_kept(blobs: &Blobs, digest: Digest) -> Result<bool, Status> {
    blobs.is_kept(digest).await.map_err(|error| status::blob_status(&error))
}

/// Hands over what of a message that ends at `end` is not here yet.
async fn write_rest(upload: &mut Upload, message: WriteMessage, end: u64) -> Result<(), Status> {
    let mut known = message.data_len() - (end - upload.committed().min(end));
    let mut pieces = message.data;
    pieces.retain_mut(|piece| {
        let skip = usize::try_from(known).unwrap_or(usize::MAX).min(piece.len());
        known -= skip as u64;
        bytes::Buf::advance(piece, skip);
        !piece.is_empty()
    });
    if pieces.is_empty() {
        return Ok(());
    }
    upload.write(pieces).await.map_err(|error| status::blob_status(&error))
}

fn wrong_offset(offset: i64, position: u64) -> Status {
    let message = format!("write_offset is {offset}; {position} bytes are committed");
    Status::invalid_argument(message)
}

async fn next_write(reader: &mut MessageReader<Incoming>) -> Result<Option<WriteMessage>, Status> {
    let Some(pieces) = reader.next().await? else { return Ok(None) };
    let message = pieces.write_message();
    message.map(Some).ok_or_else(|| Status::invalid_argument("this is no WriteRequest"))
}

async fn only_message<M: Message + Default>(
    reader: &mut MessageReader<Incoming>,
) -> Result<M, Status> {
    let pieces = reader.next().await?;
    let pieces = pieces.ok_or_else(|| Status::invalid_argument("a call without a message"))?;
    M::decode(pieces.whole()).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn check_header(headers: &HeaderMap, resource_name: &str) -> Result<(), Status> {
    match headers.get(NAME_HEADER) {
        Some(name) if name.as_bytes() != resource_name.as_bytes() => {
            let message = format!("header {NAME_HEADER} differs from resource_name");
            Err(Status::invalid_argument(message))
        }
        _ => Ok(()),
    }
}

/// What an open write is known by.
fn upload_name(resource_name: &str) -> [u8; HASH_BYTES] {
    let mut hasher = Hasher::new(DigestFunction::Sha256);
    hasher.update(resource_name.as_bytes());
    *hasher.finish().hash()
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() <= 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}

/// Frames of a reply, its trailers included.
type Frames = Pin<Box<dyn stream::Stream<Item = Result<Frame<Bytes>, Infallible>>>>;

/// What of a blob has not left yet.
struct Reading {
    blob: Option<BlobReader>,
    ready: VecDeque<Frame<Bytes>>,
}

impl Reading {
    fn piece(&mut self, piece: Bytes) {
        let (header, rest) = read_response(piece);
        self.ready.push_back(Frame::data(header));
        self.ready.extend(rest.map(Frame::data));
    }

    fn end(&mut self, status: &Status) {
        self.blob = None;
        self.ready.push_back(Frame::trailers(trailers(status)));
    }
}

/// The blob's pieces, one message each.
fn read_frames(blob: BlobReader, first: Option<Bytes>) -> Frames {
    let mut reading = Reading { blob: Some(blob), ready: VecDeque::new() };
    match first {
        Some(piece) => reading.piece(piece),
        None => reading.end(&Status::ok("")),
    }
    Box::pin(stream::unfold(reading, async |mut reading| {
        if reading.ready.is_empty() {
            let next = reading.blob.as_mut()?.next().await;
            match next {
                Ok(Some(piece)) => reading.piece(piece),
                Ok(None) => reading.end(&Status::ok("")),
                Err(error) => reading.end(&status::blob_status(&error)),
            }
        }
        reading.ready.pop_front().map(|frame| (Ok(frame), reading))
    }))
}

fn unary(message: &impl Message) -> Frames {
    let frames = [Frame::data(enveloped(message)), Frame::trailers(trailers(&Status::ok("")))];
    Box::pin(stream::iter(frames.map(Ok)))
}

/// A reply that is nothing but its status.
pub(crate) fn refusal(status: &Status) -> Response<ReplyBody> {
    reply(trailers(status), None)
}

fn reply(mut headers: HeaderMap, frames: Option<Frames>) -> Response<ReplyBody> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(ReplyBody { frames });
    *response.headers_mut() = headers;
    response
}

/// A status as the end of a reply.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    if status.add_header(&mut headers).is_err() {
        // A message that no header can hold: the code says enough.
        headers.clear();
        headers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    headers
}
