//! What an action wrote, back into blobs. Runs only after every process of the action is dead.
//! Must never follow a symlink out of the action's root, and never take bytes that somebody could
//! still change.

use super::{
    ExecError, ExecLimits,
    prepare::{OutputKind, OutputPath, Outputs},
};
use crate::{cores::Cores, digest::Digest};
use bytes::Bytes;
use futures_lite::future::block_on;
use prost::Message;
use proto::reapi::{
    ActionResult, Directory, DirectoryNode, FileNode, OutputDirectory, OutputFile, OutputSymlink,
    SymlinkNode, Tree, command::OutputDirectoryFormat,
};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::collections::BTreeMap;

/// Bytes of small files that wait for one request to the store.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Levels of one output directory.
const DEPTH_MAX: usize = 256;

/// Collects the outputs of one action.
pub(super) struct Collector<'a> {
    pub(super) cores: &'a Cores,
    pub(super) limits: &'a ExecLimits,
    /// Readable once nobody wants the outputs any more.
    pub(super) cancel: &'a OwnedFd,
    /// The action's root.
    root: &'a OwnedFd,
    batch: Vec<(Digest, Bytes)>,
    batch_bytes: usize,
    entries: usize,
    /// Of all files so far.
    file_bytes: u64,
}

/// What lies at a promised path.
struct Found<'a> {
    /// From the action's root.
    path: String,
    parent: OwnedFd,
    name: String,
    output: &'a OutputPath,
}

/// One directory, and all that lie below it, as messages.
struct Collected {
    directory: Directory,
    encoded: Bytes,
    digest: Digest,
}

impl<'a> Collector<'a> {
    pub(super) fn new(
        cores: &'a Cores,
        limits: &'a ExecLimits,
        root: &'a OwnedFd,
        cancel: &'a OwnedFd,
    ) -> Self {
        let (batch, batch_bytes) = (Vec::new(), 0);
        Self { cores, limits, cancel, root, batch, batch_bytes, entries: 0, file_bytes: 0 }
    }

    /// Counts a file's bytes before they are read. What an action may write in all is what
    /// another may have as inputs, or the one largest file.
    pub(super) fn count(&mut self, name: &str, size: u64) -> Result<(), ExecError> {
        if size > self.limits.output_bytes_max {
            return Err(ExecError::TooLarge(format!("output {name:?} has {size} bytes")));
        }
        self.file_bytes = self.file_bytes.saturating_add(size);
        let bound = self.limits.input_bytes_max.max(self.limits.output_bytes_max);
        if self.file_bytes > bound {
            return Err(ExecError::TooLarge(format!("the outputs have more than {bound} bytes")));
        }
        Ok(())
    }

    /// Adds to `result` what lies at the promised paths; what is not there is left out.
    ///
    /// # Errors
    /// `Output` where something lies there that can't be an output, `TooLarge`, `Store`.
    pub(super) fn collect(
        &mut self,
        working_directory: &str,
        outputs: &Outputs,
        result: &mut ActionResult,
    ) -> Result<(), ExecError> {
        for output in &outputs.paths {
            let path = join(working_directory, &output.path);
            let Some((parent, name)) = self.open_parent(&path)? else { continue };
            let stat = match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => other?,
            };
            let found = Found { path, parent, name, output };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    result.output_files.push(self.file(&found, &stat)?);
                }
                FileType::Directory => {
                    result.output_directories.push(self.directory(&found, outputs.format)?);
                }
                FileType::Symlink => self.symlink(&found, result)?,
                _ => return Err(not_an_output(&output.path)),
            }
        }
        Ok(())
    }

    /// A blob from bytes in memory.
    pub(super) fn bytes(&mut self, bytes: Bytes) -> Result<Digest, ExecError> {
        let digest = Digest::of(&bytes);
        self.batch_bytes += bytes.len();
        if !digest.is_empty() {
            self.batch.push((digest, bytes));
        }
        if self.batch_bytes >= BATCH_BYTES_MAX {
            self.flush()?;
        }
        Ok(digest)
    }

    /// Makes sure that everything collected is kept.
    pub(super) fn flush(&mut self) -> Result<(), ExecError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        for kept in block_on(self.cores.put_many(batch))? {
            kept?;
        }
        Ok(())
    }

    /// The directory that holds `path`, and the name in it; a path through a symlink may lead
    /// anywhere below the root and nowhere else.
    fn open_parent(&self, path: &str) -> Result<Option<(OwnedFd, String)>, ExecError> {
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (parent, name),
            None => (".", path),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match rustix::fs::openat2(self.root, parent, flags, Mode::empty(), resolve) {
            Ok(parent) => Ok(Some((parent, name.to_owned()))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::XDEV | Errno::LOOP) => {
                let message = format!("the way to output {path:?} leads out of the action's root");
                Err(ExecError::Output(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn file(&mut self, found: &Found<'_>, stat: &Stat) -> Result<OutputFile, ExecError> {
        let Found { parent, name, output, .. } = found;
        if output.kind == OutputKind::Directory {
            return Err(wrong_kind(&output.path, "a file"));
        }
        let digest = self.ingest(parent, name)?;
        Ok(OutputFile {
            path: output.path.clone(),
            digest: Some(wire(&digest)),
            is_executable: stat.st_mode & 0o100 != 0,
            ..OutputFile::default()
        })
    }

    fn symlink(&self, found: &Found<'_>, result: &mut ActionResult) -> Result<(), ExecError> {
        let Found { parent, name, output, .. } = found;
        let target = read_link(parent, name)?;
        let symlink = OutputSymlink { path: output.path.clone(), target, ..Default::default() };
        #[expect(deprecated, reason = "what clients of API 2.0 read")]
        match output.kind {
            OutputKind::Any => result.output_symlinks.push(symlink),
            OutputKind::File => {
                check_target(self.root, found, FileType::RegularFile)?;
                result.output_file_symlinks.push(symlink);
            }
            OutputKind::Directory => {
                check_target(self.root, found, FileType::Directory)?;
                result.output_directory_symlinks.push(symlink);
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        found: &Found<'_>,
        format: OutputDirectoryFormat,
    ) -> Result<OutputDirectory, ExecError> {
        let Found { parent, name, output, .. } = found;
        if output.kind == OutputKind::File {
            return Err(wrong_kind(&output.path, "a directory"));
        }
        let mut below = BTreeMap::new();
        let here = open_directory(parent, name)?;
        let root = self.walk(here, &mut below, 0)?;
        let root_digest = root.digest;
        let mut collected = OutputDirectory { path: output.path.clone(), ..Default::default() };
        if format != OutputDirectoryFormat::TreeOnly {
            for directory in below.values().chain([&root]) {
                self.bytes(directory.encoded.clone())?;
            }
            collected.root_directory_digest = Some(wire(&root_digest));
        }
        let children = below.into_values().map(|collected| collected.directory).collect();
        let tree = Tree { root: Some(root.directory), children };
        let encoded = Bytes::from(tree.encode_to_vec());
        if encoded.len() as u64 > self.limits.tree_bytes_max {
            let message = format!("output directory {:?} is too large a tree", output.path);
            return Err(ExecError::TooLarge(message));
        }
        // Always: a hit is judged by the tree, and a client may be given more than it asked for.
        collected.tree_digest = Some(wire(&self.bytes(encoded)?));
        Ok(collected)
    }

    /// The directory as a message; those below it go to `below`, each once, by digest, so that
    /// equal trees have equal bytes.
    fn walk(
        &mut self,
        here: OwnedFd,
        below: &mut BTreeMap<Digest, Collected>,
        depth: usize,
    ) -> Result<Collected, ExecError> {
        if depth > DEPTH_MAX {
            let message = format!("an output directory has more than {DEPTH_MAX} levels");
            return Err(ExecError::TooLarge(message));
        }
        let mut directory = Directory::default();
        for (name, kind) in self.list(&here)? {
            match kind {
                FileType::RegularFile => {
                    let stat = rustix::fs::statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    let digest = Some(wire(&self.ingest(&here, &name)?));
                    let is_executable = stat.st_mode & 0o100 != 0;
                    let node = FileNode { name, digest, is_executable, ..Default::default() };
                    directory.files.push(node);
                }
                FileType::Directory => {
                    let child = self.walk(open_directory(&here, &name)?, below, depth + 1)?;
                    let digest = Some(wire(&child.digest));
                    directory.directories.push(DirectoryNode { name, digest });
                    below.insert(child.digest, child);
                }
                FileType::Symlink => {
                    let target = read_link(&here, &name)?;
                    directory.symlinks.push(SymlinkNode { name, target, ..Default::default() });
                }
                _ => return Err(not_an_output(&name)),
            }
        }
        let encoded = Bytes::from(directory.encode_to_vec());
        let digest = Digest::of(&encoded);
        Ok(Collected { directory, encoded, digest })
    }

    /// Names and kinds, sorted by name as a canonical Directory has them.
    fn list(&mut self, here: &OwnedFd) -> Result<BTreeMap<String, FileType>, ExecError> {
        let mut entries = BTreeMap::new();
        for entry in Dir::read_from(here)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let name = name.to_str().map_err(|_| {
                ExecError::Output(format!("output file name {name:?} is not UTF-8"))
            })?;
            self.entries += 1;
            if self.entries > self.limits.output_files_max {
                let bound = self.limits.output_files_max;
                return Err(ExecError::TooLarge(format!("more than {bound} output files")));
            }
            let stat = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.insert(name.to_owned(), FileType::from_raw_mode(stat.st_mode));
        }
        Ok(entries)
    }
}

/// A symlink that was promised as a file must not lead to a directory, and the other way round;
/// where it leads nowhere or out of the root, nothing can be said against it.
fn check_target(root: &OwnedFd, found: &Found<'_>, expected: FileType) -> Result<(), ExecError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let Ok(target) = rustix::fs::openat2(root, &found.path, flags, Mode::empty(), resolve) else {
        return Ok(());
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) == expected {
        return Ok(());
    }
    Err(wrong_kind(&found.output.path, "a symlink to something else"))
}

fn open_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, ExecError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

fn read_link(parent: &OwnedFd, name: &str) -> Result<String, ExecError> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
    target
        .into_string()
        .map_err(|_| ExecError::Output(format!("the target of symlink {name:?} is not UTF-8")))
}

fn join(directory: &str, path: &str) -> String {
    match (directory, path) {
        ("", "." | "") => ".".to_owned(),
        ("", path) => path.to_owned(),
        (directory, "" | ".") => directory.to_owned(),
        (directory, path) => format!("{directory}/{path}"),
    }
}

fn wire(digest: &Digest) -> proto::reapi::Digest {
    proto::reapi::Digest { hash: digest.hex(), size_bytes: digest.size_i64() }
}

fn not_an_output(path: &str) -> ExecError {
    ExecError::Output(format!("{path:?} is no file, directory or symlink"))
}

fn wrong_kind(path: &str, found: &str) -> ExecError {
    ExecError::Output(format!("output {path:?} is {found}, which is not what was promised"))
}
