//! Who is believed: whoever knows the secret and the keys, and nobody else.

use ringforge_tests::{
    action::Job,
    binary,
    cluster::{Cluster, eventually, until_spread, workers},
    command, is_root,
};
use std::{collections::BTreeSet, process::Command, time::SystemTime};
use tonic::{Code, Request};

const SECRET: &str = "the secret of these nodes";
/// Base64 of 32 bytes.
const KEYS: [&str; 2] = [
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=",
];

fn jobs() -> Vec<Job> {
    (0..9).map(|_| Job::shell("sleep 0.2")).collect()
}

fn set(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_secret_does_nothing_for_others_and_they_nothing_for_it() {
    if !is_root("a_node_with_another_secret_does_nothing_for_others_and_they_nothing_for_it") {
        return;
    }
    let cluster = Cluster::start_each(3, |i| {
        let secret = if i == 3 { "what a stranger believes it to be" } else { SECRET };
        // A key that is made of the secret would keep it out of gossip already.
        vec![
            ("CLUSTER__SECRET".to_owned(), secret.to_owned()),
            ("CLUSTER__KEYS".to_owned(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ]
    });
    until_spread(&cluster.client(1), 2).await;
    eventually("it is a member, and was tried", async || {
        assert_eq!(workers(&cluster.client(3), &jobs()).await, set(&["n3"]));
        let seen = workers(&cluster.client(1), &jobs()).await;
        assert!(!seen.contains("n3"), "{seen:?}");
        [1, 3].iter().all(|&i| cluster.node(i).log().contains("cluster.secret"))
    })
    .await;
    for i in 1..=3 {
        // However often it is tried: it is said once a minute, and no action pays for it.
        let (said, back) = ("a peer takes nothing", "handed an action back");
        let log = cluster.node(i).log();
        assert!(log.matches(said).count() <= 4, "n{i} says it too often:\n{log}");
        assert!(!log.contains(back), "n{i} counts it against an action:\n{log}");
        assert!(!log.contains(SECRET), "n{i} says the secret");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_it_is_a_peer_is_refused() {
    let cluster = Cluster::start(2, &[("CLUSTER__SECRET", SECRET)]);
    let client = cluster.client(1);
    let job = Job::new(&["true"]);
    client.put(job.blobs()).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let code = "00".repeat(32);
    for header in [
        format!("v1 n2 {now} {code}"),
        format!("v1 n2 {now} -"),
        format!("v1 n1 {now} -"),
        "v1".to_owned(),
        "v2 n2".to_owned(),
        String::new(),
    ] {
        let mut request = Request::new(job.request());
        request.metadata_mut().insert("ringforge-peer", header.parse().unwrap());
        let refused = client.execution.clone().execute(request).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied, "{header:?} {refused:?}");
        assert!(!refused.message().contains(SECRET));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_key_is_no_member() {
    if !is_root("a_node_with_another_key_is_no_member") {
        return;
    }
    let cluster = Cluster::start_each(3, |i| {
        let keys = KEYS[usize::from(i == 3)];
        vec![("CLUSTER__KEYS".to_owned(), keys.to_owned())]
    });
    until_spread(&cluster.client(2), 2).await;
    for i in 1..=3 {
        let seen = workers(&cluster.client(i), &jobs()).await;
        assert_eq!(seen, set(if i == 3 { &["n3"] } else { &["n1", "n2"] }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_can_be_replaced_one_node_after_the_other() {
    if !is_root("keys_can_be_replaced_one_node_after_the_other") {
        return;
    }
    let [old, new] = KEYS;
    let both = [format!("{old},{new}"), format!("{new},{old}")];
    // The new one is added, is used, and the old one goes: two steps are never mixed with a third.
    for step in [[old, &*both[0]], [&both[0], &both[1]], [&both[1], new]] {
        let cluster = Cluster::start_each(2, |i| {
            let keys = step[usize::from(i) - 1];
            vec![("CLUSTER__KEYS".to_owned(), keys.to_owned())]
        });
        cluster.until_whole().await;
    }
}

#[test]
fn without_a_secret_nobody_beyond_the_machine_is_let_in() {
    let parent = tempfile::tempdir().unwrap();
    for settings in [
        [("CLUSTER__LISTEN", "0.0.0.0:0"), ("EXECUTION__NODE_ID", "n1")],
        [("CLUSTER__LISTEN", "127.0.0.1:0"), ("CLUSTER__ADVERTISE", "10.77.0.1:7946")],
        [("CLUSTER__LISTEN", "127.0.0.1:0"), ("CLUSTER__ENDPOINT", "10.77.0.1:8980")],
    ] {
        let output = command(&parent.path().join("store"), 0, &settings).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("ringforge: cluster.secret is needed"), "{said}");
    }
}

#[test]
fn a_node_that_could_only_tell_others_an_address_that_is_none_does_not_start() {
    let parent = tempfile::tempdir().unwrap();
    let mut node = Command::new(binary());
    node.args(["serve", "--listen", "0.0.0.0:0", "--data"]).arg(parent.path().join("store"));
    node.env("RINGFORGE__CLUSTER__LISTEN", "0.0.0.0:0").env("RINGFORGE__CLUSTER__SECRET", SECRET);
    let output = node.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ringforge: cluster.endpoint is needed"), "{said}");
}
