//! ActionCache: a result is a hit only while everything it names is here.

use crate::shared::{assert_refused, own, shared};
use bytes::Bytes;
use prost::Message;
use proto::reapi::{
    ActionResult, Digest, Directory, ExecutedActionMetadata, FileNode, GetActionResultRequest,
    OutputDirectory, OutputFile, OutputSymlink, Tree, UpdateActionResultRequest,
};
use ringforge_tests::{
    action::Folder,
    client::{Client, digest},
    noise,
};
use tonic::{Code, Status};

async fn put(
    client: &Client,
    action: &Digest,
    result: ActionResult,
) -> Result<ActionResult, Status> {
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(result),
        ..Default::default()
    };
    Ok(client.action_cache.clone().update_action_result(request).await?.into_inner())
}

async fn get(client: &Client, action: &Digest) -> Result<ActionResult, Status> {
    let request =
        GetActionResultRequest { action_digest: Some(action.clone()), ..Default::default() };
    Ok(client.action_cache.clone().get_action_result(request).await?.into_inner())
}

fn file(path: &str, blob: &[u8]) -> OutputFile {
    OutputFile { path: path.to_owned(), digest: Some(digest(blob)), ..Default::default() }
}

fn output_directory(path: &str, tree: &Tree) -> OutputDirectory {
    let tree_digest = Some(digest(&tree.encode_to_vec()));
    OutputDirectory { path: path.to_owned(), tree_digest, ..Default::default() }
}

#[tokio::test]
async fn what_was_stored_comes_back_as_it_was() {
    let node = shared().await;
    let blobs = [noise("output", 100), noise("stdout", 10), noise("stderr", 10)];
    node.put(blobs.clone()).await;
    let action = digest(b"comes back");
    let link =
        OutputSymlink { path: "l".to_owned(), target: "../t".to_owned(), ..Default::default() };
    let worker = "somebody".to_owned();
    let result = ActionResult {
        output_files: vec![OutputFile { is_executable: true, ..file("a/b", &blobs[0]) }],
        output_symlinks: vec![link],
        exit_code: 0,
        stdout_digest: Some(digest(&blobs[1])),
        stderr_digest: Some(digest(&blobs[2])),
        execution_metadata: Some(ExecutedActionMetadata { worker, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(put(&node, &action, result.clone()).await.unwrap(), result);
    assert_eq!(get(&node, &action).await.unwrap(), result);
    // Over another, and again the same.
    let other = ActionResult { exit_code: 9, ..result.clone() };
    for stored in [&other, &other, &result] {
        put(&node, &action, stored.clone()).await.unwrap();
        assert_eq!(get(&node, &action).await.unwrap(), *stored);
    }
}

#[tokio::test]
async fn an_action_without_a_result_is_not_found() {
    let node = shared().await;
    assert_refused(get(&node, &digest(b"no result")).await, Code::NotFound, "no result");
    let action = digest(b"another size");
    put(&node, &action, ActionResult::default()).await.unwrap();
    let other = Digest { size_bytes: 99, ..action };
    assert_refused(get(&node, &other).await, Code::NotFound, "another size");
}

#[tokio::test]
async fn an_empty_result_is_a_result() {
    let node = shared().await;
    let action = digest(b"empty result");
    put(&node, &action, ActionResult::default()).await.unwrap();
    assert_eq!(get(&node, &action).await.unwrap().exit_code, 0);
}

/// Every way in which a result can name a blob: what has to be there besides, and the result.
fn ways(blob: &Bytes) -> Vec<(&'static str, Vec<Bytes>, ActionResult)> {
    let name = digest(blob);
    let node = FileNode { name: "f".to_owned(), digest: Some(name.clone()), ..Default::default() };
    let directory = Directory { files: vec![node], ..Default::default() };
    let root = Tree { root: Some(directory.clone()), children: Vec::new() };
    let above =
        Folder::new().folder("below", Folder { directory: directory.clone(), blobs: Vec::new() });
    let child = Tree { root: Some(above.directory), children: vec![directory] };
    let encoded = |tree: &Tree| Bytes::from(tree.encode_to_vec());
    let empty = ActionResult::default();
    let in_tree = |tree: &Tree| ActionResult {
        output_directories: vec![output_directory("d", tree)],
        ..Default::default()
    };
    vec![
        ("a file", vec![], ActionResult { output_files: vec![file("f", blob)], ..empty.clone() }),
        ("stdout", vec![], ActionResult { stdout_digest: Some(name.clone()), ..empty.clone() }),
        ("stderr", vec![], ActionResult { stderr_digest: Some(name), ..empty }),
        ("a file in the root of a tree", vec![encoded(&root)], in_tree(&root)),
        ("a file deep in a tree", vec![encoded(&child)], in_tree(&child)),
    ]
}

#[tokio::test]
async fn a_result_is_a_hit_only_with_everything_that_it_names() {
    let node = shared().await;
    for (n, _) in ways(&Bytes::new()).iter().enumerate() {
        let blob = noise(&format!("completes {n}"), 1000 + n * 40_000);
        let (way, others, result) = ways(&blob).remove(n);
        let action = digest(format!("complete {n}").as_bytes());
        node.put(others).await;
        // Refused at once, or not a hit: never shown.
        match put(&node, &action, result.clone()).await {
            Ok(_) => {}
            Err(refused) => {
                assert_eq!(refused.code(), Code::FailedPrecondition, "{way}");
                continue;
            }
        }
        assert_refused(get(&node, &action).await, Code::NotFound, way);
        node.put([blob]).await;
        assert_eq!(get(&node, &action).await.unwrap(), result, "{way}: it is complete now");
        assert_eq!(get(&node, &action).await.unwrap(), result, "{way}: and stays so");
    }
}

#[tokio::test]
async fn a_hit_is_none_any_more_once_a_blob_proves_to_be_lost() {
    let node = own(&[]).await;
    let blob = noise("lost", 300_000);
    node.put([blob.clone()]).await;
    let action = digest(b"lost");
    let result = ActionResult { output_files: vec![file("f", &blob)], ..Default::default() };
    put(&node, &action, result).await.unwrap();
    assert!(get(&node, &action).await.is_ok());
    let Digest { hash, .. } = digest(&blob);
    let mut lost = 0;
    let prefixes = std::fs::read_dir(node.running.directory.path().join("store/cas")).unwrap();
    for entry in prefixes.flat_map(|prefix| std::fs::read_dir(prefix.unwrap().path()).unwrap()) {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(&hash[2..]) {
            std::fs::remove_file(path).unwrap();
            lost += 1;
        }
    }
    assert!(lost > 0, "where is it?");
    assert_refused(node.read(&digest(&blob)).await, Code::NotFound, "it is lost");
    assert_eq!(node.missing(vec![digest(&blob)]).await.unwrap().len(), 1);
    assert_refused(get(&node, &action).await, Code::NotFound, "its output is lost");
    node.put([blob.clone()]).await;
    assert!(get(&node, &action).await.is_ok(), "its output came back");
    assert!(node.read(&digest(&blob)).await.unwrap() == blob);
}

#[tokio::test]
async fn a_result_without_its_tree_or_with_nonsense_for_one_is_no_hit() {
    let node = shared().await;
    let tree = Tree { root: Some(Directory::default()), children: Vec::new() };
    let absent = Tree { children: vec![Directory::default(); 2], ..tree.clone() };
    let nonsense = Bytes::from_static(b"\xff\xff no Tree");
    node.put([nonsense.clone()]).await;
    let mut directory = output_directory("d", &absent);
    let with =
        |directory| ActionResult { output_directories: vec![directory], ..Default::default() };
    let action = digest(b"tree absent");
    if put(&node, &action, with(directory.clone())).await.is_ok() {
        assert_refused(get(&node, &action).await, Code::NotFound, "its tree is absent");
        node.put([Bytes::from(absent.encode_to_vec())]).await;
        assert!(get(&node, &action).await.is_ok());
    }
    directory.tree_digest = Some(digest(&nonsense));
    let action = digest(b"tree nonsense");
    if put(&node, &action, with(directory)).await.is_ok() {
        assert_refused(get(&node, &action).await, Code::NotFound, "its tree is nonsense");
    }
}

#[tokio::test]
async fn a_result_that_can_never_be_a_hit_is_refused() {
    let node = shared().await;
    let blob = noise("never a hit", 10);
    node.put([blob.clone()]).await;
    let bad = Digest { hash: "../x".to_owned(), size_bytes: 1 };
    let no_digest = OutputFile { digest: None, ..file("f", &blob) };
    let bad_digest = OutputFile { digest: Some(bad.clone()), ..file("f", &blob) };
    let empty = ActionResult::default();
    let files = |files| ActionResult { output_files: files, ..Default::default() };
    let directory = OutputDirectory { path: "d".to_owned(), ..Default::default() };
    for (what, result) in [
        ("a file without a digest", files(vec![no_digest])),
        ("a file with a bad digest", files(vec![bad_digest])),
        ("an absolute path", files(vec![file("/etc/passwd", &blob)])),
        ("a file without a path", files(vec![file("", &blob)])),
        ("NUL in a path", files(vec![file("a\0b", &blob)])),
        ("a path that leads out", files(vec![file("../../etc/passwd", &blob)])),
        ("a path that leads out later", files(vec![file("a/../../b", &blob)])),
        ("a bad stdout", ActionResult { stdout_digest: Some(bad.clone()), ..empty.clone() }),
        ("a bad stderr", ActionResult { stderr_digest: Some(bad), ..empty.clone() }),
        ("no tree", ActionResult { output_directories: vec![directory], ..empty }),
    ] {
        let answer = put(&node, &digest(what.as_bytes()), result).await;
        assert_refused(answer, Code::InvalidArgument, what);
        assert_refused(get(&node, &digest(what.as_bytes())).await, Code::NotFound, what);
    }
    let action_digest = Some(digest(b"nothing to store"));
    let request = UpdateActionResultRequest { action_digest, ..Default::default() };
    let answer = node.action_cache.clone().update_action_result(request).await;
    assert_refused(answer, Code::InvalidArgument, "no result");
}

#[tokio::test]
async fn only_what_is_asked_for_is_inlined() {
    let node = shared().await;
    let (out, err) = (noise("inline out", 50), noise("inline err", 60));
    let (one, two) = (noise("inline one", 70), noise("inline two", 80));
    node.put([out.clone(), err.clone(), one.clone(), two.clone()]).await;
    let action = digest(b"inlined");
    let result = ActionResult {
        output_files: vec![file("one", &one), file("d/two", &two)],
        stdout_digest: Some(digest(&out)),
        stderr_digest: Some(digest(&err)),
        ..Default::default()
    };
    put(&node, &action, result.clone()).await.unwrap();
    assert_eq!(get(&node, &action).await.unwrap(), result);
    let ask = |inline_stdout, inline_stderr, files: &[&str]| {
        let request = GetActionResultRequest {
            action_digest: Some(action.clone()),
            inline_stdout,
            inline_stderr,
            inline_output_files: files.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let mut client = node.action_cache.clone();
        async move { client.get_action_result(request).await.unwrap().into_inner() }
    };
    let all = ask(true, true, &["one", "d/two"]).await;
    assert_eq!((&all.stdout_raw, &all.stderr_raw), (&out, &err));
    assert_eq!(all.stdout_digest, result.stdout_digest);
    assert_eq!(all.output_files[0].contents, one);
    assert_eq!(all.output_files[1].contents, two);
    let some = ask(false, true, &["two", "/one", "d/", "one", "absent"]).await;
    assert_eq!((some.stdout_raw.len(), &some.stderr_raw), (0, &err));
    assert_eq!(some.output_files[0].contents, one);
    assert_eq!(some.output_files[1].contents, "", "only an exact path is meant");
}

#[tokio::test]
async fn inlining_never_makes_a_result_larger_than_a_message() {
    let node = own(&[]).await;
    let large = noise("large output", 6 << 20);
    let name = crate::byte_stream::write_name("u", &digest(&large));
    node.write(crate::byte_stream::messages(&name, &large, 1 << 20)).await.unwrap();
    let many: Vec<Bytes> = (0..6).map(|n| noise(&format!("many {n}"), 1 << 20)).collect();
    for blob in &many {
        node.put([blob.clone()]).await;
    }
    let mut output_files = vec![file("large", &large)];
    output_files.extend(many.iter().enumerate().map(|(n, blob)| file(&format!("m{n}"), blob)));
    let inline_output_files = output_files.iter().map(|file| file.path.clone()).collect();
    let action = digest(b"large");
    let stdout_digest = Some(digest(&large));
    let result = ActionResult { output_files, stdout_digest, ..Default::default() };
    put(&node, &action, result).await.unwrap();
    let request = GetActionResultRequest {
        action_digest: Some(action),
        inline_stdout: true,
        inline_output_files,
        ..Default::default()
    };
    let mut client = node.action_cache.clone().max_decoding_message_size(4 << 20);
    let answer = client.get_action_result(request).await.unwrap().into_inner();
    assert_eq!(answer.output_files.len(), 7);
    let inlined = answer.output_files.iter().filter(|file| !file.contents.is_empty());
    for file in inlined {
        assert_eq!(digest(&file.contents), *file.digest.as_ref().unwrap(), "cut");
    }
    assert!(answer.stdout_raw.is_empty());
}
