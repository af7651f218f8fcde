//! An input root, laid out on disk: directories of the action's own, files as hard links to the
//! store's. Must never write through a name that a client chose before that name was checked, and
//! never change an inode that has another name.

use super::{
    ExecError, ExecLimits,
    message::{check_message_size, decode_message},
    prepare::{Prepared, check_name, named},
    tree::{Account, Owner, make_directory},
};
use crate::{
    blob::{BlobError, Link},
    cores::Cores,
    digest::Digest,
    tier::Blobs,
};
use bytes::Bytes;
use futures_lite::future::block_on;
use proto::reapi::{Directory, DirectoryNode};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    path::Path,
};

/// Directories read in one request to the store.
const READ_BATCH_MAX: usize = 1000;
/// Files linked in one request to the store.
const LINK_BATCH_MAX: usize = 1000;
/// Files asked for in one request to the store: others wait for its end.
const FIND_BATCH_MAX: usize = 10_000;
/// Levels of an input tree.
const DEPTH_MAX: usize = 256;

/// Every directory of an input tree, each once.
#[derive(Debug)]
pub(super) struct InputTree {
    root: Digest,
    directories: HashMap<Digest, Directory>,
}

impl InputTree {
    /// Reads the tree and brings here all that it names, leased.
    ///
    /// # Errors
    /// `Missing` with everything that is absent, `Invalid` for names and shapes that are refused.
    pub(super) fn read(prepared: &Prepared, limits: &ExecLimits) -> Result<Self, ExecError> {
        let mut tree = Self { root: prepared.input_root, directories: HashMap::new() };
        let mut missing = tree.read_directories(&prepared.blobs, limits)?;
        tree.measure(limits)?;
        let files: BTreeSet<Digest> = tree.files().map(|(digest, _)| digest).collect();
        let files: Vec<Digest> = files.into_iter().collect();
        for batch in files.chunks(FIND_BATCH_MAX) {
            missing.extend(block_on(prepared.blobs.bring(batch.to_vec()))?);
        }
        if missing.is_empty() { Ok(tree) } else { Err(ExecError::Missing(missing)) }
    }

    /// Fetches level by level; says which directories are absent.
    fn read_directories(
        &mut self,
        blobs: &Blobs,
        limits: &ExecLimits,
    ) -> Result<Vec<Digest>, ExecError> {
        let mut seen = BTreeSet::from([self.root]);
        let mut level = vec![self.root];
        let (mut missing, mut bytes) = (Vec::new(), 0_u64);
        // On disk there is an entry for each, so that the tree has no room for more.
        let mut room = limits.input_files_max;
        while !level.is_empty() {
            let mut next = Vec::new();
            for batch in level.chunks(READ_BATCH_MAX) {
                bytes = batch.iter().fold(bytes, |sum, digest| sum.saturating_add(digest.size()));
                if bytes > limits.tree_bytes_max || seen.len() > limits.tree_directories_max {
                    return Err(ExecError::Invalid("the input tree is too large".to_owned()));
                }
                batch.iter().try_for_each(check_message_size)?;
                let read = block_on(blobs.get_many(batch.to_vec()))?;
                for (&digest, encoded) in batch.iter().zip(read) {
                    match encoded {
                        Ok(encoded) => {
                            let directory = decode(digest, encoded, &mut room)?;
                            for child in children(&directory) {
                                let (_, child) = child?;
                                next.extend(seen.insert(child).then_some(child));
                            }
                            self.directories.insert(digest, directory);
                        }
                        // The client has it, whatever the tier below would say.
                        Err(BlobError::NotFound(_) | BlobError::Below(_)) => missing.push(digest),
                        Err(other) => return Err(ExecError::Store(other)),
                    }
                }
            }
            level = next;
        }
        Ok(missing)
    }

    /// Counts what the tree becomes on disk before anything is made: a directory that is named
    /// twice is made twice, so that a small message can mean more files than there are atoms.
    fn measure(&self, limits: &ExecLimits) -> Result<(), ExecError> {
        let mut known: HashMap<Digest, Account> = HashMap::new();
        let mut stack = vec![(self.root, false)];
        while let Some((digest, children_known)) = stack.pop() {
            if known.contains_key(&digest) {
                continue;
            }
            // One that is absent counts for nothing: the action will not be laid out.
            let Some(directory) = self.directories.get(&digest) else { continue };
            if !children_known {
                stack.push((digest, true));
                stack.extend(children(directory).flatten().map(|(_, child)| (child, false)));
                continue;
            }
            let mut account = Account::of(directory)?;
            for (_, child) in children(directory).flatten() {
                account.add(known.get(&child).copied().unwrap_or_default());
            }
            if account.depth > DEPTH_MAX {
                return Err(ExecError::Invalid(format!("more than {DEPTH_MAX} levels of inputs")));
            }
            if account.entries > limits.input_files_max || account.bytes > limits.input_bytes_max {
                let message = format!(
                    "the inputs are {} entries of {} bytes; the bounds are {} and {}",
                    account.entries, account.bytes, limits.input_files_max, limits.input_bytes_max
                );
                return Err(ExecError::TooLarge(message));
            }
            known.insert(digest, account);
        }
        Ok(())
    }

    /// Every file of every directory.
    fn files(&self) -> impl Iterator<Item = (Digest, bool)> {
        self.directories.values().flat_map(|directory| &directory.files).filter_map(|file| {
            let digest = named(file.digest.as_ref(), "file").ok()?;
            (!digest.is_empty()).then_some((digest, file.is_executable))
        })
    }

    /// Lays the tree out in `at`, which is empty.
    ///
    /// # Errors
    /// `Missing` where a blob went away meanwhile, `Store` where the disk fails or is full.
    pub(super) fn lay_out(&self, cores: &Cores, at: &Path, owner: Owner) -> Result<(), ExecError> {
        let wanted: Vec<(Digest, bool)> =
            self.files().collect::<BTreeSet<_>>().into_iter().collect();
        let mut links = HashMap::with_capacity(wanted.len());
        for batch in wanted.chunks(LINK_BATCH_MAX) {
            let found = block_on(cores.link(batch.to_vec()));
            let found = found.map_err(ExecError::from_missing)?;
            links.extend(batch.iter().copied().zip(found));
        }
        let mut open: Vec<Level<'_>> = Vec::new();
        open.extend(self.level(open_directory(CWD, at)?, &self.root));
        while let Some(level) = open.last_mut() {
            let Some(node) = level.children.next() else {
                lay_out_files(&level.here, level.directory, &links, owner)?;
                open.pop();
                continue;
            };
            let child = named(node.digest.as_ref(), "directory")?;
            make_directory(&level.here, &*node.name, owner)?;
            let below = open_directory(&level.here, &*node.name)?;
            open.extend(self.level(below, &child));
        }
        Ok(())
    }

    fn level(&self, here: OwnedFd, digest: &Digest) -> Option<Level<'_>> {
        let directory = self.directories.get(digest)?;
        Some(Level { here, directory, children: directory.directories.iter() })
    }
}

/// A directory that is being laid out: one for each level, so that descriptors are bounded by the
/// depth of a tree and not by its width.
struct Level<'a> {
    here: OwnedFd,
    directory: &'a Directory,
    /// Those that are still to be made.
    children: std::slice::Iter<'a, DirectoryNode>,
}

/// The files and symlinks of one directory; links last, so that no name leads through one.
fn lay_out_files(
    here: &OwnedFd,
    directory: &Directory,
    links: &HashMap<(Digest, bool), Link>,
    owner: Owner,
) -> Result<(), ExecError> {
    for file in &directory.files {
        let digest = named(file.digest.as_ref(), "file")?;
        match links.get(&(digest, file.is_executable)) {
            Some(link) => match place(here, &file.name, link, file.is_executable, owner) {
                // Nothing else was left to evict, and so it went between the two.
                Err(ExecError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ExecError::Missing(vec![digest]));
                }
                other => other?,
            },
            // Every action gets an empty file of its own: one inode for all would be shared by
            // whoever finds a way to write.
            None => drop(create(here, &file.name, file.is_executable)?),
        }
    }
    for symlink in &directory.symlinks {
        rustix::fs::symlinkat(&symlink.target, here, &symlink.name)?;
    }
    Ok(())
}

/// A hard link where the action runs as somebody else; a copy where it could write to the
/// store's own inode, and where the file system can make no further link.
fn place(
    here: &OwnedFd,
    name: &str,
    link: &Link,
    executable: bool,
    owner: Owner,
) -> Result<(), ExecError> {
    if owner.is_another() {
        match rustix::fs::linkat(CWD, &link.path, here, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut source = File::open(&link.path)?;
    let mut copy = create(here, name, executable)?;
    io::copy(&mut source, &mut copy)?;
    Ok(())
}

fn create(here: &OwnedFd, name: &str, executable: bool) -> Result<File, ExecError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = if executable { 0o555 } else { 0o444 };
    Ok(File::from(rustix::fs::openat(here, name, flags, Mode::from_raw_mode(mode))?))
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, ExecError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// A directory as a message, its names checked: they are single segments, and no two are alike.
fn decode(digest: Digest, encoded: Bytes, room: &mut u64) -> Result<Directory, ExecError> {
    let directory: Directory = decode_message(digest, encoded, room)?;
    let files = directory.files.iter().map(|node| &node.name);
    let directories = directory.directories.iter().map(|node| &node.name);
    let symlinks = directory.symlinks.iter().map(|node| &node.name);
    let mut seen = BTreeSet::new();
    for name in files.chain(directories).chain(symlinks) {
        check_name(name)?;
        if !seen.insert(name) {
            let message = format!("input directory {digest} has two entries named {name:?}");
            return Err(ExecError::Invalid(message));
        }
    }
    for file in &directory.files {
        named(file.digest.as_ref(), "file")?;
    }
    if let Some(bad) = directory.symlinks.iter().find(|symlink| {
        symlink.target.is_empty() || symlink.target.len() > 4095 || symlink.target.contains('\0')
    }) {
        let message = format!("input symlink {:?} has no possible target", bad.name);
        return Err(ExecError::Invalid(message));
    }
    Ok(directory)
}

fn children(directory: &Directory) -> impl Iterator<Item = Result<(&str, Digest), ExecError>> {
    directory.directories.iter().map(|node| {
        named(node.digest.as_ref(), "directory").map(|digest| (node.name.as_str(), digest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::reapi::{FileNode, SymlinkNode};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    fn wire(digest: Digest) -> Option<proto::reapi::Digest> {
        Some(proto::reapi::Digest { hash: digest.hex(), size_bytes: digest.size_i64() })
    }

    fn encode(directory: &Directory) -> (Digest, Bytes) {
        let bytes = Bytes::from(directory.encode_to_vec());
        (Digest::of(&bytes), bytes)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let digest = wire(Digest::of(b"x"));
        for name in ["", ".", "..", "a/b", "/a", "a\0", "/", &"x".repeat(256)] {
            let name = name.to_owned();
            let file =
                FileNode { name: name.clone(), digest: digest.clone(), ..Default::default() };
            let node = DirectoryNode { name: name.clone(), digest: digest.clone() };
            let symlink = SymlinkNode { name, target: "t".to_owned(), ..Default::default() };
            for directory in [
                Directory { files: vec![file], ..Default::default() },
                Directory { directories: vec![node], ..Default::default() },
                Directory { symlinks: vec![symlink], ..Default::default() },
            ] {
                let (digest, encoded) = encode(&directory);
                assert!(decode(digest, encoded, &mut 10).is_err(), "{directory:?}");
            }
        }
    }

    #[test]
    fn two_entries_of_one_name_are_refused_whatever_they_are() {
        let digest = wire(Digest::of(b"x"));
        let name = "same".to_owned();
        let directory = Directory {
            files: vec![FileNode { name: name.clone(), digest, ..Default::default() }],
            symlinks: vec![SymlinkNode { name, target: "t".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        let (digest, encoded) = encode(&directory);
        assert!(decode(digest, encoded, &mut 10).is_err());
    }

    #[test]
    fn a_tree_may_be_wider_than_there_are_descriptors() {
        const OPEN_FILES_MAX: u64 = 1024;
        let maximum = getrlimit(Resource::Nofile).maximum;
        let lower = Rlimit { current: Some(OPEN_FILES_MAX), maximum };
        setrlimit(Resource::Nofile, lower).unwrap();
        let (leaf, _) = encode(&Directory::default());
        let children = |count: u64, digest: Digest| Directory {
            directories: (0..count)
                .map(|n| DirectoryNode { name: n.to_string(), digest: wire(digest) })
                .collect(),
            ..Default::default()
        };
        let inner = children(3, leaf);
        let (inner_digest, _) = encode(&inner);
        let outer = children(OPEN_FILES_MAX, inner_digest);
        let (root, _) = encode(&outer);
        let directories =
            HashMap::from([(leaf, Directory::default()), (inner_digest, inner), (root, outer)]);
        let at = tempfile::tempdir().unwrap();
        let cores = crate::cores::prepare(1, 1).handle();
        let owner = Owner { id: rustix::process::geteuid().as_raw() };
        InputTree { root, directories }.lay_out(&cores, at.path(), owner).unwrap();
        for n in 0..OPEN_FILES_MAX {
            let below = std::fs::read_dir(at.path().join(n.to_string())).unwrap();
            assert_eq!(below.count(), 3);
        }
    }

    #[test]
    fn a_small_message_that_means_a_flood_of_files_is_refused_before_any_is_made() {
        let leaf = Directory {
            files: vec![FileNode {
                name: "f".to_owned(),
                digest: wire(Digest::of(b"x")),
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut directories = HashMap::new();
        let mut below = leaf;
        let mut digest = encode(&below).0;
        for _ in 0..60 {
            directories.insert(digest, below);
            let twice = ["a", "b"]
                .map(|name| DirectoryNode { name: name.to_owned(), digest: wire(digest) });
            below = Directory { directories: twice.to_vec(), ..Default::default() };
            digest = encode(&below).0;
        }
        directories.insert(digest, below);
        let tree = InputTree { root: digest, directories };
        let measured = tree.measure(&ExecLimits::for_tests());
        assert!(matches!(measured, Err(ExecError::TooLarge(_))), "{measured:?}");
    }
}
