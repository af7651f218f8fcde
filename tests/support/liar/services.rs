//! The services of the liar, as REAPI has them. Must never decide what is a lie: what is wrong
//! is made wrong in `liar.rs`.

use super::{Shared, WrongMissing};
use crate::client::digest;
use bytes::Bytes;
use futures_util::stream;
use proto::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
        WriteResponse, byte_stream_server::ByteStream,
    },
    reapi::{
        ActionCacheUpdateCapabilities, ActionResult, BatchReadBlobsRequest, BatchReadBlobsResponse,
        BatchUpdateBlobsRequest, BatchUpdateBlobsResponse, CacheCapabilities, Digest,
        FindMissingBlobsRequest, FindMissingBlobsResponse, GetActionResultRequest,
        GetCapabilitiesRequest, GetTreeRequest, GetTreeResponse, ServerCapabilities,
        SpliceBlobRequest, SpliceBlobResponse, SplitBlobRequest, SplitBlobResponse,
        UpdateActionResultRequest, action_cache_server::ActionCache, batch_read_blobs_response,
        batch_update_blobs_response, capabilities_server::Capabilities,
        content_addressable_storage_server::ContentAddressableStorage, digest_function,
    },
    rpc,
    semver::SemVer,
};
use std::{collections::VecDeque, pin::Pin, time::Duration};
use tokio::time::sleep;
use tonic::{Request, Response, Status, Streaming, codegen::tokio_stream};

/// What one message of a Read carries.
const PIECE_BYTES: usize = 64 << 10;
/// What one batch may hold, told to clients: below gRPC's bound for a message.
const BATCH_BYTES_MAX: i64 = 3840 << 10;
/// What one upload may hold.
const BLOB_BYTES_MAX: usize = 256 << 20;

/// The answers of a Read.
type Pieces = Pin<Box<dyn tokio_stream::Stream<Item = Result<ReadResponse, Status>> + Send>>;

/// The digest in `[instance/]blobs/HASH/SIZE` or `[instance/]uploads/UUID/blobs/HASH/SIZE[/…]`,
/// and the instance.
fn named(resource: &str, is_upload: bool) -> Result<(String, Digest), Status> {
    let wrong = || Status::invalid_argument(format!("no resource name: {resource:?}"));
    let parts: Vec<&str> = resource.split('/').collect();
    let blobs = parts.iter().position(|part| *part == "blobs").ok_or_else(wrong)?;
    let [_, hash, size, rest @ ..] = &parts[blobs..] else { return Err(wrong()) };
    let start = if is_upload { blobs.checked_sub(2).ok_or_else(wrong)? } else { blobs };
    if is_upload && parts[start] != "uploads" || !is_upload && !rest.is_empty() {
        return Err(wrong());
    }
    let size_bytes = size.parse().map_err(|_| wrong())?;
    Ok((parts[..start].join("/"), Digest { hash: (*hash).to_owned(), size_bytes }))
}

fn present(digest: Option<Digest>) -> Result<Digest, Status> {
    digest.ok_or_else(|| Status::invalid_argument("no digest"))
}

fn wire(outcome: &Result<(), Status>) -> Option<rpc::Status> {
    let status = outcome.as_ref().err().map(|status| rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    });
    Some(status.unwrap_or_default())
}

impl Shared {
    /// Keeps a blob whose bytes are those that its digest names.
    fn keep(&self, named: &Digest, blob: Bytes) -> Result<(), Status> {
        if digest(&blob) != *named {
            return Err(Status::invalid_argument("the bytes are not those of the digest"));
        }
        self.state().blobs.insert(named.hash.clone(), blob);
        Ok(())
    }

    fn has(&self, wanted: &Digest) -> bool {
        self.state().blobs.contains_key(&wanted.hash) || *wanted == digest(b"")
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Shared {
    type GetTreeStream = tokio_stream::Empty<Result<GetTreeResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("FindMissingBlobs", instance, request.metadata())?).await;
        let lie = self.state().lies.missing;
        let mut missing = request.into_inner().blob_digests;
        missing.retain(|digest| match lie {
            None => !self.has(digest),
            Some(WrongMissing::Nothing) => false,
            Some(WrongMissing::Everything) => true,
        });
        Ok(Response::new(FindMissingBlobsResponse { missing_blob_digests: missing }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("BatchUpdateBlobs", instance, request.metadata())?).await;
        let mut responses = Vec::new();
        for one in request.into_inner().requests {
            let digest = present(one.digest)?;
            let status = wire(&self.keep(&digest, one.data));
            let digest = Some(digest);
            responses.push(batch_update_blobs_response::Response { digest, status });
        }
        Ok(Response::new(BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("BatchReadBlobs", instance, request.metadata())?).await;
        let mut responses = Vec::new();
        for digest in request.into_inner().digests {
            let blob = self.blob(&digest);
            let status = wire(&blob.as_ref().map(|_| ()).map_err(Clone::clone));
            responses.push(batch_read_blobs_response::Response {
                digest: Some(digest),
                data: blob.unwrap_or_default(),
                status,
                ..Default::default()
            });
        }
        Ok(Response::new(BatchReadBlobsResponse { responses }))
    }

    async fn get_tree(
        &self,
        request: Request<GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        self.begin("GetTree", &request.get_ref().instance_name, request.metadata())?;
        Err(Status::unimplemented("GetTree"))
    }

    async fn split_blob(
        &self,
        request: Request<SplitBlobRequest>,
    ) -> Result<Response<SplitBlobResponse>, Status> {
        self.begin("SplitBlob", &request.get_ref().instance_name, request.metadata())?;
        Err(Status::unimplemented("SplitBlob"))
    }

    async fn splice_blob(
        &self,
        request: Request<SpliceBlobRequest>,
    ) -> Result<Response<SpliceBlobResponse>, Status> {
        self.begin("SpliceBlob", &request.get_ref().instance_name, request.metadata())?;
        Err(Status::unimplemented("SpliceBlob"))
    }
}

/// What is left of a Read.
struct Reading {
    first_byte: Duration,
    pieces: VecDeque<Bytes>,
    /// How it ends: well, or not.
    end: Option<Status>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<ReadResponse, Status>> {
        sleep(std::mem::take(&mut self.first_byte)).await;
        match self.pieces.pop_front() {
            Some(data) => Some(Ok(ReadResponse { data })),
            None => self.end.take().map(Err),
        }
    }
}

#[tonic::async_trait]
impl ByteStream for Shared {
    type ReadStream = Pieces;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Pieces>, Status> {
        let asked = request.get_ref();
        let named = named(&asked.resource_name, false);
        let instance = named.as_ref().map_or("", |(instance, _)| instance.as_str());
        let first_byte = self.begin("Read", instance, request.metadata())?;
        let mut blob = self.blob(&named?.1)?;
        let offset = usize::try_from(asked.read_offset).ok().filter(|at| *at <= blob.len());
        let offset = offset.ok_or_else(|| Status::out_of_range("read_offset"))?;
        blob = blob.split_off(offset);
        match usize::try_from(asked.read_limit) {
            Ok(0) => {}
            Ok(limit) => blob.truncate(limit),
            Err(_) => return Err(Status::invalid_argument("read_limit")),
        }
        let mut end = None;
        if let Some(breaking) = &mut self.state().lies.break_reads
            && breaking.times > 0
            && breaking.after_bytes < blob.len()
        {
            breaking.times -= 1;
            blob.truncate(breaking.after_bytes);
            end = Some(Status::unavailable("the read breaks off, as the test wants it"));
        }
        let mut pieces = VecDeque::new();
        while !blob.is_empty() {
            pieces.push_back(blob.split_to(blob.len().min(PIECE_BYTES)));
        }
        let reading = Reading { first_byte, pieces, end };
        let pieces = stream::unfold(reading, async |mut reading| {
            let next = reading.next().await?;
            Some((next, reading))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let metadata = request.metadata().clone();
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let named = named(&first.resource_name, true);
        let instance = named.as_ref().map_or("", |(instance, _)| instance.as_str());
        sleep(self.begin("Write", instance, &metadata)?).await;
        let digest = named?.1;
        let mut blob = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            if usize::try_from(message.write_offset) != Ok(blob.len()) {
                return Err(Status::invalid_argument("write_offset"));
            }
            if blob.len() + message.data.len() > BLOB_BYTES_MAX {
                return Err(Status::resource_exhausted("the blob is too large"));
            }
            blob.extend_from_slice(&message.data);
            if message.finish_write {
                self.keep(&digest, blob.into())?;
                return Ok(Response::new(WriteResponse { committed_size: digest.size_bytes }));
            }
            next = messages.message().await?;
        }
        Err(Status::invalid_argument("the write was not finished"))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let named = named(&request.get_ref().resource_name, true);
        let instance = named.as_ref().map_or("", |(instance, _)| instance.as_str());
        sleep(self.begin("QueryWriteStatus", instance, request.metadata())?).await;
        let digest = named?.1;
        let complete = self.has(&digest);
        let committed_size = if complete { digest.size_bytes } else { 0 };
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete }))
    }
}

#[tonic::async_trait]
impl ActionCache for Shared {
    async fn get_action_result(
        &self,
        request: Request<GetActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("GetActionResult", instance, request.metadata())?).await;
        let action = present(request.into_inner().action_digest)?;
        let state = self.state();
        let stored = state.results.get(&action.hash).cloned();
        let result = match state.lies.result {
            Some(wrong) => Some(wrong.made_of(stored.unwrap_or_default())),
            None => stored,
        };
        let result = result.ok_or_else(|| Status::not_found("no result of this action"))?;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("UpdateActionResult", instance, request.metadata())?).await;
        let UpdateActionResultRequest { action_digest, action_result, .. } = request.into_inner();
        let action = present(action_digest)?;
        let result = action_result.ok_or_else(|| Status::invalid_argument("no result"))?;
        self.state().results.insert(action.hash, result.clone());
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl Capabilities for Shared {
    async fn get_capabilities(
        &self,
        request: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<ServerCapabilities>, Status> {
        let instance = &request.get_ref().instance_name;
        sleep(self.begin("GetCapabilities", instance, request.metadata())?).await;
        let version = |minor| Some(SemVer { major: 2, minor, ..Default::default() });
        let cache = CacheCapabilities {
            digest_functions: vec![digest_function::Value::Sha256 as i32],
            action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities {
                update_enabled: true,
            }),
            max_batch_total_size_bytes: BATCH_BYTES_MAX,
            ..Default::default()
        };
        Ok(Response::new(ServerCapabilities {
            cache_capabilities: Some(cache),
            low_api_version: version(0),
            high_api_version: version(3),
            ..Default::default()
        }))
    }
}
