//! A place for one test: a store closed to everybody, an exec root with a hard-linked input, a
//! user that no other test has. Never decides what is right.
#![expect(clippy::unwrap_used, reason = "a test's scene that cannot be set fails the test")]

use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sandbox::{Ended, Limits, Mount, Spawner, Spec};
use tempfile::TempDir;

const PROBE: &str = env!("CARGO_BIN_EXE_sandbox-probe");

/// What the stored input holds.
pub(crate) const INPUT: &[u8] = b"never to be changed\n";

/// Host users of the actions: far from any account's.
static NEXT_USER: AtomicU32 = AtomicU32::new(2_000_000);

pub(crate) struct Scene {
    directory: TempDir,
    pub(crate) spec: Spec,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) ended: Ended,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn exit_code(&self) -> i32 {
        match &self.ended {
            Ended::Exited(report) => report.exit_code,
            other => panic!("did not exit: {other:?}"),
        }
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    let told = std::env::var_os("SANDBOX_TESTS_WITHOUT_ROOT").is_some();
    assert!(root || told, "not root, and SANDBOX_TESTS_WITHOUT_ROOT is not set");
    root
}

pub(crate) fn new_spawner() -> Spawner {
    Spawner::start_at(Path::new(PROBE)).expect("a spawner")
}

pub(crate) fn spawner() -> &'static Spawner {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    SPAWNER.get_or_init(new_spawner)
}

/// Open descriptors of all spawners of this process.
pub(crate) fn descriptors_of_spawner() -> usize {
    spawner();
    let own = format!("PPid:\t{}\n", std::process::id());
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter(|entry| {
            fs::read_to_string(entry.path().join("status")).is_ok_and(|text| text.contains(&own))
        })
        .filter_map(|entry| fs::read_dir(entry.path().join("fd")).ok())
        .map(Iterator::count)
        .sum()
}

pub(crate) fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let directory = TempDir::new().unwrap();
        let (uid, gid) = if is_root() {
            let user = NEXT_USER.fetch_add(1, Ordering::Relaxed);
            (user, user)
        } else {
            let own = (rustix::process::geteuid(), rustix::process::getegid());
            (own.0.as_raw(), own.1.as_raw())
        };
        let (store, root) = (directory.path().join("store"), directory.path().join("root"));
        fs::create_dir(&store).unwrap();
        fs::create_dir(&root).unwrap();
        fs::write(store.join("input"), INPUT).unwrap();
        fs::copy(PROBE, store.join("probe")).unwrap();
        for (name, mode) in [("input", 0o444), ("probe", 0o555)] {
            fs::set_permissions(store.join(name), Permissions::from_mode(mode)).unwrap();
            fs::hard_link(store.join(name), root.join(name)).unwrap();
        }
        chown(&root, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        let toolchain = ["/usr", "/bin", "/lib", "/lib64"].map(PathBuf::from);
        let mounts = toolchain.map(|source| Mount { source, optional: true }).into();
        let limits = Limits {
            file_bytes_max: 64 << 20,
            open_files_max: 256,
            processes_max: 64,
            tmp_bytes_max: 16 << 20,
            tmp_inodes_max: 1000,
        };
        let spec = Spec {
            root,
            working_directory: String::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            uid,
            gid,
            mounts,
            network: false,
            limits,
        };
        Scene { directory, spec }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.spec.root
    }

    pub(crate) fn stored_input(&self) -> PathBuf {
        self.directory().join("store/input")
    }

    pub(crate) fn spec_of(&self, arguments: &[&str]) -> Spec {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Spec { arguments, ..self.spec.clone() }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_for(arguments, Some(Duration::from_secs(60)), None)
    }

    pub(crate) fn run_for(
        &self,
        arguments: &[&str],
        deadline: Option<Duration>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Output {
        let streams = ["stdout", "stderr"].map(|name| self.directory().join(name));
        let [stdout, stderr] = streams.clone().map(|path| {
            let file = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
            chown(&path, Some(self.spec.uid), Some(self.spec.gid)).unwrap();
            file
        });
        let spec = self.spec_of(arguments);
        let mut child = spawner().spawn(&spec, stdout.as_fd(), stderr.as_fd()).unwrap();
        let ended = child.wait(deadline, cancel).unwrap();
        let [stdout, stderr] =
            streams.map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
        Output { ended, stdout, stderr }
    }
}

/// Live processes of the host that belong to the scene's user: an ended init that the spawner has
/// yet to reap is no longer one. Without root that user is everybody's, so only those in an exec
/// root count.
pub(crate) fn processes_of(scene: &Scene) -> usize {
    let of_user = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| found.uid() == scene.spec.uid)
            && (is_root() || fs::read_link(path.join("cwd")).is_ok_and(|d| d.starts_with("/exec")))
    };
    let alive = |path: &Path| {
        fs::read_to_string(path.join("status")).is_ok_and(|text| !text.contains("State:\tZ"))
    };
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter(|entry| of_user(&entry.path()) && alive(&entry.path()))
        .count()
}
