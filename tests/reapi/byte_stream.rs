//! ByteStream.Write in one go: what is kept, what is refused, and that nothing stays of it.

use crate::shared::{assert_refused, own, shared};
use bytes::Bytes;
use proto::{bytestream::WriteRequest, reapi::Digest};
use ringforge_tests::{client::digest, noise};
use tonic::{Code, Request, metadata::MetadataValue};

/// The name of a write of this digest.
pub(crate) fn write_name(uuid: &str, digest: &Digest) -> String {
    format!("uploads/{uuid}/blobs/{}/{}", digest.hash, digest.size_bytes)
}

/// The name of a read of this digest.
pub(crate) fn read_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.hash, digest.size_bytes)
}

/// The messages of a whole write: the name in the first, the end in the last.
pub(crate) fn messages(name: &str, blob: &Bytes, piece: usize) -> Vec<WriteRequest> {
    let mut messages: Vec<WriteRequest> = Vec::new();
    let mut offset = 0;
    loop {
        let end = (offset + piece).min(blob.len());
        messages.push(WriteRequest {
            resource_name: if offset == 0 { name.to_owned() } else { String::new() },
            write_offset: i64::try_from(offset).unwrap(),
            finish_write: end == blob.len(),
            data: blob.slice(offset..end),
        });
        if end == blob.len() {
            return messages;
        }
        offset = end;
    }
}

#[tokio::test]
async fn blobs_of_every_size_in_pieces_of_every_size_are_kept() {
    let node = shared().await;
    for (size, piece) in [
        (1, 1),
        (10, 3),
        (4096, 4096),
        (65_535, 1000),
        (65_536, 65_536),
        (65_537, 65_536),
        (1 << 20, 1 << 16),
        ((3 << 20) + 1, 1 << 20),
        (9 << 20, 4 << 20),
    ] {
        let blob = noise(&format!("write {size} {piece}"), size);
        let digest = digest(&blob);
        let name = write_name("one", &digest);
        let committed = node.write(messages(&name, &blob, piece)).await.unwrap();
        assert_eq!(committed, digest.size_bytes, "{size} {piece}");
        // Visible as soon as the write was answered.
        assert_eq!(node.missing(vec![digest.clone()]).await.unwrap(), []);
        assert!(node.read(&digest).await.unwrap() == blob, "{size} {piece}");
    }
}

#[tokio::test]
async fn the_end_may_come_in_a_message_of_its_own() {
    let node = shared().await;
    for size in [10, 100_000] {
        let blob = noise("an end of its own", size);
        let mut all = messages(&write_name("end", &digest(&blob)), &blob, size);
        all[0].finish_write = false;
        let write_offset = i64::try_from(size).unwrap();
        all.push(WriteRequest { write_offset, finish_write: true, ..Default::default() });
        assert_eq!(node.write(all).await.unwrap(), write_offset);
        assert!(node.read(&digest(&blob)).await.unwrap() == blob);
    }
}

#[tokio::test]
async fn messages_without_bytes_do_no_harm() {
    let node = shared().await;
    let blob = noise("empty messages", 100);
    let name = write_name("empty", &digest(&blob));
    let mut all = messages(&name, &blob, 50);
    let nothing = |write_offset| WriteRequest { write_offset, ..Default::default() };
    all.insert(1, nothing(50));
    all.insert(0, WriteRequest { resource_name: name, ..nothing(0) });
    assert_eq!(node.write(all).await.unwrap(), 100);
    assert_eq!(node.read(&digest(&blob)).await.unwrap(), blob);
}

#[tokio::test]
async fn the_empty_blob_may_be_written() {
    let node = shared().await;
    let all = messages(&write_name("nothing", &digest(b"")), &Bytes::new(), 1);
    assert_eq!(node.write(all).await.unwrap(), 0);
}

#[tokio::test]
async fn a_name_may_be_repeated_but_not_changed() {
    let node = shared().await;
    let blob = noise("repeated name", 1000);
    let name = write_name("name", &digest(&blob));
    let mut all = messages(&name, &blob, 400);
    all[1].resource_name.clone_from(&name);
    assert_eq!(node.write(all.clone()).await.unwrap(), 1000);
    let other = noise("another blob", 1000);
    let mut all = messages(&write_name("name", &digest(&other)), &other, 400);
    all[1].resource_name = name;
    assert_refused(node.write(all).await, Code::InvalidArgument, "another name");
    assert_eq!(node.missing(vec![digest(&other)]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn instance_and_metadata_are_part_of_a_name() {
    let node = shared().await;
    for (before, after) in
        [("main/", ""), ("a/b/", "/file.txt"), ("", "/x/blobs/y/uploads"), ("ü b/", "/ü")]
    {
        let blob = noise(before, 100 + after.len());
        let digest = digest(&blob);
        let name = format!("{before}{}{after}", write_name("u", &digest));
        assert_eq!(node.write(messages(&name, &blob, 30)).await.unwrap(), digest.size_bytes);
        let name = format!("{before}{}", read_name(&digest));
        assert_eq!(node.read_range(&name, 0, 0).await.unwrap(), blob, "{name}");
    }
}

#[tokio::test]
async fn bytes_that_are_not_the_blob_are_refused_and_not_kept() {
    let node = shared().await;
    for size in [1000_usize, 200_000] {
        let (promised, sent) = (noise("promised", size), noise("sent", size));
        let digest = digest(&promised);
        let name = |case: &str| write_name(&format!("{case}-{size}"), &digest);
        let mut long = messages(&name("long"), &promised, size / 3);
        let after = i64::try_from(size).unwrap();
        let last = long.len() - 1;
        long[last].finish_write = false;
        long.push(WriteRequest {
            write_offset: after,
            finish_write: true,
            data: Bytes::from_static(b"x"),
            ..Default::default()
        });
        let mut one = messages(&name("one"), &promised, size).remove(0);
        one.data = noise("longer", size + 1);
        for (what, all) in [
            ("wrong bytes", messages(&name("hash"), &sent, size / 3)),
            ("wrong bytes in one message", messages(&name("hash-one"), &sent, size)),
            ("too few", messages(&name("few"), &promised.slice(..size - 1), size / 3)),
            ("too few in one message", messages(&name("few-one"), &promised.slice(..1), size)),
            ("none", messages(&name("none"), &Bytes::new(), size)),
            ("too many", long),
            ("too many in one message", vec![one]),
        ] {
            assert_refused(node.write(all).await, Code::InvalidArgument, what);
            let missing = node.missing(vec![digest.clone()]).await.unwrap();
            assert_eq!(missing.len(), 1, "{what}: it is kept");
        }
        // What failed before does not stand in the way, under one of the same names too.
        let again = messages(&name("hash"), &promised, size / 3);
        assert_eq!(node.write(again).await.unwrap(), after);
        assert!(node.read(&digest).await.unwrap() == promised);
    }
}

#[tokio::test]
async fn a_message_after_the_end_is_an_error() {
    let node = shared().await;
    for pieces in [1, 3] {
        let blob = noise("after the end", 900 + pieces);
        let name = write_name("after", &digest(&blob));
        let mut all = messages(&name, &blob, 900 / pieces + 1);
        all.push(WriteRequest {
            write_offset: i64::try_from(blob.len()).unwrap(),
            data: Bytes::from_static(b"more"),
            ..Default::default()
        });
        assert_refused(node.write(all).await, Code::InvalidArgument, "more after the end");
    }
}

#[tokio::test]
async fn offsets_that_are_not_what_is_committed_are_errors() {
    let node = shared().await;
    let blob = noise("offsets", 1000);
    let digest = digest(&blob);
    for (first, second) in
        [(1, 500), (-1, 500), (i64::MAX, 500), (0, 499), (0, 501), (0, 0), (0, -1)]
    {
        let name = write_name(&format!("offset {first} {second}"), &digest);
        let mut all = messages(&name, &blob, 500);
        (all[0].write_offset, all[1].write_offset) = (first, second);
        let answer = node.write(all).await;
        let code = answer.expect_err("a wrong offset").code();
        assert!(
            matches!(code, Code::InvalidArgument | Code::OutOfRange),
            "{first} {second} {code}"
        );
        assert_eq!(node.missing(vec![digest.clone()]).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_blob_that_is_present_ends_a_write_at_once() {
    let node = shared().await;
    let blob = noise("present", 300_000);
    let digest = node.put([blob.clone()]).await.remove(0);
    let mut all = messages(&write_name("present", &digest), &blob, 1000);
    assert_eq!(node.write(all.clone()).await.unwrap(), digest.size_bytes);
    // Also where the client would go on for ever.
    all.truncate(1);
    let forever = tokio_stream::StreamExt::chain(
        tokio_stream::iter(all),
        tokio_stream::pending::<WriteRequest>(),
    );
    let answer = node.byte_stream.clone().write(forever).await.unwrap();
    assert_eq!(answer.into_inner().committed_size, digest.size_bytes);
}

#[tokio::test]
async fn a_blob_above_the_largest_is_refused_before_it_comes() {
    let node = own(&[("STORE__BLOB_BYTES_MAX", "1MiB")]).await;
    for (size, good) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let blob = noise("largest", size);
        let answer = node.write(messages(&write_name("u", &digest(&blob)), &blob, 1 << 18)).await;
        if good {
            assert_eq!(answer.unwrap(), digest(&blob).size_bytes);
        } else {
            assert_refused(answer, Code::InvalidArgument, "a blob above the largest");
        }
    }
    let huge = Digest { size_bytes: i64::MAX, ..digest(b"huge") };
    let all = messages(&write_name("u", &huge), &Bytes::from_static(b"x"), 1);
    assert_refused(node.write(all).await, Code::InvalidArgument, "the largest number");
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let node = shared().await;
    let blob = noise("names", 3);
    let Digest { hash, .. } = digest(&blob);
    let upper = hash.to_uppercase();
    for (name, code) in [
        (String::new(), Code::InvalidArgument),
        (format!("blobs/{hash}/3"), Code::InvalidArgument),
        (format!("uploads/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("uploads//blobs/{hash}/3"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}/"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}/03"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}/-3"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{hash}/x"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{upper}/3"), Code::InvalidArgument),
        (format!("uploads/u/blobs/{}/3", &hash[1..]), Code::InvalidArgument),
        (format!("uploads/u/blobs/../../../etc/{hash}/3"), Code::InvalidArgument),
        (format!("/uploads/u/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("a//uploads/u/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("operations/u/blobs/{hash}/3"), Code::InvalidArgument),
        (format!("uploads/u/compressed-blobs/zstd/{hash}/3"), Code::Unimplemented),
        (format!("uploads/u/blobs/blake3/{hash}/3"), Code::Unimplemented),
    ] {
        let answer = node.write(messages(&name, &blob, 3)).await;
        let status = answer.expect_err(&name);
        let unserved = code == Code::Unimplemented && status.code() == Code::InvalidArgument;
        assert!(status.code() == code || unserved, "{name:?}: {status:?}");
    }
    assert_refused(node.write(Vec::new()).await, Code::InvalidArgument, "no message");
    assert_eq!(node.missing(vec![digest(&blob)]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_header_has_to_say_what_the_message_says() {
    let node = shared().await;
    let blob = noise("header", 100);
    let name = write_name("u", &digest(&blob));
    for (header, good) in [("something/else", false), (name.as_str(), true)] {
        let mut request = Request::new(tokio_stream::iter(messages(&name, &blob, 100)));
        let key = "build.bazel.remote.execution.v2.resource-name";
        request.metadata_mut().insert(key, MetadataValue::try_from(header).unwrap());
        let answer = node.byte_stream.clone().write(request).await;
        if good {
            answer.unwrap();
        } else {
            assert_refused(answer, Code::InvalidArgument, "another name in the header");
        }
    }
}
