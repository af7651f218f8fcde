//! The numbers of the process, as the kernel has them. What can't be read is left out. Must never
//! read anything whose size grows with the node's work.

use super::{
    Collector,
    page::{Family, Page, gauge},
};
use futures_util::future::{LocalBoxFuture, ready};
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

const BUILD: Family = gauge("ringforge_build_info", "1; its labels say what runs.");
const STARTED: Family = gauge(
    "ringforge_start_time_seconds",
    "When the node began to serve, in seconds since 1970 (UTC).",
);
const OPEN_FILES: Family = gauge("ringforge_process_open_fds", "Open file descriptors.");
const OPEN_FILES_MAX: Family =
    gauge("ringforge_process_max_fds", "File descriptors that may be open.");
const RESIDENT: Family =
    gauge("ringforge_process_resident_memory_bytes", "Memory of the process that is resident.");
const THREADS: Family = gauge("ringforge_process_threads", "Threads of the process.");

/// This process.
pub(super) struct Process {
    started: SystemTime,
}

impl Process {
    pub(super) fn started_now() -> Self {
        Self { started: SystemTime::now() }
    }

    fn write(&self, page: &mut Page) {
        page.set(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        page.set(&STARTED, &[], started.as_secs_f64());
        if let Some(open) = open_files() {
            page.set(&OPEN_FILES, &[], open as f64);
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            page.set(&OPEN_FILES_MAX, &[], most as f64);
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kilobytes) = field(&status, "VmRSS:") {
            page.set(&RESIDENT, &[], kilobytes.saturating_mul(1024) as f64);
        }
        if let Some(threads) = field(&status, "Threads:") {
            page.set(&THREADS, &[], threads as f64);
        }
    }
}

impl Collector for Process {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        self.write(page);
        Box::pin(ready(()))
    }
}

/// Kernels since 6.2 give their number as the size of their directory; before, they are counted.
fn open_files() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).ok()?.len() {
        0 => Some(fs::read_dir(directory).ok()?.count() as u64),
        open => Some(open),
    }
}

/// The first number of a line of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_is_found_by_its_name() {
        let status = "Name:\tVmRSS: 7\nVmHWM:\t  99 kB\nVmRSS:\t  1234 kB\nThreads:\tmany\n";
        assert_eq!(field(status, "VmRSS:"), Some(1234));
        assert_eq!(field(status, "Threads:"), None);
        assert_eq!(field(status, "VmSwap:"), None);
        assert!(open_files().unwrap() >= 3);
    }
}
