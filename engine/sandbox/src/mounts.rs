//! Owns what an action finds in its file system: which sources, at which places, with which
//! attributes. Never follows a path of the host after [`leave_host`], and leaves no mount
//! writable but the exec root and the scratch directories.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::libc;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::EXEC_ROOT;
use crate::spec::{Limits, Mount, Spec};
use crate::step::{At, Step, StepFailure};
use crate::sys;

/// All that a build needs of /dev. No tty: an action must not type into somebody's terminal.
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Where an action may write besides its exec root; one tmpfs, one bound, behind all three.
pub(crate) const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Places that belong to the sandbox, or (/sys, /run) that no action may see.
const RESERVED: [&str; 7] = ["dev", "exec", "proc", "run", "sys", "tmp", "var"];

/// Directories and files of the sandbox itself in its tmpfs, which are not the action's to pay.
const OWN_INODES: u64 = 256;
const OWN_BYTES: u64 = 1 << 20;

/// Detached copies of everything that comes from the host.
pub(crate) struct Sources {
    exec_root: OwnedFd,
    toolchains: Vec<(PathBuf, Source)>,
    devices: Vec<(PathBuf, OwnedFd)>,
}

enum Source {
    Link(CString),
    File(OwnedFd),
    Directory(OwnedFd),
}

/// Opens every source with the rights of the node: parents of an exec root may be closed to the
/// action's user.
pub(crate) fn open_sources(spec: &Spec) -> Result<Sources, StepFailure> {
    let exec_root = detach_path(&spec.root).at_path(Step::OpenSources, &spec.root)?;
    let mut toolchains = Vec::new();
    for mount in &spec.mounts {
        if let Some(source) = open_source(mount)? {
            toolchains.push((mount.source.clone(), source));
        }
    }
    let mut devices = Vec::new();
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        let device = detach_path(&path).at_path(Step::OpenSources, &path)?;
        devices.push((path, device));
    }
    Ok(Sources { exec_root, toolchains, devices })
}

/// A tmpfs that will be the root. One superblock holds the scratch directories too, so its bound
/// is the bound of all.
pub(crate) fn new_root(limits: &Limits) -> Result<OwnedFd, StepFailure> {
    // A mount made from here on must not reach the host, nor one of the host's reach in.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).at(Step::NewRoot)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let options = [
        ("size", limits.tmp_bytes_max.saturating_add(OWN_BYTES).to_string()),
        ("nr_inodes", limits.tmp_inodes_max.saturating_add(OWN_INODES).to_string()),
        ("mode", "755".to_owned()),
    ];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_filesystem("tmpfs", &options, attributes).at(Step::NewRoot)
}

/// A detached mount of a new file system.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, String)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes `root` the root and lets go of the host's. Detached copies stay usable.
pub(crate) fn leave_host(root: &OwnedFd) -> Result<(), StepFailure> {
    attach(root.as_fd(), Path::new("/")).at(Step::NewRoot)?;
    rustix::process::fchdir(root).at(Step::NewRoot)?;
    // The idiom of pivot_root(2): the old root comes to lie on the new one, and is taken off.
    nix::unistd::pivot_root(".", ".").at(Step::NewRoot)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at(Step::NewRoot)?;
    rustix::process::chdir("/").at(Step::NewRoot)
}

/// Puts everything at its place in the new root.
pub(crate) fn place(root: &OwnedFd, sources: Sources) -> Result<(), StepFailure> {
    const STEP: Step = Step::PlaceMounts;
    for (target, source) in &sources.toolchains {
        place_toolchain(target, source).at_path(STEP, target)?;
    }
    for (target, device) in &sources.devices {
        place_file(target, device.as_fd()).at_path(STEP, target)?;
    }
    let links = [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, target) in links {
        let (target, link) = (format!("/proc/self/{target}"), format!("/dev/{name}"));
        rustix::fs::symlink(&target, &link).at_path(STEP, link.as_ref())?;
    }
    for directory in SCRATCH {
        place_scratch(root, directory.as_ref()).at_path(STEP, directory.as_ref())?;
    }
    let exec_root = sources.exec_root.as_fd();
    sys::add_mount_attributes(exec_root, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, true)
        .at_path(STEP, EXEC_ROOT.as_ref())?;
    place_directory(EXEC_ROOT.as_ref(), exec_root).at_path(STEP, EXEC_ROOT.as_ref())
}

/// Makes the root itself read-only; what is mounted on it stays as it is.
pub(crate) fn seal(root: &OwnedFd) -> Result<(), StepFailure> {
    sys::add_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false).at(Step::SealRoot)
}

/// A detached copy of what `path` names, with all that is mounted below it.
pub(crate) fn detach_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::mount::open_tree(CWD, path, DETACH | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
}

/// Mounts a detached copy at `target`, which exists.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: &Path) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, target, flags)
}

const DETACH: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE);

fn open_source(mount: &Mount) -> Result<Option<Source>, StepFailure> {
    let path = mount.source.as_path();
    if !may_be_shown(path) {
        return Err(StepFailure::invalid(Step::OpenSources, path.to_string_lossy()));
    }
    match open_kind(path) {
        Ok(source) => Ok(Some(source)),
        Err(Errno::NOENT | Errno::NOTDIR) if mount.optional => Ok(None),
        Err(error) => Err(error).at_path(Step::OpenSources, path),
    }
}

fn open_kind(path: &Path) -> rustix::io::Result<Source> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    if kind == FileType::Symlink {
        return Ok(Source::Link(rustix::fs::readlinkat(&found, "", Vec::new())?));
    }
    // Of the descriptor, not of the path again: the path may name something else by then.
    let copy = rustix::mount::open_tree(&found, "", DETACH | OpenTreeFlags::AT_EMPTY_PATH)?;
    Ok(if kind == FileType::Directory { Source::Directory(copy) } else { Source::File(copy) })
}

/// Absolute, plain, not the whole host, and nothing that belongs to the sandbox.
fn may_be_shown(path: &Path) -> bool {
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let first = parts.clone().next();
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    let free = first.is_some_and(|first| !RESERVED.iter().any(|name| first.as_os_str() == *name));
    absolute && plain && free
}

fn place_toolchain(target: &Path, source: &Source) -> std::io::Result<()> {
    let protected = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    match source {
        Source::Link(to) => {
            make_parent(target)?;
            match rustix::fs::symlink(to.as_c_str(), target) {
                // It came with a toolchain placed before.
                Err(Errno::EXIST | Errno::ROFS) => {}
                outcome => outcome?,
            }
        }
        Source::File(copy) => {
            sys::add_mount_attributes(copy.as_fd(), protected, true)?;
            place_file(target, copy.as_fd())?;
        }
        Source::Directory(copy) => {
            sys::add_mount_attributes(copy.as_fd(), protected, true)?;
            place_directory(target, copy.as_fd())?;
        }
    }
    Ok(())
}

fn place_file(target: &Path, copy: BorrowedFd<'_>) -> std::io::Result<()> {
    make_parent(target)?;
    if !target.exists() {
        fs::File::create(target)?;
    }
    Ok(attach(copy, target)?)
}

fn place_directory(target: &Path, copy: BorrowedFd<'_>) -> std::io::Result<()> {
    fs::create_dir_all(target)?;
    Ok(attach(copy, target)?)
}

/// A writable view of one directory of the root, which itself becomes read-only.
fn place_scratch(root: &OwnedFd, target: &Path) -> std::io::Result<()> {
    fs::create_dir_all(target)?;
    let below = target.strip_prefix("/").unwrap_or(target);
    rustix::fs::chmod(target, Mode::from_raw_mode(0o1777))?;
    Ok(attach(rustix::mount::open_tree(root, below, DETACH)?.as_fd(), target)?)
}

fn make_parent(target: &Path) -> std::io::Result<()> {
    target.parent().map_or(Ok(()), fs::create_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_outside_of_the_sandbox_itself_may_be_shown() {
        for shown in ["/usr", "/lib64", "/opt/jdk/21", "/etc/ssl"] {
            assert!(may_be_shown(Path::new(shown)), "{shown}");
        }
        for hidden in [
            "/",
            "",
            "usr",
            "/usr/../root",
            "/proc",
            "/proc/1",
            "/sys",
            "/run/x",
            "/dev",
            "/exec/a",
        ] {
            assert!(!may_be_shown(Path::new(hidden)), "{hidden}");
        }
    }
}
