//! Capabilities: what this node can do. Must never promise what another service refuses.

use super::Node;
use proto::{
    reapi::{
        ActionCacheUpdateCapabilities, CacheCapabilities, ExecutionCapabilities,
        GetCapabilitiesRequest, PriorityCapabilities, ServerCapabilities,
        capabilities_server::Capabilities, digest_function, priority_capabilities::PriorityRange,
        symlink_absolute_path_strategy,
    },
    semver::SemVer,
};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub(crate) struct CapabilitiesService {
    pub(crate) node: Node,
}

#[tonic::async_trait]
impl Capabilities for CapabilitiesService {
    async fn get_capabilities(
        &self,
        request: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<ServerCapabilities>, Status> {
        self.node.check_instance(&request.get_ref().instance_name)?;
        Ok(Response::new(capabilities(&self.node)))
    }
}

fn capabilities(node: &Node) -> ServerCapabilities {
    let sha256 = digest_function::Value::Sha256 as i32;
    let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let priorities = |min_priority, max_priority| {
        let range = PriorityRange { min_priority, max_priority };
        Some(PriorityCapabilities { priorities: vec![range] })
    };
    let cache = CacheCapabilities {
        digest_functions: vec![sha256],
        action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities {
            update_enabled: true,
        }),
        // Every result is kept alike.
        cache_priority_capabilities: priorities(0, 0),
        max_batch_total_size_bytes: bytes(node.bounds.batch_bytes_max as u64),
        symlink_absolute_path_strategy: symlink_absolute_path_strategy::Value::Allowed as i32,
        supported_compressors: Vec::new(),
        supported_batch_update_compressors: Vec::new(),
        max_cas_blob_size_bytes: bytes(node.limits.blob_bytes_max),
        split_blob_support: false,
        splice_blob_support: false,
        fast_cdc_2020_params: None,
        rep_max_cdc_params: None,
    };
    let execution = node.executions.as_ref().map(|_| ExecutionCapabilities {
        digest_function: sha256,
        exec_enabled: true,
        execution_priority_capabilities: priorities(i32::MIN, i32::MAX),
        supported_node_properties: Vec::new(),
        digest_functions: vec![sha256],
    });
    let version = |major, minor| Some(SemVer { major, minor, patch: 0, prerelease: String::new() });
    ServerCapabilities {
        cache_capabilities: Some(cache),
        execution_capabilities: execution,
        deprecated_api_version: version(2, 0),
        // Old clients speak 2.0 alone and cache nothing where it is not offered.
        low_api_version: version(2, 0),
        high_api_version: version(2, 12),
    }
}
