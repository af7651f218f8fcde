//! A server that keeps blobs in a map and misbehaves when told to.

use crate::{
    backing::{
        channel::{Connect, Target},
        remote::{Remote, RemoteSettings, SHA256},
        zstd::{Packer, Unpacker},
    },
    status::retry,
};
use bytes::Bytes;
use engine::digest::Digest;
use futures_util::{StreamExt, future::pending, stream, stream::BoxStream};
use proto::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
        WriteResponse,
        byte_stream_server::{ByteStream, ByteStreamServer},
    },
    reapi::{
        self, ActionResult, BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest,
        BatchUpdateBlobsResponse, CacheCapabilities, FindMissingBlobsRequest,
        FindMissingBlobsResponse, GetActionResultRequest, GetCapabilitiesRequest, GetTreeRequest,
        GetTreeResponse, ServerCapabilities, SpliceBlobRequest, SpliceBlobResponse,
        SplitBlobRequest, SplitBlobResponse, UpdateActionResultRequest,
        action_cache_server::{ActionCache, ActionCacheServer},
        batch_read_blobs_response, batch_update_blobs_response,
        capabilities_server::{Capabilities, CapabilitiesServer},
        compressor,
        content_addressable_storage_server::{
            ContentAddressableStorage, ContentAddressableStorageServer,
        },
    },
    rpc,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

/// What a server does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Leaves out every second answer.
    Fewer,
    /// Answers twice, and for digests that nobody asked for, in another order.
    More,
    /// One byte too many.
    Longer,
    /// Ends without an error, a byte early.
    Shorter,
    /// Never answers.
    Hangs,
    /// Sends the first half, then nothing.
    HangsHalfway,
    /// Sends a byte at a time, and seldom.
    Trickles,
    /// Takes no more than the first message of an upload.
    TakesNothing,
    /// RESOURCE_EXHAUSTED with RetryInfo.
    Busy,
    /// 64 MiB of zeros in a few packed bytes.
    Bomb,
    /// Capabilities fail.
    NoCapabilities,
    /// Capabilities are never answered.
    CapabilitiesHang,
    /// Names what is no digest.
    NoDigest,
    /// Says of an upload that it kept less.
    KeepsLess,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) fault: Mutex<Fault>,
    pub(crate) blobs: Mutex<HashMap<String, Bytes>>,
    actions: Mutex<HashMap<(String, String), ActionResult>>,
    /// What was asked: method, and instance or resource name.
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) offer: Mutex<CacheCapabilities>,
    /// The header x-token of each call to Capabilities.
    pub(crate) tokens: Mutex<Vec<String>>,
}

/// The server, on a port of its own, until this is dropped.
pub(crate) struct Fake {
    pub(crate) state: Arc<State>,
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_at(0, None).await
    }

    pub(crate) async fn start_at(port: u16, tls: Option<ServerTlsConfig>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<State> = Arc::default();
        state.offer.lock().unwrap().digest_functions = vec![SHA256];
        let service = Service(Arc::clone(&state));
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let cas = ContentAddressableStorageServer::new(service.clone());
        let served = server
            .add_service(cas.max_decoding_message_size(4 << 20))
            .add_service(ByteStreamServer::new(service.clone()))
            .add_service(ActionCacheServer::new(service.clone()))
            .add_service(CapabilitiesServer::new(service))
            .serve_with_incoming(TcpIncoming::from(listener));
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { state, port, task }
    }

    /// The tier that asks this server.
    pub(crate) fn remote(&self, change: impl FnOnce(&mut RemoteSettings)) -> Remote {
        remote_at(self.port, change)
    }

    pub(crate) fn fails(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    pub(crate) fn offers(&self, change: impl FnOnce(&mut CacheCapabilities)) {
        change(&mut self.state.offer.lock().unwrap());
    }

    pub(crate) fn offers_zstd(&self) {
        self.offers(|offer| {
            offer.supported_compressors = vec![compressor::Value::Zstd as i32];
        });
    }

    pub(crate) fn keep(&self, blob: &Bytes) -> Digest {
        let digest = Digest::of(blob);
        self.state.blobs.lock().unwrap().insert(digest.to_string(), blob.clone());
        digest
    }

    pub(crate) fn has(&self, digest: Digest) -> Option<Bytes> {
        self.state.blobs.lock().unwrap().get(&digest.to_string()).cloned()
    }

    /// What was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }
}

/// The tier that asks a server here.
pub(crate) fn remote_at(port: u16, change: impl FnOnce(&mut RemoteSettings)) -> Remote {
    let mut settings = RemoteSettings {
        instance: String::new(),
        compression: true,
        call_deadline: Duration::from_secs(20),
        idle_deadline: Duration::from_secs(20),
    };
    change(&mut settings);
    Remote::new(&Target::new(&connect(port)).unwrap(), settings)
}

/// How to connect to a server here.
pub(crate) fn connect(port: u16) -> Connect {
    Connect {
        url: format!("grpc://127.0.0.1:{port}"),
        ca: None,
        certificate: None,
        key: None,
        headers: Vec::new(),
        connect_timeout: Duration::from_secs(10),
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

impl Service {
    /// Notes a call; what is wrong with this server.
    async fn enter(&self, method: &str, what: &str) -> Result<Fault, Status> {
        self.0.asked.lock().unwrap().push(format!("{method} {what}"));
        let fault = *self.0.fault.lock().unwrap();
        match fault {
            Fault::Hangs => pending().await,
            Fault::Busy => Err(retry(Code::ResourceExhausted, "later".to_owned())),
            _ => Ok(fault),
        }
    }

    fn get(&self, name: &str) -> Result<Bytes, Status> {
        let blob = self.0.blobs.lock().unwrap().get(name).cloned();
        blob.ok_or_else(|| Status::not_found(format!("{name} is not here")))
    }
}

fn key(digest: &reapi::Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

fn other() -> reapi::Digest {
    let other = Digest::of(b"nobody asked for this");
    reapi::Digest { hash: other.hex(), size_bytes: other.size_i64() }
}

/// What a server with this fault makes of its answers.
fn spoilt<T: Clone>(fault: Fault, mut answers: Vec<T>, stranger: T) -> Vec<T> {
    match fault {
        Fault::Fewer => answers.into_iter().step_by(2).collect(),
        Fault::More => {
            answers.extend(answers.clone());
            answers.push(stranger);
            answers.reverse();
            answers
        }
        _ => answers,
    }
}

fn packed(blob: &[u8]) -> Bytes {
    let mut packer = Packer::new().unwrap();
    let mut packed = packer.pack(blob).unwrap().to_vec();
    packed.extend_from_slice(&packer.finish().unwrap());
    packed.into()
}

#[tonic::async_trait]
impl ContentAddressableStorage for Service {
    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        let fault = self.enter("find", &request.instance_name).await?;
        let blobs = self.0.blobs.lock().unwrap();
        let mut missing = request.blob_digests;
        missing.retain(|digest| !blobs.contains_key(&key(digest)));
        if fault == Fault::NoDigest {
            missing.push(reapi::Digest { hash: "xyz".to_owned(), size_bytes: 1 });
        }
        let missing_blob_digests = spoilt(fault, missing, other());
        Ok(Response::new(FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        let fault = self.enter("update", &request.instance_name).await?;
        let answer = |digest, code: Code| batch_update_blobs_response::Response {
            digest: Some(digest),
            status: Some(rpc::Status { code: code as i32, ..Default::default() }),
        };
        let responses = request.requests.into_iter().map(|one| {
            let digest = one.digest.unwrap();
            let good = Digest::of(&one.data).to_string() == key(&digest);
            if good {
                self.0.blobs.lock().unwrap().insert(key(&digest), one.data);
            }
            answer(digest, if good { Code::Ok } else { Code::InvalidArgument })
        });
        let responses = spoilt(fault, responses.collect(), answer(other(), Code::Internal));
        Ok(Response::new(BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        let fault = self.enter("batch", &request.instance_name).await?;
        let responses = request.digests.into_iter().map(|digest| {
            let mut one = batch_read_blobs_response::Response::default();
            match self.get(&key(&digest)) {
                Ok(blob) if fault == Fault::Longer => one.data = [&blob[..], b"x"].concat().into(),
                Ok(blob) => one.data = blob,
                Err(_) => {
                    let code = Code::NotFound as i32;
                    one.status = Some(rpc::Status { code, ..Default::default() });
                }
            }
            one.digest = Some(digest);
            one
        });
        let stranger = batch_read_blobs_response::Response {
            digest: Some(other()),
            data: Bytes::from_static(b"x"),
            ..Default::default()
        };
        let responses = spoilt(fault, responses.collect(), stranger);
        Ok(Response::new(BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = BoxStream<'static, Result<GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        _: Request<GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn split_blob(
        &self,
        _: Request<SplitBlobRequest>,
    ) -> Result<Response<SplitBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn splice_blob(
        &self,
        _: Request<SpliceBlobRequest>,
    ) -> Result<Response<SpliceBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ByteStream for Service {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let fault = self.enter("read", &request.resource_name).await?;
        let (before, name) = request.resource_name.rsplit_once("blobs/").unwrap();
        let is_packed = before.ends_with("compressed-");
        let blob = self.get(name.trim_start_matches("zstd/"))?;
        let mut bytes = blob.slice(usize::try_from(request.read_offset).unwrap()..).to_vec();
        match fault {
            Fault::Longer => bytes.push(0),
            Fault::Shorter => drop(bytes.pop()),
            Fault::Bomb => bytes = vec![0; 64 << 20],
            _ => {}
        }
        let mut bytes = if is_packed { packed(&bytes) } else { bytes.into() };
        if fault == Fault::HangsHalfway {
            bytes.truncate(bytes.len() / 2);
        }
        let piece_bytes = if fault == Fault::Trickles { 1 } else { 100_000 };
        let pieces: Vec<_> = bytes
            .chunks(piece_bytes)
            .map(|piece| Ok(ReadResponse { data: Bytes::copy_from_slice(piece) }))
            .collect();
        let pieces = stream::iter(pieces);
        if fault == Fault::HangsHalfway {
            return Ok(Response::new(pieces.chain(stream::pending()).boxed()));
        }
        if fault == Fault::Trickles {
            let slowly = pieces.then(|piece| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                piece
            });
            return Ok(Response::new(slowly.boxed()));
        }
        Ok(Response::new(pieces.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap();
        let fault = self.enter("write", &first.resource_name).await?;
        if fault == Fault::TakesNothing {
            pending::<()>().await;
        }
        let (before, name) = first.resource_name.rsplit_once("blobs/").unwrap();
        let is_packed = before.ends_with("compressed-");
        let name = name.trim_start_matches("zstd/").to_owned();
        let size = name.rsplit_once('/').unwrap().1.parse().unwrap();
        if self.get(&name).is_ok() {
            let committed_size = if is_packed { -1 } else { size };
            return Ok(Response::new(WriteResponse { committed_size }));
        }
        let (mut bytes, mut next) = (Vec::new(), Some(first));
        loop {
            let Some(message) = next else { return Err(Status::cancelled("not finished")) };
            assert_eq!(message.write_offset, i64::try_from(bytes.len()).unwrap());
            assert!(message.data.len() <= 1 << 20);
            bytes.extend_from_slice(&message.data);
            if message.finish_write {
                break;
            }
            next = messages.message().await?;
        }
        let sent = i64::try_from(bytes.len()).unwrap();
        let blob = if is_packed { unpacked(bytes, u64::try_from(size).unwrap()) } else { bytes };
        if Digest::of(&blob).to_string() != name {
            return Err(Status::invalid_argument("another hash"));
        }
        self.0.blobs.lock().unwrap().insert(name, blob.into());
        let less = i64::from(fault == Fault::KeepsLess);
        Ok(Response::new(WriteResponse { committed_size: sent - less }))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn unpacked(packed: Vec<u8>, size: u64) -> Vec<u8> {
    let mut unpacker = Unpacker::new(size).unwrap();
    unpacker.feed(packed.into()).unwrap();
    let mut blob = Vec::new();
    while let Some(piece) = unpacker.next().unwrap() {
        blob.extend_from_slice(&piece);
    }
    assert!(unpacker.is_whole());
    blob
}

#[tonic::async_trait]
impl ActionCache for Service {
    async fn get_action_result(
        &self,
        request: Request<GetActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let request = request.into_inner();
        self.enter("get action", &request.instance_name).await?;
        let key = (request.instance_name, key(&request.action_digest.unwrap()));
        let result = self.0.actions.lock().unwrap().get(&key).cloned();
        result.map(Response::new).ok_or_else(|| Status::not_found("no result"))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let request = request.into_inner();
        self.enter("put action", &request.instance_name).await?;
        let key = (request.instance_name, key(&request.action_digest.unwrap()));
        let result = request.action_result.unwrap();
        self.0.actions.lock().unwrap().insert(key, result.clone());
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl Capabilities for Service {
    async fn get_capabilities(
        &self,
        request: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<ServerCapabilities>, Status> {
        let token = request.metadata().get("x-token").map(|value| value.to_str().unwrap());
        self.0.tokens.lock().unwrap().extend(token.map(str::to_owned));
        let fault = self.enter("capabilities", &request.get_ref().instance_name).await?;
        if fault == Fault::NoCapabilities {
            return Err(Status::unimplemented("an old server"));
        }
        if fault == Fault::CapabilitiesHang {
            pending::<()>().await;
        }
        let cache_capabilities = Some(self.0.offer.lock().unwrap().clone());
        Ok(Response::new(ServerCapabilities { cache_capabilities, ..Default::default() }))
    }
}
