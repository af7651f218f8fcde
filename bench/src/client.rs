//! A gRPC client that sends bytes encoded beforehand and hands back bytes. Must not know what the
//! messages mean, and must check the status of every reply.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

/// Receive window of a stream, in bytes: no row shall measure the window.
const STREAM_WINDOW: u32 = 4 << 20;
/// Receive window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest message taken from a server, in bytes.
const MESSAGE_LEN_MAX: usize = 64 << 20;
/// How long a connection may take to come up.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The methods of REAPI that are measured or needed to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    GetCapabilities,
    FindMissingBlobs,
    BatchUpdateBlobs,
    BatchReadBlobs,
    Read,
    Write,
    GetActionResult,
    UpdateActionResult,
    Execute,
    /// ringforge's own: who is in the cluster.
    View,
}

impl Method {
    const fn path(self) -> &'static str {
        match self {
            Self::GetCapabilities => {
                "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
            }
            Self::FindMissingBlobs => {
                "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"
            }
            Self::BatchUpdateBlobs => {
                "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs"
            }
            Self::BatchReadBlobs => {
                "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs"
            }
            Self::Read => "/google.bytestream.ByteStream/Read",
            Self::Write => "/google.bytestream.ByteStream/Write",
            Self::GetActionResult => "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
            Self::UpdateActionResult => {
                "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"
            }
            Self::Execute => "/build.bazel.remote.execution.v2.Execution/Execute",
            Self::View => "/ringforge.v1.Cluster/View",
        }
    }
}

/// One message to send: its encoded fields, then payload that is copied once only, into the
/// connection's buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub head: Bytes,
    pub payload: Bytes,
}

impl From<Bytes> for Frame {
    fn from(head: Bytes) -> Self {
        Self { head, payload: Bytes::new() }
    }
}

/// One connection. A clone shares it.
#[derive(Clone)]
pub(crate) struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    /// Opens a connection of its own to `address`, HOST:PORT, without TLS.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address} is no HOST:PORT"))?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel =
            endpoint.connect().await.with_context(|| format!("cannot connect to {address}"))?;
        Ok(Self { grpc: Grpc::new(channel).max_decoding_message_size(MESSAGE_LEN_MAX) })
    }

    /// One message there, one back.
    pub(crate) async fn unary(&self, method: Method, message: Bytes) -> Result<Bytes> {
        let mut grpc = self.ready(method).await?;
        let path = PathAndQuery::from_static(method.path());
        let reply = grpc.unary(Request::new(Frame::from(message)), path, Raw).await;
        Ok(reply.map_err(|status| refused(method, &status))?.into_inner())
    }

    /// One message there, many back.
    pub(crate) async fn download(&self, method: Method, message: Bytes) -> Result<Download> {
        let mut grpc = self.ready(method).await?;
        let path = PathAndQuery::from_static(method.path());
        let reply = grpc.server_streaming(Request::new(Frame::from(message)), path, Raw).await;
        let messages = reply.map_err(|status| refused(method, &status))?.into_inner();
        Ok(Download { method, messages })
    }

    /// Many messages there, one back.
    pub(crate) async fn upload(&self, method: Method, frames: Vec<Frame>) -> Result<Bytes> {
        let mut grpc = self.ready(method).await?;
        let path = PathAndQuery::from_static(method.path());
        let frames = Request::new(tokio_stream::iter(frames));
        let reply = grpc.client_streaming(frames, path, Raw).await;
        Ok(reply.map_err(|status| refused(method, &status))?.into_inner())
    }

    async fn ready(&self, method: Method) -> Result<Grpc<Channel>> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.with_context(|| format!("{method:?}: the connection is lost"))?;
        Ok(grpc)
    }
}

/// The messages of one streamed reply.
pub(crate) struct Download {
    method: Method,
    messages: Streaming<Bytes>,
}

impl Download {
    /// The next message; none when the reply has ended with status OK.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        self.messages.message().await.map_err(|status| refused(self.method, &status))
    }
}

fn refused(method: Method, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{method:?} answered {:?}: {}", status.code(), status.message())
}

/// The codec that does nothing.
struct Raw;

impl Codec for Raw {
    type Encode = Frame;
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

impl Encoder for Raw {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.head.len() + frame.payload.len());
        out.put(frame.head);
        out.put(frame.payload);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // Shares the receive buffer, copies nothing.
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
