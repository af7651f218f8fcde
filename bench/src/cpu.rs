//! CPU time and memory of processes, read from /proc. Must only read: it never signals, waits for
//! or otherwise touches the process it measures.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result, bail};

/// Clock ticks a second in /proc/PID/stat. The kernel fixes USER_HZ at 100 on every architecture
/// that a node runs on, whatever its own tick is.
const TICKS_PER_SECOND: u64 = 100;

/// What one line of /proc/PID/stat says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Process that started it.
    pub parent: u32,
    /// User and system time, its own and that of the children it has waited for, in ticks.
    pub ticks: u64,
}

/// Parses /proc/PID/stat. The name in parentheses may itself hold spaces and parentheses, so the
/// fields are counted from the last `)`.
pub(crate) fn parse_stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    // utime, stime, cutime, cstime; the last two are signed in the manual and never below zero.
    let mut ticks = 0_u64;
    for field in fields.get(11..15)? {
        ticks = ticks.checked_add(field.parse().ok()?)?;
    }
    Some(Stat { parent, ticks })
}

/// Adds up the ticks of `root` and of everything below it. A child that was waited for is in its
/// parent's sum, one that still runs is counted here, so nothing is counted twice.
pub(crate) fn tree_ticks(root: u32, all: &HashMap<u32, Stat>) -> Option<u64> {
    all.get(&root)?;
    let mut below: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, stat) in all {
        below.entry(stat.parent).or_default().push(*pid);
    }
    let mut sum = 0;
    let mut open = vec![root];
    // Each process has one parent and leaves the table when seen: at most one turn a process.
    while let Some(pid) = open.pop() {
        sum += all.get(&pid).map_or(0, |stat| stat.ticks);
        open.extend(below.remove(&pid).unwrap_or_default());
    }
    Some(sum)
}

/// CPU time of the process tree under `pid` since it started, to 10 ms.
pub(crate) fn tree_time(pid: u32) -> Result<Duration> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry.context("reading /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ended since the listing has no file any more; its parent has its time.
        if let Ok(line) = fs::read_to_string(format!("/proc/{pid}/stat"))
            && let Some(stat) = parse_stat(&line)
        {
            all.insert(pid, stat);
        }
    }
    match tree_ticks(pid, &all) {
        Some(ticks) => Ok(from_ticks(ticks)),
        None => bail!("the server's process {pid} is gone"),
    }
}

/// CPU time of this program, to 10 ms.
pub(crate) fn own_time() -> Result<Duration> {
    let line = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let stat = parse_stat(&line).context("/proc/self/stat has an unknown form")?;
    Ok(from_ticks(stat.ticks))
}

/// Parses the line `VmRSS:   1234 kB` of /proc/PID/status, to bytes.
pub(crate) fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Resident memory of the process `pid` alone, in bytes: children share its pages.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("the server's process {pid} is gone"))?;
    parse_resident(&status).context("/proc/PID/status has no VmRSS")
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * (1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_gives_parent_and_all_four_times() {
        let tail = "S 7 7 7 0 -1 4194304 10 20 0 0 30 4 500 6000 20 0 1 0 99 1000 200";
        let table = [
            ("1 (bash) ", Some((7, 6534))),
            ("1 (a b) ", Some((7, 6534))),
            ("1 (a) S 9 (b)) ", Some((7, 6534))),
            ("1 no parentheses ", None),
        ];
        for (head, expect) in table {
            let got = parse_stat(&format!("{head}{tail}"));
            let expect = expect.map(|(parent, ticks)| Stat { parent, ticks });
            assert_eq!(got, expect, "{head}");
        }
    }

    #[test]
    fn a_cut_or_odd_stat_line_is_no_stat() {
        for line in ["", "1 (a)", "1 (a) S 7 7 7 0", "1 (a) S x 7 7 0 -1 4 1 2 0 0 30 4 5 6 2"] {
            assert_eq!(parse_stat(line), None, "{line}");
        }
        let negative = "1 (a) S 7 7 7 0 -1 4 1 2 0 0 30 -4 5 6 2";
        assert_eq!(parse_stat(negative), None);
    }

    #[test]
    fn a_tree_is_its_root_and_everything_below() {
        let stat = |parent, ticks| Stat { parent, ticks };
        let all = HashMap::from([
            (1, stat(0, 1_000)),
            (2, stat(1, 100)),
            (3, stat(2, 10)),
            (4, stat(3, 1)),
            (5, stat(1, 5_000)),
        ]);
        assert_eq!(tree_ticks(2, &all), Some(111));
        assert_eq!(tree_ticks(1, &all), Some(6_111));
        assert_eq!(tree_ticks(9, &all), None);
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let stat = |parent| Stat { parent, ticks: 1 };
        let all = HashMap::from([(2, stat(3)), (3, stat(2))]);
        assert!(tree_ticks(2, &all).is_some(), "reused ids may look like a loop for a moment");
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse_resident("Name:\ta\nVmRSS:\t   12 kB\nVmX: 1 kB\n"), Some(12_288));
        assert_eq!(parse_resident("Name:\ta\n"), None);
        assert_eq!(parse_resident("VmRSS:\tmany kB\n"), None);
    }

    #[test]
    fn this_program_has_a_stat_of_its_own() {
        assert!(own_time().is_ok());
        assert!(tree_time(std::process::id()).is_ok());
        assert!(resident(std::process::id()).unwrap() > 0);
    }
}
