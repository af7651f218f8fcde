//! ContentAddressableStorage, except what ByteStream carries.

use super::{Node, digest, function, to_wire};
use crate::status;
use bytes::Bytes;
use engine::{
    blob::BlobError,
    digest::{Digest, DigestFunction},
    exec::{check_message_size, decode_message},
    limits::Limits,
    tier::Blobs,
};
use futures_util::stream::{self, Stream, StreamExt};
use prost::Message;
use proto::reapi::{
    BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest,
    BatchUpdateBlobsResponse, Directory, FindMissingBlobsRequest, FindMissingBlobsResponse,
    GetTreeRequest, GetTreeResponse, SpliceBlobRequest, SpliceBlobResponse, SplitBlobRequest,
    SplitBlobResponse, batch_read_blobs_response, batch_update_blobs_response, compressor,
    content_addressable_storage_server::ContentAddressableStorage,
};
use std::{collections::HashSet, pin::Pin};
use tonic::{Code, Request, Response, Status};

/// The service.
#[derive(Clone)]
pub(crate) struct CasService {
    pub(crate) node: Node,
}

/// Directories in one message of GetTree, where the client asks for no fewer.
const PAGE_DIRECTORIES_MAX: usize = 1000;
/// Files, directories and symlinks in all directories of one tree: what is read is held until the
/// last page is made.
const TREE_ENTRIES_MAX: u64 = 1_000_000;
/// Digests asked for in one request to the store: others wait for its end.
const FIND_BATCH_MAX: usize = 10_000;
/// Bytes of directories after which a message of GetTree ends.
const PAGE_BYTES: usize = 1 << 20;

/// Largest response, in bytes: clients take 4 MiB where they are not told otherwise.
const RESPONSE_BYTES_MAX: usize = (4 << 20) - 1024;
/// What one blob adds to a response beside its bytes: digest, size, a bare status, tags.
const ENTRY_BYTES_MAX: usize = 100;

type TreeStream = Pin<Box<dyn Stream<Item = Result<GetTreeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ContentAddressableStorage for CasService {
    type GetTreeStream = TreeStream;

    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let bound = self.node.bounds.find_missing_digests_max;
        if request.blob_digests.len() > bound {
            return Err(Status::invalid_argument(format!("more than {bound} digests")));
        }
        let digests = request
            .blob_digests
            .iter()
            .map(|wire| digest(Some(wire), function))
            .collect::<Result<Vec<_>, _>>()?;
        let mut missing_blob_digests = Vec::new();
        for batch in digests.chunks(FIND_BATCH_MAX) {
            let missing = blobs.find_missing(batch.to_vec()).await;
            let missing = missing.map_err(|error| status::blob_status(&error))?;
            missing_blob_digests.extend(missing.iter().map(to_wire));
        }
        Ok(Response::new(FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let total = request.requests.iter().map(|one| one.data.len()).sum::<usize>();
        check_total(total as u64, self.node.bounds.batch_bytes_max)?;
        let mut uploads = Vec::with_capacity(request.requests.len());
        let mut outcomes = Vec::with_capacity(request.requests.len());
        for one in request.requests {
            let checked = check_upload(one.digest.as_ref(), &one.data, one.compressor, function);
            outcomes.push((one.digest, checked.as_ref().err().cloned()));
            if let Ok(digest) = checked {
                uploads.push((digest, one.data));
            }
        }
        let kept = blobs.put_many(uploads).await;
        let mut kept = kept.map_err(|error| status::blob_status(&error))?.into_iter();
        let responses = outcomes.into_iter().map(|(digest, refused)| {
            let outcome = match refused {
                Some(refused) => Err(refused),
                None => kept
                    .next()
                    .unwrap_or(Err(BlobError::Stopped))
                    .map_err(|error| status::blob_status(&error)),
            };
            let status = Some(outcome.map_or_else(|error| status::to_wire(&error), |()| ok()));
            batch_update_blobs_response::Response { digest, status }
        });
        Ok(Response::new(BatchUpdateBlobsResponse { responses: responses.collect() }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let digests = request
            .digests
            .iter()
            .map(|wire| digest(Some(wire), function))
            .collect::<Result<Vec<_>, _>>()?;
        let total = digests.iter().fold(0_u64, |sum, digest| sum.saturating_add(digest.size()));
        check_total(total, self.node.bounds.batch_bytes_max)?;
        let read = blobs.get_many(digests).await;
        let read = read.map_err(|error| status::blob_status(&error))?;
        let mut room = room_for_blobs(request.digests.len())?;
        let responses = request.digests.into_iter().zip(read).map(|(digest, read)| {
            let (data, status) = match read {
                Ok(bytes) => match room.checked_sub(bytes.len()) {
                    Some(left) => {
                        room = left;
                        (bytes, ok())
                    }
                    None => (Bytes::new(), bare(Code::ResourceExhausted)),
                },
                Err(error) => (Bytes::new(), short(&status::blob_status(&error), &mut room)),
            };
            batch_read_blobs_response::Response {
                digest: Some(digest),
                data,
                compressor: compressor::Value::Identity as i32,
                status: Some(status),
            }
        });
        Ok(Response::new(BatchReadBlobsResponse { responses: responses.collect() }))
    }

    async fn get_tree(
        &self,
        request: Request<GetTreeRequest>,
    ) -> Result<Response<TreeStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let root = digest(request.root_digest.as_ref(), function)?;
        let skip = page_start(&request.page_token)?;
        let asked = usize::try_from(request.page_size)
            .map_err(|_| Status::invalid_argument("page_size is negative"))?;
        let page = if asked == 0 { PAGE_DIRECTORIES_MAX } else { asked.min(PAGE_DIRECTORIES_MAX) };
        let directories = walk(&blobs, &self.node.limits, root, function).await?;
        if skip > directories.len() {
            return Err(Status::invalid_argument("page_token is beyond the tree"));
        }
        let pages = paginate(directories, skip, page);
        Ok(Response::new(stream::iter(pages).map(Ok).boxed()))
    }

    async fn split_blob(
        &self,
        _: Request<SplitBlobRequest>,
    ) -> Result<Response<SplitBlobResponse>, Status> {
        Err(Status::unimplemented("SplitBlob is not served (see Capabilities)"))
    }

    async fn splice_blob(
        &self,
        _: Request<SpliceBlobRequest>,
    ) -> Result<Response<SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("SpliceBlob is not served (see Capabilities)"))
    }
}

fn ok() -> proto::rpc::Status {
    proto::rpc::Status::default()
}

/// What is left for blobs in a response that names `count` digests. The bound of a batch counts
/// blobs alone, and many small ones come with as much again.
fn room_for_blobs(count: usize) -> Result<usize, Status> {
    let room = RESPONSE_BYTES_MAX.checked_sub(count.saturating_mul(ENTRY_BYTES_MAX));
    room.ok_or_else(|| Status::invalid_argument(format!("{count} digests in one batch")))
}

/// A status with its code alone.
fn bare(code: Code) -> proto::rpc::Status {
    proto::rpc::Status { code: code as i32, ..ok() }
}

/// A status with its message, as long as there is room for messages.
fn short(status: &Status, room: &mut usize) -> proto::rpc::Status {
    let wire = status::to_wire(status);
    match room.checked_sub(wire.encoded_len()) {
        Some(left) => {
            *room = left;
            wire
        }
        None => bare(status.code()),
    }
}

fn check_total(total: u64, bound: usize) -> Result<(), Status> {
    if total > bound as u64 {
        return Err(Status::invalid_argument(format!(
            "{total} bytes in one batch; max_batch_total_size_bytes is {bound}"
        )));
    }
    Ok(())
}

fn check_upload(
    wire: Option<&proto::reapi::Digest>,
    bytes: &[u8],
    compressor: i32,
    function: DigestFunction,
) -> Result<Digest, Status> {
    if compressor != compressor::Value::Identity as i32 {
        return Err(Status::invalid_argument("this compressor is not served (see Capabilities)"));
    }
    let digest = digest(wire, function)?;
    if digest.size() != bytes.len() as u64 {
        return Err(status::blob_status(&BlobError::Mismatch(digest)));
    }
    Ok(digest)
}

/// How many directories the pages before this one held.
fn page_start(token: &str) -> Result<usize, Status> {
    if token.is_empty() {
        return Ok(0);
    }
    token.parse().map_err(|_| Status::invalid_argument("page_token is none of ours"))
}

/// Every directory that is here, each once, parents first and in the order they are named: the
/// same for each page of a sequence.
async fn walk(
    blobs: &Blobs,
    limits: &Limits,
    root: Digest,
    function: DigestFunction,
) -> Result<Vec<Directory>, Status> {
    let mut seen = HashSet::from([root]);
    let mut level = vec![root];
    let (mut directories, mut bytes, mut room) = (Vec::new(), 0_u64, TREE_ENTRIES_MAX);
    while !level.is_empty() {
        let mut next = Vec::new();
        bytes = level.iter().fold(bytes, |sum, digest| sum.saturating_add(digest.size()));
        if bytes > limits.tree_bytes_max || seen.len() > limits.tree_directories_max {
            return Err(Status::invalid_argument("the tree is larger than this node reads"));
        }
        let sizes = level.iter().try_for_each(check_message_size);
        sizes.map_err(|error| status::exec_status(&error))?;
        let read = blobs.get_many(level.clone()).await;
        let read = read.map_err(|error| status::blob_status(&error))?;
        for (here, encoded) in level.into_iter().zip(read) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                Err(BlobError::NotFound(digest)) if digest != root => continue,
                Err(error) => return Err(status::blob_status(&error)),
            };
            let directory: Directory = decode_message(here, encoded, &mut room)
                .map_err(|error| status::exec_status(&error))?;
            for child in &directory.directories {
                let child = digest(child.digest.as_ref(), function)?;
                if seen.insert(child) {
                    next.push(child);
                }
            }
            directories.push(directory);
        }
        level = next;
    }
    Ok(directories)
}

fn paginate(directories: Vec<Directory>, skip: usize, page: usize) -> Vec<GetTreeResponse> {
    let total = directories.len();
    let (mut pages, mut bytes) = (vec![GetTreeResponse::default()], 0);
    for (at, directory) in directories.into_iter().enumerate().skip(skip) {
        let last = pages.last_mut().expect("never empty");
        if last.directories.len() >= page || bytes >= PAGE_BYTES {
            last.next_page_token = at.to_string();
            pages.push(GetTreeResponse::default());
            bytes = 0;
        }
        bytes += directory.encoded_len();
        pages.last_mut().expect("never empty").directories.push(directory);
    }
    debug_assert!(skip <= total);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::reapi::FileNode;

    fn named(name: usize) -> Directory {
        let file = FileNode { name: name.to_string(), ..FileNode::default() };
        Directory { files: vec![file], ..Directory::default() }
    }

    #[test]
    fn a_response_to_a_batch_read_stays_below_its_bound() {
        let digest = to_wire(&Digest::of(b"x"));
        for (count, size) in [(1, 4_000_000), (100, 40_000), (4032, 1024), (30_000, 60)] {
            let mut room = room_for_blobs(count).unwrap();
            let mut response = BatchReadBlobsResponse::default();
            for _ in 0..count {
                let (data, status) = match room.checked_sub(size) {
                    Some(left) => {
                        room = left;
                        (Bytes::from(vec![0; size]), ok())
                    }
                    None => (Bytes::new(), bare(Code::ResourceExhausted)),
                };
                response.responses.push(batch_read_blobs_response::Response {
                    digest: Some(digest.clone()),
                    data,
                    status: Some(status),
                    ..Default::default()
                });
            }
            assert!(response.encoded_len() <= RESPONSE_BYTES_MAX, "{count} of {size}");
        }
        assert!(room_for_blobs(50_000).is_err());
    }

    #[test]
    fn pages_cover_the_tree_and_their_tokens_go_on_where_they_end() {
        let all: Vec<_> = (0..7).map(named).collect();
        for page in [1, 2, 3, 7, 100] {
            let pages = paginate(all.clone(), 0, page);
            let joined: Vec<_> = pages.iter().flat_map(|page| page.directories.clone()).collect();
            assert_eq!(joined, all);
            assert_eq!(pages.last().unwrap().next_page_token, "");
            if let [first, _, ..] = pages.as_slice() {
                let skip = page_start(&first.next_page_token).unwrap();
                assert_eq!(paginate(all.clone(), skip, page), pages[1..]);
            }
        }
        assert_eq!(paginate(all, 7, 2), [GetTreeResponse::default()]);
    }
}
