//! What every store keeps of the contract of `Below`, tried on a directory; what a directory shows
//! and others hide; and what settings are refused.

use super::*;
use engine::blob::BlobError;
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// A blob in several parts, the last one short.
const LARGE: usize = (20 << 20) + 123;

type Options<'a> = &'a [(&'a str, &'a str)];

pub(super) fn settings(url: &str, options: Options) -> ObjectSettings {
    let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    ObjectSettings {
        url: url.to_owned(),
        options: options.collect(),
        concurrency: 8,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
    }
}

/// Bytes that differ from place to place.
pub(super) fn blob(size: usize, seed: u64) -> (Digest, Bytes) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    (Digest::of(&bytes), bytes.into())
}

/// In pieces that fit no part.
pub(super) fn outgoing(bytes: &Bytes) -> Outgoing {
    let pieces: Vec<_> = bytes.chunks(300_007).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
    stream::iter(pieces).boxed()
}

pub(super) async fn all(mut incoming: Incoming) -> BelowResult<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = incoming.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

pub(super) fn result(stdout: &str) -> ActionResult {
    ActionResult {
        stdout_raw: stdout.as_bytes().to_vec().into(),
        exit_code: 3,
        ..Default::default()
    }
}

/// All that is asked of a tier.
pub(super) async fn contract(tier: &ObjectTier) {
    tier.probe().await.unwrap();
    blobs_come_back(tier).await;
    batches_answer_in_order(tier).await;
    results_belong_to_an_instance(tier).await;
}

async fn blobs_come_back(tier: &ObjectTier) {
    let one_part = usize::try_from(PART_BYTES_MIN).unwrap();
    for (seed, size) in [1, 1000, one_part, one_part + 1, LARGE].into_iter().enumerate() {
        let (digest, bytes) = blob(size, seed as u64 + 1);
        assert_eq!(tier.find_missing(vec![digest]).await.unwrap(), [digest], "{size}");
        assert!(matches!(tier.read(digest, 0).await, Err(BelowError::Absent)), "{size}");
        assert!(matches!(tier.read(digest, digest.size()).await, Err(BelowError::Absent)));
        for time in ["first", "again"] {
            tier.write(digest, outgoing(&bytes)).await.unwrap_or_else(|e| panic!("{time}: {e}"));
        }
        assert!(tier.find_missing(vec![digest]).await.unwrap().is_empty(), "{size}");
        for offset in [0, 1, size / 2, size - 1, size] {
            let read = all(tier.read(digest, offset as u64).await.unwrap()).await.unwrap();
            assert!(read == bytes[offset..], "{size} from {offset}");
        }
        assert!(matches!(tier.read(digest, size as u64 + 1).await, Err(BelowError::Absent)));
    }
}

async fn batches_answer_in_order(tier: &ObjectTier) {
    let blobs: Vec<_> = (100..140).map(|seed| blob(2000, seed)).collect();
    let (absent, _) = blob(2000, 99);
    let written = tier.write_many(blobs.clone()).await.unwrap();
    assert_eq!(written.len(), blobs.len());
    written.into_iter().for_each(|written| written.unwrap());

    let mut digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    digests.insert(7, absent);
    assert_eq!(tier.find_missing(digests.clone()).await.unwrap(), [absent]);
    let mut read = tier.read_many(digests).await.unwrap();
    assert!(matches!(read.remove(7), Err(BelowError::Absent)));
    for (read, (_, bytes)) in read.into_iter().zip(&blobs) {
        assert_eq!(read.unwrap(), bytes);
    }
}

async fn results_belong_to_an_instance(tier: &ObjectTier) {
    let (action, _) = blob(100, 77);
    assert_eq!(tier.get_action("main", action).await.unwrap(), None);
    tier.put_action("main", action, result("first")).await.unwrap();
    tier.put_action("main", action, result("second")).await.unwrap();
    tier.put_action("a/b ü", action, result("other")).await.unwrap();
    assert_eq!(tier.get_action("main", action).await.unwrap(), Some(result("second")));
    assert_eq!(tier.get_action("a/b ü", action).await.unwrap(), Some(result("other")));
    assert_eq!(tier.get_action("", action).await.unwrap(), None);
    assert_eq!(tier.find_missing(vec![action]).await.unwrap(), [action]);
}

struct Directory {
    tier: ObjectTier,
    place: TempDir,
}

impl Directory {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let url = format!("file://{}/new directory", place.path().display());
        Self { tier: ObjectTier::new(&settings(&url, &[])).unwrap(), place }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.place.path().to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { left.push(path) } else { found.push(path) }
            }
        }
        found
    }
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    contract(&Directory::new().tier).await;
}

#[tokio::test]
async fn names_in_the_store_stay_as_they_are() {
    let directory = Directory::new();
    let digest = Digest::of(b"abc");
    directory.tier.write(digest, outgoing(&Bytes::from_static(b"abc"))).await.unwrap();
    directory.tier.put_action("main", digest, result("")).await.unwrap();
    let root = directory.place.path().join("new directory");
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(fs::read(root.join(format!("cas/sha256/ba/{hash}-3"))).unwrap(), b"abc");
    let key = engine::digest::hex(&engine::tier::action_cache::key("main", digest));
    assert!(root.join(format!("ac/sha256/{}/{key}", &key[..2])).is_file());
}

#[tokio::test]
async fn an_object_of_another_size_is_no_blob() {
    let directory = Directory::new();
    let (digest, bytes) = blob(1000, 1);
    directory.tier.write(digest, outgoing(&bytes)).await.unwrap();
    let file = directory.files().remove(0);
    for size in [0, 999, 1001] {
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(size).unwrap();
        assert_eq!(directory.tier.find_missing(vec![digest]).await.unwrap(), [digest]);
        for offset in [0, 5] {
            let read = directory.tier.read(digest, offset).await;
            assert!(matches!(read, Err(BelowError::Absent)), "{size}");
        }
        let read = directory.tier.read_many(vec![digest]).await.unwrap();
        assert!(matches!(read[0], Err(BelowError::Absent)), "{size}");
        directory.tier.write(digest, outgoing(&bytes)).await.unwrap();
        assert!(directory.tier.find_missing(vec![digest]).await.unwrap().is_empty(), "healed");
    }
}

#[tokio::test]
async fn a_write_goes_over_wrong_bytes_of_the_right_size() {
    let directory = Directory::new();
    for size in [1000, usize::try_from(PART_BYTES_MIN).unwrap() + 1] {
        let (digest, bytes) = blob(size, 2);
        directory.tier.write(digest, outgoing(&bytes)).await.unwrap();
        let named = format!("{}-{size}", digest.hex());
        let file = directory.files().into_iter().find(|file| file.ends_with(&named)).unwrap();
        fs::write(&file, vec![0; size]).unwrap();
        directory.tier.write(digest, outgoing(&bytes)).await.unwrap();
        assert!(fs::read(&file).unwrap() == bytes, "{size}");
    }
}

#[tokio::test]
async fn a_result_that_is_not_whole_is_a_miss() {
    let directory = Directory::new();
    let (action, _) = blob(10, 1);
    directory.tier.put_action("", action, result(&"x".repeat(500))).await.unwrap();
    let file = directory.files().remove(0);
    let whole = fs::read(&file).unwrap();
    for size in 0..whole.len() {
        fs::write(&file, &whole[..size]).unwrap();
        assert_eq!(directory.tier.get_action("", action).await.unwrap(), None, "{size}");
    }
    fs::write(&file, &whole).unwrap();
    assert!(directory.tier.get_action("", action).await.unwrap().is_some());
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(RESULT_BYTES_MAX + 1).unwrap();
    assert_eq!(directory.tier.get_action("", action).await.unwrap(), None);
}

#[tokio::test]
async fn a_write_that_fails_leaves_no_object() {
    let directory = Directory::new();
    for size in [1000, LARGE] {
        let (digest, bytes) = blob(size, 5);
        let broken = outgoing(&bytes).take(2).chain(stream::iter([Err(BlobError::Overloaded)]));
        let cases: [(Outgoing, &str); 3] = [
            (outgoing(&bytes.slice(1..)), "ended early"),
            (outgoing(&bytes).chain(stream::iter([Ok(Bytes::from_static(b"x"))])).boxed(), "not"),
            (outgoing(&bytes).chain(broken).boxed(), "this node"),
        ];
        for (stream, says) in cases {
            let error = directory.tier.write(digest, stream).await.unwrap_err();
            assert!(matches!(error, BelowError::Local(_)), "{says}: {error}");
            assert!(error.to_string().contains(says), "{says}: {error}");
            assert!(directory.tier.find_missing(vec![digest]).await.unwrap() == [digest]);
        }
    }
}

#[tokio::test]
async fn a_write_that_is_dropped_leaves_no_file() {
    let directory = Directory::new();
    let (digest, bytes) = blob(LARGE, 5);
    let endless = outgoing(&bytes.slice(..LARGE - 1)).chain(stream::pending()).boxed();
    let mut write = directory.tier.write(digest, endless);
    while directory.files().is_empty() {
        tokio::select! {
            _ = &mut write => panic!("it ended"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    drop(write);
    while !directory.files().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_store_without_parts_refuses_what_would_fill_the_memory() {
    let tier = ObjectTier::new(&settings("http://127.0.0.1:1/", &[])).unwrap();
    let (named, _) = blob(1, 1);
    let large = Digest::from_parts(named.function(), *named.hash(), WHOLE_BYTES_MAX + 1);
    let error = tier.write(large, stream::pending().boxed()).await.unwrap_err();
    assert!(matches!(error, BelowError::Refused(_)), "{error:?}");
}

#[test]
fn parts_grow_so_that_the_largest_blob_fits() {
    for size in [1, PART_BYTES_MIN, 80 << 30, 1 << 40, 5 << 40] {
        assert!(size.div_ceil(upload::part_bytes(size)) <= 10_000, "{size}");
    }
    assert_eq!(upload::part_bytes(1 << 30), PART_BYTES_MIN);
}

#[test]
fn settings_that_make_no_store_are_refused() {
    let cases: [(&str, Options, &str); 10] = [
        ("", &[], "no URL"),
        ("bucket", &[], "no URL"),
        ("ftp://host/", &[], "no URL"),
        ("memory:///", &[], "no URL"),
        ("file://host/directory", &[], "no URL"),
        ("s3://key:hidden@bucket/", &[], "belong into the options"),
        ("http://host/?sig=hidden", &[], "belong into the options"),
        ("s3://bucket/", &[("aws_regoin", "hidden")], "no option \"aws_regoin\""),
        ("file:///nowhere", &[("aws_region", "hidden")], "no option"),
        ("s3://bucket/", &[("allow_http", "hidden")], "…"),
    ];
    for (url, options, says) in cases {
        let settings = settings(url, options);
        let Err(error) = ObjectTier::new(&settings) else { panic!("{url} {options:?}") };
        let (text, shown) = (error.to_string(), format!("{settings:?} {error:?}"));
        assert!(text.contains(says), "{url}: {text}");
        assert!(!text.contains("hidden") && !shown.contains("hidden"), "{text} {shown}");
    }
}

#[tokio::test]
async fn every_kind_of_url_opens() {
    let account = [("azure_storage_account_name", "account")];
    let cases: [(&str, Options); 5] = [
        ("s3://bucket/prefix", &[("aws_region", "eu-central-1"), ("AWS_ALLOW_HTTP", "true")]),
        ("gs://bucket/prefix", &[]),
        ("az://container/prefix", &account),
        ("http://localhost/prefix", &[("authorization", "Bearer hidden")]),
        ("https://localhost/prefix", &[("user_agent", "node")]),
    ];
    for (url, options) in cases {
        let settings = settings(url, options);
        let tier = ObjectTier::new(&settings).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(tier.name(), url);
        assert!(!format!("{settings:?}").contains("hidden"));
    }
}
