//! Outputs that are not what was promised, or lead elsewhere. The node never follows them.

use crate::shared::{can_execute, own, shared};
use prost::Message;
use proto::reapi::{ActionResult, Tree};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
};
use tonic::Code;

async fn assert_code(client: &Client, job: &Job, codes: &[Code], what: &str) {
    client.put(job.blobs()).await;
    let status = client.outcome(job.request()).await;
    assert!(codes.contains(&Code::from_i32(status.code)), "{what}: {status:?}");
}

#[tokio::test]
async fn paths_that_are_not_plain_are_refused_before_anything_runs() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let long = "x".repeat(300);
    let deep = "d/".repeat(3000) + "f";
    for path in [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "/",
        "a\0b",
        &long,
        &deep,
    ] {
        let jobs = [
            Job::new(&["true"]).outputs(&["good", path]),
            Job::new(&["true"]).old_outputs(&[path], &[]),
            Job::new(&["true"]).old_outputs(&[], &[path]),
        ];
        for job in jobs {
            assert_code(&node, &job, &[Code::InvalidArgument], path).await;
        }
    }
    for path in ["", "."] {
        let job = Job::new(&["true"]).old_outputs(&[path], &[]);
        assert_code(&node, &job, &[Code::InvalidArgument], "a file without a name").await;
    }
}

#[tokio::test]
async fn what_is_neither_file_nor_directory_nor_symlink_is_no_output() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let bind = "import socket; socket.socket(socket.AF_UNIX).bind";
    let scripts = [
        ("a FIFO", "mkfifo o".to_owned()),
        ("a FIFO in a directory", "mkdir o; mkfifo o/f".to_owned()),
        (
            "a socket",
            format!(
                "python3 -c '{bind}(\"o\")' || perl -MIO::Socket::UNIX \
                 -e 'IO::Socket::UNIX->new(Local=>\"o\",Listen=>1)'"
            ),
        ),
    ];
    for (what, script) in scripts {
        let job = Job::shell(&script).outputs(&["o"]);
        assert_code(&node, &job, &[Code::FailedPrecondition], what).await;
    }
    // A device cannot even be made.
    let job = Job::shell("mknod o c 1 3").outputs(&["o"]);
    assert_ne!(node.run(&job).await.result.unwrap().exit_code, 0);
}

#[tokio::test]
async fn old_outputs_have_to_be_of_their_kind() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for (what, script, files, directories) in [
        ("a directory for a file", "mkdir o", vec!["o"], vec![]),
        ("a file for a directory", "echo > o", vec![], vec!["o"]),
        ("a symlink to a directory", "mkdir d; ln -s d o", vec!["o"], vec![]),
        ("a symlink to a file", "echo > f; ln -s f o", vec![], vec!["o"]),
        ("one through a parent", "mkdir d; ln -s ../d p/o", vec!["p/o"], vec![]),
        ("one to a file through a parent", "echo > f; ln -s ../f p/o", vec![], vec!["p/o"]),
    ] {
        let job = Job::shell(script).old_outputs(&files, &directories);
        assert_code(&node, &job, &[Code::FailedPrecondition], what).await;
    }
}

/// Whether the result or anything that it names holds the text.
async fn tells(client: &Client, result: &ActionResult, text: &[u8]) -> bool {
    let mut named: Vec<_> =
        result.output_files.iter().filter_map(|file| file.digest.clone()).collect();
    for directory in &result.output_directories {
        let tree = client.read(directory.tree_digest.as_ref().unwrap()).await.unwrap();
        let tree = Tree::decode(tree).unwrap();
        let all = tree.root.into_iter().chain(tree.children).flat_map(|one| one.files);
        named.extend(all.filter_map(|file| file.digest));
    }
    for digest in named {
        let blob = client.read(&digest).await.unwrap();
        if blob.windows(text.len()).any(|window| window == text) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn no_symlink_leads_to_a_file_of_the_host() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    let secret = node.running.directory.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "the secret of the host").unwrap();
    let at = secret.display().to_string();
    let up = "../".repeat(20);
    for target in [at.clone(), format!("{up}{at}"), "/proc/self/root".to_owned()] {
        let scripts = [
            (format!("ln -s {target}/file o"), "o"),
            (format!("ln -s {target} o"), "o"),
            (format!("mkdir o; ln -s {target} o/d; ln -s {target}/file o/f"), "o"),
            (format!("ln -s {target} p"), "p/file"),
            (format!("mkdir q; ln -s {target} q/p"), "q/p/file"),
        ];
        for (script, path) in scripts {
            for job in [
                Job::shell(&script).outputs(&[path]),
                Job::shell(&script).old_outputs(&[path], &[]),
                Job::shell(&script).old_outputs(&[], &[path]),
            ] {
                let response = node.run(&job).await;
                let code = Code::from_i32(response.status.unwrap_or_default().code);
                assert!(matches!(code, Code::Ok | Code::FailedPrecondition), "{script}: {code}");
                let result = response.result.unwrap_or_default();
                assert!(!tells(&node, &result, b"the secret").await, "{script}");
            }
        }
    }
    let kept = node.missing(vec![digest(b"the secret of the host")]).await.unwrap();
    assert_eq!(kept.len(), 1, "a file of the host became a blob");
}

#[tokio::test]
async fn an_output_path_through_a_symlink_of_the_inputs_makes_nothing_outside() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    let outside = node.running.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let at = outside.display().to_string();
    for target in [at.clone(), format!("{}{at}", "../".repeat(20)), "..".to_owned()] {
        let inputs = Folder::new().symlink("l", &target);
        let job = Job::new(&["true"]).with(inputs).outputs(&["l/made/by/the/node"]);
        node.put(job.blobs()).await;
        node.outcome(job.request()).await;
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{target}");
    }
    let exec = node.running.directory.path().join("store/exec");
    let left: Vec<_> = std::fs::read_dir(exec).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_symlink_within_the_root_may_be_a_parent() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::shell("mkdir real; echo text > real/f; rmdir l; ln -s real l").outputs(&["l/f"]);
    let result = node.result(&job).await;
    assert_eq!(result.output_files[0].path, "l/f");
    assert_eq!(result.output_files[0].digest, Some(digest(b"text\n")));
}

#[tokio::test]
async fn names_that_are_not_utf8_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for script in ["mkdir o; : > \"o/$(printf '\\377')\"", "ln -s \"$(printf '\\377')\" o"] {
        let job = Job::shell(script).outputs(&["o"]);
        assert_code(&node, &job, &[Code::FailedPrecondition, Code::InvalidArgument], script).await;
    }
}

#[tokio::test]
async fn names_of_any_text_are_taken() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "mkdir o; : > 'o/a b'; : > 'o/\\'; : > \"o/$(printf 'new\\nline')\"; : > o/ü; \
                  : > o/-rf; : > 'o/*'; : > o/...";
    let result = node.result(&Job::shell(script).outputs(&["o"])).await;
    let tree = node.read(result.output_directories[0].tree_digest.as_ref().unwrap()).await.unwrap();
    let root = Tree::decode(tree).unwrap().root.unwrap();
    let names: Vec<&str> = root.files.iter().map(|file| &*file.name).collect();
    assert_eq!(names, ["*", "-rf", "...", "\\", "a b", "new\nline", "ü"]);
}

#[tokio::test]
async fn more_outputs_than_the_bounds_fail_the_action() {
    if !can_execute() {
        return;
    }
    let settings = [("EXECUTION__OUTPUT_FILES_MAX", "20"), ("EXECUTION__OUTPUT_BYTES_MAX", "1MiB")];
    let node = own(&settings).await;
    let many = "mkdir o; i=0; while [ $i -lt 50 ]; do : > o/$i; i=$((i+1)); done";
    let job = Job::shell(many).outputs(&["o"]);
    let codes = [Code::ResourceExhausted, Code::FailedPrecondition, Code::InvalidArgument];
    assert_code(&node, &job, &codes, "50 files").await;
    let job = Job::shell("head -c 2000000 /dev/zero > o").outputs(&["o"]);
    let result = node.run(&job).await.result.unwrap();
    assert_ne!(result.exit_code, 0, "the file may not grow so large");
    let job = Job::shell("truncate -s 100T o || dd if=/dev/null of=o bs=1 seek=1T").outputs(&["o"]);
    let result = node.run(&job).await.result.unwrap();
    assert_ne!(result.exit_code, 0, "nor seem so large");
}

#[tokio::test]
async fn what_is_printed_without_end_is_cut() {
    if !can_execute() {
        return;
    }
    let node = own(&[("EXECUTION__STREAM_BYTES_MAX", "100KB")]).await;
    let result = node.result(&Job::shell("head -c 500000 /dev/zero")).await;
    let stdout = result.stdout_digest.unwrap();
    assert!((100_000..101_000).contains(&stdout.size_bytes), "{stdout:?}");
    assert!(node.read(&stdout).await.unwrap().starts_with(&[0; 100_000]));
}

#[tokio::test]
async fn trees_that_resist_are_collected_and_removed() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    for script in [
        "mkdir -p o/a/b; echo > o/a/b/f; chmod 0 o/a/b/f o/a/b o/a; chmod 111 o",
        "mkdir -p o x/y; echo > x/y/z; chmod 0 x/y x",
        "mkdir o; echo > o/f; chmod 0 o/f o .",
        "mkdir o; i=0; while [ $i -lt 400 ]; do mkdir d; cd d; i=$((i+1)); done",
    ] {
        let job = Job::shell(script).outputs(&["o"]);
        let result = node.result(&job).await;
        assert_eq!(result.output_directories.len(), 1, "{script}");
    }
    let exec = node.running.directory.path().join("store/exec");
    crate::shared::eventually("nothing is left", async || {
        std::fs::read_dir(&exec).unwrap().next().is_none()
    })
    .await;
}
