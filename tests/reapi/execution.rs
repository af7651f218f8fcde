//! Execute: what a client is told, what is cached, what is joined.

use crate::shared::{can_execute, shared};
use bytes::Bytes;
use prost_types::Timestamp;
use proto::reapi::{ExecuteRequest, GetActionResultRequest, execution_stage::Value as Stage};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Watched, digest, metadata},
    noise,
};
use std::time::Duration;
use tonic::Code;

/// Prints what no two executions print alike.
const UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";

#[tokio::test]
async fn a_command_that_does_nothing_succeeds() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for program in ["true", "/bin/true", "/usr/bin/true"] {
        let response = node.run(&Job::new(&[program])).await;
        assert_eq!(response.status.unwrap_or_default().code, 0);
        assert!(!response.cached_result);
        let result = response.result.unwrap();
        assert_eq!(result.exit_code, 0);
        assert!(result.output_files.is_empty() && result.output_directories.is_empty());
        assert!(!result.execution_metadata.unwrap().worker.is_empty());
    }
}

#[tokio::test]
async fn what_a_command_prints_is_kept_and_inlined_on_request_only() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("printf out; printf err >&2");
    let result = node.result(&job).await;
    assert_eq!(node.read(result.stdout_digest.as_ref().unwrap()).await.unwrap(), "out");
    assert_eq!(node.read(result.stderr_digest.as_ref().unwrap()).await.unwrap(), "err");
    for (inline_stdout, inline_stderr) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        for skip_cache_lookup in [false, true] {
            let request =
                ExecuteRequest { inline_stdout, inline_stderr, skip_cache_lookup, ..job.request() };
            let result = node.execute(request).await.unwrap().result.unwrap();
            assert_eq!(result.stdout_raw, if inline_stdout { "out" } else { "" });
            assert_eq!(result.stderr_raw, if inline_stderr { "err" } else { "" });
            assert!(result.stdout_digest.is_some() && result.stderr_digest.is_some());
        }
    }
}

#[tokio::test]
async fn output_files_are_inlined_by_their_exact_paths() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("printf 1 > a; printf 2 > b/c").outputs(&["a", "b/c"]);
    node.put(job.blobs()).await;
    let inline_output_files = ["a", "c", "b", "/b/c"].map(str::to_owned).to_vec();
    let request = ExecuteRequest { inline_output_files, ..job.request() };
    for _ in 0..2 {
        let result = node.execute(request.clone()).await.unwrap().result.unwrap();
        let contents: Vec<_> =
            result.output_files.iter().map(|file| (&*file.path, &*file.contents)).collect();
        assert_eq!(contents, [("a", &b"1"[..]), ("b/c", b"")]);
    }
}

#[tokio::test]
async fn much_output_is_kept_whole() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let result =
        node.result(&Job::shell("head -c 3000000 /dev/zero; head -c 70000 /dev/zero >&2")).await;
    let stdout = node.read(result.stdout_digest.as_ref().unwrap()).await.unwrap();
    assert!(stdout.len() == 3_000_000 && stdout.iter().all(|&byte| byte == 0));
    assert_eq!(result.stderr_digest.unwrap().size_bytes, 70_000);
}

#[tokio::test]
async fn a_result_is_cached_and_found_by_execute_and_by_the_action_cache() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell(&format!("{UNIQUE} > out")).outputs(&["out"]);
    let first = node.result(&job).await;
    let again = node.execute(job.request()).await.unwrap();
    assert!(again.cached_result);
    assert_eq!(again.result.unwrap(), first);
    let request =
        GetActionResultRequest { action_digest: Some(job.digest()), ..Default::default() };
    let found = node.action_cache.clone().get_action_result(request).await.unwrap();
    assert_eq!(found.into_inner(), first);
}

#[tokio::test]
async fn a_lookup_that_is_skipped_runs_again_and_overwrites() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell(UNIQUE);
    let first = node.result(&job).await;
    let request = ExecuteRequest { skip_cache_lookup: true, ..job.request() };
    let again = node.execute(request).await.unwrap();
    assert!(!again.cached_result);
    let again = again.result.unwrap();
    assert_ne!(again.stdout_digest, first.stdout_digest);
    let cached = node.execute(job.request()).await.unwrap();
    assert!(cached.cached_result);
    assert_eq!(cached.result.unwrap().stdout_digest, again.stdout_digest);
}

#[tokio::test]
async fn what_must_not_be_cached_is_not() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell(UNIQUE).do_not_cache();
    let first = node.result(&job).await;
    let again = node.execute(job.request()).await.unwrap();
    assert!(!again.cached_result);
    assert_ne!(again.result.unwrap().stdout_digest, first.stdout_digest);
    let request =
        GetActionResultRequest { action_digest: Some(job.digest()), ..Default::default() };
    let found = node.action_cache.clone().get_action_result(request).await;
    assert_eq!(found.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_command_that_fails_is_told_with_its_outputs_and_not_cached() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("no-such-program", 127)] {
        let job = Job::shell(&format!("echo out > o; {UNIQUE}; {script}")).outputs(&["o"]);
        let mut printed = Vec::new();
        for _ in 0..2 {
            let response = node.run(&job).await;
            assert_eq!(response.status.unwrap_or_default().code, 0, "it is the command's failure");
            assert!(!response.cached_result);
            let result = response.result.unwrap();
            assert_eq!(result.exit_code, code, "{script}");
            assert_eq!(result.output_files[0].digest, Some(digest(b"out\n")));
            printed.push(result.stdout_digest.unwrap().hash);
        }
        assert_ne!(printed[0], printed[1], "{script}");
    }
}

#[tokio::test]
async fn a_hit_whose_output_is_gone_is_no_hit() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let absent = digest(&noise("gone output", 10));
    let job = Job::shell("echo fresh");
    node.put(job.blobs()).await;
    let request = proto::reapi::UpdateActionResultRequest {
        action_digest: Some(job.digest()),
        action_result: Some(proto::reapi::ActionResult {
            stdout_digest: Some(absent),
            ..Default::default()
        }),
        ..Default::default()
    };
    // May be refused as well.
    let _ = node.action_cache.clone().update_action_result(request).await;
    let response = node.execute(job.request()).await.unwrap();
    assert!(!response.cached_result);
    assert_eq!(response.result.unwrap().stdout_digest, Some(digest(b"fresh\n")));
}

fn nanoseconds(stamp: Option<&Timestamp>) -> i128 {
    let stamp = stamp.expect("a timestamp");
    i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos)
}

#[tokio::test]
async fn timestamps_follow_each_other() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("sleep 0.2; echo > o").outputs(&["o"]).with(Folder::new().file("i", "i"));
    let said = node.result(&job).await.execution_metadata.unwrap();
    let steps = [
        ("queued", &said.queued_timestamp),
        ("worker_start", &said.worker_start_timestamp),
        ("input_fetch_start", &said.input_fetch_start_timestamp),
        ("input_fetch_completed", &said.input_fetch_completed_timestamp),
        ("execution_start", &said.execution_start_timestamp),
        ("execution_completed", &said.execution_completed_timestamp),
        ("output_upload_start", &said.output_upload_start_timestamp),
        ("output_upload_completed", &said.output_upload_completed_timestamp),
        ("worker_completed", &said.worker_completed_timestamp),
    ];
    for pair in steps.windows(2) {
        let [(before, first), (after, second)] = pair else { unreachable!() };
        let (first, second) = (nanoseconds(first.as_ref()), nanoseconds(second.as_ref()));
        assert!(first <= second, "{before} {first} is after {after} {second}");
    }
    let took = nanoseconds(said.execution_completed_timestamp.as_ref())
        - nanoseconds(said.execution_start_timestamp.as_ref());
    assert!(took >= 200_000_000, "{took}");
    let virtually = said.virtual_execution_duration.unwrap();
    assert!(virtually.seconds > 0 || virtually.nanos >= 200_000_000, "{virtually:?}");
}

#[tokio::test]
async fn stages_only_advance_and_name_the_action() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("sleep 0.3");
    node.put(job.blobs()).await;
    let mut stream = node.execution.clone().execute(job.request()).await.unwrap().into_inner();
    let mut stages = Vec::new();
    while let Some(operation) = stream.message().await.unwrap() {
        assert!(!operation.name.is_empty());
        let said = metadata(&operation);
        assert_eq!(said.action_digest, Some(job.digest()));
        assert_eq!(operation.done, said.stage == Stage::Completed as i32);
        stages.push(said.stage);
    }
    assert!(stages.contains(&(Stage::Executing as i32)), "{stages:?}");
    assert!(stages.is_sorted(), "{stages:?}");
    assert_eq!(stages.last(), Some(&(Stage::Completed as i32)));
}

#[tokio::test]
async fn a_timeout_ends_the_action_and_tells_what_it_printed() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("echo begun; sleep 1000 & sleep 1000").timeout(Duration::from_millis(300));
    for _ in 0..2 {
        let response = node.run(&job).await;
        assert_eq!(response.status.unwrap().code, Code::DeadlineExceeded as i32);
        assert!(!response.cached_result, "a timeout is not cached");
        if let Some(stdout) = response.result.unwrap_or_default().stdout_digest {
            assert_eq!(node.read(&stdout).await.unwrap(), "begun\n");
        }
    }
    let job = Job::shell("sleep 0.2; echo done").timeout(Duration::from_secs(100));
    assert_eq!(node.printed(&job).await, "done\n");
}

#[tokio::test]
async fn timeouts_that_are_not_offered_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for (seconds, nanos) in [(86_401, 0), (i64::MAX, 0), (-1, 0), (1, -1), (0, i32::MAX)] {
        let mut job = Job::new(&["true"]);
        job.action.timeout = Some(prost_types::Duration { seconds, nanos });
        let status = node.failure(&job).await;
        assert_eq!(status.code, Code::InvalidArgument as i32, "{seconds} {nanos}: {status:?}");
    }
    // The longest one is fine, and nothing at all is the default.
    node.result(&Job::new(&["true"]).timeout(Duration::from_secs(86_400))).await;
    node.result(&Job::new(&["true"]).timeout(Duration::ZERO)).await;
}

#[tokio::test]
async fn waiting_shows_the_same_operation_to_its_end() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell(&format!("sleep 0.3; {UNIQUE}"));
    node.put(job.blobs()).await;
    let mut first = node.begin(job.request()).await.unwrap();
    first.until(Stage::Executing).await;
    let name = first.last.name.clone();
    let wait = || {
        let request = proto::reapi::WaitExecutionRequest { name: name.clone() };
        let mut execution = node.execution.clone();
        async move { Watched::new(execution.wait_execution(request).await?.into_inner()).await }
    };
    let second = wait().await.unwrap();
    assert_eq!(second.last.name, name);
    // Who asked first goes away; the action goes on.
    drop(first);
    let response = second.end().await.unwrap();
    let third = wait().await.unwrap();
    assert!(third.last.done, "the first thing said is how it is now");
    assert_eq!(third.end().await.unwrap(), response);
}

#[tokio::test]
async fn an_operation_that_is_unknown_is_not_found() {
    let node = shared().await;
    for name in ["", "nobody", "a:b", "../../etc"] {
        let request = proto::reapi::WaitExecutionRequest { name: name.to_owned() };
        let answer = node.execution.clone().wait_execution(request).await;
        assert_eq!(answer.map(drop).unwrap_err().code(), Code::NotFound, "{name:?}");
    }
}

#[tokio::test]
async fn the_salt_makes_another_action() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let mut job = Job::shell(UNIQUE);
    let first = node.printed(&job).await;
    job.action.salt = b"another".to_vec();
    assert_ne!(node.printed(&job).await, first);
}

#[tokio::test]
async fn many_actions_with_one_output_at_once_keep_it_whole() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let running = (0..16).map(|n| {
        let mode = if n % 2 == 0 { "644" } else { "755" };
        let job =
            Job::shell(&format!("head -c 400000 /dev/zero > o; echo one >> o; chmod {mode} o"));
        let (client, job) = ((*node).clone(), job.outputs(&["o"]));
        tokio::spawn(async move { client.result(&job).await })
    });
    for (n, running) in running.collect::<Vec<_>>().into_iter().enumerate() {
        let output = running.await.unwrap().output_files.remove(0);
        assert_eq!(output.is_executable, n % 2 == 1);
        let blob = node.read(output.digest.as_ref().unwrap()).await.unwrap();
        assert_eq!(Some(digest(&blob)), output.digest);
    }
}

#[tokio::test]
async fn many_actions_at_once_all_end() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let jobs: Vec<Job> =
        (0..40).map(|n| Job::shell(&format!("echo {n} > o")).outputs(&["o"])).collect();
    node.put(jobs.iter().flat_map(Job::blobs).collect::<Vec<Bytes>>()).await;
    let running = jobs.iter().map(|job| {
        let (client, request) = ((*node).clone(), job.request());
        tokio::spawn(async move { client.execute(request).await })
    });
    for (n, running) in running.collect::<Vec<_>>().into_iter().enumerate() {
        let result = running.await.unwrap().unwrap().result.unwrap();
        assert_eq!(result.output_files[0].digest, Some(digest(format!("{n}\n").as_bytes())));
    }
}
