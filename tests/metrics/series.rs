//! What the page says, and that it says what is written about it.

use crate::{Counted, page::Family};
use bytes::Bytes;
use proto::{
    asset::{
        FetchBlobRequest, PushBlobRequest, fetch_client::FetchClient, push_client::PushClient,
    },
    reapi::GetCapabilitiesRequest,
};
use ringforge_tests::{Node, client::digest, free_port, is_root};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use tonic::Code;

/// Where every series is described.
const DOCUMENT: &str = "docs/metrics.md";

const CAS: &str = "build.bazel.remote.execution.v2.ContentAddressableStorage";

fn calls(service: &str, method: &str, code: &str) -> String {
    let labels = format!("service=\"{service}\",method=\"{method}\",code=\"{code}\"");
    format!("ringforge_requests_total{{{labels}}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn numbers_move_with_what_clients_do() {
    let node = Counted::start(&[("EXECUTION__ENABLED", "false"), ("CPUS__SHARDS", "2")]).await;
    let before = node.page();
    assert_eq!(before.sum("ringforge_core_blobs"), 0.0);
    assert_eq!(before.value("ringforge_core_answering{core=\"1\"}"), Some(1.0));
    assert_eq!(before.value("ringforge_core_inbox_max{core=\"0\"}"), Some(4096.0));
    assert_eq!(before.value("ringforge_connections_max"), Some(4096.0));
    assert!(!before.families.contains_key("ringforge_executions_slots"));

    let blobs: Vec<Bytes> = (0..8_u8).map(|seed| Bytes::from(vec![seed; 1000])).collect();
    let digests = node.client.put(blobs).await;
    assert!(node.client.missing(digests).await.unwrap().is_empty());
    let absent = digest(b"never written");
    assert_eq!(node.client.read(&absent).await.unwrap_err().code(), Code::NotFound);
    let asked = node.client.capabilities.clone();
    asked.clone().get_capabilities(GetCapabilitiesRequest::default()).await.unwrap();

    for series in [
        calls(CAS, "BatchUpdateBlobs", "OK"),
        calls(CAS, "FindMissingBlobs", "OK"),
        calls("google.bytestream.ByteStream", "Read", "NOT_FOUND"),
        calls("build.bazel.remote.execution.v2.Capabilities", "GetCapabilities", "OK"),
        format!("ringforge_request_seconds_count{{service=\"{CAS}\",method=\"FindMissingBlobs\"}}"),
        "ringforge_connections".to_owned(),
        "ringforge_connections_accepted_total".to_owned(),
    ] {
        node.until(&series, 1.0);
    }
    let after = node.page();
    assert_eq!(after.sum("ringforge_core_blobs"), 8.0);
    assert!(after.value("ringforge_store_used_bytes").unwrap() >= 8000.0);
    assert_eq!(after.value("ringforge_requests_in_flight"), Some(0.0));
    assert!(after.value("ringforge_process_open_fds").unwrap() > 3.0);
    assert!(after.value("ringforge_process_resident_memory_bytes").unwrap() > 1e6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_clients_make_up_is_no_series_of_its_own() {
    let node = Counted::start(&[("EXECUTION__ENABLED", "false")]).await;
    let before: BTreeSet<String> = node.page().series.into_keys().collect();
    let channel = || node.client.channel.clone();
    let fetched = FetchClient::new(channel()).fetch_blob(FetchBlobRequest::default()).await;
    assert_eq!(fetched.unwrap_err().code(), Code::Unimplemented);
    let pushed = PushClient::new(channel()).push_blob(PushBlobRequest::default()).await;
    assert_eq!(pushed.unwrap_err().code(), Code::Unimplemented);
    node.until(&calls("other", "other", "UNIMPLEMENTED"), 2.0);
    let after: BTreeSet<String> = node.page().series.into_keys().collect();
    let more: Vec<_> = after.difference(&before).collect();
    assert_eq!(more, [&calls("other", "other", "UNIMPLEMENTED")]);
}

/// The rows of the document's tables: name, type, labels, meaning.
fn documented() -> BTreeMap<String, Family> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let text = fs::read_to_string(path).unwrap();
    let mut families = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `ringforge_")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("four cells: {row}") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let family = Family { kind: kind.to_owned(), help: help.to_owned(), labels };
        let before = families.insert(name.trim_matches('`').to_owned(), family);
        assert!(before.is_none(), "two rows: {row}");
    }
    families
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_document_names_every_series_and_no_other() {
    if !is_root("the_document_names_every_series_and_no_other") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let back = Node::start_with(&parent.path().join("back"), &[("EXECUTION__ENABLED", "false")]);
    let url = format!("grpc://{}", back.address());
    let gossip = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let peers = gossip.join(",");
    let settings = |i: usize| {
        let id = ["one", "other"][i];
        [("EXECUTION__NODE_ID", id), ("CLUSTER__LISTEN", &gossip[i]), ("CLUSTER__PEERS", &peers)]
    };
    let _other = Node::start_with(&parent.path().join("other"), &settings(1));
    let more = [("BACKING__URL", url.as_str()), ("CLUSTER__SHARE", "true")];
    let node = Counted::start(&[&settings(0)[..], &more].concat()).await;
    node.until("ringforge_cluster_nodes{state=\"serving\"}", 1.0);
    // Whoever was asked nothing yet has taken no time; the other node is asked for its half.
    let absent = (0..100_u8).map(|seed| digest(&[seed])).collect();
    node.client.missing(absent).await.unwrap();
    node.until("ringforge_peer_calls_total{peer=\"other\"}", 1.0);
    let page = node.page().families;
    let documented = documented();
    let undocumented: Vec<_> = page.iter().filter(|(n, _)| !documented.contains_key(*n)).collect();
    assert!(undocumented.is_empty(), "{DOCUMENT} lacks {undocumented:#?}");
    for (name, family) in &documented {
        assert_eq!(page.get(name), Some(family), "{DOCUMENT}: {name}");
    }
}
