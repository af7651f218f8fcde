//! From rounds to one line a row: medians, a Markdown table, JSON. Must print no figure that was
//! not measured: what is absent is shown as absent.

use std::fmt::Write as _;

use serde::Serialize;

use crate::rows::{Row, Unit};

/// One round of one row on one server. Latencies and CPU times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figures {
    pub ops: f64,
    pub ops_per_s: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Payload read or written, in 10^6 bytes a second.
    pub mb_per_s: f64,
    pub client_cpu_us_per_op: f64,
    /// Absent without the server's process id.
    pub server_cpu_us_per_op: Option<f64>,
    /// In the row's own unit: see `cpu_unit`.
    pub server_cpu: Option<f64>,
    /// Resident memory of the server when the round ended, in MiB.
    pub server_rss_mib: Option<f64>,
}

/// All rounds of one row on one server.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    pub row: &'static str,
    pub target: String,
    pub streams: u32,
    pub connections: u32,
    pub cpu_unit: String,
    pub rounds: Vec<Figures>,
    /// Why the row was given up; its rounds do not count then.
    pub failure: Option<String>,
    pub median: Option<Figures>,
}

impl Cell {
    /// A row that has not run.
    pub(crate) fn new(row: &Row, target: &str) -> Self {
        Self {
            row: row.name,
            target: target.to_owned(),
            streams: row.streams,
            connections: row.connections,
            cpu_unit: unit_name(row.unit),
            rounds: Vec::new(),
            failure: None,
            median: None,
        }
    }

    /// Fills in the median of each figure over the rounds, unless the row failed.
    pub(crate) fn settle(&mut self) {
        self.median = if self.failure.is_none() { median_of(&self.rounds) } else { None };
    }
}

/// What server CPU is measured in.
pub(crate) fn unit_name(unit: Unit) -> String {
    match unit {
        Unit::Micros { name, .. } => format!("µs/{name}"),
        Unit::SecondsPerGigabyte => "s/GB".to_owned(),
    }
}

/// Server CPU of a round in the row's unit, from microseconds for all of its operations.
pub(crate) fn in_unit(unit: Unit, total_us: f64, ops: f64, bytes: f64) -> Option<f64> {
    let (amount, of) = match unit {
        Unit::Micros { items, .. } => (total_us, ops * f64::from(items)),
        Unit::SecondsPerGigabyte => (total_us / 1e6, bytes / 1e9),
    };
    (of > 0.0).then(|| amount / of)
}

/// The middle one; of an even number the mean of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The median of each figure by itself.
fn median_of(rounds: &[Figures]) -> Option<Figures> {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure));
    // A figure that some round lacks has no median.
    let of_all = |figure: fn(&Figures) -> Option<f64>| {
        let values: Option<Vec<f64>> = rounds.iter().map(figure).collect();
        median(values?.into_iter())
    };
    Some(Figures {
        ops: of(|one| one.ops)?,
        ops_per_s: of(|one| one.ops_per_s)?,
        p50_us: of(|one| one.p50_us)?,
        p90_us: of(|one| one.p90_us)?,
        p99_us: of(|one| one.p99_us)?,
        p999_us: of(|one| one.p999_us)?,
        max_us: of(|one| one.max_us)?,
        mb_per_s: of(|one| one.mb_per_s)?,
        client_cpu_us_per_op: of(|one| one.client_cpu_us_per_op)?,
        server_cpu_us_per_op: of_all(|one| one.server_cpu_us_per_op),
        server_cpu: of_all(|one| one.server_cpu),
        server_rss_mib: of_all(|one| one.server_rss_mib),
    })
}

/// The Markdown table, one line a cell.
pub(crate) fn table(cells: &[Cell]) -> String {
    const HEAD: &str = "\
| row | server | streams×conns | ops/s | p50 µs | p90 | p99 | p99.9 | max | server CPU | min–max \
| server CPU µs/op | MB/s | client CPU µs/op | RSS MiB |\n\
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    let mut out = HEAD.to_owned();
    for cell in cells {
        let load = format!("{}×{}", cell.streams, cell.connections);
        let start = format!("| {} | {} | {load} |", cell.row, cell.target);
        let rest = match (&cell.median, &cell.failure) {
            (Some(median), _) => line(cell, median),
            (None, Some(_)) => format!("failed{}", " |".repeat(12)),
            (None, None) => format!("not run{}", " |".repeat(12)),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{start} {rest}");
    }
    out
}

fn line(cell: &Cell, median: &Figures) -> String {
    let cpu = median.server_cpu.map(|cpu| format!("{} {}", number(cpu), cell.cpu_unit));
    let all: Vec<f64> = cell.rounds.iter().filter_map(|round| round.server_cpu).collect();
    let range = all.iter().copied().reduce(f64::min).zip(all.iter().copied().reduce(f64::max));
    let mut fields = vec![
        number(median.ops_per_s),
        number(median.p50_us),
        number(median.p90_us),
        number(median.p99_us),
        number(median.p999_us),
        number(median.max_us),
    ];
    let absent = || "n/a".to_owned();
    fields.push(cpu.unwrap_or_else(absent));
    fields
        .push(range.map_or_else(absent, |(low, high)| format!("{}–{}", number(low), number(high))));
    fields.push(median.server_cpu_us_per_op.map_or_else(absent, number));
    fields.push(if median.mb_per_s > 0.0 { number(median.mb_per_s) } else { "–".to_owned() });
    fields.push(number(median.client_cpu_us_per_op));
    fields.push(median.server_rss_mib.map_or_else(absent, number));
    format!("{} |", fields.join(" | "))
}

/// Three significant digits, without an exponent.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 1.0 => 2,
        tiny if tiny >= 0.001 => 3,
        _ => 5,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
