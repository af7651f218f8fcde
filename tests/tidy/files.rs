//! The files of the repository as values, and the rules about files as such. Must never follow a
//! symlink, nor look at what a build or a node leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Everything at the top level. A build and a node add [`LEFT_BEHIND`].
const TOP_LEVEL: [&str; 18] = [
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "charts",
    "clippy.toml",
    "config.yaml",
    "deny.toml",
    "docs",
    "engine",
    "grpc",
    "proto",
    "rustfmt.toml",
    "scripts",
    "tests",
];
const LEFT_BEHIND: [&str; 3] = [".git", "target", "data"];

/// More is a binary or a dump, which belongs elsewhere.
const FILE_BYTES_MAX: usize = 200_000;

/// A file of the repository.
pub(crate) struct File {
    /// From the root, with `/`.
    pub(crate) path: String,
    /// What is not UTF-8 is replaced.
    pub(crate) text: String,
    /// On disk.
    pub(crate) bytes: usize,
    pub(crate) executable: bool,
}

impl File {
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names at the top level.
pub(crate) fn root_names() -> Vec<String> {
    fs::read_dir(root())
        .expect("the repository can be listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// Every file, ordered by path.
pub(crate) fn repository() -> Vec<File> {
    let mut files = Vec::new();
    let mut names = root_names();
    names.retain(|name| !LEFT_BEHIND.contains(&name.as_str()));
    while let Some(path) = names.pop() {
        let full = root().join(&path);
        let status = full.symlink_metadata().expect("a file that was just listed");
        if status.is_dir() {
            let entries = fs::read_dir(&full).expect("a directory can be listed");
            names.extend(entries.map(|entry| {
                format!("{path}/{}", entry.expect("an entry").file_name().to_string_lossy())
            }));
        } else if status.is_file() {
            let bytes = fs::read(&full).expect("a file can be read");
            files.push(File {
                path,
                text: String::from_utf8_lossy(&bytes).into_owned(),
                bytes: bytes.len(),
                executable: status.permissions().mode() & 0o111 != 0,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// A name too many, or one too few.
pub(crate) fn top_level(names: &[String]) -> Vec<String> {
    let agreed = |name: &str| TOP_LEVEL.contains(&name);
    let more = names.iter().filter(|name| !agreed(name) && !LEFT_BEHIND.contains(&name.as_str()));
    let fewer = TOP_LEVEL.iter().filter(|name| !names.iter().any(|found| found == *name));
    more.map(|name| format!("{name}: has no place at the top level"))
        .chain(fewer.map(|name| format!("{name}: is missing at the top level")))
        .collect()
}

/// Files of more than [`FILE_BYTES_MAX`].
pub(crate) fn weight(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.bytes > FILE_BYTES_MAX)
        .map(|file| format!("{}: {} bytes, at most {FILE_BYTES_MAX}", file.path, file.bytes))
        .collect()
}

/// A file made up for the test of a rule.
pub(crate) fn made_up(path: &str, text: &str) -> File {
    File {
        path: path.to_owned(),
        text: text.to_owned(),
        bytes: text.len(),
        executable: text.starts_with("#!"),
    }
}

#[test]
fn a_stranger_and_a_gap_at_the_top_level_are_found() {
    let mut names: Vec<_> = TOP_LEVEL.iter().chain(&LEFT_BEHIND).map(|&n| n.to_owned()).collect();
    assert_eq!(top_level(&names), [""; 0]);
    names.retain(|name| name != "LICENSE");
    names.push("notes.txt".to_owned());
    assert_eq!(
        top_level(&names),
        ["notes.txt: has no place at the top level", "LICENSE: is missing at the top level"]
    );
}

#[test]
fn a_heavy_file_is_found() {
    let heavy = made_up("bench/dump.json", &"x".repeat(FILE_BYTES_MAX + 1));
    let light = made_up("bench/row.json", &"x".repeat(FILE_BYTES_MAX));
    assert_eq!(weight(&[heavy, light]), ["bench/dump.json: 200001 bytes, at most 200000"]);
}
