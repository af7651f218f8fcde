//! Actions as tests describe them: a command, its inputs, what it promises. Must never repair
//! what a test says wrong.

use super::client::digest;
use bytes::Bytes;
use prost::Message;
use proto::reapi::{
    Action, Command, Digest, Directory, DirectoryNode, ExecuteRequest, FileNode, SymlinkNode,
    command::EnvironmentVariable,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Makes actions that are described alike different ones, so that no test finds another's result.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A directory of inputs, and everything below it.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// The message.
    pub directory: Directory,
    /// What it names: files, and messages of directories.
    pub blobs: Vec<Bytes>,
}

impl Folder {
    /// One that is empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a file.
    #[must_use]
    pub fn file(self, name: &str, contents: impl Into<Bytes>) -> Self {
        self.node(name, contents.into(), false)
    }

    /// With a file that may be executed.
    #[must_use]
    pub fn executable(self, name: &str, contents: impl Into<Bytes>) -> Self {
        self.node(name, contents.into(), true)
    }

    fn node(mut self, name: &str, contents: Bytes, is_executable: bool) -> Self {
        let digest = Some(digest(&contents));
        let name = name.to_owned();
        self.directory.files.push(FileNode { name, digest, is_executable, ..Default::default() });
        self.blobs.push(contents);
        self
    }

    /// With a symlink.
    #[must_use]
    pub fn symlink(mut self, name: &str, target: &str) -> Self {
        let (name, target) = (name.to_owned(), target.to_owned());
        self.directory.symlinks.push(SymlinkNode { name, target, ..Default::default() });
        self
    }

    /// With a directory.
    #[must_use]
    pub fn folder(mut self, name: &str, folder: Self) -> Self {
        let digest = Some(folder.digest());
        self.directory.directories.push(DirectoryNode { name: name.to_owned(), digest });
        self.blobs.push(folder.encoded());
        self.blobs.extend(folder.blobs);
        self
    }

    /// The message, encoded.
    #[must_use]
    pub fn encoded(&self) -> Bytes {
        self.directory.encode_to_vec().into()
    }

    /// The message's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest(&self.encoded())
    }
}

/// An action with its command and its inputs.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// What is run. Its digest is filled in when the job is encoded.
    pub command: Command,
    /// What it finds.
    pub inputs: Folder,
    /// The rest; both digests are filled in when the job is encoded.
    pub action: Action,
}

impl Job {
    /// A command; the action differs from every other one by its salt.
    #[must_use]
    pub fn new(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            command: Command { arguments, ..Default::default() },
            inputs: Folder::new(),
            action: Action { salt: number.to_be_bytes().to_vec(), ..Default::default() },
        }
    }

    /// A script for /bin/sh that ends at its first failure.
    #[must_use]
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-ec", script])
    }

    /// With inputs.
    #[must_use]
    pub fn with(mut self, inputs: Folder) -> Self {
        self.inputs = inputs;
        self
    }

    /// With `output_paths`.
    #[must_use]
    pub fn outputs(mut self, paths: &[&str]) -> Self {
        self.command.output_paths = paths.iter().map(ToString::to_string).collect();
        self
    }

    /// With `output_files` and `output_directories`.
    #[must_use]
    #[expect(deprecated, reason = "what clients of API 2.0 send")]
    pub fn old_outputs(mut self, files: &[&str], directories: &[&str]) -> Self {
        self.command.output_files = files.iter().map(ToString::to_string).collect();
        self.command.output_directories = directories.iter().map(ToString::to_string).collect();
        self
    }

    /// With one environment variable more.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.command.environment_variables.push(EnvironmentVariable { name, value });
        self
    }

    /// In a directory of its inputs.
    #[must_use]
    pub fn working_directory(mut self, path: &str) -> Self {
        path.clone_into(&mut self.command.working_directory);
        self
    }

    /// With a bound on its execution.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.action.timeout = Some(timeout.try_into().expect("a test's timeout"));
        self
    }

    /// With `do_not_cache`.
    #[must_use]
    pub const fn do_not_cache(mut self) -> Self {
        self.action.do_not_cache = true;
        self
    }

    /// The command, encoded.
    #[must_use]
    pub fn encoded_command(&self) -> Bytes {
        self.command.encode_to_vec().into()
    }

    /// The action with both digests, encoded.
    #[must_use]
    pub fn encoded(&self) -> Bytes {
        let mut action = self.action.clone();
        action.command_digest = Some(digest(&self.encoded_command()));
        action.input_root_digest = Some(self.inputs.digest());
        action.encode_to_vec().into()
    }

    /// The action's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest(&self.encoded())
    }

    /// Everything that has to be uploaded before it can be executed.
    #[must_use]
    pub fn blobs(&self) -> Vec<Bytes> {
        let mut blobs = vec![self.encoded(), self.encoded_command(), self.inputs.encoded()];
        blobs.extend(self.inputs.blobs.iter().cloned());
        blobs.retain(|blob| !blob.is_empty());
        blobs
    }

    /// The request that executes it.
    #[must_use]
    pub fn request(&self) -> ExecuteRequest {
        ExecuteRequest { action_digest: Some(self.digest()), ..Default::default() }
    }
}
