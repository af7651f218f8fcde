//! Caches below that others wrote, end to end: what one node writes another one reads, both modes,
//! with actions, and while the cache is away.

use super::front::{
    Front, IMPATIENT, eventually, get_result, put, put_result, read, result_of, write_large,
};
use bytes::Bytes;
use ringforge_tests::{
    action::{Folder, Job},
    client::digest,
    is_root, noise,
    servers::{BUCKET, Server},
};
use tonic::Code;

/// What a node before the cache is told, for as long as the test runs.
type Settings = Vec<(&'static str, String)>;

async fn front(settings: &Settings, more: &[(&str, &str)]) -> Front {
    let own = settings.iter().map(|(key, value)| (*key, value.as_str()));
    let patient = [("BACKING__ABSENT_KEPT", "1ms")];
    Front::with(&own.chain(patient).chain(more.iter().copied()).collect::<Vec<_>>()).await
}

/// Blobs of all sizes and results, from one node to another one.
async fn blobs_and_results(settings: &Settings) {
    let (one, other) = (front(settings, &[]).await, front(settings, &[]).await);
    let sizes = [1, 5000, 300_000, (1 << 20) + 1, 12 << 20];
    let blobs = sizes.map(|size| noise(&format!("by others {size}"), size));
    for blob in &blobs {
        write_large(&one, blob).await.unwrap();
    }
    let absent = digest(b"nobody has it");
    let mut asked: Vec<_> = blobs.iter().map(|blob| digest(blob)).collect();
    asked.push(absent.clone());
    assert_eq!(other.missing(asked).await.unwrap(), std::slice::from_ref(&absent));
    for blob in &blobs {
        assert!(read(&other, &digest(blob)).await.unwrap() == *blob, "{}", blob.len());
    }
    assert_eq!(read(&other, &absent).await.unwrap_err().code(), Code::NotFound);
    let action = digest(b"an action of others");
    assert_eq!(get_result(&other, "", &action).await.unwrap_err().code(), Code::NotFound);
    let result = result_of(&digest(&blobs[2]));
    put_result(&one, "", &action, result.clone()).await.unwrap();
    assert_eq!(get_result(&other, "", &action).await.unwrap().output_files, result.output_files);
    // In its own time it gets there too.
    let later = front(settings, &[("BACKING__WRITE", "async")]).await;
    let blob = noise("by others later", 3 << 20);
    write_large(&later, &blob).await.unwrap();
    eventually("it is there", async || read(&other, &digest(&blob)).await.is_ok()).await;
}

/// An action at one node with inputs that another one was given; its outputs at a third one.
async fn actions(settings: &Settings) {
    let (one, other) = (front(settings, &[]).await, front(settings, &[]).await);
    let text = noise("an input by others", 2 << 20);
    let inputs = Folder::new().folder("deep", Folder::new().file("in", text.clone()));
    let job = Job::shell("cp deep/in out; mkdir d; echo told > d/f; echo said")
        .with(inputs)
        .outputs(&["out", "d"]);
    one.put(job.blobs()).await;
    let response = other.execute(job.request()).await.unwrap();
    let result = response.result.expect("it ran");
    assert_eq!(result.exit_code, 0, "{:?}", response.status);
    let third = front(settings, &[("EXECUTION__ENABLED", "false")]).await;
    let action = job.request().action_digest.unwrap();
    let cached = get_result(&third, "", &action).await.unwrap();
    assert_eq!(cached.output_files, result.output_files);
    let out = cached.output_files[0].digest.clone().unwrap();
    assert!(read(&third, &out).await.unwrap() == text);
    assert_eq!(read(&third, &digest(b"told\n")).await.unwrap(), Bytes::from("told\n"));
    assert_eq!(read(&third, &digest(b"said\n")).await.unwrap(), Bytes::from("said\n"));
}

/// The cache goes away: what is here goes on, what is not is said to be so.
async fn outage(settings: &Settings, server: &mut Server) {
    let front = front(settings, &IMPATIENT).await;
    let here = noise("here before others went", 5000);
    assert_eq!(put(&front, "", &here).await, Code::Ok);
    server.kill();
    assert_eq!(read(&front, &digest(&here)).await.unwrap(), here);
    let absent = digest(b"who knows");
    assert_eq!(read(&front, &absent).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(put(&front, "", &noise("after others went", 10)).await, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buildbox_casd_is_a_cache_below() {
    let mut casd = Server::casd();
    let settings = vec![("BACKING__URL", format!("grpc://{}", casd.address()))];
    blobs_and_results(&settings).await;
    if is_root("buildbox_casd_is_a_cache_below") {
        actions(&settings).await;
    }
    outage(&settings, &mut casd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_is_a_cache_below() {
    let mut s3 = Server::s3();
    let settings = s3.s3_settings().to_vec();
    blobs_and_results(&settings).await;
    if is_root("an_s3_server_is_a_cache_below") {
        actions(&settings).await;
    }
    let listed = s3.ask(&format!("GET /{BUCKET}?list-type=2"));
    assert!(listed.contains("<Key>of/tests/"), "{listed}");
    outage(&settings, &mut s3).await;
}
