//! Input roots: complete, incomplete, malformed, hostile.

use crate::shared::{can_execute, own, shared};
use bytes::Bytes;
use prost::Message;
use proto::{
    reapi::{Action, Digest, ExecuteRequest},
    rpc::{PreconditionFailure, Status},
};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
    noise,
};
use std::collections::BTreeSet;
use tonic::Code;

/// What a status says is missing.
fn missing(status: &Status) -> BTreeSet<String> {
    assert_eq!(status.code, Code::FailedPrecondition as i32, "{status:?}");
    let mut subjects = BTreeSet::new();
    for any in &status.details {
        if any.type_url.ends_with("google.rpc.PreconditionFailure") {
            for violation in PreconditionFailure::decode(&*any.value).unwrap().violations {
                assert_eq!(violation.r#type, "MISSING");
                assert!(subjects.insert(violation.subject), "one violation for each blob");
            }
        }
    }
    subjects
}

fn subject(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.hash, digest.size_bytes)
}

/// Executes the job with all but these of its blobs.
async fn without(client: &Client, job: &Job, absent: &[&Digest]) -> Status {
    let mut blobs = job.blobs();
    blobs.retain(|blob| !absent.contains(&&digest(blob)));
    client.put(blobs).await;
    client.outcome(job.request()).await
}

#[tokio::test]
async fn a_tree_arrives_as_it_was_described() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let large = noise("large input", 500_000);
    let deep = Folder::new().file("leaf", "leaf").folder("empty", Folder::new());
    let inputs = Folder::new()
        .file("a b", "space")
        .file("empty", Bytes::new())
        .file("large", large.clone())
        .file("ü", "utf8")
        .executable("x", "#!/bin/sh\n")
        .symlink("absolute", "/usr/bin")
        .symlink("dangling", "no/such")
        .symlink("link", "d/d/leaf")
        .folder("d", Folder::new().folder("d", deep));
    let script = "stat -c '%n %F %a %s' 'a b' empty large ü x d d/d d/d/leaf d/d/empty; \
                  readlink absolute dangling link; cat link 'a b'; sha256sum large; \
                  find . | wc -l";
    let printed = node.printed(&Job::shell(script).with(inputs)).await;
    let expected = format!(
        "a b regular file 444 5\nempty regular empty file 444 0\nlarge regular file 444 500000\n\
         ü regular file 444 4\nx regular file 555 10\nd directory 755 SIZE\n\
         d/d directory 755 SIZE\nd/d/leaf regular file 444 4\nd/d/empty directory 755 SIZE\n\
         /usr/bin\nno/such\nd/d/leaf\nleafspace{}  large\n13\n",
        digest(&large).hash
    );
    let sizes_hidden: Vec<String> = printed
        .lines()
        .map(|line| match line.split_once("directory 755 ") {
            Some((before, _)) => format!("{before}directory 755 SIZE"),
            None => line.to_owned(),
        })
        .collect();
    assert_eq!(sizes_hidden.join("\n") + "\n", expected);
}

#[tokio::test]
async fn a_root_without_anything_is_an_input_root() {
    if !can_execute() {
        return;
    }
    assert_eq!(shared().await.printed(&Job::shell("find .")).await, ".\n");
}

#[tokio::test]
async fn one_blob_may_be_many_files_plain_and_executable() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "#!/bin/sh\necho ran\n";
    let many = (0..2000).fold(Folder::new(), |folder, n| folder.file(&format!("f{n:04}"), script));
    let inputs = many.clone().executable("x", script).folder("d", many);
    let job = Job::shell("./x; test ! -x f0000; find . -type f | wc -l").with(inputs);
    assert_eq!(node.printed(&job).await, "ran\n4001\n");
}

#[tokio::test]
async fn one_blob_may_be_more_files_than_an_inode_has_names() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    // ext4 takes 65,000 hard links.
    let text = "one of many";
    let mut inputs = Folder::new();
    for n in 0..7 {
        let names = (0..10_000).map(|file| format!("{file:04}"));
        let many = names.fold(Folder::new(), |many, name| many.file(&name, text));
        node.put([many.encoded(), text.into()]).await;
        inputs = inputs.folder(&format!("d{n}"), Folder { blobs: Vec::new(), ..many });
    }
    let inputs = Folder { blobs: Vec::new(), ..inputs };
    let job = Job::shell("find . -type f | wc -l; find . -type f ! -size 11c").with(inputs);
    assert_eq!(node.printed(&job).await, "70000\n");
}

#[tokio::test]
async fn every_missing_input_is_named() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inner = Folder::new().file("c", noise("missing c", 100)).file("d", noise("missing d", 100));
    let outer = Folder::new()
        .file("a", noise("missing a", 100))
        .executable("b", noise("missing b", 200_000))
        .file("again", noise("missing a", 100))
        .folder("inner", inner.clone())
        .folder("lost", Folder::new().file("e", "never asked for"));
    let job = Job::new(&["true"]).with(outer.clone());
    let a = digest(&noise("missing a", 100));
    let b = digest(&noise("missing b", 200_000));
    let d = digest(&noise("missing d", 100));
    let lost = Folder::new().file("e", "never asked for").digest();
    for absent in [vec![&a], vec![&a, &b], vec![&a, &b, &d], vec![&a, &b, &d, &lost]] {
        // A node of its own for each, so that nothing is there from before.
        let fresh = own(&[]).await;
        let said = missing(&without(&fresh, &job, &absent).await);
        assert_eq!(said, absent.iter().map(|digest| subject(digest)).collect());
        // With what was named uploaded, it runs.
        fresh.put(job.blobs()).await;
        assert_eq!(fresh.outcome(job.request()).await.code, 0);
    }
    drop(node);
}

#[tokio::test]
async fn a_missing_action_command_or_root_is_named() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = || Job::new(&["true", "missing"]).with(Folder::new().file("f", noise("root", 9)));
    let jobs = [job(), job(), job()];
    let action = jobs[0].digest();
    assert_eq!(missing(&node.outcome(jobs[0].request()).await), [subject(&action)].into());
    let command = digest(&jobs[1].encoded_command());
    let said = missing(&without(&node, &jobs[1], &[&command]).await);
    assert_eq!(said, [subject(&command)].into());
    let mut third = jobs[2].clone();
    third.inputs = Folder::new().file("g", noise("another root", 9));
    let root = third.inputs.digest();
    let said = missing(&without(&node, &third, &[&root]).await);
    assert_eq!(said, [subject(&root)].into());
}

#[tokio::test]
async fn a_missing_command_does_not_hide_a_missing_root() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::new(&["true", "both missing"]).with(Folder::new().file("f", noise("both", 9)));
    let (command, root) = (digest(&job.encoded_command()), job.inputs.digest());
    let said = missing(&without(&node, &job, &[&command, &root]).await);
    assert_eq!(said, [subject(&command), subject(&root)].into());
}

async fn assert_invalid(client: &Client, job: &Job, what: &str) {
    let status = client.failure(job).await;
    assert_eq!(status.code, Code::InvalidArgument as i32, "{what}: {status:?}");
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let long = "x".repeat(256);
    for name in ["", ".", "..", "/", "/etc", "a/b", "../../../../tmp/escaped", "a\0b", &long] {
        let file = Folder::new().file(name, "x");
        let symlink = Folder::new().symlink(name, "x");
        let folder = Folder::new().folder(name, Folder::new());
        for inputs in [file, symlink, folder] {
            let below = Folder::new().folder("d", inputs.clone());
            assert_invalid(&node, &Job::new(&["true"]).with(inputs), name).await;
            assert_invalid(&node, &Job::new(&["true"]).with(below), name).await;
        }
    }
    assert!(!std::path::Path::new("/tmp/escaped").exists());
}

#[tokio::test]
async fn two_entries_of_one_name_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let (file, folder) = (Folder::new().file("n", "1"), Folder::new().folder("n", Folder::new()));
    for inputs in [
        file.clone().file("n", "2"),
        file.clone().folder("n", Folder::new()),
        file.symlink("n", "/etc"),
        folder.clone().symlink("n", "/etc"),
        folder.folder("n", Folder::new().file("x", "x")),
        Folder::new().symlink("n", "/etc").symlink("n", "/tmp"),
    ] {
        let what = format!("{:?}", inputs.directory);
        assert_invalid(&node, &Job::new(&["true"]).with(inputs), &what).await;
    }
}

#[tokio::test]
async fn symlinks_without_a_possible_target_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for target in ["", "a\0b", &"x/".repeat(3000)] {
        let inputs = Folder::new().symlink("l", target);
        assert_invalid(&node, &Job::new(&["true"]).with(inputs), target).await;
    }
}

#[tokio::test]
async fn digests_in_a_tree_have_to_be_digests() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let bad = Digest { hash: "../../../etc/passwd".to_owned(), size_bytes: 1 };
    let negative = Digest { size_bytes: -1, ..digest(b"negative") };
    for wrong in [None, Some(bad), Some(negative), Some(Digest::default())] {
        let mut file = Folder::new().file("f", "x");
        file.directory.files[0].digest.clone_from(&wrong);
        assert_invalid(&node, &Job::new(&["true"]).with(file), "a file").await;
        let mut folder = Folder::new().folder("d", Folder::new());
        folder.directory.directories[0].digest.clone_from(&wrong);
        assert_invalid(&node, &Job::new(&["true"]).with(folder), "a directory").await;
    }
}

#[tokio::test]
async fn blobs_that_are_not_what_they_should_be_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let nonsense = Bytes::from_static(b"\xff\xff neither Action nor Command nor Directory");
    let named = Some(node.put([nonsense]).await.remove(0));
    let ask = async |action_digest: Option<Digest>| {
        node.outcome(ExecuteRequest { action_digest, ..Default::default() }).await.code
    };
    assert_eq!(ask(named.clone()).await, Code::InvalidArgument as i32, "an action");
    let command = node.put_message(&Job::new(&["true"]).command).await;
    let root = Some(digest(b""));
    for action in [
        Action {
            command_digest: named.clone(),
            input_root_digest: root.clone(),
            ..Default::default()
        },
        Action {
            command_digest: Some(command.clone()),
            input_root_digest: named,
            ..Default::default()
        },
        Action { command_digest: None, input_root_digest: root, ..Default::default() },
        Action { command_digest: Some(command), input_root_digest: None, ..Default::default() },
    ] {
        let digest = node.put_message(&action).await;
        assert_eq!(ask(Some(digest)).await, Code::InvalidArgument as i32, "{action:?}");
    }
}

#[tokio::test]
async fn a_small_tree_that_means_a_flood_of_files_is_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let mut folder = Folder::new().file("f", "flood");
    for _ in 0..40 {
        let once = Folder { directory: folder.directory.clone(), blobs: Vec::new() };
        folder = Folder::new().folder("a", once).folder("b", folder);
    }
    let status = node.failure(&Job::new(&["true"]).with(folder)).await;
    let code = Code::from_i32(status.code);
    assert!(matches!(code, Code::InvalidArgument | Code::ResourceExhausted), "{status:?}");
    let mut folder = Folder::new();
    for _ in 0..3000 {
        folder = Folder::new().folder("d", folder);
    }
    let status = node.failure(&Job::new(&["true"]).with(folder)).await;
    let code = Code::from_i32(status.code);
    assert!(matches!(code, Code::InvalidArgument | Code::ResourceExhausted), "{status:?}");
    assert_eq!(node.printed(&Job::shell("echo alive")).await, "alive\n");
}

#[tokio::test]
async fn more_inputs_than_the_bounds_are_refused() {
    if !can_execute() {
        return;
    }
    let settings = [("EXECUTION__INPUT_FILES_MAX", "10"), ("EXECUTION__INPUT_BYTES_MAX", "1MiB")];
    let node = own(&settings).await;
    let files = |count: usize, size: usize| {
        (0..count).fold(Folder::new(), |folder, n| folder.file(&format!("{n}"), noise("n", size)))
    };
    node.result(&Job::new(&["true"]).with(files(8, 10))).await;
    for (count, size) in [(11, 10), (5, 300_000)] {
        let status = node.failure(&Job::new(&["true"]).with(files(count, size))).await;
        let code = Code::from_i32(status.code);
        let refused = matches!(code, Code::InvalidArgument | Code::ResourceExhausted);
        assert!(refused, "{count} {size}: {status:?}");
    }
}
