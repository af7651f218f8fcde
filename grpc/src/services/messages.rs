//! gRPC messages that carry payload, read and written around it: the envelope is parsed across
//! DATA frames, and the payload stays in the buffers in which it came. Must never put the pieces
//! of a payload together, but for those that are smaller than their bookkeeping.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use std::collections::VecDeque;
use tonic::Status;

/// gRPC's envelope: a flag and four bytes of length.
const ENVELOPE_BYTES: usize = 5;
/// Up to here a payload is copied behind its header: one frame is cheaper than two.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Pieces below this size, in bytes, are put together: each costs some hundred bytes to keep, and
/// a sender may cut its frames as small as it likes.
const SMALL_BYTES_MAX: usize = 4 << 10;
/// What was put together ends here, in bytes, so that it is not moved over and over.
const JOINED_BYTES_MAX: usize = 64 << 10;
/// Longest text field taken, in bytes.
const TEXT_BYTES_MAX: usize = 8192;

/// A WriteRequest as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WriteMessage {
    pub(super) resource_name: String,
    pub(super) write_offset: i64,
    pub(super) finish_write: bool,
    pub(super) data: Vec<Bytes>,
}

impl WriteMessage {
    pub(super) fn data_len(&self) -> u64 {
        self.data.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// The messages in a request's body.
pub(super) struct MessageReader<B> {
    body: B,
    received: Pieces,
    message_bytes_max: usize,
}

impl<B> MessageReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(body: B, message_bytes_max: usize) -> Self {
        Self { body, received: Pieces::default(), message_bytes_max }
    }

    /// The next message; `None` where the sender closed between messages.
    ///
    /// # Errors
    /// Where the sender broke off, a message is larger than the bound, or is compressed.
    pub(super) async fn next(&mut self) -> Result<Option<Pieces>, Status> {
        if !self.fill(ENVELOPE_BYTES).await? {
            return if self.received.len == 0 { Ok(None) } else { Err(broken_off()) };
        }
        let flag = self.received.byte().unwrap_or_default();
        let length = self.received.take(4).map_or(0, |mut bytes| bytes.get_u32()) as usize;
        if flag != 0 {
            return Err(Status::unimplemented("compressed messages are not served"));
        }
        if length > self.message_bytes_max {
            let bound = self.message_bytes_max;
            let message = format!("a message of {length} bytes; the largest taken is {bound}");
            return Err(Status::resource_exhausted(message));
        }
        if !self.fill(length).await? {
            return Err(broken_off());
        }
        Ok(Some(self.received.split_to(length)))
    }

    /// Receives until `length` bytes are here; false where the sender closed before.
    async fn fill(&mut self, length: usize) -> Result<bool, Status> {
        while self.received.len < length {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.received.receive(bytes);
                    }
                }
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                None => return Ok(false),
            }
        }
        self.received.settle();
        Ok(true)
    }
}

/// Bytes in the pieces in which they came.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    /// Small pieces that come after `pieces`; empty unless a message is being received.
    tail: BytesMut,
    len: usize,
}

impl Pieces {
    /// Takes what has arrived; small pieces that follow each other become one.
    fn receive(&mut self, bytes: Bytes) {
        let small = |piece: &Bytes| piece.len() < SMALL_BYTES_MAX;
        if !small(&bytes) {
            self.settle();
            return self.push(bytes);
        }
        if self.tail.is_empty() {
            if !self.pieces.back().is_some_and(small) {
                return self.push(bytes);
            }
            let before = self.pieces.pop_back().unwrap_or_default();
            self.tail.extend_from_slice(&before);
        }
        self.len += bytes.len();
        self.tail.extend_from_slice(&bytes);
        if self.tail.len() >= JOINED_BYTES_MAX {
            self.settle();
        }
    }

    /// Makes a piece of what was put together.
    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.pieces.push_back(bytes);
        }
    }

    /// The first `length` bytes, which must be here.
    fn split_to(&mut self, length: usize) -> Self {
        let mut front = Self::default();
        while front.len < length {
            let Some(mut piece) = self.pieces.pop_front() else { break };
            let wanted = length - front.len;
            if piece.len() > wanted {
                let rest = piece.split_off(wanted);
                self.pieces.push_front(rest);
            }
            self.len -= piece.len();
            front.push(piece);
        }
        front
    }

    fn byte(&mut self) -> Option<u8> {
        let first = self.pieces.front_mut()?;
        let byte = first.get_u8();
        self.len -= 1;
        if first.is_empty() {
            self.pieces.pop_front();
        }
        Some(byte)
    }

    /// The first few bytes, put together: for envelopes and text, never for payload.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if length > self.len {
            return None;
        }
        let mut front = self.split_to(length);
        if front.pieces.len() <= 1 {
            return Some(front.pieces.pop_front().unwrap_or_default());
        }
        let mut whole = BytesMut::with_capacity(length);
        front.pieces.iter().for_each(|piece| whole.put_slice(piece));
        Some(whole.freeze())
    }

    /// A varint of at most ten bytes (protobuf encoding).
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.varint()?).ok()?;
        if length > TEXT_BYTES_MAX {
            return None;
        }
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    /// A field of bytes, in its pieces.
    fn payload(&mut self) -> Option<Vec<Bytes>> {
        let length = usize::try_from(self.varint()?).ok()?;
        (length <= self.len).then(|| self.split_to(length).pieces.into())
    }

    /// Passes over a field that is not known, as protobuf asks.
    fn skip(&mut self, wire_type: u64) -> Option<()> {
        let length = match wire_type {
            0 => return self.varint().map(|_| ()),
            1 => 8,
            2 => usize::try_from(self.varint()?).ok()?,
            5 => 4,
            _ => return None,
        };
        (length <= self.len).then(|| drop(self.split_to(length)))
    }

    /// These bytes as a WriteRequest; `None` where they are not one.
    pub(super) fn write_message(mut self) -> Option<WriteMessage> {
        let mut message = WriteMessage::default();
        while self.len > 0 {
            let tag = self.varint()?;
            match (tag >> 3, tag & 7) {
                (1, 2) => message.resource_name = self.text()?,
                // A negative int64 is a varint of ten bytes: the cast undoes what encoding did.
                (2, 0) => message.write_offset = self.varint()?.cast_signed(),
                (3, 0) => message.finish_write = self.varint()? != 0,
                (10, 2) => message.data = self.payload()?,
                (0, _) => return None,
                (_, wire_type) => self.skip(wire_type)?,
            }
        }
        Some(message)
    }

    /// These bytes put together: for messages without payload.
    pub(super) fn whole(mut self) -> Bytes {
        self.take(self.len).unwrap_or_default()
    }
}

fn broken_off() -> Status {
    Status::cancelled("the request ended inside a message")
}

/// An enveloped ReadResponse with this data: what goes in front of it, and the data where it is
/// not copied behind.
pub(super) fn read_response(data: Bytes) -> (Bytes, Option<Bytes>) {
    const DATA_TAG: u8 = 10 << 3 | 2;
    let length_bytes = prost::length_delimiter_len(data.len());
    let message = 1 + length_bytes + data.len();
    let copied = data.len() <= COPY_BYTES_MAX;
    let behind = if copied { data.len() } else { 0 };
    let mut header = BytesMut::with_capacity(ENVELOPE_BYTES + 1 + length_bytes + behind);
    header.put_u8(0);
    header.put_u32(u32::try_from(message).expect("a piece is far below 4 GiB"));
    header.put_u8(DATA_TAG);
    // Cannot fail: the buffer grows.
    let _ = prost::encode_length_delimiter(data.len(), &mut header);
    if copied {
        header.put_slice(&data);
        return (header.freeze(), None);
    }
    (header.freeze(), Some(data))
}

/// A message in its envelope.
pub(super) fn enveloped(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(ENVELOPE_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("replies are small"));
    // Cannot fail: the buffer grows.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use prost::Message;
    use proto::bytestream::{ReadResponse, WriteRequest};

    fn body(bytes: &[u8], cut: usize) -> impl Body<Data = Bytes, Error = Status> + Unpin {
        let frames: Vec<_> =
            bytes.chunks(cut).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[test]
    fn messages_are_found_wherever_frames_are_cut() {
        let requests = [
            WriteRequest {
                resource_name: "uploads/u/blobs/h/1".to_owned(),
                write_offset: 0,
                finish_write: false,
                data: Bytes::from(vec![7; 300]),
            },
            WriteRequest { write_offset: 300, data: Bytes::from(vec![8; 5]), ..Default::default() },
            WriteRequest { write_offset: -1, finish_write: true, ..Default::default() },
            WriteRequest::default(),
        ];
        let bytes: Vec<u8> = requests.iter().flat_map(|one| enveloped(one).to_vec()).collect();
        for cut in 1..bytes.len() {
            let mut reader = MessageReader::new(body(&bytes, cut), 1000);
            for request in &requests {
                let pieces = block_on(reader.next()).unwrap().unwrap();
                let message = pieces.write_message().unwrap();
                assert_eq!(message.resource_name, request.resource_name);
                assert_eq!(message.write_offset, request.write_offset);
                assert_eq!(message.finish_write, request.finish_write);
                assert_eq!(message.data.concat(), request.data);
            }
            assert!(block_on(reader.next()).unwrap().is_none());
        }
    }

    #[test]
    fn a_message_cut_small_is_kept_in_few_pieces() {
        let data = Bytes::from((0..300_000_u32).map(|n| n.to_be_bytes()[3]).collect::<Vec<u8>>());
        let request = WriteRequest { data: data.clone(), ..Default::default() };
        let bytes = enveloped(&request);
        for (cut, pieces_max) in [(1, 10), (100, 10), (SMALL_BYTES_MAX - 1, 10), (5000, 70)] {
            let mut reader = MessageReader::new(body(&bytes, cut), 1 << 20);
            let pieces = block_on(reader.next()).unwrap().unwrap();
            let message = pieces.write_message().unwrap();
            assert_eq!(message.data.concat(), data);
            assert!(message.data.len() <= pieces_max, "{cut}: {} pieces", message.data.len());
        }
        // What is not small stays where it is.
        let large = Bytes::from(vec![7; SMALL_BYTES_MAX]);
        let mut pieces = Pieces::default();
        for piece in [Bytes::from_static(b"a"), Bytes::from_static(b"b"), large.clone()] {
            pieces.receive(piece);
        }
        assert_eq!(pieces.pieces, [Bytes::from_static(b"ab"), large.clone()]);
        assert_eq!(pieces.pieces[1].as_ptr(), large.as_ptr());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut compressed = vec![1, 0, 0, 0, 1];
        compressed.push(0);
        for (bytes, code) in [
            (compressed, tonic::Code::Unimplemented),
            (vec![0, 0, 0, 4, 0], tonic::Code::ResourceExhausted),
            (vec![0, 0, 0, 0, 9, 1], tonic::Code::Cancelled),
            (vec![0, 0], tonic::Code::Cancelled),
        ] {
            let mut reader = MessageReader::new(body(&bytes, 64), 1000);
            assert_eq!(block_on(reader.next()).unwrap_err().code(), code, "{bytes:?}");
        }
        for bytes in [
            &[0x0a, 0xff][..],   // a name longer than the message
            &[0x52, 0x05, 1, 2], // data longer than the message
            // An endless varint.
            &[0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x0a, 0x01, 0xff], // a name that is not UTF-8
            &[0x00, 0x00],       // field 0
            &[0x0b],             // a group
        ] {
            let mut pieces = Pieces::default();
            pieces.push(Bytes::copy_from_slice(bytes));
            assert_eq!(pieces.write_message(), None, "{bytes:?}");
        }
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let mut pieces = Pieces::default();
        // field 15: varint, fixed32 (13), fixed64 (12), text (14), then finish_write.
        let bytes =
            [0x78, 0x05, 0x6d, 1, 2, 3, 4, 0x61, 1, 2, 3, 4, 5, 6, 7, 8, 0x72, 1, 9, 0x18, 1];
        pieces.push(Bytes::copy_from_slice(&bytes));
        assert!(pieces.write_message().unwrap().finish_write);
    }

    #[test]
    fn a_read_response_is_what_prost_would_write() {
        for length in [0, 1, 127, 128, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, 300_000] {
            let data = Bytes::from(vec![3; length]);
            let (header, rest) = read_response(data.clone());
            let bytes = [header, rest.unwrap_or_default()].concat();
            let decoded = ReadResponse::decode(&bytes[ENVELOPE_BYTES..]).unwrap();
            assert_eq!(decoded.data, data);
            assert_eq!(bytes[1..5], u32::try_from(bytes.len() - 5).unwrap().to_be_bytes());
        }
    }
}
