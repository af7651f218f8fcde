//! Proof that nobody can write to a file any more. Must never leave a lease behind: breaking one
//! would send this process a signal.

use crate::sys;
use nix::libc;
use std::{io, os::fd::BorrowedFd};

/// Succeeds only if no process has the file open for writing or mapped writable (fcntl(2),
/// F_SETLEASE). The caller has made sure that nobody can open it for writing after this.
///
/// # Errors
/// `WouldBlock` while there is a writer; others as fcntl(2).
pub fn no_writer_is_left(file: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_lease(file, libc::F_RDLCK)?;
    sys::set_lease(file, libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn a_writer_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let refused = no_writer_is_left(reader.as_fd()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        no_writer_is_left(reader.as_fd()).unwrap();
    }
}
