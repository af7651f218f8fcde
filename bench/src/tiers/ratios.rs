//! Figures of two sides, round by round, and how they compare. Must compare within a round only:
//! what disturbed one round disturbed both sides of it.

use std::fmt::Write as _;

use crate::report::{median, number};

/// Which of two things a figure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What it is compared with: the other server itself, or the normal state.
    Reference,
    /// What is judged.
    Measured,
}

/// All figures, in the order in which they first came.
#[derive(Default)]
pub(super) struct Ratios {
    lines: Vec<Line>,
}

#[derive(Default)]
struct Line {
    name: String,
    reference: Vec<f64>,
    measured: Vec<f64>,
}

impl Ratios {
    /// One figure of one round.
    pub(super) fn add(&mut self, name: String, side: Side, value: f64) {
        let known = self.lines.iter().position(|line| line.name == name);
        let at = known.unwrap_or_else(|| {
            self.lines.push(Line { name, ..Line::default() });
            self.lines.len() - 1
        });
        match side {
            Side::Reference => self.lines[at].reference.push(value),
            Side::Measured => self.lines[at].measured.push(value),
        }
    }

    /// A Markdown table: medians of both sides, and of the rounds' ratios.
    pub(super) fn table(&self) -> String {
        let mut out = "| figure | reference | measured | ratio | min–max |\n\
            |---|---:|---:|---:|---:|\n"
            .to_owned();
        for Line { name, reference, measured } in &self.lines {
            let rounds = reference.iter().zip(measured);
            let ratios: Vec<f64> =
                rounds.map(|(reference, measured)| measured / reference).collect();
            let low = ratios.iter().copied().reduce(f64::min);
            let high = ratios.iter().copied().reduce(f64::max);
            let figures = [
                median(reference.iter().copied()),
                median(measured.iter().copied()),
                median(ratios.iter().copied()),
                low,
                high,
            ];
            let [reference, measured, ratio, low, high] =
                figures.map(|figure| figure.map_or_else(|| "n/a".to_owned(), number));
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| {name} | {reference} | {measured} | {ratio} | {low}–{high} |");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_the_two_sides_of_one_round() {
        let mut ratios = Ratios::default();
        for (reference, measured) in [(1.0, 2.0), (10.0, 30.0), (100.0, 50.0)] {
            ratios.add("a".to_owned(), Side::Reference, reference);
            ratios.add("a".to_owned(), Side::Measured, measured);
        }
        let table = ratios.table();
        assert!(table.ends_with("| a | 10.0 | 30.0 | 2.00 | 0.500–3.00 |\n"), "{table}");
    }

    #[test]
    fn a_side_that_was_not_measured_has_no_figure() {
        let mut ratios = Ratios::default();
        ratios.add("a".to_owned(), Side::Reference, 1.0);
        let table = ratios.table();
        assert!(table.ends_with("| a | 1.00 | n/a | n/a | n/a–n/a |\n"), "{table}");
    }
}
