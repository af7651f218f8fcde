//! One slot, and more than one action: order, joining, cancelling, overflow. Each test holds the
//! slot by an action that does not end by itself.

use crate::shared::{Connected, can_execute, own};
use prost::Message;
use proto::{
    longrunning::CancelOperationRequest,
    reapi::{ExecuteRequest, ExecuteResponse, ExecutionPolicy, execution_stage::Value as Stage},
    rpc::RetryInfo,
};
use ringforge_tests::{
    action::Job,
    client::{Watched, metadata},
};
use tonic::Code;

const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

/// A node whose only slot is taken.
struct Busy {
    node: Connected,
    holder: Watched,
}

impl Busy {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let settings = [&[("EXECUTION__SLOTS", "1")], settings].concat();
        let node = own(&settings).await;
        let job = Job::shell("sleep 1000");
        node.put(job.blobs()).await;
        let mut holder = node.begin(job.request()).await.unwrap();
        holder.until(Stage::Executing).await;
        Self { node, holder }
    }

    async fn queue(&self, job: &Job, priority: i32) -> Watched {
        self.node.put(job.blobs()).await;
        let execution_policy = Some(ExecutionPolicy { priority });
        let watched = self.node.begin(ExecuteRequest { execution_policy, ..job.request() }).await;
        let watched = watched.unwrap();
        assert_eq!(metadata(&watched.last).stage, Stage::Queued as i32);
        watched
    }

    /// Frees the slot.
    async fn release(self) -> Connected {
        cancel(&self.node, &self.holder.last.name).await;
        let response = self.holder.end().await.unwrap();
        assert_eq!(response.status.unwrap().code, Code::Cancelled as i32);
        self.node
    }
}

async fn cancel(node: &Connected, name: &str) {
    let request = CancelOperationRequest { name: name.to_owned() };
    node.operations.clone().cancel_operation(request).await.unwrap();
}

fn printed(response: &ExecuteResponse) -> String {
    response.result.clone().unwrap().stdout_digest.unwrap().hash
}

fn started(response: &ExecuteResponse) -> (i64, i32) {
    let said = response.result.clone().unwrap().execution_metadata.unwrap();
    let at = said.execution_start_timestamp.unwrap();
    (at.seconds, at.nanos)
}

#[tokio::test]
async fn the_more_urgent_goes_first_and_equals_go_as_they_came() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let mut waiting = Vec::new();
    for priority in [0, 5, -5, 0, i32::MAX, i32::MIN] {
        waiting.push((priority, waiting.len(), busy.queue(&Job::new(&["true"]), priority).await));
    }
    let _node = busy.release().await;
    let mut ended = Vec::new();
    for (priority, arrival, watched) in waiting {
        ended.push((started(&watched.end().await.unwrap()), priority, arrival));
    }
    ended.sort_unstable();
    let order: Vec<(i32, usize)> =
        ended.into_iter().map(|(_, priority, arrival)| (priority, arrival)).collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test]
async fn identical_actions_in_flight_run_once() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let job = Job::shell(UNIQUE);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(busy.queue(&job, 0).await);
    }
    let _node = busy.release().await;
    let mut outputs = Vec::new();
    for watched in waiting {
        let response = watched.end().await.unwrap();
        assert_eq!(response.status.clone().unwrap_or_default().code, 0);
        outputs.push(printed(&response));
    }
    outputs.dedup();
    assert_eq!(outputs.len(), 1, "{outputs:?}");
}

#[tokio::test]
async fn an_action_that_executes_is_joined_too() {
    if !can_execute() {
        return;
    }
    let node = own(&[("EXECUTION__SLOTS", "2")]).await;
    let job = Job::shell(&format!("{UNIQUE}; sleep 0.5"));
    node.put(job.blobs()).await;
    let mut first = node.begin(job.request()).await.unwrap();
    first.until(Stage::Executing).await;
    let second = node.begin(job.request()).await.unwrap();
    let (first, second) = (first.end().await.unwrap(), second.end().await.unwrap());
    assert_eq!(printed(&first), printed(&second));
}

#[tokio::test]
async fn what_must_not_be_cached_is_never_joined() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let job = Job::shell(UNIQUE).do_not_cache();
    let (first, second) = (busy.queue(&job, 0).await, busy.queue(&job, 0).await);
    let _node = busy.release().await;
    let (first, second) = (first.end().await.unwrap(), second.end().await.unwrap());
    assert_ne!(printed(&first), printed(&second));
}

#[tokio::test]
async fn a_waiting_action_that_is_cancelled_never_runs() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let (job, other) = (Job::shell(UNIQUE), Job::shell(UNIQUE));
    let waiting = busy.queue(&job, 0).await;
    let behind = busy.queue(&other, 0).await;
    let name = waiting.last.name.clone();
    cancel(&busy.node, &name).await;
    let response = waiting.end().await.unwrap();
    assert_eq!(response.status.unwrap().code, Code::Cancelled as i32);
    // Again, and after its end: no harm.
    cancel(&busy.node, &name).await;
    let node = busy.release().await;
    let response = behind.end().await.unwrap();
    assert_eq!(response.status.unwrap_or_default().code, 0);
    // It was not cached either: asked again, it runs.
    assert!(!node.execute(job.request()).await.unwrap().cached_result);
}

#[tokio::test]
async fn one_of_two_that_wait_for_a_run_may_give_up() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let job = Job::shell(UNIQUE);
    let (one, other) = (busy.queue(&job, 0).await, busy.queue(&job, 0).await);
    if one.last.name != other.last.name {
        cancel(&busy.node, &one.last.name).await;
        let response = one.end().await.unwrap();
        assert_eq!(response.status.unwrap().code, Code::Cancelled as i32);
    } else {
        drop(one);
    }
    let _node = busy.release().await;
    let response = other.end().await.unwrap();
    assert_eq!(response.status.unwrap_or_default().code, 0);
}

#[tokio::test]
async fn an_executing_action_that_is_cancelled_dies_with_all_its_processes() {
    if !can_execute() {
        return;
    }
    let node = own(&[("EXECUTION__SLOTS", "1")]).await;
    let seconds = format!("7{}", std::process::id());
    let script = format!("sleep {seconds} & (setsid sleep {seconds} &) ; sleep {seconds}");
    let job = Job::shell(&script);
    node.put(job.blobs()).await;
    let mut running = node.begin(job.request()).await.unwrap();
    running.until(Stage::Executing).await;
    let alive = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
            .filter(|line| line.starts_with(format!("sleep\0{seconds}\0").as_bytes()))
            .count()
    };
    crate::shared::eventually("its processes live", async || alive() == 3).await;
    let name = running.last.name.clone();
    cancel(&node, &name).await;
    cancel(&node, &name).await;
    let response = running.end().await.unwrap();
    assert_eq!(response.status.unwrap().code, Code::Cancelled as i32);
    crate::shared::eventually("its processes are dead", async || alive() == 0).await;
    // The slot is free again, and nothing was cached.
    node.result(&Job::new(&["true"])).await;
    let request = proto::reapi::GetActionResultRequest {
        action_digest: Some(job.digest()),
        ..Default::default()
    };
    let cached = node.action_cache.clone().get_action_result(request).await;
    assert_eq!(cached.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    if !can_execute() {
        return;
    }
    let settings = [("EXECUTION__QUEUE_MAX", "2"), ("EXECUTION__OPERATIONS_MAX", "10")];
    let busy = Busy::new(&settings).await;
    let joined = Job::shell(UNIQUE);
    let waiting = [busy.queue(&joined, 0).await, busy.queue(&Job::shell(UNIQUE), 0).await];
    let refused = Job::shell(UNIQUE);
    busy.node.put(refused.blobs()).await;
    let status = busy.node.outcome(refused.request()).await;
    assert_eq!(status.code, Code::ResourceExhausted as i32, "{status:?}");
    let retry = status.details.iter().find(|any| any.type_url.ends_with("google.rpc.RetryInfo"));
    let retry = RetryInfo::decode(&*retry.expect("RetryInfo").value).unwrap();
    assert!(retry.retry_delay.is_some_and(|delay| delay.seconds >= 0 && delay.nanos >= 0));
    // What joins takes no place in the queue.
    let join = busy.queue(&joined, 0).await;
    let node = busy.release().await;
    for watched in waiting.into_iter().chain([join]) {
        assert_eq!(watched.end().await.unwrap().status.unwrap_or_default().code, 0);
    }
    assert_eq!(node.outcome(refused.request()).await.code, 0);
}

#[tokio::test]
async fn the_time_in_the_queue_is_not_the_actions() {
    if !can_execute() {
        return;
    }
    let busy = Busy::new(&[]).await;
    let job = Job::new(&["true"]).timeout(std::time::Duration::from_secs(1));
    let waiting = busy.queue(&job, 0).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let _node = busy.release().await;
    let response = waiting.end().await.unwrap();
    assert_eq!(response.status.unwrap_or_default().code, 0);
}
