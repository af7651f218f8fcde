//! A cache below that can't be asked: what is here goes on, what is not is said to be so, nothing
//! hangs, and all is well again when it is.

use super::front::{
    Front, IMPATIENT, batch, eventually, get_result, in_time, put, put_result, read, result_of,
};
use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message;
use proto::{reapi::Digest, rpc};
use ringforge_tests::{
    action::{Folder, Job},
    client::digest,
    is_root,
    liar::{Failing, Liar},
    noise,
    proxy::{Fault, FaultProxy, Towards},
};
use std::time::Duration;
use tonic::{Code, Status};

/// A node before a proxy before a cache; a blob and a result that are here, and what is below.
struct Outage {
    liar: Liar,
    proxy: FaultProxy,
    front: Front,
    here: Bytes,
    action: Digest,
    below: Vec<Digest>,
}

impl Outage {
    async fn new(seed: &str) -> Self {
        let liar = Liar::start();
        let proxy = FaultProxy::start(liar.address());
        let front = Front::before(proxy.address(), &IMPATIENT).await;
        let here = noise(seed, 5000);
        assert_eq!(put(&front, "", &here).await, Code::Ok);
        let action = digest(seed.as_bytes());
        put_result(&front, "", &action, result_of(&digest(&here))).await.unwrap();
        let sizes = [3000, 3 << 20];
        let below = sizes.map(|size| liar.put(noise(&format!("{seed} {size}"), size))).into();
        Self { liar, proxy, front, here, action, below }
    }

    /// What a client sees while nothing comes from below.
    async fn check(&self, what: &str) {
        let here = digest(&self.here);
        assert_eq!(read(&self.front, &here).await.unwrap(), self.here, "{what}");
        assert!(get_result(&self.front, "", &self.action).await.is_ok(), "{what}");
        let other = get_result(&self.front, "", &digest(b"no such action")).await;
        assert_eq!(other.unwrap_err().code(), Code::NotFound, "{what}");
        let mut asked = self.below.clone();
        asked.push(here.clone());
        let missing = in_time("a question", self.front.missing(asked)).await.unwrap();
        assert_eq!(missing, self.below, "{what}");
        for below in &self.below {
            let failed = read(&self.front, below).await.expect_err(what);
            assert_eq!(failed.code(), Code::Unavailable, "{what}: {failed:?}");
            assert!(retry_delay(&failed).is_some(), "{what}: {failed:?}");
        }
        let batched = batch(&self.front, &[self.below[0].clone(), here]).await;
        assert_eq!(batched, [Err(Code::Unavailable), Ok(self.here.clone())], "{what}");
    }

    /// All is well again.
    async fn recovers(&self, what: &str) {
        for below in &self.below {
            eventually(what, async || read(&self.front, below).await.is_ok()).await;
        }
        let new = noise(what, 100);
        eventually(what, async || put(&self.front, "", &new).await == Code::Ok).await;
        assert!(self.liar.blobs().contains_key(&digest(&new).hash), "{what}");
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let any = details.iter().find(|any| any.type_url.ends_with("google.rpc.RetryInfo"))?;
    let delay = rpc::RetryInfo::decode(&*any.value).ok()?.retry_delay?;
    Duration::try_from(delay).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_here_goes_on_whatever_is_wrong_below() {
    let faults = [
        Fault::Refuse,
        Fault::Reset,
        Fault::Hang,
        Fault::Slow { bytes_per_second: 1 },
        Fault::OneWay { towards: Towards::Target },
        Fault::OneWay { towards: Towards::Client },
        Fault::CutAfter { bytes: 0 },
    ];
    // Each with a node of its own, all at once: most of the time goes by in waiting.
    join_all(faults.map(async |fault| {
        let what = format!("{fault:?}");
        let outage = Outage::new(&what).await;
        outage.proxy.set(fault);
        outage.check(&what).await;
        outage.check(&what).await;
        outage.proxy.set(Fault::None);
        outage.recovers(&what).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_says_that_it_is_unavailable_is_as_good_as_none() {
    let outage = Outage::new("unavailable").await;
    outage.liar.lie(|lies| lies.failing = Some(Failing::always(Code::Unavailable)));
    outage.check("unavailable").await;
    outage.liar.honest();
    outage.recovers("unavailable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_before_what_is_below() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    proxy.set(Fault::Refuse);
    let front = Front::before(proxy.address(), &IMPATIENT).await;
    let below = liar.put("below");
    assert_eq!(read(&front, &below).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(front.missing(vec![below.clone()]).await.unwrap(), std::slice::from_ref(&below));
    proxy.set(Fault::None);
    eventually("it is read", async || read(&front, &below).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_calls_may_fail_and_nothing_wrong_is_said() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &IMPATIENT).await;
    let blobs: Vec<Bytes> =
        (0..60).map(|i| noise(&format!("half {i}"), 2000 << (i % 12))).collect();
    for blob in &blobs {
        liar.put(blob.clone());
    }
    liar.lie(|lies| lies.failing = Some(Failing::half(11)));
    let reads = blobs.iter().map(async |blob| read(&front, &digest(blob)).await);
    for (answer, blob) in join_all(reads).await.into_iter().zip(&blobs) {
        match answer {
            Ok(bytes) => assert!(bytes == *blob),
            Err(failed) => assert_eq!(failed.code(), Code::Unavailable, "{failed:?}"),
        }
    }
    for (i, blob) in blobs.iter().enumerate() {
        let new = noise(&format!("half new {i}"), 100);
        if put(&front, "", &new).await == Code::Ok {
            assert!(liar.blobs().contains_key(&digest(&new).hash));
        }
        let missing = front.missing(vec![digest(blob)]).await.unwrap();
        assert!(missing.len() <= 1);
    }
    liar.honest();
    for blob in &blobs {
        let named = digest(blob);
        eventually("it is read", async || {
            read(&front, &named).await.is_ok_and(|bytes| bytes == *blob)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_dies_under_load_and_comes_back() {
    let outage = Outage::new("load").await;
    let blobs: Vec<Bytes> = (0..40).map(|i| noise(&format!("load {i}"), 700_000)).collect();
    let named: Vec<Digest> = blobs.iter().map(|blob| outage.liar.put(blob.clone())).collect();
    let large = outage.liar.put(noise("load large", 32 << 20));
    outage.proxy.set(Fault::CutAfter { bytes: 10 << 20 });
    let reads = named.iter().map(async |named| read(&outage.front, named).await);
    let (answers, cut) = tokio::join!(join_all(reads), read(&outage.front, &large));
    for (answer, blob) in answers.into_iter().zip(&blobs) {
        match answer {
            Ok(bytes) => assert!(bytes == *blob),
            Err(failed) => assert_eq!(failed.code(), Code::Unavailable, "{failed:?}"),
        }
    }
    if let Err(cut) = cut {
        assert_eq!(cut.code(), Code::Unavailable, "{cut:?}");
    }
    outage.proxy.set(Fault::Refuse);
    outage.check("dead").await;
    outage.proxy.set(Fault::None);
    outage.recovers("load").await;
    eventually("all is read", async || read(&outage.front, &large).await.is_ok()).await;
    for (named, blob) in named.iter().zip(&blobs) {
        assert!(read(&outage.front, named).await.unwrap() == *blob);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rest_of_any_length_that_is_asked_for_comes_to_an_end() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &IMPATIENT).await;
    let below = liar.put("busy");
    let busy = Failing::unavailable(1, Duration::from_secs(3600));
    liar.lie(|lies| lies.failing = Some(busy));
    if let Err(failed) = read(&front, &below).await {
        assert_eq!(failed.code(), Code::Unavailable);
    }
    eventually("it is read", async || read(&front, &below).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_runs_on_what_is_here_and_is_told_what_is_not() {
    if !is_root("an_action_runs_on_what_is_here_and_is_told_what_is_not") {
        return;
    }
    let outage = Outage::new("actions").await;
    let (front, liar) = (&outage.front, &outage.liar);
    let here = Job::shell("echo here");
    front.put(here.blobs()).await;
    let input = noise("actions input", 2 << 20);
    let lacking = Job::shell("cat in").with(Folder::new().file("in", input.clone()));
    front.put(lacking.blobs().into_iter().filter(|blob| *blob != input)).await;
    liar.put(input);
    let absent = Job::shell("echo absent");
    for blob in absent.blobs() {
        liar.put(blob);
    }
    outage.proxy.set(Fault::Refuse);
    for (job, expect) in
        [(&here, Code::Ok), (&lacking, Code::FailedPrecondition), (&absent, Code::Unavailable)]
    {
        let status = in_time("an action", front.outcome(job.request())).await;
        assert_eq!(Code::from(status.code), expect, "{}", status.message);
    }
    outage.proxy.set(Fault::None);
    for job in [&lacking, &absent] {
        eventually("it runs", async || front.outcome(job.request()).await.code == 0).await;
    }
}
