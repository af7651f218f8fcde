//! Capabilities, health and reflection: what the node says of itself, held against what it does.

use crate::shared::{own, shared};
use proto::reapi::{
    ExecuteRequest, GetCapabilitiesRequest, ServerCapabilities, digest_function::Value as Function,
    symlink_absolute_path_strategy::Value as Absolute,
};
use ringforge_tests::client::{Client, digest};
use tonic::{Code, Request, metadata::MetadataValue};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn ask(client: &Client, instance: &str) -> ServerCapabilities {
    let request = GetCapabilitiesRequest { instance_name: instance.to_owned() };
    client.capabilities.clone().get_capabilities(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn the_api_is_offered_from_2_0_to_2_12() {
    let node = shared().await;
    let said = ask(&node, "").await;
    let low = said.low_api_version.unwrap();
    assert_eq!((low.major, low.minor, low.patch), (2, 0, 0));
    let high = said.high_api_version.unwrap();
    assert_eq!((high.major, high.minor), (2, 12));
    assert!(low.prerelease.is_empty() && high.prerelease.is_empty());
}

#[tokio::test]
async fn every_instance_is_told_the_same() {
    let node = shared().await;
    let plain = ask(&node, "").await;
    for instance in ["main", "a/b/c", "with space", "ü"] {
        assert_eq!(ask(&node, instance).await, plain, "{instance}");
    }
}

#[tokio::test]
async fn the_cache_promises_no_more_than_it_does() {
    let node = shared().await;
    let cache = ask(&node, "").await.cache_capabilities.unwrap();
    assert_eq!(cache.digest_functions, [Function::Sha256 as i32]);
    assert!(cache.action_cache_update_capabilities.unwrap().update_enabled);
    let batch = cache.max_batch_total_size_bytes;
    assert!((3 << 20..4 << 20).contains(&batch), "{batch} is not a little under 4 MiB");
    assert_ne!(cache.symlink_absolute_path_strategy, Absolute::Unknown as i32);
    assert!(cache.max_cas_blob_size_bytes > 0);
    assert!(cache.supported_compressors.iter().all(|&compressor| compressor == 0));
    assert!(cache.supported_batch_update_compressors.iter().all(|&compressor| compressor == 0));
    assert!(!cache.split_blob_support && !cache.splice_blob_support);
    assert!(cache.fast_cdc_2020_params.is_none() && cache.rep_max_cdc_params.is_none());
}

#[tokio::test]
async fn the_executor_uses_a_function_that_it_lists() {
    let node = shared().await;
    let execution = ask(&node, "").await.execution_capabilities.unwrap();
    assert!(execution.exec_enabled);
    assert_eq!(execution.digest_function, Function::Sha256 as i32);
    assert!(execution.digest_functions.contains(&execution.digest_function));
    let priorities = execution.execution_priority_capabilities.unwrap().priorities;
    assert!(priorities.iter().any(|range| (range.min_priority..=range.max_priority).contains(&0)));
    assert!(priorities.iter().all(|range| range.min_priority <= range.max_priority));
}

#[tokio::test]
async fn a_cache_alone_says_that_it_executes_nothing() {
    let node = own(&[("EXECUTION__ENABLED", "false")]).await;
    let said = ask(&node, "").await;
    assert!(said.cache_capabilities.is_some());
    assert!(said.execution_capabilities.is_none_or(|execution| !execution.exec_enabled));
    let request = ExecuteRequest { action_digest: Some(digest(b"action")), ..Default::default() };
    let answer = node.execution.clone().execute(request).await;
    assert_eq!(answer.map(drop).unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_limits_of_the_configuration_are_told() {
    let settings = [("SERVER__BATCH_BYTES_MAX", "64KiB"), ("STORE__BLOB_BYTES_MAX", "1MiB")];
    let node = own(&settings).await;
    let cache = ask(&node, "").await.cache_capabilities.unwrap();
    assert_eq!(cache.max_batch_total_size_bytes, 64 << 10);
    assert_eq!(cache.max_cas_blob_size_bytes, 1 << 20);
}

#[tokio::test]
async fn request_metadata_is_taken_whatever_it_says() {
    let node = shared().await;
    for value in [&b""[..], b"\xff\xff\xff", b"\x0a\x03abc"] {
        let mut request = Request::new(GetCapabilitiesRequest::default());
        let key = "build.bazel.remote.execution.v2.requestmetadata-bin";
        request.metadata_mut().insert_bin(key, MetadataValue::from_bytes(value));
        node.capabilities.clone().get_capabilities(request).await.unwrap();
    }
}

#[tokio::test]
async fn health_is_told_of_the_node_and_of_no_other_service() {
    let node = shared().await;
    let mut health = HealthClient::new(node.channel.clone());
    let check = HealthCheckRequest { service: String::new() };
    let answer = health.check(check).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let other = HealthCheckRequest { service: "no.such.Service".to_owned() };
    assert_eq!(health.check(other).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let node = shared().await;
    let mut reflection = ServerReflectionClient::new(node.channel.clone());
    let ask = |message| {
        let host = String::new();
        tokio_stream::iter([ServerReflectionRequest { host, message_request: Some(message) }])
    };
    let list = ask(MessageRequest::ListServices(String::new()));
    let mut answers = reflection.server_reflection_info(list).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in [
        "build.bazel.remote.execution.v2.Capabilities",
        "build.bazel.remote.execution.v2.ContentAddressableStorage",
        "build.bazel.remote.execution.v2.ActionCache",
        "build.bazel.remote.execution.v2.Execution",
        "google.bytestream.ByteStream",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|name| name == service), "{service} is not in {names:?}");
        let symbol = ask(MessageRequest::FileContainingSymbol(service.to_owned()));
        let mut answers = reflection.server_reflection_info(symbol).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    }
}
