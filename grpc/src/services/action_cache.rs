//! ActionCache: complete results only, by instance. Must never make a response larger than a
//! client takes by inlining.

use super::{Node, digest, function};
use crate::status;
use bytes::Bytes;
use engine::{
    blob::action_cache,
    cores::Cores,
    digest::{Digest, DigestFunction},
    exec::is_plain_path,
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
        let request = request.into_inner();
        self.node.check_instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let action = digest(request.action_digest.as_ref(), function)?;
        let Node { cores, limits, .. } = &self.node;
        let found = action_cache::get(cores, &request.instance_name, action, limits).await;
        let found = found.map_err(|error| status::blob_status(&error))?;
        let mut result = found
            .ok_or_else(|| Status::not_found(format!("no complete result of action {action}")))?;
        let wanted = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: &request.inline_output_files,
        };
        inline(cores, &mut result, &wanted).await;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let request = request.into_inner();
        self.node.check_instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let action = digest(request.action_digest.as_ref(), function)?;
        let result = request
            .action_result
            .ok_or_else(|| Status::invalid_argument("action_result is missing"))?;
        check(&result, function)?;
        let stored =
            action_cache::put(&self.node.cores, &request.instance_name, action, &result).await;
        stored.map_err(|error| status::blob_status(&error))?;
        Ok(Response::new(result))
    }
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
pub(crate) async fn inline(cores: &Cores, result: &mut ActionResult, wanted: &Inline<'_>) {
    let mut room = INLINE_TOTAL_BYTES_MAX.saturating_sub(result.encoded_len() as u64);
    if wanted.stdout && result.stdout_raw.is_empty() {
        result.stdout_raw = fetch(cores, result.stdout_digest.as_ref(), &mut room).await;
    }
    if wanted.stderr && result.stderr_raw.is_empty() {
        result.stderr_raw = fetch(cores, result.stderr_digest.as_ref(), &mut room).await;
    }
    let named: HashSet<&str> = wanted.files.iter().map(String::as_str).collect();
    for file in &mut result.output_files {
        if named.contains(file.path.as_str()) {
            file.contents = fetch(cores, file.digest.as_ref(), &mut room).await;
        }
    }
}

/// The blob, or nothing where it does not fit: inlining is a courtesy.
async fn fetch(cores: &Cores, wire: Option<&proto::reapi::Digest>, room: &mut u64) -> Bytes {
    let parsed = wire
        .and_then(|wire| Digest::parse(DigestFunction::Sha256, &wire.hash, wire.size_bytes).ok());
    let Some(digest) = parsed.filter(|digest| digest.size() <= *room) else {
        return Bytes::new();
    };
    let bytes = cores.read(digest, *room).await.unwrap_or_default();
    *room -= bytes.len() as u64;
    bytes
}
