//! Who is let in, by what the node asks and what the client shows.

use crate::Place;
use ringforge_tests::client::Client;

const MODES: [&str; 4] = ["none", "request", "require", "verify"];

#[tokio::test]
async fn each_mode_lets_in_whom_it_says() {
    for mode in MODES {
        let place = Place::new();
        let node = place.node(&place.settings("server", mode));
        for (shown, lets_in) in [
            (None, &["none", "request"][..]),
            (Some("client"), &MODES),
            (Some("node"), &MODES),
            // Signed by the right one, but over, or for servers alone.
            (Some("expired-client"), &MODES[..3]),
            (Some("server"), &MODES[..3]),
            (Some("other-client"), &MODES[..3]),
        ] {
            let client = Client::secured(&node.address(), place.certificates.client("ca", shown));
            let answer = client.answers().await;
            assert_eq!(answer.is_ok(), lets_in.contains(&mode), "{mode} {shown:?}: {answer:?}");
        }
        let refusals = if mode == "none" || mode == "request" { 0 } else { 1 };
        let log = node.log();
        assert_eq!(log.matches("a TLS handshake failed").count(), refusals, "{mode}: {log}");
        assert!(node.stop().success());
    }
}

#[tokio::test]
async fn a_client_that_is_refused_hears_why() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    for (shown, expect) in [
        (None, "CertificateRequired"),
        (Some("expired-client"), "CertificateExpired"),
        (Some("other-client"), "UnknownCA"),
    ] {
        let client = Client::secured(&node.address(), place.certificates.client("ca", shown));
        let answer = client.answers().await.unwrap_err();
        assert!(answer.contains(expect), "{shown:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_knows_a_wrong_node_by_its_certificate() {
    let place = Place::new();
    for (name, authority, expect) in
        [("server", "other-ca", "UnknownIssuer"), ("other-server", "ca", "UnknownIssuer")]
    {
        let node = place.node(&place.settings(name, "none"));
        let client = Client::secured(&node.address(), place.certificates.client(authority, None));
        let answer = client.answers().await.unwrap_err();
        assert!(answer.contains(expect), "{name}: {answer}");
    }
}

#[tokio::test]
async fn blobs_of_every_size_come_back_as_they_were_sent() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    let tls = place.certificates.client("ca", Some("client"));
    let client = Client::secured(&node.address(), tls);
    for size in [0_usize, 1, 16_383, 16_384, 16_385, 1 << 20, 3 << 20] {
        let blob: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let digest = client.put([blob.clone().into()]).await.remove(0);
        assert_eq!(client.read(&digest).await.unwrap(), blob, "{size}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_do_not_hold_each_other_up() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "none"));
    let client = Client::secured(&node.address(), place.certificates.client("ca", None));
    let blob = vec![7_u8; 3 << 20];
    let digest = client.put([blob.clone().into()]).await.remove(0);
    let name = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
    let request = proto::bytestream::ReadRequest { resource_name: name, ..Default::default() };
    // One that is not read.
    let mut stalled = client.byte_stream.clone().read(request).await.unwrap().into_inner();
    let reads = (0..32).map(|_| client.read(&digest));
    for read in futures_util::future::join_all(reads).await {
        assert!(read.unwrap() == blob);
    }
    let mut size = 0;
    while let Some(message) = stalled.message().await.unwrap() {
        size += message.data.len();
    }
    assert_eq!(size, blob.len());
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse::ListServicesResponse,
    };
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    let tls = place.certificates.client("ca", Some("client"));
    let channel = Client::secured(&node.address(), tls).channel;
    let request = HealthCheckRequest::default();
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status, 1);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut reflection = ServerReflectionClient::new(channel);
    let listed = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let listed = listed.into_inner().message().await.unwrap().unwrap().message_response.unwrap();
    let ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    assert!(listed.service.iter().any(|one| one.name == "google.bytestream.ByteStream"));
}
