//! A store that is smaller than what is written to it: every answer stays true, what was promised
//! stays as long as anything else can go, and a full disk never needs a restart. Must never let a
//! limit of time decide a test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use bytes::Bytes;
use proto::{
    bytestream::WriteRequest,
    reapi::{BatchUpdateBlobsRequest, Digest, batch_update_blobs_request},
};
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::{Client, digest},
    is_root, until,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
/// Of a store that may use 32 MiB and promises nothing.
const SMALL: [(&str, &str); 3] =
    [("STORE__BYTES_MAX", "32MiB"), ("STORE__SEGMENT_BYTES", "2MiB"), ("STORE__LEASE", "0s")];

/// Blob number `at`: of five, four lie in segments and one in a file.
fn blob(at: u64) -> Bytes {
    let size = if at.is_multiple_of(5) { 150_000 } else { 5000 + at % 7 * 4000 };
    let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..size).map(|_| next()).collect::<Vec<u8>>().into()
}

/// Uploads one as clients do: a small one in a batch, a large one by ByteStream.
async fn put(client: &Client, blob: &Bytes) -> Result<Digest, Status> {
    put_as(client, "", blob).await
}

/// The same under an instance, its name followed by a slash.
async fn put_as(client: &Client, instance: &str, blob: &Bytes) -> Result<Digest, Status> {
    let name = digest(blob);
    if blob.len() < 100_000 {
        let (digest, data) = (Some(name.clone()), blob.clone());
        let request = batch_update_blobs_request::Request { digest, data, compressor: 0 };
        let instance_name = instance.trim_end_matches('/').to_owned();
        let request = BatchUpdateBlobsRequest {
            instance_name,
            requests: vec![request],
            ..Default::default()
        };
        let response = client.cas.clone().batch_update_blobs(request).await?;
        let status = response.into_inner().responses.remove(0).status.unwrap_or_default();
        return match status.code {
            0 => Ok(name),
            code => Err(Status::new(Code::from_i32(code), status.message)),
        };
    }
    let resource_name = format!("{instance}uploads/u/blobs/{}/{}", name.hash, name.size_bytes);
    let write =
        WriteRequest { resource_name, write_offset: 0, finish_write: true, data: blob.clone() };
    client.write(vec![write]).await.map(|_| name)
}

/// How many of these are there; each that is has its bytes.
async fn present(client: &Client, blobs: &[(Digest, Bytes)]) -> usize {
    let mut found = 0;
    for (digest, blob) in blobs {
        match client.read(digest).await {
            Ok(read) => {
                assert!(read == *blob, "{digest:?}");
                found += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                let missing = client.missing(vec![digest.clone()]).await.unwrap();
                assert_eq!(missing, std::slice::from_ref(digest));
            }
        }
    }
    found
}

/// What the files below a directory take, in whole blocks.
fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.len().next_multiple_of(4096),
        // Gone meanwhile.
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_times_what_fits_can_be_written_and_restarts_change_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let mut written = Vec::new();
    for round in 0..3 {
        let node = Node::start_with(&store, &SMALL);
        let client = Client::connect(&node.address()).await;
        present(&client, &written).await;
        for at in round * 1200..(round + 1) * 1200 {
            let blob = blob(at);
            written.push((put(&client, &blob).await.unwrap(), blob));
        }
        assert!(disk_bytes(&store) <= 33 * MIB, "{}", disk_bytes(&store));
        let there = present(&client, &written).await;
        assert!(there > 100 && there < written.len(), "{there} of {}", written.len());
        // What came last is what is left.
        let (last, _) = written.last().unwrap();
        assert_eq!(client.missing(vec![last.clone()]).await.unwrap(), []);
        if round == 1 {
            assert!(node.stop().success());
        } else {
            node.kill();
        }
    }
    let node = Node::start_with(&store, &SMALL);
    let client = Client::connect(&node.address()).await;
    assert!(present(&client, &written).await > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_blobs_find_room_among_small_ones() {
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start_with(&parent.path().join("store"), &SMALL);
    let client = Client::connect(&node.address()).await;
    for at in (0..3000).filter(|at| at % 5 != 0) {
        put(&client, &blob(at)).await.unwrap();
    }
    for at in 0..12_u8 {
        // Larger than what eviction frees ahead.
        let large = Bytes::from(vec![at; 6 << 20]);
        let name = digest(&large);
        let resource_name = format!("uploads/u/blobs/{}/{}", name.hash, name.size_bytes);
        let pieces = (0..6_usize).map(|piece| WriteRequest {
            resource_name: resource_name.clone(),
            write_offset: (piece << 20) as i64,
            finish_write: piece == 5,
            data: large.slice(piece << 20..(piece + 1) << 20),
        });
        client.write(pieces.collect()).await.unwrap();
        assert!(client.read(&name).await.unwrap() == large);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_promised_outlives_what_was_not() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let mut kept = Vec::new();
    {
        let node = Node::start_with(&store, &SMALL);
        let client = Client::connect(&node.address()).await;
        for at in 0..500 {
            let blob = blob(at);
            kept.push((put(&client, &blob).await.unwrap(), blob));
        }
        assert!(node.stop().success());
    }
    // A start knows of no promises: these get theirs by being asked for.
    let lease = [SMALL[0], SMALL[1], ("STORE__LEASE", "1h")];
    let node = Node::start_with(&store, &lease);
    let client = Client::connect(&node.address()).await;
    let (promised, others) = kept.split_at(100);
    let asked = promised.iter().map(|(digest, _)| digest.clone()).collect();
    assert_eq!(client.missing(asked).await.unwrap(), []);
    for at in 1000..1300 {
        put(&client, &blob(at)).await.unwrap();
    }
    assert_eq!(present(&client, promised).await, promised.len());
    let unpromised: Vec<Digest> = others.iter().map(|(digest, _)| digest.clone()).collect();
    assert!(!client.missing(unpromised).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn actions_find_their_inputs_or_say_which_are_missing() {
    let test = "actions_find_their_inputs_or_say_which_are_missing";
    if !is_root(test) {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start_with(&parent.path().join("store"), &SMALL);
    let client = Client::connect(&node.address()).await;
    for at in 0..30_u64 {
        let inputs = (0..20)
            .fold(Folder::new(), |folder, n| folder.file(&format!("f{n:02}"), blob(at * 20 + n)));
        let job = Job::shell("cat f* > o").with(inputs).outputs(&["o"]);
        let size: usize = (0..20).map(|n| blob(at * 20 + n).len()).sum();
        // Nothing is promised: what is missing by the time that it runs is brought once more.
        let mut response = client.run(&job).await;
        for _ in 0..20 {
            let status = response.status.clone().unwrap_or_default();
            if status.code == 0 {
                break;
            }
            assert_eq!(status.code, Code::FailedPrecondition as i32, "{status:?}");
            response = client.run(&job).await;
        }
        let result = response.result.unwrap();
        let output = result.output_files[0].digest.clone().unwrap();
        assert_eq!(output.size_bytes, i64::try_from(size).unwrap());
    }
    assert!(disk_bytes(&parent.path().join("store").join("cas")) <= 33 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_owed_below_stays_until_it_is_there() {
    let parent = tempfile::tempdir().unwrap();
    let below = Node::start(&parent.path().join("below"));
    let there = Client::connect(&below.address()).await;
    below.signal("STOP");
    let url = format!("grpc://{}", below.address());
    let more = [("BACKING__URL", url.as_str()), ("BACKING__WRITE", "async")];
    let more = [&more[..], &[("BACKING__WRITE_BY_INSTANCE", "scratch=local-only")]].concat();
    let settings = [&SMALL[..], &more[..]].concat();
    let store = parent.path().join("store");
    let node = Node::start_with(&store, &settings);
    let client = Client::connect(&node.address()).await;
    let mut owed = Vec::new();
    for at in 0..150 {
        let blob = blob(at);
        owed.push((put(&client, &blob).await.unwrap(), blob));
    }
    // Killed, so that what it knew of them in memory is gone.
    node.kill();
    let node = Node::start_with(&store, &settings);
    let client = Client::connect(&node.address()).await;
    for at in 1000..2200 {
        put_as(&client, "scratch/", &blob(at)).await.unwrap();
    }
    assert_eq!(present(&client, &owed).await, owed.len());
    below.signal("CONT");
    let all: Vec<Digest> = owed.iter().map(|(digest, _)| digest.clone()).collect();
    for _ in 0..600 {
        if there.missing(all.clone()).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("what is owed never comes below:\n{}", node.log());
}

/// A small file system of its own.
struct Mounted {
    directory: PathBuf,
    _parent: TempDir,
}

impl Mounted {
    /// An ext4 of `size` with as many inodes, as mkfs.ext4(8) and mount(8) take them.
    fn ext4(size: &str, inodes: &str) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let (image, directory) = (parent.path().join("image"), parent.path().join("mounted"));
        fs::create_dir(&directory).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let ended = Command::new(program).args(arguments).output().unwrap();
            assert!(ended.status.success(), "{program}: {ended:?}");
        };
        let (image, place) = (image.to_str().unwrap(), directory.to_str().unwrap());
        run("truncate", &["-s", size, image]);
        run("mkfs.ext4", &["-q", "-m", "0", "-N", inodes, image]);
        run("mount", &["-o", "loop", image, place]);
        Self { directory, _parent: parent }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a node that a failed test leaves is killed after this.
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
    }
}

/// Writes blobs; those that were not refused. Every refusal is for room, and says so.
async fn write_until(client: &Client, numbers: std::ops::Range<u64>) -> Vec<(Digest, Bytes)> {
    let mut kept = Vec::new();
    for at in numbers {
        let blob = blob(at);
        match put(client, &blob).await {
            Ok(digest) => kept.push((digest, blob)),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_disk_that_others_fill_is_given_way_to_and_taken_back() {
    let test = "a_disk_that_others_fill_is_given_way_to_and_taken_back";
    if !is_root(test) {
        return;
    }
    let mounted = Mounted::ext4("96M", "40000");
    let settings = [
        ("STORE__FREE_BYTES_MIN", "8MiB"),
        ("STORE__SEGMENT_BYTES", "2MiB"),
        ("STORE__LEASE", "0s"),
    ];
    let store = mounted.directory.join("store");
    let node = Node::start_with(&store, &settings);
    let client = Client::connect(&node.address()).await;
    let written = write_until(&client, 0..2500).await;
    assert_eq!(written.len(), 2500);
    assert!(present(&client, &written).await > 200);
    // Somebody else takes half of the disk: the store gives way until its reserve is free again.
    let free = || {
        let stat = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&store).output().unwrap();
        let said = String::from_utf8(stat.stdout).unwrap();
        let (blocks, size) = said.trim().split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
    };
    let other = mounted.directory.join("other");
    for megabytes in [4, 8, 12, 16, 20, 24, 28, 32] {
        fs::write(&other, vec![1; megabytes << 20]).unwrap();
        until("there is room again", || free() >= 8 * MIB);
    }
    let there = present(&client, &written).await;
    assert!(there > 0, "reads go on");
    assert_eq!(write_until(&client, 3000..3100).await.len(), 100);
    fs::remove_file(&other).unwrap();
    // And where all of it is taken at once, writes are refused, reads are not.
    let hog = fs::File::create(&other).unwrap();
    let mut position = 0;
    while std::os::unix::fs::FileExt::write_all_at(&hog, &[1; 65_536], position).is_ok() {
        position += 65_536;
    }
    write_until(&client, 4000..4020).await;
    present(&client, &written).await;
    drop(hog);
    fs::remove_file(&other).unwrap();
    until("there is room again", || free() >= 8 * MIB);
    assert_eq!(write_until(&client, 5000..5100).await.len(), 100);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_system_without_inodes_left_costs_files_and_no_restart() {
    let test = "a_file_system_without_inodes_left_costs_files_and_no_restart";
    if !is_root(test) {
        return;
    }
    let mounted = Mounted::ext4("160M", "1800");
    let settings = [("STORE__LEASE", "0s"), ("STORE__SMALL_BLOB_BYTES_MAX", "1KiB")];
    let node = Node::start_with(&mounted.directory.join("store"), &settings);
    let client = Client::connect(&node.address()).await;
    let mut kept = Vec::new();
    for at in 0..3000_u64 {
        let blob = Bytes::from(format!("{at:06}").repeat(400));
        match put(&client, &blob).await {
            Ok(digest) => kept.push((digest, blob)),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
    }
    assert!(kept.len() > 2500, "{}", kept.len());
    let there = present(&client, &kept).await;
    assert!(there > 100 && there < 1800, "{there}");
    assert!(node.stop().success());
}
