//! Peers that break the rules below the protocol: a clear status or a closed connection, and the
//! node goes on serving.

use crate::{
    raw::{self, END_STREAM, Wire},
    shared::{Connected, assert_refused, eventually, own, shared},
};
use proto::reapi::{GetCapabilitiesRequest, capabilities_client::CapabilitiesClient};
use ringforge_tests::{
    client::{Client, digest},
    noise,
};
use tonic::{Code, transport::Channel};

const CAS: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage";
const READ: &str = "/google.bytestream.ByteStream/Read";
const WRITE: &str = "/google.bytestream.ByteStream/Write";

/// A new client is served, and what was kept is still here.
async fn assert_serves(node: &Connected) {
    let client = Client::connect(&node.running.node.address()).await;
    let blob = noise("still serves", 1000);
    let digest = client.put([blob.clone()]).await.remove(0);
    assert_eq!(client.read(&digest).await.unwrap(), blob);
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_by_every_method() {
    let node = shared().await;
    let garbage: [&[u8]; 5] = [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        // A field that is longer than the message.
        b"\x0a\xff\x7f",
        // Text that is not UTF-8.
        b"\x0a\x02\xff\xfe",
        // A field of number zero; a group that never ends.
        b"\x02\x01a",
        b"\x0b\x0b\x0b\x0b",
    ];
    for method in [
        &format!("{CAS}/FindMissingBlobs"),
        &format!("{CAS}/BatchUpdateBlobs"),
        &format!("{CAS}/BatchReadBlobs"),
        &format!("{CAS}/GetTree"),
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        "/build.bazel.remote.execution.v2.Execution/Execute",
        "/build.bazel.remote.execution.v2.Execution/WaitExecution",
        "/google.longrunning.Operations/CancelOperation",
        "/google.bytestream.ByteStream/QueryWriteStatus",
        READ,
        WRITE,
    ] {
        for bytes in garbage {
            let status = raw::call(&node.channel, method, bytes).await.expect_err(method);
            let clear = matches!(status.code(), Code::InvalidArgument | Code::Internal);
            assert!(clear, "{method} {bytes:?}: {status:?}");
        }
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn fields_that_nobody_knows_are_passed_over() {
    let node = shared().await;
    // Field 100 as a varint, as 64 bits, as bytes and as 32 bits.
    let unknown = b"\xa0\x06\x01\xa1\x0612345678\xa2\x06\x03abc\xa5\x061234";
    let blob = digest(b"");
    let name = format!("blobs/{}/0", blob.hash);
    let mut message = unknown.to_vec();
    message.extend_from_slice(&[0x0a, u8::try_from(name.len()).unwrap()]);
    message.extend_from_slice(name.as_bytes());
    raw::call(&node.channel, READ, &message).await.unwrap();
    raw::call(&node.channel, &format!("{CAS}/FindMissingBlobs"), unknown).await.unwrap();
    let name = format!("uploads/u/{name}");
    let mut message = vec![0x0a, u8::try_from(name.len()).unwrap()];
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(unknown);
    raw::call(&node.channel, WRITE, &message).await.unwrap();
}

#[tokio::test]
async fn services_and_methods_that_are_none_are_unimplemented() {
    let node = shared().await;
    for method in [
        "/google.bytestream.ByteStream/Append",
        "/google.bytestream.ByteStream/",
        "/build.bazel.remote.execution.v2.Execution/Nothing",
        "/no.such.Service/Method",
        "/",
        "/../../etc/passwd",
    ] {
        let answer = raw::call(&node.channel, method, b"").await;
        assert_eq!(answer.expect_err(method).code(), Code::Unimplemented, "{method}");
    }
}

#[tokio::test]
async fn a_message_above_the_bound_is_refused() {
    let node =
        own(&[("SERVER__MESSAGE_BYTES_MAX", "1MiB"), ("SERVER__BATCH_BYTES_MAX", "512KiB")]).await;
    let long = vec![0; (1 << 20) + 1];
    for method in [&format!("{CAS}/BatchUpdateBlobs"), WRITE, READ] {
        let code = raw::call(&node.channel, method, &long).await.expect_err(method).code();
        let clear =
            matches!(code, Code::ResourceExhausted | Code::OutOfRange | Code::InvalidArgument);
        assert!(clear, "{method}: {code}");
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn an_envelope_that_lies_about_its_length_costs_nothing() {
    let node = shared().await;
    let port = node.running.node.port();
    for said in [1_000_000, u32::MAX] {
        for method in [WRITE, READ, &format!("{CAS}/FindMissingBlobs")] {
            let mut wire = Wire::http2(port);
            wire.call(1, method, &[]);
            wire.message(1, END_STREAM, said, b"short");
            let answer = String::from_utf8_lossy(&wire.answer()).into_owned();
            assert!(!answer.is_empty(), "{method} {said}");
        }
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn a_connection_that_breaks_inside_a_message_stores_nothing() {
    let node = shared().await;
    let blob = noise("breaks inside", 10_000);
    let name = crate::byte_stream::write_name("u", &digest(&blob));
    let mut message = vec![0x0a, u8::try_from(name.len()).unwrap()];
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(b"\x18\x01\x52\x90\x4e");
    message.extend_from_slice(&blob);
    let said = u32::try_from(message.len()).unwrap();
    for sent in [3, 60, 100, 5000, message.len() - 1] {
        let mut wire = Wire::http2(node.running.node.port());
        wire.call(1, WRITE, &[]);
        wire.message(1, 0, said, &message[..sent]);
        drop(wire);
    }
    assert_serves(&node).await;
    assert_eq!(node.missing(vec![digest(&blob)]).await.unwrap().len(), 1);
    // The very bytes are right: whole, they are taken.
    let mut wire = Wire::http2(node.running.node.port());
    wire.call(1, WRITE, &[]);
    wire.message(1, END_STREAM, said, &message);
    wire.answer();
    assert_eq!(node.missing(vec![digest(&blob)]).await.unwrap(), []);
}

#[tokio::test]
async fn a_compressed_message_is_refused() {
    let node = shared().await;
    for method in [WRITE, READ, &format!("{CAS}/FindMissingBlobs")] {
        let mut wire = Wire::http2(node.running.node.port());
        wire.call(1, method, &[("grpc-encoding", "gzip")]);
        wire.frame(raw::DATA, END_STREAM, 1, b"\x01\x00\x00\x00\x03abc");
        let answer = String::from_utf8_lossy(&wire.answer()).into_owned();
        assert!(!answer.is_empty(), "{method}");
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn what_is_not_http2_is_hung_up_on() {
    let node = shared().await;
    let port = node.running.node.port();
    let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
    long.resize(200_000, b'a');
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 1000], &[0xff; 100_000], &long] {
        let mut wire = Wire::connect(port);
        wire.say(bytes);
        assert!(wire.is_closed(), "{:?}", String::from_utf8_lossy(&bytes[..10]));
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn frames_that_break_http2_end_their_connection_only() {
    let node = shared().await;
    let port = node.running.node.port();
    for (kind, flags, stream, payload) in [
        // DATA and WINDOW_UPDATE of streams that are idle, a header block that is nonsense,
        // SETTINGS of a wrong length, a frame of 1 MiB, CONTINUATION of nothing.
        (0_u8, 0_u8, 1_u32, vec![0; 10]),
        (8, 0, 5, vec![0, 0, 0, 0]),
        (1, 4, 1, vec![0xff; 100]),
        (4, 0, 0, vec![0; 5]),
        (0, 0, 1, vec![0; 1 << 20]),
        (9, 4, 1, vec![0; 10]),
        (1, 4, 2, vec![0x82]),
    ] {
        let mut wire = Wire::http2(port);
        wire.frame(kind, flags, stream, &payload);
        wire.answer();
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn headers_above_the_bound_are_refused() {
    let node = shared().await;
    let mut wire = Wire::http2(node.running.node.port());
    let long = "x".repeat(15_000);
    let further = [("a", long.as_str()), ("b", &long)];
    wire.call(1, READ, &further);
    wire.answer();
    assert_serves(&node).await;
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_is_ended() {
    let node = shared().await;
    let port = node.running.node.port();
    for method in [WRITE, READ, &format!("{CAS}/FindMissingBlobs")] {
        // A call that says nothing waits for ever, but for its deadline.
        let mut wire = Wire::http2(port);
        wire.call(1, method, &[("grpc-timeout", "100m")]);
        assert!(wire.ends_a_stream(), "{method}");
    }
    let mut wire = Wire::http2(port);
    wire.call(1, WRITE, &[("grpc-timeout", "soon")]);
    assert!(wire.ends_a_stream(), "what is no timeout is refused");
    assert_serves(&node).await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let node = shared().await;
    let port = node.running.node.port();
    let silent: Vec<Wire> =
        (0..50).map(|n| if n % 2 == 0 { Wire::connect(port) } else { Wire::http2(port) }).collect();
    assert_serves(&node).await;
    drop(silent);
}

#[tokio::test]
async fn connections_above_the_bound_are_hung_up_on_and_the_others_served() {
    let node = own(&[("SERVER__CONNECTIONS_MAX", "8")]).await;
    let port = node.running.node.port();
    let held: Vec<Wire> = (0..7).map(|_| Wire::http2(port)).collect();
    assert!(Wire::connect(port).is_closed());
    let kept = node.put([noise("within the bound", 10)]).await;
    assert_eq!(node.missing(kept).await.unwrap(), []);
    drop(held);
    let address = node.running.node.address();
    eventually("there is room again", async || {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let Ok(channel) = endpoint.connect().await else { return false };
        CapabilitiesClient::new(channel)
            .get_capabilities(GetCapabilitiesRequest::default())
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_in_a_flood_harm_nobody() {
    let node = shared().await;
    let mut wire = Wire::http2(node.running.node.port());
    for stream in (1..4000).step_by(2) {
        wire.call(stream, READ, &[]);
        wire.frame(3, 0, stream, &[0, 0, 0, 8]);
    }
    wire.answer();
    assert_serves(&node).await;
}

#[tokio::test]
async fn a_method_of_get_or_of_another_content_is_no_call() {
    let node = shared().await;
    for content in ["text/html", "application/json"] {
        let mut wire = Wire::http2(node.running.node.port());
        wire.call(1, &format!("{CAS}/FindMissingBlobs"), &[("content-type", content)]);
        wire.message(1, END_STREAM, 0, b"");
        assert!(!wire.answer().is_empty());
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn an_instance_name_may_not_be_endless() {
    let node = shared().await;
    let request = proto::reapi::FindMissingBlobsRequest {
        instance_name: "x".repeat(100_000),
        ..Default::default()
    };
    let answer = node.cas.clone().find_missing_blobs(request).await;
    assert_refused(answer, Code::InvalidArgument, "a long instance name");
}
