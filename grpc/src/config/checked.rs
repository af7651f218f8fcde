//! From what was said to what the node needs: ranges, names, paths, and the rules between keys.
//! Must never invent a value; what it refuses, it refuses by the key that a person would change.

use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use engine::control::NODE_ID_BYTES_MAX;

use crate::resource_name::KEYWORDS;

use super::error::Fault;
use super::parts::{
    CpuChoice, CpuSettings, ExecutionSettings, LimitSettings, SandboxSettings, ServerConfig,
    StoreSettings,
};
use super::raw::{RawCpus, RawExecution, RawLimits, RawSandbox, RawServer, RawStore};
use super::units::{Count, Period, Size};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
pub(super) const MILLION: u64 = 1_000_000;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Instance names in one list.
const INSTANCES_MAX: usize = 1000;
/// Bytes of one instance name: as long as a host name may be.
const NAME_BYTES_MAX: usize = 253;
/// Paths in one toolchain.
const TOOLCHAIN_PATHS_MAX: usize = 1000;
/// Shards of one store; also the most data CPUs.
const SHARDS_MAX: usize = 64;
/// A store of fewer segments could not give one back while it fills the next.
const SEGMENTS_MIN: u64 = 4;
pub(super) type Checked<T> = Result<T, Fault>;

pub(super) fn server(raw: RawServer) -> Checked<ServerConfig> {
    let message = size("message_bytes_max", raw.message_bytes_max, 64 * KIB..=GIB)?;
    let batch = size("batch_bytes_max", raw.batch_bytes_max, KIB..=GIB)?;
    if batch >= message {
        let expected = format!("less than server.message_bytes_max, which is {}", Size(message));
        return Err(fault("batch_bytes_max", expected).against("server.message_bytes_max"));
    }
    let digests = raw.find_missing_digests_max;
    Ok(ServerConfig {
        listen: address("listen", &raw.listen)?,
        connections_max: count("connections_max", raw.connections_max, 1..=MILLION)?,
        streams_max: count("streams_max", raw.streams_max, 1..=100_000)?,
        header_bytes_max: size("header_bytes_max", raw.header_bytes_max, KIB..=MIB)?,
        message_bytes_max: narrow("message_bytes_max", message)?,
        batch_bytes_max: narrow("batch_bytes_max", batch)?,
        find_missing_digests_max: count("find_missing_digests_max", digests, 1..=10 * MILLION)?,
        instances: instances(raw.instances)?,
        grace: period("grace", raw.grace, Duration::ZERO..=DAY)?,
    })
}

pub(super) fn store(raw: RawStore) -> Checked<StoreSettings> {
    if raw.directory.is_empty() || raw.directory.contains('\0') {
        return Err(fault("directory", "the path of a directory"));
    }
    let segment: u64 = size("segment_bytes", raw.segment_bytes, MIB..=GIB)?;
    let small = size("small_blob_bytes_max", raw.small_blob_bytes_max, 0..=32 * MIB)?;
    if small > segment / 4 {
        let expected = format!("at most {}, a quarter of store.segment_bytes", Size(segment / 4));
        return Err(fault("small_blob_bytes_max", expected).against("store.segment_bytes"));
    }
    let least = segment * SEGMENTS_MIN;
    if raw.bytes_max.0 != 0 && raw.bytes_max.0 < least {
        let expected = format!("0, or at least {SEGMENTS_MIN} segments, {}", Size(least));
        return Err(fault("bytes_max", expected).against("store.segment_bytes"));
    }
    let blob = size("blob_bytes_max", raw.blob_bytes_max, MIB..=16 * TIB)?;
    if blob < small {
        let expected = format!("at least store.small_blob_bytes_max, which is {}", Size(small));
        return Err(fault("blob_bytes_max", expected).against("store.small_blob_bytes_max"));
    }
    Ok(StoreSettings {
        directory: PathBuf::from(raw.directory),
        bytes_max: raw.bytes_max.0,
        free_bytes_min: raw.free_bytes_min.0,
        segment_bytes: segment,
        small_blob_bytes_max: small,
        blob_bytes_max: blob,
        lease: period("lease", raw.lease, Duration::ZERO..=DAY)?,
        durability: raw.durability,
        scrub_bytes_per_second: size(
            "scrub_bytes_per_second",
            raw.scrub_bytes_per_second,
            0..=TIB,
        )?,
    })
}

pub(super) fn cpus(raw: RawCpus) -> Checked<CpuSettings> {
    if let CpuChoice::List(cpus) = &raw.data
        && cpus.len() > SHARDS_MAX
    {
        return Err(fault("data", format!("at most {SHARDS_MAX} CPUs, the most shards")));
    }
    let shards = count("shards", raw.shards, 0..=SHARDS_MAX as u64)?;
    Ok(CpuSettings { data: raw.data, control: raw.control, actions: raw.actions, shards })
}

pub(super) fn limits(raw: RawLimits) -> Checked<LimitSettings> {
    let directories = raw.tree_directories_max;
    Ok(LimitSettings {
        inbox_len_max: count("inbox_len_max", raw.inbox_len_max, 1..=MILLION)?,
        in_flight_max: count("in_flight_max", raw.in_flight_max, 1..=100_000)?,
        uploads_max: count("uploads_max", raw.uploads_max, 1..=MILLION)?,
        upload_idle: period("upload_idle", raw.upload_idle, SECOND..=DAY)?,
        tree_bytes_max: size("tree_bytes_max", raw.tree_bytes_max, 64 * KIB..=16 * GIB)?,
        tree_directories_max: count("tree_directories_max", directories, 1..=100 * MILLION)?,
    })
}

pub(super) fn execution(raw: RawExecution) -> Checked<ExecutionSettings> {
    let queue_max = count("queue_max", raw.queue_max, 1..=10 * MILLION)?;
    let operations_max = count("operations_max", raw.operations_max, 1..=100 * MILLION)?;
    if operations_max < queue_max {
        let expected = format!("at least execution.queue_max, which is {queue_max}");
        return Err(fault("operations_max", expected).against("execution.queue_max"));
    }
    let timeout_max = period("timeout_max", raw.timeout_max, SECOND..=365 * DAY)?;
    let timeout_default = period("timeout_default", raw.timeout_default, SECOND..=365 * DAY)?;
    if timeout_default > timeout_max {
        let expected = format!("at most execution.timeout_max, which is {}", Period(timeout_max));
        return Err(fault("timeout_default", expected).against("execution.timeout_max"));
    }
    Ok(ExecutionSettings {
        enabled: raw.enabled,
        slots: count("slots", Count(raw.slots.0), 0..=4096)?,
        queue_max,
        timeout_default,
        timeout_max,
        input_files_max: count("input_files_max", raw.input_files_max, 1..=100 * MILLION)?,
        input_bytes_max: size("input_bytes_max", raw.input_bytes_max, MIB..=16 * TIB)?,
        output_files_max: count("output_files_max", raw.output_files_max, 1..=100 * MILLION)?,
        output_bytes_max: size("output_bytes_max", raw.output_bytes_max, MIB..=16 * TIB)?,
        stream_bytes_max: size("stream_bytes_max", raw.stream_bytes_max, KIB..=16 * GIB)?,
        operations_kept: period("operations_kept", raw.operations_kept, SECOND..=30 * DAY)?,
        operations_max,
        node_id: node_id(raw.node_id)?,
    })
}

pub(super) fn sandbox(raw: RawSandbox) -> Checked<SandboxSettings> {
    Ok(SandboxSettings {
        toolchain: toolchain(raw.toolchain)?,
        // Below 1000 are the machine's own users; the uids of slots have to fit above.
        uid_first: count("uid_first", raw.uid_first, 1000..=4_000_000_000)?,
        open_files_max: count("open_files_max", raw.open_files_max, 64..=MIB)?,
        processes_max: count("processes_max", raw.processes_max, 16..=4 * MIB)?,
        tmp_bytes_max: size("tmp_bytes_max", raw.tmp_bytes_max, MIB..=16 * TIB)?,
        tmp_inodes_max: count("tmp_inodes_max", raw.tmp_inodes_max, 16..=1000 * MILLION)?,
        network: raw.network,
    })
}

pub(super) fn address(key: &str, text: &str) -> Checked<SocketAddr> {
    const EXPECTED: &str = "HOST:PORT, like 127.0.0.1:8980 or [::1]:8980";
    let host = text.rsplit_once(':').map(|(host, _)| host).filter(|host| !host.is_empty());
    // What has colons outside brackets would be cut at the wrong one.
    if host.is_none_or(|host| host.contains(':') && !host.starts_with('[')) {
        return Err(fault(key, EXPECTED));
    }
    let found: Vec<_> = text
        .to_socket_addrs()
        .map_err(|error| fault(key, format!("{EXPECTED} ({error})")))?
        .collect();
    // `localhost` is both; clients that are given 127.0.0.1 must find the node.
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| fault(key, format!("{EXPECTED} (the name has no address)")))
}

fn instances(names: Vec<String>) -> Checked<Vec<String>> {
    let is_name = |name: &String| {
        name.len() <= NAME_BYTES_MAX
            && !name.split('/').any(|segment| KEYWORDS.contains(&segment))
            && !name.chars().any(char::is_control)
    };
    if names.len() <= INSTANCES_MAX && names.iter().all(is_name) {
        return Ok(names);
    }
    let expected = format!(
        "at most {INSTANCES_MAX} names of at most {NAME_BYTES_MAX} bytes, none with a segment {}",
        KEYWORDS.join(", ")
    );
    Err(fault("instances", expected))
}

fn node_id(id: String) -> Checked<String> {
    let is_named = !id.is_empty();
    let id = if is_named { id } else { host_name() };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !id.is_empty() && id.len() <= NODE_ID_BYTES_MAX && id.chars().all(is_allowed) {
        return Ok(id);
    }
    let what = if is_named { "" } else { " (the host has no such name: one has to be given)" };
    let expected = format!("1 to {NODE_ID_BYTES_MAX} letters, digits and . _ -{what}");
    Err(fault("node_id", expected))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn toolchain(paths: Vec<String>) -> Checked<Vec<PathBuf>> {
    let is_clean = |path: &Path| {
        path.is_absolute()
            && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)))
            // `/` itself would show the whole host.
            && path.components().count() > 1
    };
    let paths: Vec<_> = paths.into_iter().map(PathBuf::from).collect();
    match paths.iter().find(|path| !is_clean(path)) {
        None if paths.len() <= TOOLCHAIN_PATHS_MAX => Ok(paths),
        None => Err(fault("toolchain", format!("at most {TOOLCHAIN_PATHS_MAX} paths"))),
        Some(path) => {
            let path = path.display();
            let expected = format!("absolute paths without `..`, none of them / (not `{path}`)");
            Err(fault("toolchain", expected))
        }
    }
}

pub(super) fn count<T: TryFrom<u64>>(
    key: &str,
    value: Count,
    range: RangeInclusive<u64>,
) -> Checked<T> {
    within(key, &range, &value.0)?;
    narrow(key, value.0)
}

fn size<T: TryFrom<u64>>(key: &str, value: Size, range: RangeInclusive<u64>) -> Checked<T> {
    within(key, &(Size(*range.start())..=Size(*range.end())), &value)?;
    narrow(key, value.0)
}

pub(super) fn period(
    key: &str,
    value: Period,
    range: RangeInclusive<Duration>,
) -> Checked<Duration> {
    within(key, &(Period(*range.start())..=Period(*range.end())), &value)?;
    Ok(value.0)
}

fn within<T: PartialOrd + Display>(key: &str, range: &RangeInclusive<T>, value: &T) -> Checked<()> {
    if range.contains(value) {
        return Ok(());
    }
    Err(fault(key, format!("{} to {}", range.start(), range.end())))
}

/// Into the kind of number that the part uses; the range was checked before, and is narrower on
/// every machine with 64 bits.
fn narrow<T: TryFrom<u64>>(key: &str, value: u64) -> Checked<T> {
    T::try_from(value).map_err(|_| fault(key, "a number that this machine can count to"))
}

pub(super) fn fault(key: &str, expected: impl Into<String>) -> Fault {
    Fault::new(expected).under(key)
}
