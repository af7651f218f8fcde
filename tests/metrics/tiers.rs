//! A tier below, as its numbers have it: while it answers, and when it is gone.

use crate::Counted;
use ringforge_tests::{
    Node,
    client::digest,
    liar::{Liar, WrongBytes},
    noise, until,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tier_is_counted_under_its_name_and_its_breaker_is_shown() {
    let parent = tempfile::tempdir().unwrap();
    let alone = [("EXECUTION__ENABLED", "false")];
    let back = Node::start_with(&parent.path().join("back"), &alone);
    let url = format!("grpc://{}", back.address());
    let settings = [
        ("BACKING__URL", url.as_str()),
        ("BACKING__FAILURES_MAX", "2"),
        ("BACKING__OPEN_FOR", "1s"),
        ("BACKING__WRITE", "async"),
        ("BACKING__HEADERS", "[\"authorization: Bearer of-secrets\"]"),
    ];
    let node = Counted::start(&[&alone[..], &settings].concat()).await;
    let of = |name: &str| format!("ringforge_{name}{{tier=\"{url}\"}}");
    assert_eq!(node.page().value(&of("tier_breaker_state")), Some(0.0));
    assert_eq!(node.page().value(&of("backlog_written_total")), Some(0.0));

    let blob = bytes::Bytes::from_static(b"to be written below in its own time");
    node.client.put([blob]).await;
    node.until(&of("backlog_written_total"), 1.0);
    node.until(&of("tier_sent_bytes_total"), 35.0);
    node.client.missing(vec![digest(b"absent everywhere")]).await.unwrap();
    node.until(&of("tier_calls_total"), 2.0);
    let page = node.page();
    assert_eq!(page.value(&of("tier_breaker_state")), Some(0.0));
    let half =
        format!("ringforge_tier_answer_p50_seconds{{tier=\"{url}\",question=\"find_missing\"}}");
    assert!(page.value(&half).is_some(), "{half}");

    back.kill();
    let mut asked = 0_u32;
    let mut ask = async || {
        asked += 1;
        // Told that it can't be asked, or that it has nothing: neither is the question here.
        let _ = node.client.read(&digest(&asked.to_be_bytes())).await;
    };
    for _ in 0..3 {
        ask().await;
    }
    node.until(&of("tier_breaker_opened_total"), 1.0);
    node.until(&of("tier_outages_total"), 2.0);
    until("the breaker is open or being tried", || {
        node.page().value(&of("tier_breaker_state")).is_some_and(|state| state > 0.0)
    });
    let said = node.get("/metrics").body;
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_wrong_answer_is_counted_once_whoever_finds_it() {
    let liar = Liar::start();
    let url = format!("grpc://{}", liar.address());
    let node = Counted::start(&[("EXECUTION__ENABLED", "false"), ("BACKING__URL", &url)]).await;
    let of = |name: &str| format!("ringforge_tier_{name}{{tier=\"{url}\"}}");
    let mut count = 0.0;
    for wrong in
        [WrongBytes::SameLength, WrongBytes::Shorter, WrongBytes::Longer, WrongBytes::LastByte]
    {
        for size in [1000, 3 << 20] {
            let what = format!("{wrong:?} {size}");
            let named = liar.put(noise(&what, size));
            // Of ten answers one is wrong: it is not given up.
            for right in 0..9 {
                let right = liar.put(noise(&format!("{what} {right}"), 100));
                node.client.read(&right).await.unwrap();
            }
            liar.lie(|lies| lies.all_bytes = Some(wrong));
            let failed = node.client.read(&named).await.unwrap_err();
            assert_eq!(failed.code(), Code::NotFound, "{what}");
            liar.honest();
            count += 1.0;
            let page = node.page();
            assert_eq!(page.value(&of("wrong_answers_total")), Some(count), "{what}");
            assert_eq!(page.value(&of("wrong_blobs_total")), Some(count), "{what}");
        }
    }
}
