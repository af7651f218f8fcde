//! What is only below is read through the node, and stays there.

use super::front::{
    Front, batch, eventually, get_result, name, put_result, read, result_of, write_large,
};
use proto::reapi::{GetTreeRequest, OutputDirectory, Tree};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
    is_root,
    liar::Liar,
    noise,
};
use tonic::Code;

/// Puts a tree of directories below; its root is the digest.
async fn put_folder(client: &Client, folder: &Folder) {
    client.put([folder.encoded()]).await;
    client.put(folder.blobs.iter().cloned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_below_is_read_and_then_here() {
    let back = Front::alone().await;
    let sizes = [1, 900, 70_000, 1 << 20, (1 << 20) + 1, 5 << 20, 64 << 20];
    let mut blobs = Vec::new();
    for size in sizes {
        let blob = noise(&format!("read {size}"), size);
        write_large(&back, &blob).await.unwrap();
        blobs.push((digest(&blob), blob));
    }
    let mut back = back;
    let front = Front::before(back.address(), &[]).await;
    // Half of a blob first, in ranges; then all of each.
    let (large, bytes) = &blobs[5];
    for (start, limit) in [(0, 10), (1_000_000, 2_000_000), (5 << 20, 0), ((5 << 20) - 1, 1)] {
        let part = front.read_range(&name(large), start, limit).await.unwrap();
        let start = usize::try_from(start).unwrap();
        let end = (start + usize::try_from(limit).unwrap()).min(bytes.len());
        assert_eq!(part, bytes.slice(start..end.max(start)), "{start} {limit}");
    }
    let small: Vec<_> = blobs[..3].iter().map(|(digest, _)| digest.clone()).collect();
    for (read, (_, blob)) in batch(&front, &small).await.into_iter().zip(&blobs) {
        assert_eq!(read.unwrap(), *blob);
    }
    for (digest, blob) in &blobs {
        assert!(read(&front, digest).await.unwrap() == *blob, "{}", blob.len());
    }
    let absent = digest(b"nobody has it");
    assert_eq!(read(&front, &absent).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(batch(&front, std::slice::from_ref(&absent)).await, [Err(Code::NotFound)]);
    back.kill();
    for (digest, blob) in &blobs {
        assert!(read(&front, digest).await.unwrap() == *blob, "{}", blob.len());
    }
    let missing = front.missing(small.iter().cloned().chain([absent.clone()]).collect()).await;
    assert_eq!(missing.unwrap(), std::slice::from_ref(&absent));
    // That one is known not to be there, for a while; of another one nothing is known.
    let unknown = digest(b"nobody can say who has it");
    assert_eq!(read(&front, &unknown).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_is_what_neither_has() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &[("BACKING__WRITE", "local-only")]).await;
    let below = liar.put("below");
    let here = front.put([bytes::Bytes::from_static(b"here")]).await.remove(0);
    let nowhere = digest(b"nowhere");
    let missing = front.missing(vec![below.clone(), here.clone(), nowhere.clone()]).await.unwrap();
    assert_eq!(missing, [nowhere]);
    assert!(!liar.blobs().contains_key(&here.hash));
    assert_eq!(liar.calls("Read") + liar.calls("BatchReadBlobs"), 0, "a question fetches nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_walked_through_the_node() {
    let back = Front::alone().await;
    let leaf = Folder::new().file("leaf", "leaf");
    let folder = Folder::new().file("a", "a").folder("deep", Folder::new().folder("er", leaf));
    put_folder(&back, &folder).await;
    let front = Front::before(back.address(), &[]).await;
    let request = GetTreeRequest { root_digest: Some(folder.digest()), ..Default::default() };
    let mut pages = front.cas.clone().get_tree(request).await.unwrap().into_inner();
    let mut directories = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        directories.extend(page.directories);
    }
    assert_eq!(directories.len(), 3);
    assert_eq!(directories[0], folder.directory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_below_is_a_hit_only_with_all_it_names() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &[("BACKING__ABSENT_KEPT", "1ms")]).await;
    let (file, in_tree) = (liar.put("an output"), digest(b"a file in a tree"));
    let root = Folder::new().file("f", "a file in a tree").directory;
    let tree = Tree { root: Some(root), ..Default::default() };
    let tree = liar.put(prost::Message::encode_to_vec(&tree));
    let mut result = result_of(&file);
    result.output_directories.push(OutputDirectory {
        path: "t".into(),
        tree_digest: Some(tree.clone()),
        ..Default::default()
    });
    let action = digest(b"an action");
    liar.put_result(&action, result.clone());
    let absent = get_result(&front, "", &action).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "a file of its tree is nowhere");
    assert_eq!(liar.put("a file in a tree"), in_tree);
    eventually("a hit", async || get_result(&front, "", &action).await.is_ok()).await;
    assert_eq!(get_result(&front, "", &action).await.unwrap(), result);
    for digest in [&file, &in_tree, &tree] {
        read(&front, digest).await.unwrap();
    }
    // What is named can be had: now from here alone.
    drop(liar);
    assert_eq!(get_result(&front, "", &action).await.unwrap(), result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_be_there_can_be_read_though_it_was_absent_before() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &[("BACKING__ABSENT_KEPT", "60s")]).await;
    let (asked, named) = (noise("asked for", 3000), noise("named", 3 << 20));
    let action = digest(b"absent before");
    for blob in [&asked, &named] {
        assert_eq!(read(&front, &digest(blob)).await.unwrap_err().code(), Code::NotFound);
    }
    let calls = liar.calls("Read");
    assert_eq!(read(&front, &digest(&named)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(liar.calls("Read"), calls, "it is remembered");
    // Another node writes them.
    liar.put(asked.clone());
    liar.put_result(&action, result_of(&liar.put(named.clone())));
    assert!(front.missing(vec![digest(&asked)]).await.unwrap().is_empty());
    assert_eq!(read(&front, &digest(&asked)).await.unwrap(), asked);
    assert!(get_result(&front, "", &action).await.is_ok());
    assert!(read(&front, &digest(&named)).await.unwrap() == named);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_do_not_see_each_others_results_below() {
    let back = Front::alone().await;
    let settings = [("BACKING__INSTANCE", "team")];
    let front = Front::before(back.address(), &settings).await;
    let other = Front::before(back.address(), &settings).await;
    let plain = Front::before(back.address(), &[]).await;
    let output = front.put([noise("instances", 100)]).await.remove(0);
    let action = digest(b"of one instance");
    put_result(&front, "one", &action, result_of(&output)).await.unwrap();
    assert!(get_result(&other, "one", &action).await.is_ok());
    assert!(get_result(&back, "team/one", &action).await.is_ok());
    for (client, instance) in
        [(&other, ""), (&other, "two"), (&front, "two"), (&plain, "one"), (&back, "one")]
    {
        let answer = get_result(client, instance, &action).await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound, "{instance}");
    }
    assert!(get_result(&plain, "team/one", &action).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_takes_its_inputs_from_below_and_leaves_results_there() {
    if !is_root("an_executor_takes_its_inputs_from_below_and_leaves_results_there") {
        return;
    }
    let back = Front::alone().await;
    let front = Front::before(back.address(), &[]).await;
    let input = noise("input", 3 << 20);
    let folder = Folder::new().folder("in", Folder::new().file("small", "x").file("large", input));
    let script = "cat in/small in/large > out; head -c 2000000 in/large; echo done >&2";
    let job = Job::shell(script).with(folder).outputs(&["out"]);
    for blob in job.blobs() {
        write_large(&back, &blob).await.unwrap();
    }
    let response = front.execute(job.request()).await.unwrap();
    assert_eq!(response.status.unwrap_or_default().code, 0, "{}", response.message);
    let result = response.result.unwrap();
    assert_eq!(result.exit_code, 0);
    let stored = get_result(&back, "", &job.digest()).await.unwrap();
    assert_eq!(stored.output_files, result.output_files);
    let output = result.output_files[0].digest.clone().unwrap();
    assert_eq!(read(&back, &output).await.unwrap().len(), (3 << 20) + 1);
    let other = Front::before(back.address(), &[]).await;
    let response = other.execute(job.request()).await.unwrap();
    assert!(response.cached_result, "another executor finds it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_a_full_store_can_not_keep_are_not_called_missing() {
    if !is_root("inputs_that_a_full_store_can_not_keep_are_not_called_missing") {
        return;
    }
    let liar = Liar::start();
    // No disk has so much.
    let front = Front::before(liar.address(), &[("STORE__FREE_BYTES_MIN", "1000TiB")]).await;
    for size in [1000, 3 << 20] {
        let inputs = Folder::new().file("in", noise(&format!("kept nowhere {size}"), size));
        let job = Job::shell("cat in").with(inputs);
        for blob in job.blobs() {
            liar.put(blob);
        }
        let status = front.outcome(job.request()).await;
        let code = Code::from(status.code);
        assert_eq!(code, Code::ResourceExhausted, "{size}: {}", status.message);
    }
}
