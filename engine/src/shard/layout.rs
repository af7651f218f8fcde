//! Names and versions on disk, and what formatting writes. The layout must never depend on the
//! number of shards: a shard is a range of prefixes, chosen anew at each start.
//!
//! ```text
//! DATA/FORMAT          the version of all this
//! DATA/LOCK            held while a node runs
//! DATA/segments/       00000001.seg …   small blobs and results of actions
//! DATA/cas/ab/         abcd…            a large or linkable blob, 0444
//!                      abcd….x          its twin for executables, 0555
//! DATA/exec/           execution roots; emptied at start
//! DATA/backlog/        what is owed to a cache below, where one is configured
//! ```

use crate::digest::Digest;
use rustix::fs::FlockOperation;
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What FORMAT says.
const FORMAT: &str = "ringforge store 2\n";
/// What a file's size is rounded up to on disk.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Mode of a blob's file.
pub(super) const MODE_PLAIN: u32 = 0o444;
/// Mode of its executable twin.
pub(super) const MODE_EXECUTABLE: u32 = 0o555;

/// The directory of a store, and the names in it.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// Held while this process uses a store.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl Layout {
    /// The layout below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where the names of what is owed to the cache below lie; whoever uses it makes it.
    #[must_use]
    pub fn backlog(&self) -> PathBuf {
        self.root.join("backlog")
    }

    /// Takes the store for this process, formatting it where it is empty.
    ///
    /// # Errors
    /// `WouldBlock` where another process has it, `InvalidData` where it has another format.
    pub fn take(&self) -> io::Result<StoreLock> {
        fs::create_dir_all(&self.root)?;
        self.check_ours()?;
        // Actions see only what is bound for them; nobody else has business here.
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))?;
        let file = File::create(self.root.join("LOCK"))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        self.format()?;
        Ok(StoreLock { _file: file })
    }

    /// Refuses a directory that holds something else: a start removes what is not a store's.
    fn check_ours(&self) -> io::Result<()> {
        if self.root.join("FORMAT").exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            // A start that was killed before FORMAT was written leaves LOCK.
            if name != "LOCK" && name != "FORMAT.new" && name != "lost+found" {
                let message = format!("it is no store and not empty (it has {name:?})");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        Ok(())
    }

    fn format(&self) -> io::Result<()> {
        let format = self.root.join("FORMAT");
        match fs::read_to_string(&format) {
            Ok(found) if found == FORMAT => {}
            Ok(found) => {
                let message = format!("{} says {found:?}, not {FORMAT:?}", format.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write_format(&format)?,
            Err(error) => return Err(error),
        }
        fs::create_dir_all(self.segments())?;
        for prefix in 0..=u8::MAX {
            fs::create_dir_all(self.prefix(prefix))?;
        }
        fs::create_dir_all(self.exec())
    }

    /// Writes FORMAT so that it is whole or not there, whatever happens meanwhile.
    fn write_format(&self, format: &Path) -> io::Result<()> {
        let beside = self.root.join("FORMAT.new");
        let mut file = File::create(&beside)?;
        file.write_all(FORMAT.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, format)?;
        File::open(&self.root)?.sync_all()
    }

    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where execution roots lie.
    #[must_use]
    pub fn exec(&self) -> PathBuf {
        self.root.join("exec")
    }

    pub(super) fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    pub(super) fn segment(&self, id: u32) -> PathBuf {
        self.segments().join(format!("{id:08x}.seg"))
    }

    /// The number in a segment's name.
    pub(super) fn segment_id(name: &str) -> Option<u32> {
        let id = u32::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
        // Only the name that this number is given; the last number is never one's.
        (id != u32::MAX && name == format!("{id:08x}.seg")).then_some(id)
    }

    pub(super) fn prefix(&self, prefix: u8) -> PathBuf {
        self.root.join("cas").join(format!("{prefix:02x}"))
    }

    pub(super) fn blob(&self, digest: &Digest, executable: bool) -> PathBuf {
        let mut name = digest.hex();
        if executable {
            name.push_str(".x");
        }
        self.prefix(digest.hash()[0]).join(name)
    }

    /// The hash in a blob file's name, and whether it is the executable twin.
    pub(super) fn blob_name(name: &str) -> Option<(&str, bool)> {
        let (hash, executable) = match name.strip_suffix(".x") {
            Some(hash) => (hash, true),
            None => (name, false),
        };
        (hash.len() == 64).then_some((hash, executable))
    }
}
