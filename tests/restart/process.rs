//! What a node has of the process that started it, and of the ones that it starts.

use super::crash::eventually;
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::Client,
    command, is_root,
};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

/// A process that is killed where a test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn modes_are_the_nodes_whatever_the_umask_it_was_started_with() {
    if !is_root("modes_are_the_nodes_whatever_the_umask_it_was_started_with") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plain = command(&parent.path().join("store"), port, &[]);
    let mut masked = Command::new("/bin/sh");
    masked.args(["-c", "umask 077; exec \"$0\" \"$@\""]);
    masked.arg(plain.get_program()).args(plain.get_args());
    masked.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    masked.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let node = Killed(masked.spawn().unwrap());
    eventually("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    let client = Client::connect(&format!("127.0.0.1:{port}")).await;
    let inputs = Folder::new()
        .file("empty", "")
        .file("file", "some")
        .executable("tool", "#!/bin/sh\n")
        .folder("d", Folder::new().file("large", vec![7; 300_000]));
    let job = Job::new(&["/usr/bin/stat", "-c", "%a", "empty", "file", "tool", "d", "d/large"])
        .with(inputs);
    assert_eq!(client.printed(&job).await, "444\n444\n555\n755\n444\n");
    drop((client, node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_whose_spawner_is_gone_does_not_pretend_to_serve() {
    if !is_root("a_node_whose_spawner_is_gone_does_not_pretend_to_serve") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let mut node = Node::start(&parent.path().join("store"));
    let client = Client::connect(&node.address()).await;
    assert_eq!(client.printed(&Job::shell("echo before")).await, "before\n");
    let pid = node.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let spawner = children.split_whitespace().next().expect("the spawner").to_owned();
    assert!(Command::new("kill").args(["-s", "KILL", &spawner]).status().unwrap().success());
    let job = Job::new(&["true"]);
    client.put(job.blobs()).await;
    // The connection breaks with the node.
    drop(client.execute(job.request()).await);
    assert!(!node.wait().success());
    assert!(node.log().contains("spawner has ended"), "{}", node.log());
}
