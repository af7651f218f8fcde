//! ByteStream.Read: the whole, parts of it, and what is refused.

use crate::{
    byte_stream::read_name,
    shared::{assert_refused, shared},
};
use proto::bytestream::ReadRequest;
use ringforge_tests::{
    client::{Client, digest},
    noise,
};
use tonic::{Code, Request, metadata::MetadataValue};

#[tokio::test]
async fn every_part_of_a_blob_can_be_read() {
    let node = shared().await;
    for size in [10_usize, 65_536, 65_537, 3_000_001] {
        let blob = noise("parts", size);
        let name = read_name(&node.put([blob.clone()]).await.remove(0));
        let end = i64::try_from(size).unwrap();
        for (offset, limit) in [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
            (0, end),
            (0, end + 1),
            (0, i64::MAX),
            (end / 2, end / 4),
            (end - 1, 0),
            (end - 1, 1),
            (end - 1, i64::MAX),
            (end, 0),
            (end, 5),
        ] {
            let from = usize::try_from(offset).unwrap();
            let length = if limit == 0 { size } else { usize::try_from(limit).unwrap() };
            let expected = blob.slice(from..from.saturating_add(length).min(size));
            let part = node.read_range(&name, offset, limit).await.unwrap();
            assert!(part == expected, "{size}: {offset} {limit}: {} bytes", part.len());
        }
    }
}

#[tokio::test]
async fn offsets_outside_and_negative_limits_are_out_of_range() {
    let node = shared().await;
    let blob = noise("outside", 100);
    let name = read_name(&node.put([blob]).await.remove(0));
    for (offset, limit) in [(-1, 0), (101, 0), (i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, i64::MIN)]
    {
        let status = node.read_range(&name, offset, limit).await.expect_err("outside");
        let negative_limit = limit < 0 && status.code() == Code::InvalidArgument;
        let right = status.code() == Code::OutOfRange || negative_limit;
        assert!(right, "{offset} {limit}: {status:?}");
    }
}

#[tokio::test]
async fn the_empty_blob_is_read_without_a_byte() {
    let node = shared().await;
    let name = read_name(&digest(b""));
    assert_eq!(node.read_range(&name, 0, 0).await.unwrap(), "");
    assert_eq!(node.read_range(&name, 0, 10).await.unwrap(), "");
    assert_refused(node.read_range(&name, 1, 0).await, Code::OutOfRange, "behind nothing");
}

#[tokio::test]
async fn an_absent_blob_is_not_found_wherever_one_begins() {
    let node = shared().await;
    for size in [10, 1_000_000] {
        let name = read_name(&digest(&noise("absent", size)));
        for offset in [0, 5, 10] {
            let answer = node.read_range(&name, offset, 0).await;
            assert_refused(answer, Code::NotFound, "an absent blob");
        }
    }
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let node = shared().await;
    let kept = node.put([noise("read names", 3)]).await.remove(0);
    let hash = kept.hash;
    let upper = hash.to_uppercase();
    for (name, code) in [
        (String::new(), Code::InvalidArgument),
        (hash.clone(), Code::InvalidArgument),
        (format!("blobs/{hash}"), Code::InvalidArgument),
        (format!("blobs/{hash}/3/"), Code::InvalidArgument),
        (format!("blobs/{hash}/3/more"), Code::InvalidArgument),
        (format!("blobs/{hash}/003"), Code::InvalidArgument),
        (format!("blobs/{hash}/3 "), Code::InvalidArgument),
        (format!("blobs/{hash}/-3"), Code::InvalidArgument),
        (format!("blobs/{hash}/99999999999999999999999"), Code::InvalidArgument),
        (format!("blobs/{upper}/3"), Code::InvalidArgument),
        (format!("blobs/{}/3", "g".repeat(64)), Code::InvalidArgument),
        (format!("blobs/{}/3", "ü".repeat(32)), Code::InvalidArgument),
        (format!("/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("a//blobs/{hash}/3"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("\0/blobs/{hash}/3"), Code::InvalidArgument),
        ("../../../etc/passwd".to_owned(), Code::InvalidArgument),
        ("blobs/../../etc/passwd/3".to_owned(), Code::InvalidArgument),
        (format!("compressed-blobs/zstd/{hash}/3"), Code::Unimplemented),
        (format!("blobs/blake3/{hash}/3"), Code::Unimplemented),
    ] {
        let status = node.read_range(&name, 0, 0).await.expect_err(&name);
        let unserved = code == Code::Unimplemented && status.code() == Code::InvalidArgument;
        assert!(status.code() == code || unserved, "{name:?}: {status:?}");
    }
}

#[tokio::test]
async fn the_header_has_to_say_what_the_message_says() {
    let node = shared().await;
    let name = read_name(&node.put([noise("read header", 10)]).await.remove(0));
    for (header, good) in [("something/else", false), (name.as_str(), true)] {
        let message = ReadRequest { resource_name: name.clone(), ..Default::default() };
        let mut request = Request::new(message);
        let key = "build.bazel.remote.execution.v2.resource-name";
        request.metadata_mut().insert(key, MetadataValue::try_from(header).unwrap());
        assert_eq!(node.byte_stream.clone().read(request).await.is_ok(), good, "{header}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_harms_nobody() {
    let node = shared().await;
    let blob = noise("goes away", 30_000_000);
    let digest = digest(&blob);
    let name = crate::byte_stream::write_name("u", &digest);
    node.write(crate::byte_stream::messages(&name, &blob, 2 << 20)).await.unwrap();
    for _ in 0..5 {
        let client = Client::connect(&node.running.node.address()).await;
        let request = ReadRequest { resource_name: read_name(&digest), ..Default::default() };
        let mut stream = client.byte_stream.clone().read(request).await.unwrap().into_inner();
        assert!(!stream.message().await.unwrap().unwrap().data.is_empty());
        drop((stream, client));
    }
    assert!(node.read(&digest).await.unwrap() == blob);
}
