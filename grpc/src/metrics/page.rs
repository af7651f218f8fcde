//! One page of numbers while it is written. Must never hold two series of the same name and
//! labels, which is why every collector brings labels that tell its subject from others.

use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};
use std::collections::BTreeMap;

/// A name under which there may be many series, and what it means.
pub(crate) struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

/// A family of which a `T` is asked for its number.
pub(crate) type Number<T> = (Family, fn(&T) -> f64);

/// Something that only grows.
pub(crate) const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: MetricType::COUNTER }
}

/// Something that goes up and down.
pub(crate) const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: MetricType::GAUGE }
}

/// How many of what lies in which range.
pub(crate) const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: MetricType::HISTOGRAM }
}

/// The labels of one series: names and values.
pub(crate) type Labels<'a> = &'a [(&'static str, &'a str)];

/// How many of what was measured lies where.
#[derive(Debug, Default)]
pub(crate) struct Distribution {
    /// Upper bounds, and how many lie below each, those of smaller bounds included.
    pub(crate) buckets: Vec<(f64, u64)>,
    /// All of them.
    pub(crate) count: u64,
    /// The sum of all of them, in the family's unit.
    pub(crate) sum: f64,
}

/// The page.
#[derive(Default)]
pub(crate) struct Page {
    families: BTreeMap<&'static str, MetricFamily>,
}

impl Page {
    /// One number: of a counter or a gauge, as its family says.
    pub(crate) fn set(&mut self, family: &Family, labels: Labels<'_>, value: f64) {
        self.add(family, labels, |metric| match family.kind {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        });
    }

    /// Every number of `subject`.
    pub(crate) fn set_all<T>(&mut self, numbers: &[Number<T>], subject: &T, labels: Labels<'_>) {
        for (family, number) in numbers {
            self.set(family, labels, number(subject));
        }
    }

    /// What was measured.
    pub(crate) fn distribute(&mut self, family: &Family, labels: Labels<'_>, what: Distribution) {
        let buckets = what.buckets.into_iter().map(|(upper_bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(upper_bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(what.count);
        histogram.set_sample_sum(what.sum);
        self.add(family, labels, |metric| metric.set_histogram(histogram));
    }

    fn add(&mut self, family: &Family, labels: Labels<'_>, set: impl FnOnce(&mut Metric)) {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        set(&mut metric);
        let series = self.families.entry(family.name).or_insert_with(|| {
            let mut series = MetricFamily::default();
            series.set_name(family.name.to_owned());
            series.set_help(family.help.to_owned());
            series.set_field_type(family.kind);
            series
        });
        series.mut_metric().push(metric);
    }

    /// The page as text.
    ///
    /// # Errors
    /// A family that can't be written; none of ours.
    pub(crate) fn into_text(self) -> prometheus::Result<String> {
        let families: Vec<_> = self.families.into_values().collect();
        TextEncoder::new().encode_to_string(&families)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Family = counter("seen_total", "What was seen.");
    const TOOK: Family = histogram("took_seconds", "How long it took.");

    #[test]
    fn what_many_say_of_one_family_stands_together() {
        let mut page = Page::default();
        page.set(&SEEN, &[("by", "a")], 1.0);
        let buckets = vec![(0.5, 2), (1.0, 3)];
        page.distribute(&TOOK, &[], Distribution { buckets, count: 4, sum: 5.5 });
        page.set(&SEEN, &[("by", "b\"\n")], 2.0);
        let expected = "# HELP seen_total What was seen.\n# TYPE seen_total counter\n\
            seen_total{by=\"a\"} 1\nseen_total{by=\"b\\\"\\n\"} 2\n\
            # HELP took_seconds How long it took.\n# TYPE took_seconds histogram\n\
            took_seconds_bucket{le=\"0.5\"} 2\ntook_seconds_bucket{le=\"1\"} 3\n\
            took_seconds_bucket{le=\"+Inf\"} 4\ntook_seconds_sum 5.5\ntook_seconds_count 4\n";
        assert_eq!(page.into_text().unwrap(), expected);
    }
}
