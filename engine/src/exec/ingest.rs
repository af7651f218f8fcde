//! A regular file that an action wrote, into the store: by its bytes where it is small, else as the
//! blob itself, without a copy. Must never make a blob of an inode that somebody could still write
//! to, or that has another name.

use super::{ExecError, outputs::Collector};
use crate::{
    digest::{Digest, DigestFunction, Hasher},
    limits::IO_BYTES,
};
use bytes::Bytes;
use futures_lite::future::block_on;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    fs::File,
    io::{Read, Seek},
};

/// Files up to this size travel in memory, together; larger ones are linked.
const SMALL_BYTES_MAX: u64 = 64 << 10;

impl Collector<'_> {
    /// A regular file, into the store.
    pub(super) fn ingest(&mut self, parent: &OwnedFd, name: &str) -> Result<Digest, ExecError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Err(Errno::ACCESS) => {
                // The action took its own access away; the file is this process's own then.
                let readable = Mode::from_raw_mode(0o400);
                rustix::fs::chmodat(parent, name, readable, AtFlags::empty())?;
                rustix::fs::openat(parent, name, flags, Mode::empty())?
            }
            other => other?,
        };
        let mut file = File::from(file);
        let stat = rustix::fs::fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.count(name, size)?;
        if size <= SMALL_BYTES_MAX {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
            (&mut file).take(SMALL_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            return self.bytes(bytes.into());
        }
        // A file with another name may be an input, or be one of two outputs: its inode must
        // not become the store's.
        let own = stat.st_nlink == 1 && rustix::process::geteuid().is_root();
        if own && seal(&file, stat.st_mode)? { self.adopt(file, &stat) } else { self.copy(file) }
    }

    /// The file itself becomes the blob.
    fn adopt(&self, mut file: File, stat: &Stat) -> Result<Digest, ExecError> {
        let digest = hash(&mut file, self.cancel, |_| Ok(()))?;
        block_on(self.cores.adopt(digest, file, stat.st_mode & 0o111 != 0))?;
        Ok(digest)
    }

    /// The file's bytes become the blob.
    fn copy(&self, mut file: File) -> Result<Digest, ExecError> {
        let digest = hash(&mut file, self.cancel, |_| Ok(()))?;
        if block_on(self.cores.find_missing(vec![digest]))?.is_empty() {
            return Ok(digest);
        }
        file.rewind()?;
        let name = uuid::Uuid::new_v4();
        let mut key = [0; crate::digest::HASH_BYTES];
        key[..16].copy_from_slice(name.as_bytes());
        let mut upload = block_on(self.cores.upload(key, digest))?;
        let again = hash(&mut file, self.cancel, |bytes| {
            block_on(upload.write(vec![Bytes::copy_from_slice(bytes)])).map_err(ExecError::Store)
        })?;
        debug_assert_eq!(again, digest);
        block_on(upload.finish())?;
        Ok(digest)
    }
}

/// Takes the file from the action for good: no one may open it for writing from here on, and
/// none has it open for writing. False where somebody still has.
fn seal(file: &File, mode: u32) -> Result<bool, ExecError> {
    let sealed = if mode & 0o111 != 0 { 0o555 } else { 0o444 };
    let root = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::fs::fchown(file, Some(root.0), Some(root.1))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(sealed))?;
    Ok(sandbox::no_writer_is_left(file.as_fd()).is_ok())
}

/// Reads a file to its end, unless `cancel` becomes readable: a sparse file costs its action
/// nothing and is hours to read.
fn hash(
    file: &mut File,
    cancel: &OwnedFd,
    mut each: impl FnMut(&[u8]) -> Result<(), ExecError>,
) -> Result<Digest, ExecError> {
    let mut hasher = Hasher::new(DigestFunction::Sha256);
    let mut buffer = vec![0; IO_BYTES];
    loop {
        if is_cancelled(cancel) {
            return Err(ExecError::Cancelled);
        }
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
        each(&buffer[..count])?;
    }
}

/// Whether nobody wants the outputs any more.
fn is_cancelled(cancel: &OwnedFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error says nothing: it is looked again at the next piece.
    poll(&mut [PollFd::new(cancel, PollFlags::IN)], Some(&at_once)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::ExecLimits;
    use rustix::event::EventfdFlags;
    use std::fs;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_cancelled_action_ends_while_its_giant_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        // A hole: an hour to hash.
        file.set_len(1 << 40).unwrap();
        let cancel = eventfd();
        let mut pieces = 0;
        let ended = hash(&mut file, &cancel, |_| {
            pieces += 1;
            if pieces == 3 {
                rustix::io::write(&cancel, &1_u64.to_ne_bytes())?;
            }
            Ok(())
        });
        assert!(matches!(ended, Err(ExecError::Cancelled)), "{ended:?}");
        assert_eq!(pieces, 3);
    }

    #[test]
    fn many_outputs_together_have_a_bound_too() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(directory.path().join(name), [7; 1000]).unwrap();
        }
        let mut limits = ExecLimits::for_tests();
        (limits.input_bytes_max, limits.output_bytes_max) = (2500, 1500);
        let cores = crate::cores::prepare(1, 1).handle();
        let root = OwnedFd::from(File::open(directory.path()).unwrap());
        let cancel = eventfd();
        let mut collector = Collector::new(&cores, &limits, &root, &cancel);
        collector.ingest(&root, "a").unwrap();
        collector.ingest(&root, "b").unwrap();
        let third = collector.ingest(&root, "c");
        assert!(matches!(third, Err(ExecError::TooLarge(_))), "{third:?}");
    }
}
