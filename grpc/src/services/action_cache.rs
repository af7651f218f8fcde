//! ActionCache: complete results only, by instance. Must never make a response larger than a
//! client takes by inlining.

use super::{Node, digest, function};
use crate::status;
use bytes::Bytes;
use engine::{
    digest::{Digest, DigestFunction},
    exec::is_plain_path,
    tier::{Blobs, action_cache},
};
use prost::Message;
use proto::reapi::{
    ActionResult, GetActionResultRequest, UpdateActionResultRequest,
    action_cache_server::ActionCache,
};
use std::collections::{BTreeSet, HashSet};
use tonic::{Request, Response, Status};

/// Largest response that inlining may make, in bytes: clients take 4 MiB by default.
pub(crate) const INLINE_TOTAL_BYTES_MAX: u64 = 3 << 20;

/// The service.
#[derive(Clone)]
pub(crate) struct ActionCacheService {
    pub(crate) node: Node,
}

/// What a client would like to find inside the result.
pub(crate) struct Inline<'a> {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) files: &'a [String],
}

#[tonic::async_trait]
impl ActionCache for ActionCacheService {
    async fn get_action_result(
        &self,
        request: Request<GetActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let action = digest(request.action_digest.as_ref(), function)?;
        let found = cached(&self.node, &blobs, &request.instance_name, action).await?;
        let mut result = found
            .ok_or_else(|| Status::not_found(format!("no complete result of action {action}")))?;
        let wanted = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: &request.inline_output_files,
        };
        inline(&blobs, &mut result, &wanted).await;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let (metadata, _, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let action = digest(request.action_digest.as_ref(), function)?;
        let result = request
            .action_result
            .ok_or_else(|| Status::invalid_argument("action_result is missing"))?;
        check(&result, function)?;
        let (instance, bounds) = (&request.instance_name, (&*self.node.limits).into());
        let stored = action_cache::put(&blobs, instance, action, &result, bounds).await;
        stored.map_err(|error| status::blob_status(&error))?;
        Ok(Response::new(result))
    }
}

/// The complete result of an action, from here or from below.
pub(crate) async fn cached(
    node: &Node,
    blobs: &Blobs,
    instance: &str,
    action: Digest,
) -> Result<Option<ActionResult>, Status> {
    let sound = |result: &ActionResult| check(result, DigestFunction::Sha256).is_ok();
    let bounds = (&*node.limits).into();
    let found = action_cache::get(blobs, instance, action, bounds, sound).await;
    found.map_err(|error| status::blob_status(&error))
}

/// Refuses a result that could never be a hit, or that no client should believe.
fn check(result: &ActionResult, function: DigestFunction) -> Result<(), Status> {
    check_paths(result)?;
    for file in &result.output_files {
        digest(file.digest.as_ref(), function)?;
    }
    for directory in &result.output_directories {
        digest(directory.tree_digest.as_ref(), function)?;
        if directory.root_directory_digest.is_some() {
            digest(directory.root_directory_digest.as_ref(), function)?;
        }
    }
    for named in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
        digest(Some(named), function)?;
    }
    Ok(())
}

/// A client that trusts the cache writes to these paths, and may end at one that comes twice.
fn check_paths(result: &ActionResult) -> Result<(), Status> {
    #[expect(deprecated, reason = "what clients of API 2.0 send")]
    let old_symlinks = [&result.output_file_symlinks, &result.output_directory_symlinks];
    let (mut seen, mut twice) = (BTreeSet::new(), false);
    let mut check = |path: &str, may_be_empty: bool| -> Result<bool, Status> {
        is_plain_path(path).map_err(|bad| status::exec_status(&bad))?;
        if path.is_empty() && !may_be_empty {
            return Err(Status::invalid_argument("an output has no path"));
        }
        Ok(!seen.insert(path.to_owned()))
    };
    for file in &result.output_files {
        twice |= check(&file.path, false)?;
    }
    for directory in &result.output_directories {
        twice |= check(&directory.path, true)?;
    }
    for symlink in &result.output_symlinks {
        twice |= check(&symlink.path, false)?;
    }
    for symlink in old_symlinks.into_iter().flatten() {
        // Clients of both ages are told of a symlink in both ways.
        check(&symlink.path, false)?;
    }
    if twice {
        return Err(Status::invalid_argument("the result names one output path twice"));
    }
    Ok(())
}

/// Puts into the result what the client asked for, as far as there is room.
pub(crate) async fn inline(blobs: &Blobs, result: &mut ActionResult, wanted: &Inline<'_>) {
    let mut room = INLINE_TOTAL_BYTES_MAX.saturating_sub(result.encoded_len() as u64);
    if wanted.stdout && result.stdout_raw.is_empty() {
        result.stdout_raw = fetch(blobs, result.stdout_digest.as_ref(), &mut room).await;
    }
    if wanted.stderr && result.stderr_raw.is_empty() {
        result.stderr_raw = fetch(blobs, result.stderr_digest.as_ref(), &mut room).await;
    }
    let named: HashSet<&str> = wanted.files.iter().map(String::as_str).collect();
    for file in &mut result.output_files {
        if named.contains(file.path.as_str()) {
            file.contents = fetch(blobs, file.digest.as_ref(), &mut room).await;
        }
    }
}

/// The blob, or nothing where it does not fit: inlining is a courtesy.
async fn fetch(blobs: &Blobs, wire: Option<&proto::reapi::Digest>, room: &mut u64) -> Bytes {
    let parsed = wire
        .and_then(|wire| Digest::parse(DigestFunction::Sha256, &wire.hash, wire.size_bytes).ok());
    let Some(digest) = parsed.filter(|digest| digest.size() <= *room) else {
        return Bytes::new();
    };
    let bytes = blobs.read(digest, *room).await.unwrap_or_default();
    *room -= bytes.len() as u64;
    bytes
}
