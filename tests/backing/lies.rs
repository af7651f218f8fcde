//! A cache below that is wrong: nothing wrong is ever read, and who has the right bytes heals it.

use super::front::{
    Front, IMPATIENT, batch, eventually, get_result, name, put, put_result, read, result_of,
    write_large,
};
use bytes::Bytes;
use prost::Message;
use proto::rpc;
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
    is_root,
    liar::{BreakReads, Liar, WrongBytes, WrongMissing, WrongResult},
    noise,
};
use tonic::Code;

const WRONG: [WrongBytes; 4] =
    [WrongBytes::SameLength, WrongBytes::Shorter, WrongBytes::Longer, WrongBytes::LastByte];
/// From a batch to many pieces of a stream.
const SIZES: [usize; 5] = [1, 5000, 1 << 20, (1 << 20) + 1, 6 << 20];

/// Uploads a blob again as a client would that was told that it is missing.
async fn heal(client: &Client, blob: &Bytes) {
    if blob.len() <= 1 << 20 {
        assert_eq!(put(client, "", blob).await, Code::Ok);
    } else {
        write_large(client, blob).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_never_a_whole_read_and_an_upload_heals_them() {
    for wrong in WRONG {
        for size in SIZES {
            // A node of its own for each: one that was lied to often enough asks no more.
            let liar = Liar::start();
            let front = Front::before(liar.address(), &IMPATIENT).await;
            let blob = noise(&format!("{wrong:?} {size}"), size);
            let named = liar.put(blob.clone());
            liar.lie(|lies| lies.all_bytes = Some(wrong));
            let what = format!("{wrong:?}, {size}");
            if size <= 1 << 20 {
                let batched = batch(&front, std::slice::from_ref(&named)).await.remove(0);
                assert_eq!(batched.unwrap_err(), Code::NotFound, "{what}");
            }
            let streamed = read(&front, &named).await.expect_err(&what);
            assert_eq!(streamed.code(), Code::NotFound, "{what}: {streamed:?}");
            let end = i64::try_from(size - 1).unwrap();
            let last = front.read_range(&name(&named), end, 0).await.expect_err(&what);
            assert_eq!(last.code(), Code::NotFound, "{what}: {last:?}");
            let missing = front.missing(vec![named.clone()]).await.unwrap();
            assert_eq!(missing, std::slice::from_ref(&named), "{what}");
            // What is below counts as overwritten by a write: the liar keeps what it is sent.
            assert!(liar.forget(&named));
            heal(&front, &blob).await;
            assert_eq!(liar.blobs().get(&named.hash), Some(&blob), "{what}");
            assert_eq!(read(&front, &named).await.unwrap(), blob, "{what}");
            liar.honest();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_breaks_off_is_gone_on_with() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &[]).await;
    let blob = noise("broken off", 8 << 20);
    let named = liar.put(blob.clone());
    liar.lie(|lies| lies.break_reads = Some(BreakReads { after_bytes: 2 << 20, times: 3 }));
    assert_eq!(read(&front, &named).await.unwrap(), blob);
    let never = liar.put(noise("never whole", 8 << 20));
    liar.lie(|lies| lies.break_reads = Some(BreakReads { after_bytes: 1 << 20, times: 1000 }));
    assert_eq!(read(&front, &never).await.unwrap_err().code(), Code::Unavailable);
    liar.honest();
    eventually("it is whole", async || read(&front, &never).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_none_is_no_hit() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &IMPATIENT).await;
    let action = digest(b"wrong result");
    liar.put_result(&action, result_of(&liar.put("an output")));
    for wrong in [
        WrongResult::AbsentBlob,
        WrongResult::AbsentTree,
        WrongResult::NoDigest,
        WrongResult::BadHash,
        WrongResult::NegativeSize,
        WrongResult::PathUp,
        WrongResult::AbsolutePath,
        WrongResult::EmptyPath,
    ] {
        liar.lie(|lies| lies.result = Some(wrong));
        let answer = get_result(&front, "", &action).await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound, "{wrong:?}");
    }
    liar.honest();
    eventually("a hit", async || get_result(&front, "", &action).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_claims_to_have_everything_is_found_out() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &IMPATIENT).await;
    liar.lie(|lies| lies.missing = Some(WrongMissing::Nothing));
    let absent = noise("claimed", 5000);
    let named = digest(&absent);
    assert!(front.missing(vec![named.clone()]).await.unwrap().is_empty(), "it is believed");
    assert_eq!(read(&front, &named).await.unwrap_err().code(), Code::NotFound);
    if is_root("a_cache_that_claims_to_have_everything_is_found_out") {
        let job = Job::shell("cat in").with(Folder::new().file("in", absent.clone()));
        front.put(job.blobs().into_iter().filter(|blob| *blob != absent)).await;
        let status = front.outcome(job.request()).await;
        assert_eq!(Code::from(status.code), Code::FailedPrecondition, "{}", status.message);
        let failure = status.details.iter().find(|any| any.type_url.contains("Precondition"));
        let failure = rpc::PreconditionFailure::decode(&*failure.unwrap().value).unwrap();
        assert_eq!(failure.violations[0].r#type, "MISSING");
        let subject = format!("blobs/{}/{}", named.hash, named.size_bytes);
        assert_eq!(failure.violations[0].subject, subject);
        assert_eq!(failure.violations.len(), 1);
    }
    // A client that sends it nevertheless is not turned away.
    assert_eq!(put(&front, "", &absent).await, Code::Ok);
    assert_eq!(read(&front, &named).await.unwrap(), absent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_claims_to_have_nothing_is_sent_everything_again() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &IMPATIENT).await;
    let blob = noise("denied", 2 << 20);
    write_large(&front, &blob).await.unwrap();
    liar.lie(|lies| lies.missing = Some(WrongMissing::Everything));
    let below = liar.put("only below");
    assert!(front.missing(vec![digest(&blob)]).await.unwrap().is_empty(), "it is here");
    assert_eq!(front.missing(vec![below.clone()]).await.unwrap(), std::slice::from_ref(&below));
    assert_eq!(read(&front, &below).await.unwrap(), "only below", "it is asked all the same");
    let action = digest(b"denied");
    put_result(&front, "", &action, result_of(&digest(&blob))).await.unwrap();
    assert!(get_result(&front, "", &action).await.is_ok());
}
