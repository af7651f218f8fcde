//! What a client asks to be run, read and checked before anything is queued. Must never let a
//! path through that could name something outside the action's own root.

use super::{
    ExecError, ExecLimits,
    message::{MESSAGE_BYTES_MAX, decode_message},
};
use crate::{
    blob::BlobError,
    digest::{Digest, DigestFunction},
    tier::{
        Blobs,
        action_cache::{self, TreeBounds},
    },
};
use bytes::Bytes;
use prost::Message;
use proto::reapi::{self, Action, ActionResult, Command, Platform, command::OutputDirectoryFormat};
use std::{collections::BTreeSet, time::Duration};

/// Fields of an Action or a Command, each repetition counted.
const FIELDS_MAX: u64 = 500_000;
/// Bytes of a command's arguments and environment as the kernel counts them. It takes no more
/// whatever its configuration (execve(2): three quarters of 8 MiB), and the sandbox's spawner has a
/// bound of its own above this one.
const TEXTS_BYTES_MAX: u64 = 6 << 20;
/// What the kernel counts for a text beside its bytes: its end and a pointer to it.
const TEXT_BYTES: u64 = 9;
/// Longest path taken from a client, in bytes (Linux, PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
/// Longest name of a file (Linux, NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// An action that may be queued.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where its inputs come from and its outputs go.
    pub(crate) blobs: Blobs,
    /// The instance whose action cache gets the result.
    pub instance: String,
    /// The action.
    pub digest: Digest,
    /// Its encoded Command's digest, for logs.
    pub command: Digest,
    /// Whether the result may be cached and shared.
    pub cacheable: bool,
    pub(crate) input_root: Digest,
    pub(crate) timeout: Duration,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_directory: String,
    pub(crate) outputs: Outputs,
}

impl Prepared {
    /// Where its inputs come from and its outputs go.
    #[must_use]
    pub const fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Keeps what the action gave: its result, where it may be cached, and its blobs below, where
    /// the instance's mode says so. What can't be written below now is written later: the action
    /// has run, and its outputs are here.
    ///
    /// # Errors
    /// As [`action_cache::put`].
    pub async fn keep(&self, result: &ActionResult, bounds: TreeBounds) -> Result<(), BlobError> {
        let Self { blobs, instance, digest, .. } = self;
        let stored = (result.exit_code == 0 && self.cacheable).then_some((&**instance, *digest));
        let kept = match stored {
            Some((instance, digest)) => {
                action_cache::put(blobs, instance, digest, result, bounds).await
            }
            None => action_cache::push_blobs(blobs, result, bounds).await.map(drop),
        };
        match kept {
            Err(BlobError::Below(why)) => {
                tracing::debug!(action = %digest, %why, "outputs are written below later");
                action_cache::owe(blobs, result, stored, bounds).await
            }
            other => other,
        }
    }
}

#[cfg(test)]
impl Prepared {
    /// One that runs nothing worth running.
    pub(super) fn for_tests(digest: Digest) -> Self {
        Self {
            blobs: crate::cores::prepare(1, 1).handle().into(),
            instance: String::new(),
            digest,
            command: digest,
            cacheable: true,
            input_root: digest,
            timeout: Duration::from_secs(1),
            arguments: vec!["true".to_owned()],
            environment: Vec::new(),
            working_directory: String::new(),
            outputs: Outputs { paths: Vec::new(), format: OutputDirectoryFormat::TreeOnly },
        }
    }
}

/// What the command promises to write.
#[derive(Clone, Debug)]
pub(crate) struct Outputs {
    pub(crate) paths: Vec<OutputPath>,
    pub(crate) format: OutputDirectoryFormat,
}

/// One promise; paths are relative to the working directory, each at most once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OutputPath {
    pub(crate) path: String,
    pub(crate) kind: OutputKind,
}

/// How the path was named, which decides how a symlink is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OutputKind {
    /// In `output_paths`: whatever lies there.
    Any,
    /// In `output_files`, which only clients of API 2.0 fill alone.
    File,
    /// In `output_directories`, likewise.
    Directory,
}

/// Reads and checks an action and its command.
///
/// # Errors
/// `Missing` where a blob is absent, `Invalid` where something is malformed or not offered.
pub async fn prepare(
    blobs: &Blobs,
    instance: &str,
    digest: Digest,
    limits: &ExecLimits,
) -> Result<Prepared, ExecError> {
    let action: Action = read(blobs, digest, limits).await?;
    let command_digest = named(action.command_digest.as_ref(), "command_digest")?;
    let input_root = named(action.input_root_digest.as_ref(), "input_root_digest")?;
    let command: Command = match read(blobs, command_digest, limits).await {
        // The client is told of both at once, and comes back once.
        Err(ExecError::Missing(_)) => {
            let mut missing = blobs.find_missing(vec![input_root]).await?;
            missing.push(command_digest);
            return Err(ExecError::Missing(missing));
        }
        other => other?,
    };
    check_platform(action.platform.as_ref().or(platform_of(&command)))?;
    let timeout = timeout(&action, limits)?;
    if command.arguments.is_empty() || command.arguments[0].is_empty() {
        return Err(ExecError::Invalid("the command has no arguments".to_owned()));
    }
    let environment: Vec<(String, String)> = command
        .environment_variables
        .iter()
        .map(|variable| (variable.name.clone(), variable.value.clone()))
        .collect();
    check_texts(&command.arguments, &environment)?;
    check_path(&command.working_directory, "working_directory")?;
    if let Some(property) = command.output_node_properties.first() {
        let shown: String = property.chars().take(80).collect();
        let message = format!("output node property {shown:?} is not supported");
        return Err(ExecError::Invalid(message));
    }
    let outputs = outputs(&command, limits)?;
    Ok(Prepared {
        blobs: blobs.clone(),
        instance: instance.to_owned(),
        digest,
        command: command_digest,
        cacheable: !action.do_not_cache,
        input_root,
        timeout,
        arguments: command.arguments,
        environment,
        working_directory: match command.working_directory.as_str() {
            "." => String::new(),
            _ => command.working_directory,
        },
        outputs,
    })
}

async fn read<M: Message + Default>(
    blobs: &Blobs,
    digest: Digest,
    limits: &ExecLimits,
) -> Result<M, ExecError> {
    let bound = limits.tree_bytes_max.min(MESSAGE_BYTES_MAX);
    let encoded: Bytes = match blobs.read(digest, bound).await {
        Ok(encoded) => encoded,
        Err(BlobError::NotFound(digest)) => return Err(ExecError::Missing(vec![digest])),
        Err(other) => return Err(ExecError::Store(other)),
    };
    let mut room = FIELDS_MAX;
    decode_message(digest, encoded, &mut room)
}

/// A digest that a message must have.
pub(super) fn named(wire: Option<&reapi::Digest>, what: &str) -> Result<Digest, ExecError> {
    let wire = wire.ok_or_else(|| ExecError::Invalid(format!("{what} is missing")))?;
    Digest::parse(DigestFunction::Sha256, &wire.hash, wire.size_bytes)
        .map_err(|bad| ExecError::Invalid(format!("{what}: {bad}")))
}

#[expect(deprecated, reason = "clients up to API 2.1 set the platform here")]
fn platform_of(command: &Command) -> Option<&Platform> {
    command.platform.as_ref()
}

/// What this node offers to actions: names and values as a platform has them.
#[must_use]
pub fn platform() -> [(String, String); 2] {
    let isa = std::env::consts::ARCH.replace('_', "-");
    [("OSFamily".to_owned(), std::env::consts::OS.to_owned()), ("ISA".to_owned(), isa)]
}

/// Refuses what this node does not offer: running an action in another environment than it asked
/// for would give a result that looks right.
fn check_platform(asked: Option<&Platform>) -> Result<(), ExecError> {
    for property in asked.into_iter().flat_map(|platform| &platform.properties) {
        let value = property.value.to_lowercase().replace('_', "-");
        let offered = platform();
        if !offered.contains(&(property.name.clone(), value)) {
            let short = |text: &str| text.chars().take(40).collect::<String>();
            let (name, value) = (short(&property.name), short(&property.value));
            let message = format!(
                "no worker here has the platform property {name:?} = {value:?}; \
                 OSFamily={} and ISA={} are offered",
                offered[0].1, offered[1].1,
            );
            return Err(ExecError::NoWorker(message));
        }
    }
    Ok(())
}

fn timeout(action: &Action, limits: &ExecLimits) -> Result<Duration, ExecError> {
    let Some(asked) = &action.timeout else { return Ok(limits.timeout_default) };
    let seconds = u64::try_from(asked.seconds).ok();
    let nanos = u32::try_from(asked.nanos).ok().filter(|&nanos| nanos < 1_000_000_000);
    let (Some(seconds), Some(nanos)) = (seconds, nanos) else {
        return Err(ExecError::Invalid("timeout is negative or malformed".to_owned()));
    };
    let timeout = Duration::new(seconds, nanos);
    if timeout > limits.timeout_max {
        let bound = limits.timeout_max;
        return Err(ExecError::Invalid(format!("timeout {timeout:?} is above {bound:?}")));
    }
    // A message that is there but zero says no more than one that is absent.
    Ok(if timeout.is_zero() { limits.timeout_default } else { timeout })
}

fn check_texts(arguments: &[String], environment: &[(String, String)]) -> Result<(), ExecError> {
    let bad_name = |name: &str| name.is_empty() || name.contains('=') || name.contains('\0');
    if arguments.iter().any(|argument| argument.contains('\0'))
        || environment.iter().any(|(name, value)| bad_name(name) || value.contains('\0'))
    {
        let message = "an argument or an environment variable holds NUL, or a name holds '='";
        return Err(ExecError::Invalid(message.to_owned()));
    }
    let pairs = environment.iter().map(|(name, value)| name.len() + 1 + value.len());
    let texts = arguments.iter().map(String::len).chain(pairs);
    let bytes: u64 = texts.map(|length| length as u64 + TEXT_BYTES).sum();
    if bytes > TEXTS_BYTES_MAX {
        let message = format!(
            "arguments and environment have {bytes} bytes; Linux takes {TEXTS_BYTES_MAX} at most, \
             and by default 2 MiB, of which one text may have 128 KiB (execve(2))"
        );
        return Err(ExecError::Invalid(message));
    }
    Ok(())
}

#[expect(deprecated, reason = "clients of API 2.0 name outputs by their kind")]
fn outputs(command: &Command, limits: &ExecLimits) -> Result<Outputs, ExecError> {
    let named = if command.output_paths.is_empty() {
        let files = command.output_files.iter().map(|path| (path, OutputKind::File));
        let directories =
            command.output_directories.iter().map(|path| (path, OutputKind::Directory));
        files.chain(directories).collect::<Vec<_>>()
    } else {
        command.output_paths.iter().map(|path| (path, OutputKind::Any)).collect()
    };
    if named.len() > limits.output_files_max {
        let bound = limits.output_files_max;
        return Err(ExecError::Invalid(format!("more than {bound} outputs are named")));
    }
    let mut seen = BTreeSet::new();
    let mut paths = Vec::with_capacity(named.len());
    for (path, kind) in named {
        check_path(path, "output path")?;
        if matches!(path.as_str(), "" | ".") && kind == OutputKind::File {
            return Err(ExecError::Invalid("an output file has no name".to_owned()));
        }
        // Twice the same path in the result ends a Bazel client (duplicate map key).
        if seen.insert(path.as_str()) {
            paths.push(OutputPath { path: path.clone(), kind });
        }
    }
    let format = OutputDirectoryFormat::try_from(command.output_directory_format)
        .unwrap_or(OutputDirectoryFormat::TreeOnly);
    Ok(Outputs { paths, format })
}

/// Whether this can be the path of an output: relative, of plain names, or empty for the working
/// directory itself.
///
/// # Errors
/// `Invalid`, with the path.
pub fn is_plain_path(path: &str) -> Result<(), ExecError> {
    check_path(path, "output path")
}

/// Refuses what is not a plain relative path; the empty path is the directory itself.
fn check_path(path: &str, what: &str) -> Result<(), ExecError> {
    // Some clients write "." for the directory itself (recc's trexe).
    if path.is_empty() || path == "." {
        return Ok(());
    }
    if path.len() > PATH_BYTES_MAX || path.split('/').any(|segment| check_name(segment).is_err()) {
        let shown: String = path.chars().take(200).collect();
        return Err(ExecError::Invalid(format!("{what} {shown:?} is not a plain relative path")));
    }
    Ok(())
}

/// Refuses what cannot be the name of one file in one directory.
pub(super) fn check_name(name: &str) -> Result<(), ExecError> {
    let bad = name.is_empty()
        || name == "."
        || name == ".."
        || name.len() > NAME_BYTES_MAX
        || name.contains(['/', '\0']);
    if bad {
        let shown: String = name.chars().take(80).collect();
        return Err(ExecError::Invalid(format!("{shown:?} is not a file name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::reapi::platform::Property;

    #[test]
    fn only_plain_relative_paths_are_taken() {
        for (path, good) in [
            ("", true),
            (".", true),
            ("a", true),
            ("a/b.c/...", true),
            ("a b/ü", true),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("..", false),
            ("a/../b", false),
            ("./a", false),
            ("a\0", false),
        ] {
            assert_eq!(check_path(path, "path").is_ok(), good, "{path:?}");
        }
        assert!(check_path(&"x".repeat(256), "path").is_err());
        assert!(check_path(&"x/".repeat(3000), "path").is_err());
    }

    #[test]
    fn a_command_that_no_kernel_takes_is_refused() {
        let pair = |length: usize| ("A".to_owned(), "v".repeat(length));
        let most = usize::try_from(TEXTS_BYTES_MAX).unwrap();
        for (arguments, environment, good) in [
            (vec!["a".to_owned(); 100_000], vec![pair(100); 10_000], true),
            (vec!["a".repeat(most - 9)], vec![], true),
            (vec!["a".repeat(most - 8)], vec![], false),
            (vec![], vec![pair(most - 11)], true),
            (vec![], vec![pair(most - 10)], false),
            (vec![String::new(); most / 9 + 1], vec![], false),
        ] {
            let checked = check_texts(&arguments, &environment);
            let (count, pairs) = (arguments.len(), environment.len());
            assert_eq!(checked.is_ok(), good, "{count} {pairs}");
        }
    }

    #[test]
    fn output_paths_supersede_and_no_path_comes_twice() {
        let limits = ExecLimits::for_tests();
        #[expect(deprecated, reason = "what old clients send")]
        let mut command = Command {
            output_files: vec!["f".to_owned(), "f".to_owned()],
            output_directories: vec!["f".to_owned(), "d".to_owned()],
            ..Command::default()
        };
        let paths = |command: &Command| -> Vec<(String, OutputKind)> {
            let outputs = outputs(command, &limits).unwrap();
            outputs.paths.into_iter().map(|output| (output.path, output.kind)).collect()
        };
        let legacy = [("f".to_owned(), OutputKind::File), ("d".to_owned(), OutputKind::Directory)];
        assert_eq!(paths(&command), legacy);
        command.output_paths = vec!["p".to_owned(), "p".to_owned()];
        assert_eq!(paths(&command), [("p".to_owned(), OutputKind::Any)]);
    }

    #[test]
    fn a_platform_that_is_not_ours_is_refused() {
        let isa = std::env::consts::ARCH.replace('_', "-");
        for (name, value, good) in [
            ("OSFamily", "linux", true),
            ("OSFamily", "Linux", true),
            ("OSFamily", "windows", false),
            ("ISA", isa.as_str(), true),
            ("ISA", "mips", false),
            ("container-image", "docker://x", false),
        ] {
            let property = Property { name: name.to_owned(), value: value.to_owned() };
            let platform = Platform { properties: vec![property] };
            assert_eq!(check_platform(Some(&platform)).is_ok(), good, "{name}={value}");
        }
        assert!(check_platform(None).is_ok());
    }

    #[test]
    fn a_timeout_has_bounds() {
        let limits = ExecLimits::for_tests();
        let with = |seconds, nanos| Action {
            timeout: Some(prost_types::Duration { seconds, nanos }),
            ..Action::default()
        };
        assert_eq!(timeout(&Action::default(), &limits).unwrap(), limits.timeout_default);
        assert_eq!(timeout(&with(0, 0), &limits).unwrap(), limits.timeout_default);
        assert_eq!(timeout(&with(2, 5), &limits).unwrap(), Duration::new(2, 5));
        let above = i64::try_from(limits.timeout_max.as_secs()).unwrap() + 1;
        for (seconds, nanos) in [(above, 0), (i64::MAX, 0), (-1, 0), (1, -1), (1, i32::MAX)] {
            assert!(timeout(&with(seconds, nanos), &limits).is_err(), "{seconds} {nanos}");
        }
    }
}
