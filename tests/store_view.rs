//! `ringforge store` from outside: what it says of a store, whole and damaged, and how it says
//! that it can't.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use bytes::Bytes;
use ringforge_tests::{Node, binary, client::Client};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn store(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("store").args(arguments).arg("--data").arg(data);
    command.output().expect("the program runs")
}

fn printed(data: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = store(data, arguments);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// What is said by a command that fails.
fn refused(data: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = store(data, arguments);
    assert!(!status.success(), "{}", String::from_utf8_lossy(&stdout));
    String::from_utf8(stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_store_is_counted_verified_and_read_and_a_running_one_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("store");
    assert!(refused(&data, &["stat"]).contains("holds no store"), "none is made");
    assert!(!data.exists());
    let node = Node::start(&data);
    let client = Client::connect(&node.address()).await;
    let small = Bytes::from("small".repeat(100));
    let large = Bytes::from("large".repeat(100_000));
    let digests = client.put([small.clone(), large.clone()]).await;
    assert!(refused(&data, &["stat"]).contains("in use by a node"));
    assert!(node.stop().success());

    let stat: Value = serde_json::from_str(&printed(&data, &["stat", "--json"])).unwrap();
    assert_eq!((&stat["blobs"], &stat["files"]), (&Value::from(2), &Value::from(1)));
    assert_eq!(stat["content_bytes"], 500 + 500_000);
    assert!(printed(&data, &["stat"]).starts_with("blobs         2 (488.8 KiB)\n"));
    assert!(
        printed(&data, &["verify"]).contains("2 records and files read (488.8 KiB), 0 damaged")
    );
    for (digest, blob) in digests.iter().zip([&small, &large]) {
        assert!(printed(&data, &["get", &digest.hash]).as_bytes() == blob);
        let file = parent.path().join("copy");
        let named = format!("{}/{}", digest.hash, digest.size_bytes);
        printed(&data, &["get", &named, file.to_str().unwrap()]);
        assert!(fs::read(&file).unwrap() == *blob);
        assert!(refused(&data, &["get", &named, file.to_str().unwrap()]).contains("exists"));
        fs::remove_file(&file).unwrap();
    }
    let unknown = "0".repeat(64);
    for (said, why) in [
        (unknown.as_str(), "is not in the store"),
        (&format!("{}/7", digests[0].hash), "is not in the store"),
        (&format!("{}/x", digests[0].hash), "is no size"),
        ("abc", "abc"),
    ] {
        let error = refused(&data, &["get", said]);
        assert!(error.contains(why), "{said}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }

    let path = data.join("cas").join(&digests[1].hash[..2]).join(&digests[1].hash);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "wrong".repeat(100_000)).unwrap();
    let verified = store(&data, &["verify"]);
    assert_eq!(verified.status.code(), Some(1));
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.contains(&format!("damaged {}", digests[1].hash)), "{said}");
    assert!(said.contains("1 damaged"), "{said}");
    let copy = parent.path().join("copy");
    let error = refused(&data, &["get", &digests[1].hash, copy.to_str().unwrap()]);
    assert!(error.contains("damaged") && !copy.exists(), "{error}");
}
