//! The numbers of a partition log, each in a type of its own so that none is passed for another.

use std::fmt;
use std::ops::{Add, Sub};

/// Position of a record in a partition: 0 for the first record ever written, +1 for each after it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Offset(pub i64);

impl Offset {
    /// The first offset of every log.
    pub const ZERO: Self = Self(0);
}

impl Add<i64> for Offset {
    type Output = Self;

    fn add(self, records: i64) -> Self {
        Self(self.0 + records)
    }
}

impl Sub for Offset {
    type Output = i64;

    fn sub(self, other: Self) -> i64 {
        self.0 - other.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reign of one leader over a partition; grows by at least one at every election (KIP-101).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LeaderEpoch(pub i32);

impl LeaderEpoch {
    /// "No epoch": what a batch carries before a leader has stamped it.
    pub const NONE: Self = Self(-1);
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
