//! Starts that can't work: one line with the cause, and nothing harmed.

use super::crash::blob;
use ringforge_tests::{Node, client::Client, command};
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs it to its end.
fn refused(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it can be started");
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{status} {said}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "", "it promised something");
    assert_eq!(said.trim_end().lines().count(), 1, "not one line:\n{said}");
    assert!(said.starts_with("ringforge: "), "{said}");
    said
}

/// The same start under a limit.
fn limited(limit: &str, directory: &Path) -> Command {
    let plain = command(directory, 0, &[]);
    let mut limited = Command::new("prlimit");
    limited.arg(limit).arg(plain.get_program()).args(plain.get_args());
    limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

fn assert_names(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn the_block_of_the_start_tells_what_was_found() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let node = Node::start(&store);
    let mut looks = 0;
    // The port is open a little before.
    while !node.log().contains("serving") && looks < 500 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        looks += 1;
    }
    let address = node.address();
    let at = store.display().to_string();
    let words = [
        "ringforge",
        "placement",
        "shard",
        "memlock",
        "nofile",
        "io_uring",
        "landlock",
        "namespaces",
        "cgroups",
        "links",
        "data",
        &at,
        "serving",
        &address,
    ];
    assert_names(&node.log(), &words);
}

#[test]
fn too_little_locked_memory_is_named_with_the_remedy() {
    let parent = tempfile::tempdir().unwrap();
    let said = refused(limited("--memlock=65536:65536", parent.path()));
    assert_names(&said, &["locked memory", "65536", "ulimit -l"]);
}

#[test]
fn too_few_open_files_are_named_with_the_remedy() {
    let parent = tempfile::tempdir().unwrap();
    let said = refused(limited("--nofile=200:200", parent.path()));
    assert_names(&said, &["open files", "200", "ulimit -n"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_nodes_never_share_a_directory() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    let kept = client.put([blob("of the first", 1000)]).await.remove(0);
    let said = refused(command(&store, 0, &[]));
    assert_names(&said, &[&store.display().to_string(), "in use"]);
    assert_eq!(client.read(&kept).await.unwrap(), blob("of the first", 1000));
    node.kill();
    // What held the directory is gone with its process.
    Node::start(&store).kill();
}

#[test]
fn an_address_that_is_taken_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = refused(command(&parent.path().join("store"), port, &[]));
    assert_names(&said, &[&format!("127.0.0.1:{port}")]);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "kept").unwrap();
    for directory in [file.clone(), file.join("below"), "/proc/ringforge".into()] {
        let said = refused(command(&directory, 0, &[]));
        assert_names(&said, &[&directory.display().to_string()]);
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    fs::create_dir_all(store.join("exec")).unwrap();
    fs::write(store.join("exec/thesis.txt"), "somebody's own").unwrap();
    // It may be refused, or be used beside what is there; that must not be lost.
    let mut child = command(&store, 0, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).find(|line| line.contains("serving"));
    let _ = child.kill();
    child.wait().unwrap();
    assert!(store.join("exec/thesis.txt").exists(), "a file of somebody else was removed");
}

#[test]
fn bad_configuration_is_named_by_place_key_and_what_was_expected() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let file = parent.path().join("bad.yaml");
    for (text, words) in [
        ("server:\n  lisen: 127.0.0.1:1\n", &["bad.yaml:2", "lisen", "listen"][..]),
        ("server:\n  grace: soon\n", &["bad.yaml:2", "server.grace", "soon"]),
        ("store:\n  segment_bytes: 3\n", &["bad.yaml:2", "store.segment_bytes", "1MiB"]),
        ("server: [\n", &["bad.yaml"]),
        ("nothing:\n  like: this\n", &["bad.yaml:1", "nothing"]),
    ] {
        fs::write(&file, text).unwrap();
        let mut command = command(&store, 0, &[]);
        command.arg("--config").arg(&file);
        assert_names(&refused(command), words);
    }
    for (key, value, words) in [
        ("SERVER__GRACE", "x", &["RINGFORGE__SERVER__GRACE", "server.grace"][..]),
        ("SERVER__NOPE", "x", &["RINGFORGE__SERVER__NOPE"]),
        ("CPUS__DATA", "9999", &["9999"]),
        ("CPUS__SHARDS", "65", &["cpus.shards", "64"]),
        ("SANDBOX__TOOLCHAIN", "usr", &["sandbox.toolchain"]),
    ] {
        assert_names(&refused(command(&store, 0, &[(key, value)])), words);
    }
    let mut absent = command(&store, 0, &[]);
    absent.arg("--config").arg(parent.path().join("absent.yaml"));
    assert_names(&refused(absent), &["absent.yaml"]);
    assert!(!store.exists(), "a refused start made the directory");
}

#[test]
fn the_command_line_explains_itself() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let output = Command::new(ringforge_tests::binary())
            .args(arguments.iter().map(OsStr::new))
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
    let unknown = Command::new(ringforge_tests::binary()).arg("--nonsense").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
