//! The rows of the table: what is measured, under which load. Must hold no measuring.

use anyhow::{Result, bail};

/// Digests in one FindMissingBlobs.
pub(crate) const FIND_DIGESTS: usize = 10_000;
/// Blobs in one BatchUpdateBlobs or BatchReadBlobs.
pub(crate) const BATCH_BLOBS: usize = 100;
/// Length of each of them, in bytes.
pub(crate) const BATCH_BLOB_LEN: usize = 1024;
/// A small ByteStream blob, in bytes.
pub(crate) const SMALL_LEN: usize = 4 * 1024;
/// A large ByteStream blob, in bytes.
pub(crate) const LARGE_LEN: usize = 32 << 20;

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Capabilities,
    FindMissing { present: bool },
    BatchUpdate,
    BatchRead,
    StreamRead { len: usize },
    StreamWrite { len: usize },
    ActionHit { outputs: usize },
    Execute { inputs: usize },
}

/// What server CPU time is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Microseconds for one of the `items` that an operation holds.
    Micros { items: u32, name: &'static str },
    /// Seconds for 10^9 bytes of payload.
    SecondsPerGigabyte,
}

/// One row of the table, and the load it is measured under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub name: &'static str,
    pub kind: Kind,
    /// Requests in flight on each connection.
    pub streams: u32,
    pub connections: u32,
    /// Operations of one round, at most: it bounds the data that a round writes.
    pub ops_max: u64,
    pub unit: Unit,
}

const ENDLESS: u64 = u64::MAX;

const fn per(items: u32, name: &'static str) -> Unit {
    Unit::Micros { items, name }
}

const fn row(name: &'static str, kind: Kind, load: (u32, u32), ops_max: u64, unit: Unit) -> Row {
    Row { name, kind, streams: load.0, connections: load.1, ops_max, unit }
}

/// All rows. A load is (streams on each connection, connections). Rows that write come last, so
/// that what the kernel still has to write back disturbs few others.
pub(crate) const ROWS: [Row; 15] = [
    row("capabilities", Kind::Capabilities, (1, 1), ENDLESS, per(1, "op")),
    row(
        "find_missing_absent",
        Kind::FindMissing { present: false },
        (2, 2),
        ENDLESS,
        per(10_000, "digest"),
    ),
    row(
        "find_missing_present",
        Kind::FindMissing { present: true },
        (2, 2),
        ENDLESS,
        per(10_000, "digest"),
    ),
    row("batch_read_100x1k", Kind::BatchRead, (4, 2), ENDLESS, per(100, "blob")),
    row("stream_read_4k", Kind::StreamRead { len: SMALL_LEN }, (16, 2), ENDLESS, per(1, "op")),
    row(
        "stream_read_32m",
        Kind::StreamRead { len: LARGE_LEN },
        (1, 1),
        ENDLESS,
        Unit::SecondsPerGigabyte,
    ),
    row("action_hit_1", Kind::ActionHit { outputs: 1 }, (16, 2), ENDLESS, per(1, "op")),
    row("action_hit_10", Kind::ActionHit { outputs: 10 }, (16, 2), ENDLESS, per(1, "op")),
    row("true_1_input", Kind::Execute { inputs: 1 }, (1, 1), 1_000, per(1, "action")),
    row("true_1_input_x8", Kind::Execute { inputs: 1 }, (8, 1), 4_000, per(1, "action")),
    row("true_1000_inputs", Kind::Execute { inputs: 1_000 }, (1, 1), 200, per(1, "action")),
    row("true_1000_inputs_x8", Kind::Execute { inputs: 1_000 }, (8, 1), 400, per(1, "action")),
    row("batch_update_100x1k", Kind::BatchUpdate, (4, 2), 2_000, per(100, "blob")),
    row("stream_write_4k", Kind::StreamWrite { len: SMALL_LEN }, (16, 2), 20_000, per(1, "op")),
    row(
        "stream_write_32m",
        Kind::StreamWrite { len: LARGE_LEN },
        (1, 1),
        16,
        Unit::SecondsPerGigabyte,
    ),
];

/// The rows whose name begins with one of `prefixes`, in the table's order; all for none.
pub(crate) fn select(prefixes: &[String]) -> Result<Vec<Row>> {
    for prefix in prefixes {
        if !ROWS.iter().any(|row| row.name.starts_with(prefix.as_str())) {
            let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            bail!("no row begins with '{prefix}'; there are {}", names.join(", "));
        }
    }
    let wanted = |row: &Row| {
        prefixes.is_empty() || prefixes.iter().any(|prefix| row.name.starts_with(prefix.as_str()))
    };
    Ok(ROWS.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prefixes: &[&str], expect: &[&str]) {
        let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let names: Vec<&str> = select(&prefixes).unwrap().iter().map(|row| row.name).collect();
        assert_eq!(names, expect, "{prefixes:?}");
    }

    #[test]
    fn rows_are_chosen_by_the_beginning_of_their_names() {
        check(&["find"], &["find_missing_absent", "find_missing_present"]);
        check(
            &["stream_write", "action_hit_10"],
            &["action_hit_10", "stream_write_4k", "stream_write_32m"],
        );
        assert_eq!(select(&[]).unwrap().len(), ROWS.len());
    }

    #[test]
    fn an_unknown_row_is_an_error_that_names_the_known_ones() {
        let error = select(&["fund".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("fund") && error.contains("find_missing_absent"), "{error}");
    }

    #[test]
    fn names_differ_and_rows_that_write_are_bounded() {
        for (at, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..at].iter().all(|other| other.name != row.name), "{}", row.name);
            let writes = matches!(
                row.kind,
                Kind::BatchUpdate | Kind::StreamWrite { .. } | Kind::Execute { .. }
            );
            assert_eq!(writes, row.ops_max != ENDLESS, "{}", row.name);
        }
    }
}
