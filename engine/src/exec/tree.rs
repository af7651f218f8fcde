//! Directories of one action on disk: made, owned, counted, removed. Must never follow a symlink.

use super::ExecError;
use crate::exec::prepare::named;
use proto::reapi::Directory;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use std::{ffi::CString, path::Path};

/// Mode of the directories that an action may write in.
const DIRECTORY_MODE: u32 = 0o755;

/// Whom an action's directories belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    /// The user and group under which the action runs, as the host sees them; they are the same
    /// number.
    pub(super) id: u32,
}

impl Owner {
    /// Whether that is another user than this process: then the action cannot write to what
    /// this process owns.
    pub(super) fn is_another(self) -> bool {
        rustix::process::geteuid().as_raw() != self.id
    }

    /// Gives an open file to the action.
    pub(super) fn give(self, file: impl AsFd) -> Result<(), ExecError> {
        if self.is_another() {
            let (user, group) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
            rustix::fs::fchown(file, Some(user), Some(group))?;
        }
        Ok(())
    }
}

/// Makes a directory of the action's own.
pub(super) fn make_directory(
    parent: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    owner: Owner,
) -> Result<(), ExecError> {
    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE))?;
    if owner.is_another() {
        let (user, group) = (Uid::from_raw(owner.id), Gid::from_raw(owner.id));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&parent, name, Some(user), Some(group), flags)?;
    }
    Ok(())
}

/// What a directory becomes on disk, with everything below it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) depth: usize,
}

impl Account {
    /// Of the directory alone.
    pub(super) fn of(directory: &Directory) -> Result<Self, ExecError> {
        let mut bytes = 0_u64;
        for file in &directory.files {
            bytes = bytes.saturating_add(named(file.digest.as_ref(), "file")?.size());
        }
        let entries = 1 + directory.files.len() + directory.symlinks.len();
        Ok(Self { entries: entries as u64, bytes, depth: 1 })
    }

    /// With a child.
    pub(super) fn add(&mut self, child: Self) {
        self.entries = self.entries.saturating_add(child.entries);
        self.bytes = self.bytes.saturating_add(child.bytes);
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// Removes a tree, however deep and whatever its modes. What lies deep is first moved up beside
/// the root, so that neither the stack nor the number of open files grows with the depth.
///
/// # Errors
/// As openat(2), unlinkat(2), renameat(2).
pub(super) fn remove(parent: &Path, name: &str) -> Result<(), ExecError> {
    let parent = rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut waiting = vec![CString::new(name).map_err(|_| Errno::INVAL)?];
    let mut moved = 0_u64;
    while let Some(next) = waiting.pop() {
        empty(&parent, &next, name, &mut moved, &mut waiting)?;
        rustix::fs::unlinkat(&parent, &next, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Unlinks what lies in a directory; moves its directories up, for their turn.
fn empty(
    parent: &OwnedFd,
    directory: &CString,
    prefix: &str,
    moved: &mut u64,
    waiting: &mut Vec<CString>,
) -> Result<(), ExecError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = match rustix::fs::openat(parent, directory, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Its owner took its own access away; this process can give it back where it owns it.
            let open = Mode::from_raw_mode(0o700);
            rustix::fs::chmodat(parent, directory, open, AtFlags::empty())?;
            rustix::fs::openat(parent, directory, flags, Mode::empty())?
        }
        other => other?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&here)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&here, Mode::RWXU)?;
    }
    for entry in Dir::read_from(&here)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        if !is_directory {
            rustix::fs::unlinkat(&here, name, AtFlags::empty())?;
        } else if rustix::fs::unlinkat(&here, name, AtFlags::REMOVEDIR).is_err() {
            *moved += 1;
            let beside = CString::new(format!("{prefix}.{moved}")).map_err(|_| Errno::INVAL)?;
            rustix::fs::renameat(&here, name, parent, &beside)?;
            waiting.push(beside);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    #[test]
    fn a_hostile_tree_is_removed_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        symlink(&kept, root.join("link")).unwrap();
        let closed = root.join("closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::write(closed.join("inner/file"), "x").unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
        // Deeper than any path that a syscall takes.
        let mut deep = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = rustix::fs::openat(&deep, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(deep);
        remove(directory.path(), "root").unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
    }
}
