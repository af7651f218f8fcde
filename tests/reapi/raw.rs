//! What no REAPI client says: bytes instead of messages, and HTTP/2 by hand. Must know nothing of
//! the protocol above gRPC's envelope.

use bytes::{Buf, BufMut, Bytes};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// Carries bytes as they are.
#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with these bytes for its only message; the bytes of the first answer.
pub(crate) async fn call(channel: &Channel, method: &str, message: &[u8]) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(method).expect("a path");
    let request = Request::new(tokio_stream::iter([Bytes::copy_from_slice(message)]));
    let mut answers = grpc.streaming(request, path, Plain).await?.into_inner();
    Ok(answers.message().await?.unwrap_or_default())
}

/// A connection on which anything can be said.
pub(crate) struct Wire {
    stream: TcpStream,
}

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
/// DATA, as a frame's kind.
pub(crate) const DATA: u8 = 0;
/// The flag that ends a stream.
pub(crate) const END_STREAM: u8 = 1;

impl Wire {
    /// A connection on which nothing was said yet.
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream }
    }

    /// One on which HTTP/2 has begun.
    pub(crate) fn http2(port: u16) -> Self {
        let mut wire = Self::connect(port);
        wire.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        wire.frame(SETTINGS, 0, 0, &[]);
        wire
    }

    /// These bytes. That the node has hung up is no failure.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A frame.
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.say(&bytes);
    }

    /// The headers of a gRPC call, and further ones.
    pub(crate) fn call(&mut self, stream: u32, method: &str, further: &[(&str, &str)]) {
        let mut block = Vec::new();
        let ours = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        for (name, value) in ours.iter().chain(further) {
            // A literal that is not indexed, names and values without Huffman (RFC 7541, 6.2.2).
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        self.frame(HEADERS, END_HEADERS, stream, &block);
    }

    /// A gRPC message in its envelope, whose length may be another than it says.
    pub(crate) fn message(&mut self, stream: u32, flags: u8, said: u32, message: &[u8]) {
        let mut payload = vec![0];
        payload.extend_from_slice(&said.to_be_bytes());
        payload.extend_from_slice(message);
        self.frame(DATA, flags, stream, &payload);
    }

    /// Reads frames until a stream or the connection ends; all that came, for a look at it.
    pub(crate) fn answer(&mut self) -> Vec<u8> {
        self.frames().0
    }

    /// Whether a reply comes to its end, headers and all, before patience does.
    pub(crate) fn ends_a_stream(&mut self) -> bool {
        self.frames().1
    }

    /// What came, and whether its last frame ended a stream.
    fn frames(&mut self) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        loop {
            let mut head = [0; 9];
            if self.stream.read_exact(&mut head).is_err() {
                return (all, false);
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if self.stream.read_exact(&mut payload).is_err() {
                return (all, false);
            }
            all.extend_from_slice(&payload);
            let ends = head[3] <= HEADERS && head[4] & END_STREAM != 0;
            let reset = head[3] == 3 || head[3] == GOAWAY;
            if ends || reset {
                return (all, ends);
            }
        }
    }

    /// Whether the node hangs up.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut sink = Vec::new();
        match self.stream.read_to_end(&mut sink) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn text(block: &mut Vec<u8>, text: &str) {
    let length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).expect("less than 127"));
    } else {
        block.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128 + 128).expect("a byte"));
            rest /= 128;
        }
        block.push(u8::try_from(rest).expect("less than 128"));
    }
    block.extend_from_slice(text.as_bytes());
}
