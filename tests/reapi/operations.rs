//! google.longrunning.Operations: a look at executions from the side.

use crate::shared::{Connected, assert_refused, can_execute, own, shared};
use proto::{
    longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        Operation, WaitOperationRequest,
    },
    reapi::execution_stage::Value as Stage,
};
use ringforge_tests::{
    action::Job,
    client::{metadata, response},
};
use std::collections::BTreeSet;
use tonic::{Code, Status};

async fn get(node: &Connected, name: &str) -> Result<Operation, Status> {
    let request = GetOperationRequest { name: name.to_owned() };
    Ok(node.operations.clone().get_operation(request).await?.into_inner())
}

async fn list(node: &Connected, page_size: i32) -> Result<Vec<String>, Status> {
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest { page_size, page_token, ..Default::default() };
        let page = node.operations.clone().list_operations(request).await?.into_inner();
        if let Ok(size @ 1..) = usize::try_from(page_size) {
            assert!(page.operations.len() <= size);
        }
        names.extend(page.operations.into_iter().map(|operation| operation.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(names);
        }
    }
}

#[tokio::test]
async fn an_operation_can_be_looked_at_while_it_runs_and_after_its_end() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("echo looked at; sleep 0.3");
    node.put(job.blobs()).await;
    let mut running = node.begin(job.request()).await.unwrap();
    running.until(Stage::Executing).await;
    let name = running.last.name.clone();
    let (before, uuid) = name.rsplit_once(':').expect("node:uuid");
    assert!(!before.is_empty() && uuid.len() == 36, "{name}");
    let seen = get(&node, &name).await.unwrap();
    assert_eq!(seen.name, name);
    assert_eq!(metadata(&seen).action_digest, Some(job.digest()));
    let ended = running.end().await.unwrap();
    let seen = get(&node, &name).await.unwrap();
    assert_eq!(metadata(&seen).stage, Stage::Completed as i32);
    assert_eq!(response(&seen), ended);
}

#[tokio::test]
async fn waiting_ends_with_the_operation_or_with_the_patience() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("sleep 1");
    node.put(job.blobs()).await;
    let running = node.begin(job.request()).await.unwrap();
    let name = running.last.name.clone();
    let wait = |nanos: Option<i32>| {
        let timeout = nanos.map(|nanos| prost_types::Duration { seconds: 0, nanos });
        let request = WaitOperationRequest { name: name.clone(), timeout };
        let mut operations = node.operations.clone();
        async move { operations.wait_operation(request).await.unwrap().into_inner() }
    };
    assert!(!wait(Some(1_000_000)).await.done);
    assert!(wait(None).await.done);
    drop(running);
}

#[tokio::test]
async fn every_operation_is_listed_once_in_pages_of_any_size() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    assert_eq!(list(&node, 0).await.unwrap(), [""; 0]);
    let mut names = BTreeSet::new();
    for _ in 0..5 {
        let job = Job::new(&["true"]);
        node.put(job.blobs()).await;
        let running = node.begin(job.request()).await.unwrap();
        names.insert(running.last.name.clone());
        running.end().await.unwrap();
    }
    for size in [0, 1, 2, 5, 100] {
        let listed = list(&node, size).await.unwrap();
        assert_eq!(listed.len(), names.len(), "{size}");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names, "{size}");
    }
    assert_refused(list(&node, -1).await, Code::InvalidArgument, "a negative size");
}

#[tokio::test]
async fn an_operation_that_is_unknown_is_not_found() {
    let node = shared().await;
    for name in ["", "nobody", "operations/nobody", "a:b"] {
        assert_refused(get(&node, name).await, Code::NotFound, name);
        let request = CancelOperationRequest { name: name.to_owned() };
        let answer = node.operations.clone().cancel_operation(request).await;
        assert_refused(answer, Code::NotFound, name);
        let request = WaitOperationRequest { name: name.to_owned(), timeout: None };
        let answer = node.operations.clone().wait_operation(request).await;
        assert_refused(answer, Code::NotFound, name);
    }
}

#[tokio::test]
async fn cancelling_what_has_ended_changes_nothing() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::new(&["true"]);
    node.put(job.blobs()).await;
    let running = node.begin(job.request()).await.unwrap();
    let name = running.last.name.clone();
    let ended = running.end().await.unwrap();
    let request = CancelOperationRequest { name: name.clone() };
    node.operations.clone().cancel_operation(request).await.unwrap();
    assert_eq!(response(&get(&node, &name).await.unwrap()), ended);
}

#[tokio::test]
async fn deleting_is_not_served_and_a_wrong_patience_is_refused() {
    let node = shared().await;
    let request = DeleteOperationRequest { name: "x".to_owned() };
    let code = node.operations.clone().delete_operation(request).await.unwrap_err().code();
    assert!(matches!(code, Code::Unimplemented | Code::NotFound), "{code}");
    let timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let request = WaitOperationRequest { name: "x".to_owned(), timeout };
    let answer = node.operations.clone().wait_operation(request).await;
    let code = answer.unwrap_err().code();
    assert!(matches!(code, Code::InvalidArgument | Code::NotFound), "{code}");
}

#[tokio::test]
async fn an_ended_operation_is_forgotten_in_time() {
    if !can_execute() {
        return;
    }
    let node = own(&[("EXECUTION__OPERATIONS_KEPT", "1s")]).await;
    let job = Job::new(&["true"]);
    node.put(job.blobs()).await;
    let running = node.begin(job.request()).await.unwrap();
    let name = running.last.name.clone();
    running.end().await.unwrap();
    crate::shared::eventually("it is forgotten", async || {
        get(&node, &name).await.is_err_and(|error| error.code() == Code::NotFound)
    })
    .await;
}
