//! Every way in which a core touches the store's files: the only file that names `glommio::io`.
//!
//! Reads try the page cache without waiting (`preadv2(RWF_NOWAIT)`, 0.6 µs) and go through
//! io_uring when they would wait; records go through io_uring. Large blobs are written, and names
//! made and removed, by plain syscalls on the executor's blocking thread: the kernel hands
//! io_uring's own versions to worker threads anyway, and a plain write can start at a page.
//! A core's thread must never wait for the disk here.

use super::{
    buffer::{Buffer, Buffers},
    naming::{adopt, link_open_file, open_temporary},
};
use crate::limits::{IO_BYTES, WRITE_BYTES};
use bytes::Bytes;
use glommio::io::{BufferedFile, OpenOptions};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    io::{Errno, ReadWriteFlags},
};
use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// The disk as seen by one core.
pub struct Disk {
    reads: Buffers,
    writes: Buffers,
}

/// A file of records that grows.
pub struct Writing {
    file: BufferedFile,
}

/// A large blob on its way in: a file without a name.
pub struct Temporary {
    file: Arc<File>,
}

impl Disk {
    /// The disk, for the executor of the calling thread.
    pub(super) fn real() -> Self {
        Self { reads: Buffers::new(IO_BYTES), writes: Buffers::new(WRITE_BYTES) }
    }

    /// A file of this name that did not exist; 0600.
    ///
    /// # Errors
    /// As open(2).
    pub async fn create(&self, path: &Path) -> io::Result<Writing> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.buffered_open(path).await.map_err(io::Error::from)?;
        Ok(Writing { file })
    }

    /// A file without a name in `directory` (O_TMPFILE): what is not published cannot leak.
    ///
    /// # Errors
    /// As open(2).
    pub async fn temporary(&self, directory: PathBuf) -> io::Result<Temporary> {
        let file = blocking(move || open_temporary(&directory)).await?;
        Ok(Temporary { file: Arc::new(file) })
    }

    /// A file without a name, to read from while it grows. Never the descriptor that writes: as
    /// long as one is open the kernel executes no file of this inode (execve(2), ETXTBSY).
    ///
    /// # Errors
    /// As open(2).
    pub async fn reader(&self, file: &Temporary) -> io::Result<Arc<File>> {
        let file = file.file.clone();
        blocking(move || {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            File::open(path).map(Arc::new)
        })
        .await
    }

    /// An empty buffer for [`Disk::write_large`].
    pub(crate) fn buffer(&self) -> Buffer {
        self.writes.take()
    }

    /// Writes what is in `buffer` at `position` of a file without a name.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) async fn write_large(
        &self,
        file: &Temporary,
        buffer: Buffer,
        position: u64,
    ) -> io::Result<()> {
        let file = file.file.clone();
        blocking(move || file.write_all_at(buffer.filled(), position)).await
    }

    /// Makes what was written to `file` survive a power failure.
    ///
    /// # Errors
    /// As fdatasync(2); see [`Disk::sync`].
    pub async fn sync_large(&self, file: &Temporary) -> io::Result<()> {
        let file = file.file.clone();
        blocking(move || file.sync_data()).await
    }

    /// Writes all of `bytes` at `position`.
    ///
    /// # Errors
    /// As write(2). A short write of a regular file means a full disk, and is that error.
    pub async fn write(&self, file: &Writing, bytes: Vec<u8>, position: u64) -> io::Result<()> {
        let length = bytes.len();
        let written = file.file.write_at(bytes, position).await.map_err(io::Error::from)?;
        if written == length { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Makes what was written to `file` survive a power failure.
    ///
    /// # Errors
    /// As fdatasync(2). After an error nothing written to the file may be trusted, and the call
    /// must not be repeated: the kernel marks the pages clean either way.
    pub async fn sync(&self, file: &Writing) -> io::Result<()> {
        file.file.fdatasync().await.map_err(io::Error::from)
    }

    /// Gives a temporary file its name and its final mode; replaces a file of that name, because
    /// the index knows nothing of it.
    ///
    /// # Errors
    /// As linkat(2), renameat(2).
    pub async fn publish(&self, file: Temporary, path: PathBuf, mode: u32) -> io::Result<()> {
        blocking(move || link_open_file(file.file.as_raw_fd(), &path, mode)).await
    }

    /// Gives small blobs files of their own: bytes, name and mode of each. One hop for all,
    /// because a hop costs as much as a file.
    ///
    /// # Errors
    /// As write(2), linkat(2); those before the one that failed have their files.
    pub async fn publish_many(&self, blobs: Vec<(Bytes, PathBuf, u32)>) -> io::Result<()> {
        blocking(move || {
            for (bytes, path, mode) in blobs {
                let directory = path.parent().ok_or(Errno::INVAL)?;
                let mut file = open_temporary(directory)?;
                io::Write::write_all(&mut file, &bytes)?;
                link_open_file(file.as_raw_fd(), &path, mode)?;
            }
            Ok(())
        })
        .await
    }

    /// A copy of a file under another name with another mode: the twin of a linkable blob.
    ///
    /// # Errors
    /// As open(2), copy_file_range(2), linkat(2).
    pub async fn copy(&self, from: PathBuf, to: PathBuf, mode: u32) -> io::Result<()> {
        blocking(move || {
            let mut source = File::open(&from)?;
            let directory = to.parent().ok_or(Errno::INVAL)?;
            let mut file = open_temporary(directory)?;
            io::copy(&mut source, &mut file)?;
            link_open_file(file.as_raw_fd(), &to, mode)
        })
        .await
    }

    /// Gives an open file of the same file system a name, leaving its mode alone. Nothing else of
    /// where it comes from stays with it.
    ///
    /// # Errors
    /// As linkat(2), renameat(2), fremovexattr(2).
    pub async fn adopt(&self, file: File, path: PathBuf) -> io::Result<()> {
        blocking(move || adopt(&file, &path)).await
    }

    /// A file to read from; opened inline where all of its path is in the kernel's cache.
    ///
    /// # Errors
    /// As open(2).
    pub async fn open(&self, path: PathBuf) -> io::Result<Arc<File>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let cached = ResolveFlags::CACHED;
        match rustix::fs::openat2(CWD, &path, flags, Mode::empty(), cached) {
            Ok(file) => Ok(Arc::new(File::from(file))),
            Err(Errno::AGAIN) => blocking(move || File::open(path).map(Arc::new)).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a name; a name that is not there is removed already.
    ///
    /// # Errors
    /// As unlink(2).
    pub async fn remove(&self, path: PathBuf) -> io::Result<()> {
        blocking(move || match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    /// Removes names, in one hop; those that are not there are removed already.
    ///
    /// # Errors
    /// As unlink(2), the first of them; the others are removed all the same.
    pub async fn remove_many(&self, paths: Vec<PathBuf>) -> io::Result<()> {
        blocking(move || {
            let mut failed = Ok(());
            for path in paths {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => failed = Err(error),
                    _ => {}
                }
            }
            failed
        })
        .await
    }

    /// What `work` finds where it may wait for the disk.
    ///
    /// # Errors
    /// Its own.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        blocking(work).await
    }

    /// Makes the bytes of an open file survive a power failure.
    ///
    /// # Errors
    /// As fdatasync(2); see [`Disk::sync`].
    pub async fn sync_file(&self, file: File) -> io::Result<()> {
        blocking(move || file.sync_data()).await
    }

    /// Makes the names in `directory` survive a power failure.
    ///
    /// # Errors
    /// As fsync(2).
    pub async fn sync_directory(&self, directory: PathBuf) -> io::Result<()> {
        blocking(move || File::open(directory)?.sync_all()).await
    }

    /// Makes everything on the file system of `file` survive a power failure. Reports failures of
    /// writing back since `file` was opened or last synced so.
    ///
    /// # Errors
    /// As syncfs(2).
    pub async fn sync_all(&self, file: File) -> io::Result<()> {
        blocking(move || Ok(rustix::fs::syncfs(file)?)).await
    }

    /// Removes a name if it still leads to `file`; one that leads to another file by now stays.
    ///
    /// # Errors
    /// As renameat(2), linkat(2), unlinkat(2).
    pub async fn remove_if_same(&self, file: Arc<File>, path: PathBuf) -> io::Result<()> {
        blocking(move || {
            let mut aside = path.clone().into_os_string();
            aside.push(".bad");
            match rustix::fs::rename(&path, &aside) {
                Err(Errno::NOENT) => return Ok(()),
                other => other?,
            }
            let (moved, bad) = (std::fs::metadata(&aside)?, file.metadata()?);
            if (moved.dev(), moved.ino()) != (bad.dev(), bad.ino()) {
                // A better one took the name meanwhile: it gets it back, unless a third has it.
                match rustix::fs::linkat(CWD, &aside, CWD, &path, AtFlags::empty()) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(rustix::fs::unlink(&aside)?)
        })
        .await
    }

    /// `length` bytes at `position`, all of them.
    ///
    /// # Errors
    /// As read(2); `UnexpectedEof` where the file is shorter.
    pub async fn read(&self, file: &Arc<File>, position: u64, length: usize) -> io::Result<Bytes> {
        // Short reads are cheaper in a vector of their own size.
        if length * 2 <= IO_BYTES || length > IO_BYTES {
            let mut bytes = vec![0; length];
            read_into(file, position, &mut bytes).await?;
            return Ok(bytes.into());
        }
        let mut buffer = self.reads.take();
        read_into(file, position, &mut buffer.room()[..length]).await?;
        buffer.grow(length);
        Ok(buffer.into_bytes())
    }

    /// Bytes free for an unprivileged writer on the file system of `directory`.
    ///
    /// # Errors
    /// As statvfs(3).
    pub fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Fills `into` from `position` on.
async fn read_into(file: &Arc<File>, position: u64, into: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let at = position + filled as u64;
        let mut slices = [IoSliceMut::new(&mut into[filled..])];
        match rustix::io::preadv2(&**file, &mut slices, at, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => {
                let waited = read_waiting(file, at, into.len() - filled).await?;
                into[filled..filled + waited.len()].copy_from_slice(&waited);
                filled += waited.len();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A read that may wait for the device, through io_uring.
async fn read_waiting(file: &Arc<File>, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let Ok(ring) = BufferedFile::open(path).await else {
        // Out of descriptors: the one that is open serves, on the blocking thread.
        let file = file.clone();
        return blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, position)?;
            Ok(bytes)
        })
        .await;
    };
    let read = ring.read_at(position, length).await.map_err(io::Error::from);
    ring.close().await.map_err(io::Error::from)?;
    let read = read?;
    if read.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(read.to_vec())
}

/// Runs what may wait on the executor's blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    glommio::executor().spawn_blocking(work).await
}
