//! A node that ends says so where it is asked whether it is ready, and is alive to the last.

use crate::Counted;
use proto::bytestream::WriteRequest;
use ringforge_tests::{client::digest, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_that_drains_is_alive_and_not_ready() {
    let settings = [("EXECUTION__ENABLED", "false"), ("CPUS__SHARDS", "1")];
    let counted = Counted::start(&settings).await;
    // An upload that goes on keeps it from its end.
    let blob = vec![7_u8; 1 << 20];
    let name = digest(&blob);
    let upload = "d8a1a6a5-6d5c-4bd0-a6d5-1d2f0c9b7e11";
    let resource_name = format!("uploads/{upload}/blobs/{}/{}", name.hash, name.size_bytes);
    let (more, sent) = mpsc::channel(4);
    let first =
        WriteRequest { resource_name, data: vec![7; 1000].into(), ..WriteRequest::default() };
    more.send(first).await.unwrap();
    let mut byte_stream = counted.client.byte_stream.clone();
    let written = tokio::spawn(async move { byte_stream.write(ReceiverStream::new(sent)).await });
    counted.until("ringforge_core_uploads{core=\"0\"}", 1.0);
    assert_eq!(counted.get("/readyz").status, 200);

    counted.node.signal("TERM");
    until("it is not ready any more", || counted.get("/readyz").status == 503);
    assert_eq!(counted.get("/readyz").body, "draining\n");
    assert_eq!(counted.get("/healthz").status, 200);
    assert_eq!(counted.page().value("ringforge_requests_in_flight"), Some(1.0));

    written.abort();
    let Counted { mut node, client, parent, .. } = counted;
    drop((more, client));
    let status = node.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{}", node.log());
    drop(parent);
}
