//! GetTree: everything below a root, in pages, without what is absent.

use crate::shared::{assert_refused, shared};
use prost::Message;
use proto::{
    bytestream::WriteRequest,
    reapi::{Digest, Directory, GetTreeRequest},
};
use ringforge_tests::{
    action::Folder,
    client::{Client, digest},
};
use tonic::{Code, Status};

/// Every page, with its token.
async fn pages(
    client: &Client,
    root: Digest,
    page_size: i32,
    page_token: &str,
) -> Result<Vec<(Vec<Directory>, String)>, Status> {
    let page_token = page_token.to_owned();
    let request =
        GetTreeRequest { root_digest: Some(root), page_size, page_token, ..Default::default() };
    let mut stream = client.cas.clone().get_tree(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push((page.directories, page.next_page_token));
    }
    Ok(pages)
}

async fn tree(client: &Client, root: Digest) -> Result<Vec<Directory>, Status> {
    let pages = pages(client, root, 0, "").await?;
    Ok(pages.into_iter().flat_map(|(directories, _)| directories).collect())
}

fn leaf(name: &str) -> Folder {
    Folder::new().file(name, name.to_owned())
}

/// A root with `count` directories, and one more below each.
fn wide(prefix: &str, count: usize) -> Folder {
    (0..count).fold(Folder::new(), |root, n| {
        let name = format!("{prefix}{n:03}");
        root.folder(&name, Folder::new().folder("below", leaf(&name)))
    })
}

async fn upload(client: &Client, folder: &Folder) -> Digest {
    client.put(folder.blobs.iter().cloned().chain([folder.encoded()])).await;
    folder.digest()
}

#[tokio::test]
async fn a_tree_has_its_root_first_and_every_directory() {
    let node = shared().await;
    let folder = wide("whole", 5);
    let root = upload(&node, &folder).await;
    let directories = tree(&node, root).await.unwrap();
    assert_eq!(directories.len(), 11);
    assert_eq!(directories[0], folder.directory);
    for child in &directories {
        for named in &child.directories {
            let found = directories
                .iter()
                .any(|one| digest(&one.encode_to_vec()) == *named.digest.as_ref().unwrap());
            assert!(found, "{named:?}");
        }
    }
}

#[tokio::test]
async fn pages_are_no_larger_than_asked_and_go_on_from_their_tokens() {
    let node = shared().await;
    let root = upload(&node, &wide("paged", 8)).await;
    let all = tree(&node, root.clone()).await.unwrap();
    for size in [1, 2, 5, 16, 17, 1_000_000] {
        let first = pages(&node, root.clone(), size, "").await.unwrap();
        let joined: Vec<_> = first.iter().flat_map(|(page, _)| page.clone()).collect();
        let size = usize::try_from(size).unwrap();
        assert!(first.iter().all(|(page, _)| page.len() <= size), "{size}");
        // A page sequence is one stream, or a token to ask on with.
        let mut seen = joined;
        let mut token = first.last().unwrap().1.clone();
        while !token.is_empty() {
            let next = pages(&node, root.clone(), 5, &token).await.unwrap();
            seen.extend(next.iter().flat_map(|(page, _)| page.clone()));
            token.clone_from(&next.last().unwrap().1);
        }
        assert_eq!(seen, all, "pages of {size}");
        let mut passed = 0;
        for (page, token) in first.iter().take(4) {
            passed += page.len();
            if token.is_empty() {
                assert_eq!(passed, all.len());
                continue;
            }
            let rest = pages(&node, root.clone(), 3, token).await.unwrap();
            let rest: Vec<_> = rest.into_iter().flat_map(|(page, _)| page).collect();
            assert_eq!(rest, all[passed..], "after {passed}");
        }
    }
}

#[tokio::test]
async fn what_is_absent_below_is_left_out() {
    let node = shared().await;
    let (absent, present) = (leaf("absent child"), leaf("present child"));
    let root = Folder::new().folder("a", absent.clone()).folder("b", present.clone());
    node.put([root.encoded(), present.encoded()]).await;
    let directories = tree(&node, root.digest()).await.unwrap();
    assert_eq!(directories, [root.directory, present.directory]);
    assert_eq!(node.missing(vec![absent.digest()]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_root_that_is_absent_is_not_found() {
    let node = shared().await;
    let absent = tree(&node, digest(b"an absent root")).await;
    assert_refused(absent, Code::NotFound, "an absent root");
}

#[tokio::test]
async fn a_root_of_no_bytes_is_an_empty_directory() {
    let node = shared().await;
    assert_eq!(tree(&node, digest(b"")).await.unwrap(), [Directory::default()]);
    let root = Folder::new().folder("empty", Folder::new());
    let directories = tree(&node, upload(&node, &root).await).await.unwrap();
    assert_eq!(directories, [root.directory, Directory::default()]);
}

#[tokio::test]
async fn what_is_no_directory_is_no_tree() {
    let node = shared().await;
    let text = bytes::Bytes::from_static(b"\xff\xff this is no Directory");
    let kept = node.put([text]).await.remove(0);
    assert_refused(tree(&node, kept.clone()).await, Code::InvalidArgument, "a root");
    let mut root = Folder::new().folder("bad", Folder::new());
    root.directory.directories[0].digest = Some(kept);
    let root = upload(&node, &root).await;
    assert_refused(tree(&node, root).await, Code::InvalidArgument, "a child");
}

#[tokio::test]
async fn a_child_with_a_malformed_digest_is_refused() {
    let node = shared().await;
    for hash in ["", "../../etc/passwd", "zz"] {
        let mut root = Folder::new().folder(&format!("child {hash:?}"), Folder::new());
        root.directory.directories[0].digest =
            Some(Digest { hash: hash.to_owned(), size_bytes: 3 });
        node.put([root.encoded()]).await;
        assert_refused(tree(&node, root.digest()).await, Code::InvalidArgument, hash);
    }
}

#[tokio::test]
async fn a_tree_that_says_it_is_endless_is_refused() {
    let node = shared().await;
    let mut root = ["a", "b", "c"]
        .iter()
        .fold(Folder::new(), |root, name| root.folder(name, leaf(&format!("endless {name}"))));
    for child in &mut root.directory.directories {
        // Together they are more than 64 bits hold, with what was read before.
        child.digest.as_mut().unwrap().size_bytes = i64::MAX;
    }
    node.put([root.encoded()]).await;
    assert_refused(tree(&node, root.digest()).await, Code::InvalidArgument, "its size");
}

#[tokio::test]
async fn a_directory_that_would_become_a_flood_is_refused() {
    let node = shared().await;
    // Two bytes for each file of no name; and one directory that is larger than any is read.
    let nodes = b"\x0a\x00".repeat(1_100_000);
    let long = b"\x0a\x04\x0a\x02ab".repeat(1_500_000);
    for bytes in [nodes, long] {
        let root = digest(&bytes);
        let resource_name = format!("uploads/u/blobs/{}/{}", root.hash, root.size_bytes);
        let messages = bytes.chunks(1 << 20).enumerate().map(|(n, data)| WriteRequest {
            resource_name: resource_name.clone(),
            write_offset: i64::try_from(n << 20).unwrap(),
            finish_write: (n << 20) + data.len() == bytes.len(),
            data: data.to_vec().into(),
        });
        node.write(messages.collect()).await.unwrap();
        let refused = tree(&node, root).await.unwrap_err();
        let clear = matches!(refused.code(), Code::InvalidArgument | Code::ResourceExhausted);
        assert!(clear, "{refused:?}");
    }
}

#[tokio::test]
async fn a_tree_of_few_directories_and_very_many_paths_is_walked_once_each() {
    let node = shared().await;
    let mut folder = leaf("bomb");
    for _ in 0..60 {
        // Twice the same below each: 2^60 paths.
        let once = Folder { directory: folder.directory.clone(), blobs: Vec::new() };
        folder = Folder::new().folder("a", once).folder("b", folder);
    }
    let root = upload(&node, &folder).await;
    let directories = tree(&node, root).await.unwrap();
    assert_eq!(directories.len(), 61);
}

#[tokio::test]
async fn every_page_of_large_directories_fits_a_message_of_4_mib() {
    let node = shared().await;
    let large = |n: usize| {
        let entries = (0..2000).map(|e| format!("{n:02} {e:04} {}", "x".repeat(200)));
        entries.fold(Folder::new(), |folder, name| folder.symlink(&name, "target"))
    };
    let mut root = Folder::new();
    for n in 0..20 {
        let folder = large(n);
        node.put([folder.encoded()]).await;
        root = root.folder(&format!("d{n:02}"), Folder { blobs: Vec::new(), ..folder });
    }
    node.put([root.encoded()]).await;
    let request = GetTreeRequest { root_digest: Some(root.digest()), ..Default::default() };
    let mut plain = node.cas.clone().max_decoding_message_size(4 << 20);
    let mut stream = plain.get_tree(request).await.unwrap().into_inner();
    let mut directories = 0;
    while let Some(page) = stream.message().await.unwrap() {
        directories += page.directories.len();
    }
    assert_eq!(directories, 21);
}

#[tokio::test]
async fn malformed_questions_are_refused() {
    let node = shared().await;
    let root = upload(&node, &wide("malformed", 2)).await;
    for (size, token) in [(-1, ""), (0, "nonsense"), (0, "-1"), (0, "999999"), (1, "1e3")] {
        let answer = pages(&node, root.clone(), size, token).await;
        assert_refused(answer, Code::InvalidArgument, &format!("{size} {token:?}"));
    }
    let rootless = node.cas.clone().get_tree(GetTreeRequest::default()).await;
    assert_eq!(rootless.unwrap_err().code(), Code::InvalidArgument);
}
