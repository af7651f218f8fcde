//! Giving open files their names: the system calls, one after the other. Blocks; must never run on
//! a core's own thread.

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};
use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// The times of every blob's file, 2000-01-01: what an action reads of an input must not depend on
/// when it was uploaded.
const FILE_TIMES: Timestamps = {
    let fixed = Timespec { tv_sec: 946_684_800, tv_nsec: 0 };
    Timestamps { last_access: fixed, last_modification: fixed }
};
/// Names of extended attributes of one file (Linux, XATTR_LIST_MAX).
const XATTR_NAMES_BYTES_MAX: usize = 64 << 10;

/// Gives a file of somebody else's making a name, its mode left alone. Nothing else of where it
/// comes from stays with it.
pub(super) fn adopt(file: &File, path: &Path) -> io::Result<()> {
    forget_origin(file)?;
    rustix::fs::futimens(file, &FILE_TIMES)?;
    link_over(file.as_raw_fd(), path)
}

/// Removes the extended attributes that an action may have set.
fn forget_origin(file: &File) -> io::Result<()> {
    let mut names = vec![0; XATTR_NAMES_BYTES_MAX];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(length) => length,
        // A file system without them.
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")) {
        rustix::fs::fremovexattr(file, name)?;
    }
    Ok(())
}

/// A file without a name in `directory`; 0600.
pub(super) fn open_temporary(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600))?))
}

/// Gives an open file a name and its final mode, and every blob's times; over a file of that name.
pub(super) fn link_open_file(fd: i32, path: &Path, mode: u32) -> io::Result<()> {
    let open = format!("/proc/self/fd/{fd}");
    rustix::fs::chmod(&open, Mode::from_raw_mode(mode))?;
    rustix::fs::utimensat(CWD, &open, &FILE_TIMES, AtFlags::empty())?;
    link_over(fd, path)
}

/// Gives an open file a name, over a file of that name.
fn link_over(fd: i32, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{fd}");
    match rustix::fs::linkat(CWD, &open, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::EXIST) => {
            let mut beside = path.as_os_str().to_owned();
            beside.push(format!(".{fd}.over"));
            match rustix::fs::unlink(&beside) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::linkat(CWD, &open, CWD, &beside, AtFlags::SYMLINK_FOLLOW)?;
            Ok(rustix::fs::rename(&beside, path)?)
        }
        other => Ok(other?),
    }
}
