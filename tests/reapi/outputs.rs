//! What an action leaves behind, as its result tells it.

use crate::shared::{can_execute, shared};
use prost::Message;
use proto::reapi::{Digest, Directory, Tree, command::OutputDirectoryFormat};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
    noise,
};

async fn tree(client: &Client, digest: Option<&Digest>) -> Tree {
    Tree::decode(client.read(digest.unwrap()).await.unwrap()).unwrap()
}

#[tokio::test]
async fn files_are_told_with_their_digests_and_whether_they_execute() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "printf plain > plain; printf x > d/x; chmod 755 d/x; : > empty; \
                  head -c 300000 /dev/zero > large; chmod 0 plain; chmod 0777 empty";
    let job = Job::shell(script).outputs(&["d/x", "empty", "large", "not-made", "plain"]);
    let result = node.result(&job).await;
    let told: Vec<(&str, Digest, bool)> = result
        .output_files
        .iter()
        .map(|file| (&*file.path, file.digest.clone().unwrap(), file.is_executable))
        .collect();
    let zeros = digest(&vec![0; 300_000]);
    for expected in [
        ("d/x", digest(b"x"), true),
        ("empty", digest(b""), true),
        ("large", zeros.clone(), false),
        ("plain", digest(b"plain"), false),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
    }
    assert_eq!(told.len(), 4);
    assert_eq!(node.read(&digest(b"plain")).await.unwrap(), "plain");
    assert_eq!(node.read(&zeros).await.unwrap().len(), 300_000);
    assert!(result.output_files.iter().all(|file| file.contents.is_empty()));
}

#[tokio::test]
async fn outputs_that_were_not_made_are_no_error() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for job in [
        Job::new(&["true"]).outputs(&["a", "b/c"]),
        Job::new(&["true"]).old_outputs(&["a", "b/c"], &["d", "e/f"]),
        Job::shell("rmdir f; echo > f").outputs(&["f/below"]),
    ] {
        let result = node.result(&job).await;
        assert!(result.output_files.is_empty() && result.output_directories.is_empty());
        assert!(result.output_symlinks.is_empty());
    }
}

#[tokio::test]
async fn parents_of_outputs_are_made_but_not_the_outputs() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "test -d a/b; test ! -e a/b/c; test -d d; test ! -e d/e; find . | sort";
    let inputs = Folder::new().folder("a", Folder::new().file("kept", "kept"));
    let job = Job::shell(script).with(inputs).outputs(&["a/b/c", "d/e"]);
    assert_eq!(node.printed(&job).await, ".\n./a\n./a/b\n./a/kept\n./d\n");
    let job = Job::shell("find . | sort").old_outputs(&["f/g"], &["h/i"]);
    assert_eq!(node.printed(&job).await, ".\n./f\n./h\n");
}

#[tokio::test]
async fn a_directory_is_a_tree_of_canonical_messages() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "mkdir -p o/z o/a/same o/b/same o/empty; echo 1 > o/z/f; ln -s ../z/f o/a/l; \
                  echo s > o/a/same/s; echo s > o/b/same/s; echo 2 > o/top; chmod +x o/top; \
                  echo 3 > o/B";
    let job = Job::shell(script).outputs(&["o"]);
    let result = node.result(&job).await;
    assert!(result.output_files.is_empty());
    let [output] = &result.output_directories[..] else { panic!("{result:?}") };
    assert_eq!(output.path, "o");
    let tree = tree(&node, output.tree_digest.as_ref()).await;
    let root = tree.root.clone().unwrap();
    let names: Vec<&str> = root.directories.iter().map(|node| &*node.name).collect();
    assert_eq!(names, ["a", "b", "empty", "z"]);
    let files: Vec<_> = root.files.iter().map(|node| (&*node.name, node.is_executable)).collect();
    assert_eq!(files, [("B", false), ("top", true)]);
    let mut digests: Vec<Digest> =
        tree.children.iter().map(|child| digest(&child.encode_to_vec())).collect();
    for named in [&root].into_iter().chain(&tree.children).flat_map(|one| &one.directories) {
        assert!(digests.contains(named.digest.as_ref().unwrap()), "{named:?}");
    }
    let before = digests.len();
    digests.sort_by(|one, other| one.hash.cmp(&other.hash));
    digests.dedup();
    assert_eq!(digests.len(), before, "each child once");
    assert_eq!(before, 5, "a, b, same, empty, z");
    let link = tree.children.iter().flat_map(|child| &child.symlinks).next().unwrap();
    assert_eq!((&*link.name, &*link.target), ("l", "../z/f"));
    // The same tree again has the same bytes.
    let again = node.result(&Job::shell(script).outputs(&["o"])).await;
    assert_eq!(again.output_directories[0].tree_digest, output.tree_digest);
}

#[tokio::test]
async fn an_empty_directory_is_an_output() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for job in
        [Job::shell("mkdir o").outputs(&["o"]), Job::shell("mkdir o").old_outputs(&[], &["o"])]
    {
        let result = node.result(&job).await;
        let tree = tree(&node, result.output_directories[0].tree_digest.as_ref()).await;
        assert_eq!(tree.root.unwrap_or_default(), Directory::default());
        assert!(tree.children.is_empty());
    }
}

#[tokio::test]
async fn the_whole_working_directory_may_be_an_output() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inputs = Folder::new().folder("w", Folder::new().file("in", "in")).file("out-of-it", "x");
    // Some clients write "." for it.
    for (path, job) in [
        ("", Job::shell("echo > made").outputs(&[""])),
        ("", Job::shell("echo > made").old_outputs(&[], &[""])),
        (".", Job::shell("echo > made").outputs(&["."])),
        (".", Job::shell("echo > made").old_outputs(&[], &["."])),
    ] {
        let result = node.result(&job.with(inputs.clone()).working_directory("w")).await;
        let [output] = &result.output_directories[..] else { panic!("{result:?}") };
        assert_eq!(output.path, path);
        let root = tree(&node, output.tree_digest.as_ref()).await.root.unwrap();
        let names: Vec<&str> = root.files.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["in", "made"]);
    }
}

#[tokio::test]
async fn the_format_of_directories_is_as_asked_or_more() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for format in [
        OutputDirectoryFormat::TreeOnly as i32,
        OutputDirectoryFormat::DirectoryOnly as i32,
        OutputDirectoryFormat::TreeAndDirectory as i32,
        77,
    ] {
        let mut job = Job::shell("mkdir -p o/d; echo 1 > o/d/f").outputs(&["o"]);
        job.command.output_directory_format = format;
        let result = node.result(&job).await;
        let output = &result.output_directories[0];
        let wants_tree = format != OutputDirectoryFormat::DirectoryOnly as i32;
        assert!(output.tree_digest.is_some() || !wants_tree, "{format}");
        let wants_directory = format == OutputDirectoryFormat::DirectoryOnly as i32
            || format == OutputDirectoryFormat::TreeAndDirectory as i32;
        assert!(output.root_directory_digest.is_some() || !wants_directory, "{format}");
        if let Some(root) = &output.root_directory_digest {
            let root = node.read(root).await.unwrap();
            if output.tree_digest.is_some() {
                let tree = tree(&node, output.tree_digest.as_ref()).await;
                assert_eq!(tree.root.unwrap().encode_to_vec(), root);
            }
            for child in Directory::decode(root).unwrap().directories {
                node.read(&child.digest.unwrap()).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn symlinks_are_told_as_such() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "echo > f; mkdir d; ln -s f to-file; ln -s d to-dir; ln -s no/such dangling; \
                  ln -s /usr/bin absolute; ln -s loop loop";
    let paths = ["absolute", "dangling", "loop", "to-dir", "to-file"];
    let result = node.result(&Job::shell(script).outputs(&paths)).await;
    let mut told: Vec<(&str, &str)> =
        result.output_symlinks.iter().map(|link| (&*link.path, &*link.target)).collect();
    told.sort_unstable();
    let expected = [
        ("absolute", "/usr/bin"),
        ("dangling", "no/such"),
        ("loop", "loop"),
        ("to-dir", "d"),
        ("to-file", "f"),
    ];
    assert_eq!(told, expected);
    assert!(result.output_files.is_empty() && result.output_directories.is_empty());
}

#[tokio::test]
#[expect(deprecated, reason = "what clients of API 2.0 read")]
async fn old_outputs_have_symlinks_of_their_own() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "echo > f; mkdir d; ln -s f to-file; ln -s d to-dir; mkdir o; echo > o/g";
    let job = Job::shell(script).old_outputs(&["f", "to-file"], &["o", "to-dir"]);
    let result = node.result(&job).await;
    assert_eq!(result.output_files[0].path, "f");
    assert_eq!(result.output_directories[0].path, "o");
    assert_eq!(result.output_file_symlinks[0].path, "to-file");
    assert_eq!(result.output_directory_symlinks[0].path, "to-dir");
    assert!(result.output_symlinks.is_empty());
}

#[tokio::test]
async fn output_paths_supersede_and_no_path_is_told_twice() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "echo > a; echo > b; mkdir -p d; echo > d/f";
    let job = Job::shell(script).old_outputs(&["b"], &["d"]).outputs(&["a"]);
    let result = node.result(&job).await;
    assert_eq!((result.output_files.len(), result.output_directories.len()), (1, 0));
    assert_eq!(result.output_files[0].path, "a");
    for job in [
        Job::shell(script).outputs(&["a", "a", "d", "d", "d/f"]),
        Job::shell(script).old_outputs(&["a", "a", "d/f"], &["d", "d"]),
    ] {
        let result = node.result(&job).await;
        let mut paths: Vec<&str> = result.output_files.iter().map(|file| &*file.path).collect();
        paths.extend(result.output_directories.iter().map(|directory| &*directory.path));
        paths.sort_unstable();
        assert_eq!(paths, ["a", "d", "d/f"]);
    }
}

#[tokio::test]
async fn an_input_may_be_an_output() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let large = noise("passed through", 200_000);
    let inputs = Folder::new()
        .file("small", "small")
        .file("large", large.clone())
        .folder("d", Folder::new().file("f", large.clone()));
    let job = Job::shell("mv small moved; mv large d/g; ln d/g hard 2>/dev/null || cp d/g hard")
        .with(inputs)
        .outputs(&["moved", "d", "hard"]);
    let result = node.result(&job).await;
    let digests: Vec<_> = result.output_files.iter().map(|file| file.digest.clone()).collect();
    assert!(digests.contains(&Some(digest(b"small"))) && digests.contains(&Some(digest(&large))));
    assert!(node.read(&digest(&large)).await.unwrap() == large);
    // And it can still be an input.
    let job = Job::shell("sha256sum < f").with(Folder::new().file("f", large.clone()));
    assert!(node.printed(&job).await.starts_with(&digest(&large).hash));
}

#[tokio::test]
async fn one_inode_may_be_several_outputs() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for size in [10, 300_000] {
        let script =
            format!("head -c {size} /dev/zero > a; ln a b; mkdir -p d; ln a d/c; chmod 600 a");
        let result = node.result(&Job::shell(&script).outputs(&["a", "b", "d"])).await;
        let zeros = digest(&vec![0; size]);
        assert_eq!(result.output_files.len(), 2);
        assert!(result.output_files.iter().all(|file| file.digest.as_ref() == Some(&zeros)));
        let tree = tree(&node, result.output_directories[0].tree_digest.as_ref()).await;
        assert_eq!(tree.root.unwrap().files[0].digest.as_ref(), Some(&zeros));
        assert_eq!(node.read(&zeros).await.unwrap().len(), size);
    }
}

#[tokio::test]
async fn outputs_of_one_action_are_inputs_of_the_next() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for (size, mode) in [(10, "644"), (10, "755"), (300_000, "644"), (300_000, "755")] {
        let script = format!("head -c {size} /dev/urandom > o; chmod {mode} o; sha256sum < o");
        let result = node.result(&Job::shell(&script).outputs(&["o"])).await;
        let output = result.output_files[0].digest.clone().unwrap();
        let said = node.read(&result.stdout_digest.unwrap()).await.unwrap();
        assert!(said.starts_with(output.hash.as_bytes()));
        let made = node.read(&output).await.unwrap();
        let inputs = Folder::new().file("plain", made.clone()).executable("exec", made.clone());
        let job = Job::shell("stat -c %a plain exec; sha256sum < plain; sha256sum < exec");
        let printed = node.printed(&job.with(inputs)).await;
        let line = format!("{}  -", output.hash);
        assert_eq!(printed, format!("444\n555\n{line}\n{line}\n"), "{size} {mode}");
        assert!(node.read(&output).await.unwrap() == made);
    }
}
