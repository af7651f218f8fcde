//! The text format of Prometheus, read as strictly as it is written down. Must never take what a
//! scraper would refuse.

use std::collections::{BTreeMap, BTreeSet};

/// A family: what its HELP and TYPE say, and the names of its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) labels: BTreeSet<String>,
}

/// A page, well-formed.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) families: BTreeMap<String, Family>,
    /// By name and labels, as they are written.
    pub(crate) series: BTreeMap<String, f64>,
}

impl Page {
    /// Reads a page.
    ///
    /// # Panics
    /// Where it is not one.
    pub(crate) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        // The family whose samples may follow.
        let mut current = String::new();
        let mut helped = None;
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("HELP says something");
                assert!(helped.is_none(), "two HELPs: {line}");
                helped = Some((name.to_owned(), help.to_owned()));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("TYPE says something");
                let (of, help) = helped.take().expect("HELP before TYPE");
                assert_eq!(of, name);
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(is_name(name) && name.starts_with("ringforge_"), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                let family = Family { kind: kind.to_owned(), help, labels: BTreeSet::new() };
                let before = page.families.insert(name.to_owned(), family);
                assert!(before.is_none(), "{name} is described twice");
                current = name.to_owned();
            } else {
                assert!(helped.is_none(), "TYPE after HELP: {line}");
                page.sample(&current, line);
            }
        }
        page.check_histograms();
        page
    }

    fn sample(&mut self, current: &str, line: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let value: f64 = value.parse().expect("a number");
        assert!(value >= 0.0, "{line}");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("labels end")),
            None => (series, ""),
        };
        let family = self.families.get_mut(current).expect("TYPE before samples");
        let parts = ["_bucket", "_sum", "_count"];
        let fits = match family.kind.as_str() {
            "histogram" => parts.iter().any(|part| name.strip_suffix(part) == Some(current)),
            _ => name == current,
        };
        assert!(fits, "{line} under {current}");
        for label in labels.split_terminator(',') {
            let (label, value) = label.split_once('=').expect("NAME=VALUE");
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let plain = value.is_some_and(|value| !value.contains(['"', '\\']));
            assert!(is_name(label) && plain, "{line}");
            if label != "le" {
                family.labels.insert(label.to_owned());
            }
        }
        assert!(self.series.insert(series.to_owned(), value).is_none(), "twice: {series}");
    }

    /// Each histogram's ranges grow, and the last one holds all.
    fn check_histograms(&self) {
        let kinds = self.families.iter().filter(|(_, family)| family.kind == "histogram");
        for (name, _) in kinds {
            let counts = self.series.iter().filter_map(|(series, count)| {
                Some((series.strip_prefix(name)?.strip_prefix("_count")?, count))
            });
            for (labels, count) in counts {
                let inside = labels.trim_matches(['{', '}']);
                let of = format!(
                    "{name}_bucket{{{inside}{}le=\"",
                    [",", ""][usize::from(inside.is_empty())]
                );
                let mut ranges: Vec<(f64, f64)> = self
                    .series
                    .iter()
                    .filter_map(|(series, below)| Some((series.strip_prefix(&of)?, *below)))
                    .map(|(bound, below)| (bound.trim_end_matches("\"}").parse().unwrap(), below))
                    .collect();
                ranges.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(ranges.is_sorted_by(|a, b| a.1 <= b.1), "{name}{labels}");
                assert_eq!(ranges.last(), Some(&(f64::INFINITY, *count)), "{name}{labels}");
            }
        }
    }

    /// One series.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// The sum of all series of a family of counters or gauges.
    pub(crate) fn sum(&self, family: &str) -> f64 {
        let of = |series: &str| series.split('{').next() == Some(family);
        self.series.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}
