//! Where a store may have a blob. Must never say which is the right one: that is the store's.

/// Where a blob may lie; it may lie in several at once, and each is checked by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A record of a segment.
    Segment,
    /// A file, 0444.
    Plain,
    /// Its twin, 0555.
    Executable,
}

impl Home {
    /// All of them, the cheapest to read first.
    pub(crate) const ALL: [Self; 3] = [Self::Segment, Self::Plain, Self::Executable];

    /// The file's home by its mode.
    pub(crate) const fn file(executable: bool) -> Self {
        if executable { Self::Executable } else { Self::Plain }
    }

    /// Its bit in a set of homes.
    pub(crate) const fn bit(self) -> u8 {
        1 << self as u8
    }
}
