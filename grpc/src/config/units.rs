//! The kinds of value that a key can have, and how a person writes them. Must never know a key.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// CPUs above this number do not exist in Linux' own `cpu_set_t`.
pub(super) const CPU_MAX: usize = 1023;

/// A number of bytes: `65536`, `64KiB`, `1.5GiB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Size(pub(super) u64);

/// A length of time: `500ms`, `10m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Period(pub(super) Duration);

/// A whole number, zero or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub(super) u64);

/// A whole number, or `auto`, which is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AutoCount(pub(super) u64);

/// Which CPUs a part of the node runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CpuChoice {
    /// The node decides from what the machine has.
    Auto,
    /// These, ascending, each once, at least one.
    List(Vec<usize>),
}

/// Exactly, in the largest unit that needs no fraction.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A kind of value that is written as a text, and by some people as a bare number.
trait Written: Sized {
    const EXPECTED: &'static str;
    fn of_text(text: &str) -> Option<Self>;
    fn of_number(number: u64) -> Option<Self>;
}

impl Written for Size {
    const EXPECTED: &'static str = "a size: bytes, or a number with a unit, like 64MiB";

    fn of_text(text: &str) -> Option<Self> {
        ByteSize::from_str(text.trim()).ok().map(|size| Self(size.as_u64()))
    }

    fn of_number(number: u64) -> Option<Self> {
        Some(Self(number))
    }
}

impl Written for Period {
    const EXPECTED: &'static str = "a duration: a number with a unit, like 500ms, 30s or 10m";

    fn of_text(text: &str) -> Option<Self> {
        humantime::parse_duration(text.trim()).ok().map(Self)
    }

    fn of_number(number: u64) -> Option<Self> {
        // Seconds or milliseconds? Only nothing is the same in both.
        (number == 0).then_some(Self(Duration::ZERO))
    }
}

impl Written for Count {
    const EXPECTED: &'static str = "a whole number";

    fn of_text(text: &str) -> Option<Self> {
        text.trim().parse().ok().map(Self)
    }

    fn of_number(number: u64) -> Option<Self> {
        Some(Self(number))
    }
}

impl Written for AutoCount {
    const EXPECTED: &'static str = "auto or a whole number";

    fn of_text(text: &str) -> Option<Self> {
        if text == "auto" { Some(Self(0)) } else { text.trim().parse().ok().map(Self) }
    }

    fn of_number(number: u64) -> Option<Self> {
        Some(Self(number))
    }
}

impl Written for CpuChoice {
    const EXPECTED: &'static str = "auto or a list of CPUs, like 0,2-3";

    fn of_text(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().ok()?;
            let last: usize = last.trim().parse().ok()?;
            if first > last || last > CPU_MAX {
                return None;
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Some(Self::List(cpus))
    }

    fn of_number(number: u64) -> Option<Self> {
        let cpu = usize::try_from(number).ok().filter(|cpu| *cpu <= CPU_MAX)?;
        Some(Self::List(vec![cpu]))
    }
}

struct Reading<T>(PhantomData<T>);

impl<T: Written> Visitor<'_> for Reading<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::of_text(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::of_number(number)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading(PhantomData))
    }
}

impl<'de> Deserialize<'de> for AutoCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading(PhantomData))
    }
}

impl<'de> Deserialize<'de> for CpuChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading(PhantomData))
    }
}
