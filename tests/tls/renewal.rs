//! Certificates that change while a node runs, and files that it refuses.

use crate::Place;
use proto::bytestream::WriteRequest;
use ringforge_tests::{
    Node,
    client::{Client, digest},
    command, until,
};
use std::fs;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};

const READ: &str = "certificates were read again";
const KEPT: &str = "certificates are as they were";

/// Waits until something was said so many times.
fn until_said(node: &Node, line: &str, times: usize) {
    until(line, || node.log().matches(line).count() == times);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_are_shown_to_new_connections_and_old_ones_live_on() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "none"));
    let secured = |ca: &str| Client::secured(&node.address(), place.certificates.client(ca, None));
    let old = secured("ca");
    let blob: Vec<u8> = (0..100_000_u32).map(|at| (at % 253) as u8).collect();
    let of = digest(&blob);
    let name = format!("uploads/a-write/blobs/{}/{}", of.hash, of.size_bytes);
    let part = |from: usize, to: usize| WriteRequest {
        resource_name: name.clone(),
        write_offset: from as i64,
        finish_write: to == blob.len(),
        data: blob[from..to].to_vec().into(),
    };
    let (sender, parts) = mpsc::unbounded_channel();
    let mut writing = old.byte_stream.clone();
    let written = tokio::spawn(async move {
        writing.write(UnboundedReceiverStream::new(parts).map(|part| part)).await
    });
    sender.send(part(0, 50_000)).unwrap();
    old.answers().await.unwrap();

    // By the change alone; by the signal; and what is broken changes nothing.
    place.certificates.put_in_place("other-server", "server");
    until_said(&node, READ, 1);
    secured("other-ca").answers().await.unwrap();
    secured("ca").answers().await.unwrap_err();
    node.signal("HUP");
    until_said(&node, READ, 2);
    fs::write(place.certificates.path("server.pem"), "not a certificate").unwrap();
    until_said(&node, KEPT, 1);
    assert!(node.log().contains("server.pem has no certificate in PEM"), "{}", node.log());
    node.signal("HUP");
    until_said(&node, KEPT, 2);
    secured("other-ca").answers().await.unwrap();

    old.answers().await.unwrap();
    sender.send(part(50_000, blob.len())).unwrap();
    drop(sender);
    let written = written.await.unwrap().unwrap().into_inner();
    assert_eq!(written.committed_size, of.size_bytes);
    assert_eq!(old.read(&of).await.unwrap(), blob);
    assert!(node.stop().success());
}

#[tokio::test]
async fn authorities_of_clients_are_read_again_too() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    let client =
        |name| Client::secured(&node.address(), place.certificates.client("ca", Some(name)));
    // The node's own authority is the clients' too: this one replaces the clients'.
    let kept = client("client");
    kept.answers().await.unwrap();
    client("other-client").answers().await.unwrap_err();
    let trust = place.certificates.client("ca", Some("other-client"));
    fs::copy(place.file("other-ca.pem"), place.file("ca.pem")).unwrap();
    until_said(&node, READ, 1);
    Client::secured(&node.address(), trust).answers().await.unwrap();
    kept.answers().await.unwrap();
}

#[test]
fn a_signal_to_read_again_does_not_end_a_node_without_certificates() {
    let place = Place::new();
    let node = Node::start(&place.directory.path().join("clear"));
    node.signal("HUP");
    until("it is said", || node.log().contains("there are no certificates to read again"));
    assert!(node.stop().success());
}

#[test]
fn a_node_does_not_start_with_files_that_are_of_no_use() {
    let place = Place::new();
    fs::write(place.file("empty.pem"), "").unwrap();
    for (certificate, key, expect) in [
        ("absent.pem", "server.key", "ringforge: tls: can't read "),
        ("empty.pem", "server.key", "empty.pem is empty"),
        ("server.key", "server.key", "server.key has no certificate in PEM"),
        ("server.pem", "server.pem", "server.pem has no private key in PEM"),
        ("server.pem", "client.key", "client.key is not the key of "),
        ("expired.pem", "expired.key", "expired.pem: the certificate ended at 2020-01-01T00:00"),
    ] {
        let (certificate, key) = (place.file(certificate), place.file(key));
        let settings = [("TLS__CERTIFICATE", &*certificate), ("TLS__KEY", &*key)];
        let store = place.directory.path().join("store");
        let output = command(&store, 0, &settings).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expect) && said.lines().count() == 1, "{expect}: {said}");
    }
}
