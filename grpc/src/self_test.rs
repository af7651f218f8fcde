//! What this machine offers, found out before anything is served. Must never let a node start
//! that would fail later for a reason that could be known now.

use anyhow::{Context, bail};
use engine::cores::placement::Placement;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fmt, fs, path::Path};

/// Locked memory that each executor's rings need, in bytes.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// Open files below which a busy node would run out.
const NOFILE_MIN: u64 = 1024;
/// Entries of the ring that is made only to see whether one can be.
const PROBE_ENTRIES: u32 = 8;

/// What was found, one line each, for people.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<(&'static str, String)>,
}

impl Report {
    pub(crate) fn add(&mut self, name: &'static str, found: impl Into<String>) {
        self.lines.push((name, found.into()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, "ringforge {version}")?;
        for (name, found) in &self.lines {
            writeln!(f, "  {name:<12} {found}")?;
        }
        Ok(())
    }
}

/// Raises what may be raised, and stops where the rest is too little.
///
/// # Errors
/// One line with the cause and the remedy.
pub(crate) fn check_machine(report: &mut Report) -> anyhow::Result<()> {
    if !Path::new("/sys/devices/system/cpu").exists() {
        bail!(
            "/sys is not mounted, and the CPUs can't be told apart without it: mount sysfs there"
        );
    }
    check_ring(report)?;
    let memlock = raise(Resource::Memlock);
    if memlock < MEMLOCK_BYTES_MIN {
        bail!(
            "locked memory is limited to {memlock} bytes and each data core needs \
             {MEMLOCK_BYTES_MIN}: raise it (ulimit -l 8192, LimitMEMLOCK=8M, or --ulimit memlock)"
        );
    }
    let nofile = raise(Resource::Nofile);
    if nofile < NOFILE_MIN {
        bail!(
            "open files are limited to {nofile} and a node needs {NOFILE_MIN}: raise it \
             (ulimit -n 65536, LimitNOFILE=65536, or --ulimit nofile)"
        );
    }
    report.add("memlock", shown(memlock));
    report.add("nofile", shown(nofile));
    let landlock = sandbox::landlock_abi();
    report.add("landlock", landlock.map_or("absent".to_owned(), |abi| format!("ABI {abi}")));
    let namespaces = sandbox::user_namespaces_max();
    report.add(
        "namespaces",
        match namespaces {
            Some(0) => "user namespaces are forbidden (user.max_user_namespaces = 0)".to_owned(),
            Some(bound) => format!("up to {bound} user namespaces"),
            None => "no bound is known".to_owned(),
        },
    );
    report.add("cgroups", cgroups());
    Ok(())
}

/// Which CPU does what.
pub(crate) fn placement(report: &mut Report, placement: &Placement, shards: u16) {
    let Placement { data, control, actions } = placement;
    report.add(
        "placement",
        format!(
            "{shards} shard(s) on CPU {data:?}, control on {control:?}, actions on {actions:?}"
        ),
    );
}

/// Whether blobs can be given to actions without copying them.
///
/// # Errors
/// Where the directory can't be written.
pub(crate) fn check_links(report: &mut Report, directory: &Path) -> anyhow::Result<()> {
    let (from, to) = (directory.join("link-test.a"), directory.join("link-test.b"));
    fs::write(&from, b"x").with_context(|| format!("{} can't be written", directory.display()))?;
    let linked = fs::hard_link(&from, &to);
    let reflinked = fs::File::create(directory.join("link-test.c"))
        .and_then(|copy| Ok(rustix::fs::ioctl_ficlone(copy, fs::File::open(&from)?)?));
    for name in ["link-test.a", "link-test.b", "link-test.c"] {
        // What was not made need not be removed.
        let _ = fs::remove_file(directory.join(name));
    }
    let links = if linked.is_ok() { "hard links" } else { "no hard links: inputs are copied" };
    let reflinks = if reflinked.is_ok() { "reflinks" } else { "no reflinks" };
    report.add("links", format!("{links}, {reflinks}"));
    Ok(())
}

fn check_ring(report: &mut Report) -> anyhow::Result<()> {
    if let Err(error) = io_uring::IoUring::new(PROBE_ENTRIES) {
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let remedy = match disabled.as_deref().map(str::trim) {
            Ok("1" | "2") => "set kernel.io_uring_disabled = 0 (sysctl)",
            _ => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
                  seccomp profile, or run on Linux 5.8 or newer"
            }
        };
        bail!("io_uring can't be used ({error}): {remedy}");
    }
    report.add("io_uring", "usable");
    Ok(())
}

/// The limit, raised as far as this process may.
fn raise(resource: Resource) -> u64 {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current != maximum {
        // Refused: the limit stays what it was, and is judged as that.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

fn cgroups() -> String {
    match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers) => format!("v2 ({}); not used for actions", controllers.trim()),
        Err(_) => "v2 is absent; actions are bounded by rlimits alone".to_owned(),
    }
}
