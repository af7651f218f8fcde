//! Nodes that die, or leave, while they work for each other. Nothing that a client waits for is
//! lost, and nothing ends twice.

use proto::reapi::ExecuteResponse;
use ringforge_tests::{
    action::Job,
    cluster::{Cluster, insist, succeeded, until_spread, worker},
    is_root,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};
use tokio::task::JoinHandle;

fn slow() -> Job {
    Job::shell("sleep 0.4; echo x > out").outputs(&["out"])
}

/// Sends these to one node; each has to end there, once and well.
fn send(cluster: &Cluster, i: usize, jobs: Vec<Job>) -> Vec<JoinHandle<ExecuteResponse>> {
    let client = cluster.client(i);
    let sent = jobs.into_iter().map(|job| {
        let client = client.clone();
        tokio::spawn(async move { client.run(&job).await })
    });
    sent.collect()
}

/// Sends these to one node, and to others where it is not there any more.
fn send_anywhere(addresses: &Addresses, jobs: Vec<Job>) -> Vec<JoinHandle<ExecuteResponse>> {
    let sent = jobs.into_iter().map(|job| {
        let addresses = addresses.clone();
        tokio::spawn(async move { insist(|| addresses.lock().unwrap().clone(), &job).await })
    });
    sent.collect()
}

type Addresses = Arc<Mutex<Vec<String>>>;

/// Who did them. All have succeeded.
async fn ends(sent: Vec<JoinHandle<ExecuteResponse>>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for end in sent {
        seen.insert(worker(succeeded(&end.await.expect("the client ends well"))));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_peer_had_is_done_by_the_others() {
    if !is_root("what_a_killed_peer_had_is_done_by_the_others") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    until_spread(&cluster.client(1), 3).await;
    let sent = send(&cluster, 1, (0..12).map(|_| slow()).collect());
    cluster.until_works(2).await;
    cluster.kill(2);
    let seen = ends(sent).await;
    assert!(seen.contains("n3"), "{seen:?}");
    // The last peer dies too, and comes again.
    let sent = send(&cluster, 1, (0..6).map(|_| slow()).collect());
    cluster.until_works(3).await;
    cluster.kill(3);
    ends(sent).await;
    cluster.restart(2);
    cluster.restart(3);
    cluster.until_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_origin_was_asked_is_done_elsewhere_when_asked_again() {
    if !is_root("what_a_killed_origin_was_asked_is_done_elsewhere_when_asked_again") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    until_spread(&cluster.client(1), 3).await;
    let addresses = Arc::new(Mutex::new(vec![cluster.node(1).address()]));
    let sent = send_anywhere(&addresses, (0..12).map(|_| slow()).collect());
    for i in 1..=3 {
        cluster.until_works(i).await;
    }
    cluster.kill(1);
    *addresses.lock().unwrap() = cluster.addresses();
    let seen = ends(sent).await;
    assert!(!seen.is_empty());
    // What it had given away does not run on for nobody.
    cluster.until_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leaves_finishes_or_gives_back_what_it_has() {
    if !is_root("a_peer_that_leaves_finishes_or_gives_back_what_it_has") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    until_spread(&cluster.client(1), 3).await;
    let sent = send(&cluster, 1, (0..15).map(|_| slow()).collect());
    cluster.until_works(2).await;
    cluster.stop(2);
    let seen = ends(sent).await;
    assert!(seen.contains("n2"), "what ran there was finished there: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_leaves_loses_nothing_of_what_peers_do_for_it() {
    if !is_root("an_origin_that_leaves_loses_nothing_of_what_peers_do_for_it") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    until_spread(&cluster.client(1), 3).await;
    let addresses = Arc::new(Mutex::new(cluster.addresses()));
    let sent = send_anywhere(&addresses, (0..15).map(|_| slow()).collect());
    cluster.until_works(2).await;
    addresses.lock().unwrap().remove(0);
    cluster.stop(1);
    ends(sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_after_the_other_is_restarted_under_load() {
    if !is_root("one_node_after_the_other_is_restarted_under_load") {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    cluster.until_whole().await;
    let addresses = Arc::new(Mutex::new(cluster.addresses()));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients = (0..5).map(|_| {
        let (addresses, stopped) = (addresses.clone(), stopped.clone());
        tokio::spawn(async move {
            let mut done = 0;
            while !*stopped.borrow() {
                let job = Job::shell("sleep 0.1; echo x > out").outputs(&["out"]);
                let response = insist(|| addresses.lock().unwrap().clone(), &job).await;
                succeeded(&response);
                done += 1;
            }
            done
        })
    });
    let clients: Vec<JoinHandle<u32>> = clients.collect();
    for i in 1..=3 {
        cluster.until_works(i).await;
        cluster.stop(i);
        cluster.restart(i);
        *addresses.lock().unwrap() = cluster.addresses();
        cluster.until_works(i).await;
    }
    stop.send_replace(true);
    for client in clients {
        assert!(client.await.expect("the client ends well") > 0);
    }
}
