//! Instances: any is served unless some are named, and none sees the results of another.

use crate::shared::{assert_refused, can_execute, own, shared};
use proto::{
    bytestream::QueryWriteStatusRequest,
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, ExecuteRequest,
        FindMissingBlobsRequest, GetActionResultRequest, GetCapabilitiesRequest, GetTreeRequest,
        UpdateActionResultRequest,
    },
};
use ringforge_tests::{
    action::Job,
    client::{Client, digest},
};
use tonic::{Code, Status};

/// Every RPC with an instance, by its name, and how it answers.
async fn ask_all(client: &Client, instance: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let instance_name = instance.to_owned();
    let empty = Some(digest(b""));
    let before = if instance.is_empty() { String::new() } else { format!("{instance}/") };
    let (mut cas, mut actions) = (client.cas.clone(), client.action_cache.clone());
    let find =
        FindMissingBlobsRequest { instance_name: instance_name.clone(), ..Default::default() };
    let update =
        BatchUpdateBlobsRequest { instance_name: instance_name.clone(), ..Default::default() };
    let read = BatchReadBlobsRequest { instance_name: instance_name.clone(), ..Default::default() };
    let tree = GetTreeRequest {
        instance_name: instance_name.clone(),
        root_digest: empty.clone(),
        ..Default::default()
    };
    let put = UpdateActionResultRequest {
        instance_name: instance_name.clone(),
        action_digest: empty.clone(),
        action_result: Some(ActionResult { exit_code: 3, ..Default::default() }),
        ..Default::default()
    };
    let get = GetActionResultRequest {
        instance_name: instance_name.clone(),
        action_digest: empty.clone(),
        ..Default::default()
    };
    let capabilities = GetCapabilitiesRequest { instance_name: instance_name.clone() };
    let resource_name = format!("{before}uploads/u/blobs/{}/0", digest(b"").hash);
    let query = QueryWriteStatusRequest { resource_name };
    let name = format!("{before}blobs/{}/0", digest(b"").hash);
    vec![
        ("FindMissingBlobs", cas.find_missing_blobs(find).await.map(drop)),
        ("BatchUpdateBlobs", cas.batch_update_blobs(update).await.map(drop)),
        ("BatchReadBlobs", cas.batch_read_blobs(read).await.map(drop)),
        ("GetTree", cas.get_tree(tree).await.map(drop)),
        ("UpdateActionResult", actions.update_action_result(put).await.map(drop)),
        ("GetActionResult", actions.get_action_result(get).await.map(drop)),
        ("GetCapabilities", {
            client.capabilities.clone().get_capabilities(capabilities).await.map(drop)
        }),
        ("Read", client.read_range(&name, 0, 0).await.map(drop)),
        ("QueryWriteStatus", client.byte_stream.clone().query_write_status(query).await.map(drop)),
    ]
}

#[tokio::test]
async fn any_instance_is_served_by_default() {
    let node = shared().await;
    for instance in ["", "main", "a/b/c", "remote-execution", "ü"] {
        for (rpc, answer) in ask_all(&node, instance).await {
            answer.unwrap_or_else(|error| panic!("{rpc} of {instance:?}: {error}"));
        }
    }
}

#[tokio::test]
async fn only_the_named_instances_are_served_where_some_are_named() {
    let node = own(&[("SERVER__INSTANCES", "main,a/b")]).await;
    for instance in ["main", "a/b"] {
        for (rpc, answer) in ask_all(&node, instance).await {
            answer.unwrap_or_else(|error| panic!("{rpc} of {instance:?}: {error}"));
        }
    }
    for instance in ["", "other", "main/b", "a", "a/b/c"] {
        for (rpc, answer) in ask_all(&node, instance).await {
            let code = answer.expect_err(rpc).code();
            let refused = matches!(code, Code::InvalidArgument | Code::NotFound);
            assert!(refused, "{rpc} of {instance:?}: {code}");
        }
    }
    let job = Job::new(&["true"]);
    let request = ExecuteRequest { instance_name: "other".to_owned(), ..job.request() };
    let code = node.execute(request).await.expect_err("another instance").code();
    assert!(matches!(code, Code::InvalidArgument | Code::NotFound), "{code}");
}

#[tokio::test]
async fn the_results_of_one_instance_are_invisible_to_another() {
    let node = shared().await;
    let action = Some(digest(b"an action of several instances"));
    let names = ["", "main", "main/a", "mai"];
    let get = |instance: &str| {
        let instance_name = instance.to_owned();
        let request = GetActionResultRequest {
            instance_name,
            action_digest: action.clone(),
            ..Default::default()
        };
        let mut client = node.action_cache.clone();
        async move { client.get_action_result(request).await.map(tonic::Response::into_inner) }
    };
    for (n, instance) in names.iter().enumerate() {
        for other in &names[n..] {
            assert_refused(get(other).await, Code::NotFound, other);
        }
        let exit_code = i32::try_from(n).unwrap() + 1;
        let request = UpdateActionResultRequest {
            instance_name: (*instance).to_owned(),
            action_digest: action.clone(),
            action_result: Some(ActionResult { exit_code, ..Default::default() }),
            ..Default::default()
        };
        node.action_cache.clone().update_action_result(request).await.unwrap();
    }
    for (n, instance) in names.iter().enumerate() {
        assert_eq!(get(instance).await.unwrap().exit_code, i32::try_from(n).unwrap() + 1);
    }
}

#[tokio::test]
async fn an_action_is_executed_for_each_instance_anew() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("cat /proc/sys/kernel/random/uuid");
    node.put(job.blobs()).await;
    let (mut seen, mut cached) = (Vec::new(), Vec::new());
    for instance in ["one", "two", "one"] {
        let request = ExecuteRequest { instance_name: instance.to_owned(), ..job.request() };
        let response = node.execute(request).await.unwrap();
        let stdout = response.result.unwrap().stdout_digest.unwrap();
        seen.push(stdout.hash);
        cached.push(response.cached_result);
    }
    assert_ne!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    assert_eq!(cached, [false, false, true]);
}
