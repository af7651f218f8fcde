//! Medians and the table. Must need no server.

use super::*;
use crate::rows::select;

fn figures(value: f64, server_cpu: Option<f64>) -> Figures {
    Figures {
        ops: value,
        ops_per_s: value,
        p50_us: value,
        p90_us: value,
        p99_us: value,
        p999_us: value,
        max_us: value,
        mb_per_s: 0.0,
        client_cpu_us_per_op: value,
        server_cpu_us_per_op: server_cpu,
        server_cpu,
        server_rss_mib: server_cpu,
    }
}

fn cell(rounds: Vec<Figures>) -> Cell {
    let rows = select(&["capabilities".to_owned()]).unwrap();
    let mut cell = Cell { rounds, ..Cell::new(&rows[0], "node") };
    cell.settle();
    cell
}

#[test]
fn a_median_is_the_middle_of_its_values() {
    let table: [(&[f64], Option<f64>); 5] = [
        (&[], None),
        (&[4.0], Some(4.0)),
        (&[9.0, 1.0], Some(5.0)),
        (&[9.0, 1.0, 2.0], Some(2.0)),
        (&[4.0, 1.0, 3.0, 100.0], Some(3.5)),
    ];
    for (values, expect) in table {
        assert_eq!(median(values.iter().copied()), expect, "{values:?}");
    }
}

#[test]
fn numbers_have_three_digits() {
    let table = [
        (123_456.7, "123457"),
        (99.96, "100.0"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.000_12, "0.00012"),
        (0.0, "0.00000"),
    ];
    for (value, expect) in table {
        assert_eq!(number(value), expect);
    }
}

#[test]
fn cpu_is_divided_by_what_the_row_counts() {
    let digests = Unit::Micros { items: 100, name: "digest" };
    assert_eq!(in_unit(digests, 5_000.0, 10.0, 0.0), Some(5.0));
    assert_eq!(in_unit(Unit::SecondsPerGigabyte, 3e6, 10.0, 2e9), Some(1.5));
    assert_eq!(in_unit(Unit::SecondsPerGigabyte, 3e6, 10.0, 0.0), None);
    assert_eq!(in_unit(digests, 3e6, 0.0, 0.0), None);
}

#[test]
fn each_line_of_the_table_has_as_many_fields_as_its_head() {
    let failed = {
        let mut cell = cell(vec![figures(1.0, None)]);
        cell.failure = Some("no".to_owned());
        cell.settle();
        cell
    };
    let cells = [
        cell(vec![figures(1.0, Some(1.0)), figures(3.0, Some(5.0))]),
        cell(vec![figures(1.0, None)]),
        cell(Vec::new()),
        failed,
    ];
    let text = table(&cells);
    let widths: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
    assert_eq!(widths, [16; 6], "{text}");
    assert!(text.contains("| 3.00 µs/op | 1.00–5.00 |"), "{text}");
    assert!(text.contains("n/a") && text.contains("not run") && text.contains("failed"), "{text}");
}

#[test]
fn a_failed_row_has_no_median() {
    let mut cell = cell(vec![figures(1.0, None)]);
    assert!(cell.median.is_some());
    cell.failure = Some("no".to_owned());
    cell.settle();
    assert_eq!(cell.median, None);
}
