//! Nodes that are not like the others: caches, full ones, ones that stand still, ones of the same
//! name; and work that is not like the other work.

use proto::{
    node::{ViewRequest, cluster_client::ClusterClient},
    reapi::execution_stage::Value as Stage,
};
use ringforge_tests::{
    action::{Folder, Job},
    client::digest,
    cluster::{
        Cluster, Settings, begin_elsewhere, eventually, runs_on, succeeded, together, until_spread,
        worker, workers,
    },
    is_root,
};
use std::{collections::BTreeSet, time::Duration};
use tonic::Code;

fn one(key: &str, value: &str) -> Settings {
    vec![(key.to_owned(), value.to_owned())]
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|_| Job::shell("sleep 0.2; echo x > out").outputs(&["out"])).collect()
}

fn set(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_among_them_is_given_no_work_and_is_a_home() {
    if !is_root("a_cache_among_them_is_given_no_work_and_is_a_home") {
        return;
    }
    let cluster = Cluster::start_each(3, |i| {
        let mut settings = one("CLUSTER__SHARE", "true");
        if i == 3 {
            settings.extend(one("EXECUTION__ENABLED", "false"));
        }
        settings
    });
    let client = cluster.client(1);
    until_spread(&client, 2).await;
    assert_eq!(workers(&client, &jobs(9)).await, set(&["n1", "n2"]));
    let cache = cluster.client(3);
    let refused = cache.outcome(jobs(1)[0].request()).await;
    assert_eq!(refused.code, Code::Unimplemented as i32, "{refused:?}");
    eventually("the cache is a home", async || {
        let text = format!("{:?} at home in a cache", std::time::Instant::now());
        let blob = cache.put([text.into()]).await;
        client.missing(blob).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_node_cannot_take_is_done_by_the_others() {
    if !is_root("what_a_full_node_cannot_take_is_done_by_the_others") {
        return;
    }
    // No disk has so much.
    let cluster = Cluster::start_each(3, |i| match i {
        3 => one("STORE__FREE_BYTES_MIN", "1000TiB"),
        _ => Settings::new(),
    });
    let client = cluster.client(1);
    // It is a peer like the others as long as nothing has to be kept.
    until_spread(&client, 3).await;
    let seen = workers(&client, &jobs(12)).await;
    assert!(seen.is_subset(&set(&["n1", "n2"])), "{seen:?}");
    // Once it has found out it says that it has no slots, so that nothing is sent to fail there.
    eventually("the others know", async || {
        workers(&client, &jobs(12)).await;
        let mut view = ClusterClient::new(client.channel.clone());
        let view = view.view(ViewRequest {}).await.unwrap().into_inner();
        let full = view.members.into_iter().find(|member| member.node_id == "n3");
        full.and_then(|member| member.state).is_some_and(|state| state.slots == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_is_done_without_until_it_goes_on() {
    if !is_root("a_node_that_stands_still_is_done_without_until_it_goes_on") {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    let client = cluster.client(1);
    until_spread(&client, 3).await;
    let jobs = jobs(12);
    let stopping = async {
        cluster.until_works(2).await;
        cluster.node(2).signal("STOP");
    };
    let (ends, ()) = tokio::join!(together(&client, &jobs), stopping);
    for end in ends {
        succeeded(&end.unwrap());
    }
    cluster.node(2).signal("CONT");
    cluster.until_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_slow_is_waited_for_and_holds_up_no_other() {
    if !is_root("a_node_that_is_slow_is_waited_for_and_holds_up_no_other") {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    let client = cluster.client(1);
    until_spread(&client, 3).await;
    // It works a tenth of the time: too much to be taken for dead.
    let slow = async {
        loop {
            cluster.node(2).signal("STOP");
            tokio::time::sleep(Duration::from_millis(90)).await;
            cluster.node(2).signal("CONT");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let jobs = jobs(24);
    let ends = tokio::select! {
        ends = together(&client, &jobs) => ends,
        () = slow => unreachable!("it stays slow"),
    };
    cluster.node(2).signal("CONT");
    for end in ends {
        succeeded(&end.unwrap());
    }
    cluster.until_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_while_its_outputs_are_fetched_is_replaced() {
    if !is_root("a_peer_that_dies_while_its_outputs_are_fetched_is_replaced") {
        return;
    }
    let mut cluster = Cluster::start(2, &[]);
    let client = cluster.client(1);
    until_spread(&client, 2).await;
    let script = "for n in 1 2 3 4 5 6; do head -c 20000000 /dev/zero | tr '\\0' $n > out$n; done";
    let outs = ["out1", "out2", "out3", "out4", "out5", "out6"];
    let job = Job::shell(script).outputs(&outs);
    let (here, there) = begin_elsewhere(&client, &job, "2").await;
    assert_eq!(runs_on(&there), "n2");
    // Its process ends, and nobody says when its outputs are on their way.
    eventually("its process has ended", async || !cluster.works(2)).await;
    cluster.kill(2);
    let response = there.end().await.unwrap();
    let result = succeeded(&response).result.clone().unwrap();
    assert_eq!(result.output_files.len(), outs.len());
    for file in result.output_files {
        let blob = client.read(file.digest.as_ref().unwrap()).await.unwrap();
        assert_eq!(blob.len(), 20_000_000);
    }
    succeeded(&here.end().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_origins_at_once_end_all_they_are_asked() {
    if !is_root("all_origins_at_once_end_all_they_are_asked") {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    cluster.until_whole().await;
    let clients = [1, 2, 3].map(|i| cluster.client(i));
    let work = || (0..30).map(|_| Job::shell("echo x > out").outputs(&["out"])).collect();
    let works: [Vec<Job>; 3] = [work(), work(), work()];
    let asked = clients.iter().zip(&works).map(|(client, jobs)| together(client, jobs));
    for end in futures_util::future::join_all(asked).await.into_iter().flatten() {
        succeeded(&end.unwrap());
    }
    // The same actions at all of them: each answers its own client.
    let same: Vec<Job> = jobs(6);
    let asked = clients.iter().map(|client| together(client, &same));
    for end in futures_util::future::join_all(asked).await.into_iter().flatten() {
        succeeded(&end.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_stay_apart_on_peers_too() {
    if !is_root("instances_stay_apart_on_peers_too") {
        return;
    }
    let cluster = Cluster::start(2, &[("SERVER__INSTANCES", "one,two/parts")]);
    let client = cluster.client(1);
    let job = |seconds: &str| {
        let inputs = Folder::new().file("in", format!("{seconds} of an instance"));
        Job::new(&["/bin/sh", "-ec", &format!("sleep {seconds}; cp in out")])
            .with(inputs)
            .outputs(&["out"])
    };
    for instance in ["one", "two/parts"] {
        eventually("a peer works for this instance", async || {
            let jobs: Vec<Job> = ["0.3", "0.2", "0.1"].map(job).into();
            let sent = jobs.iter().map(async |job| {
                put(&client, instance, job).await;
                let mut request = job.request();
                request.instance_name = instance.to_owned();
                client.execute(request).await.unwrap()
            });
            let ends = futures_util::future::join_all(sent).await;
            let seen: BTreeSet<String> = ends.iter().map(|end| worker(succeeded(end))).collect();
            seen.len() == 2
        })
        .await;
    }
}

async fn put(client: &ringforge_tests::client::Client, instance: &str, job: &Job) {
    use proto::reapi::{BatchUpdateBlobsRequest, batch_update_blobs_request::Request};
    let requests = job.blobs().into_iter().map(|data| Request {
        digest: Some(digest(&data)),
        data,
        compressor: 0,
    });
    let request = BatchUpdateBlobsRequest {
        instance_name: instance.to_owned(),
        requests: requests.collect(),
        ..Default::default()
    };
    client.cas.clone().batch_update_blobs(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_trees_and_many_outputs_go_to_a_peer_and_come_back() {
    if !is_root("wide_trees_and_many_outputs_go_to_a_peer_and_come_back") {
        return;
    }
    let cluster = Cluster::start(2, &[]);
    let client = cluster.client(1);
    until_spread(&client, 2).await;
    let mut inputs = Folder::new();
    for folder in 10..30 {
        let mut below = Folder::new().folder("empty", Folder::new()).symlink("up", "../");
        for file in 10..60 {
            below = below.file(&format!("f{file}"), format!("{folder} {file}"));
        }
        inputs = inputs.folder(&format!("d{folder}"), below);
    }
    let job = Job::shell("cp -a . /tmp/copy; mv /tmp/copy copy; cp d10/f10 one; ln -s one link")
        .with(inputs)
        .outputs(&["copy", "one", "link"]);
    let (here, there) = begin_elsewhere(&client, &job, "1").await;
    assert_eq!(runs_on(&there), "n2");
    let response = there.end().await.unwrap();
    let result = succeeded(&response).result.clone().unwrap();
    succeeded(&here.end().await.unwrap());
    assert_eq!(result.output_symlinks.len(), 1);
    let tree = result.output_directories[0].tree_digest.clone().unwrap();
    let tree = client.read(&tree).await.unwrap();
    let tree = <proto::reapi::Tree as prost::Message>::decode(tree).unwrap();
    let files = tree.children.iter().flat_map(|directory| &directory.files);
    let digests: Vec<_> = files.map(|file| file.digest.clone().unwrap()).collect();
    assert_eq!(digests.len(), 1000);
    assert_eq!(client.missing(digests).await.unwrap(), []);
    let again = client.execute(job.request()).await.unwrap();
    assert!(again.cached_result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_comes_back_to_what_a_peer_does_for_it() {
    if !is_root("a_client_that_goes_away_comes_back_to_what_a_peer_does_for_it") {
        return;
    }
    let cluster = Cluster::start(2, &[]);
    let client = cluster.client(1);
    until_spread(&client, 2).await;
    let job = Job::shell("sleep 1; echo x > out").outputs(&["out"]);
    let (here, there) = begin_elsewhere(&client, &job, "3").await;
    let name = there.last.name.clone();
    drop(there);
    // The same action joins the run in flight.
    let mut joined = client.begin(job.request()).await.unwrap();
    joined.until(Stage::Executing).await;
    assert_eq!(runs_on(&joined), "n2");
    let request = proto::reapi::WaitExecutionRequest { name };
    let stream = client.execution.clone().wait_execution(request).await.unwrap().into_inner();
    let waited = ringforge_tests::client::Watched::new(stream).await.unwrap();
    let (joined, waited) = (joined.end().await.unwrap(), waited.end().await.unwrap());
    assert_eq!(worker(succeeded(&joined)), "n2");
    assert_eq!(waited.result, joined.result);
    succeeded(&here.end().await.unwrap());
}
