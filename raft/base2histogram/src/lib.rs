//! Stands in for crates.io's `base2histogram`, which openraft keeps its internal statistics in.
//!
//! That crate builds tables for sixteen bucket widths, 26 MiB of them, on first use, of which openraft uses one. A node
//! is meant to be resident in 20 MiB. This one has the interface openraft calls and one bucket per power of two, so a
//! percentile is within a factor of two of the truth; nothing in this project reads them. To be dropped when the
//! original builds its tables on demand (`docs/adr/0002-openraft-0.10-alpha.md`).
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// One bucket for 0 and one for each power of two.
const BUCKETS: usize = u64::BITS as usize + 1;

/// Counts values by their magnitude. `T` is the original's slot data, which is not kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    slot: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Has counted nothing.
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            slot: PhantomData,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value as many times as `times` says.
    pub fn record_n(&mut self, value: u64, times: u64) {
        self.counts[bucket_of(value)] += times;
    }

    /// Percentiles of what was counted.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.counts.iter().sum(),
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }

    /// Least value of the bucket that holds the value at this rank.
    fn permille(&self, permille: u64) -> u64 {
        let samples: u64 = self.counts.iter().sum();
        let rank = (samples * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        reached.map_or(0, least_of)
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket_of(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

fn least_of(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        _ => 1 << (bucket - 1),
    }
}

/// Percentiles of a histogram: the value that this share of all values does not exceed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// 0.1 %.
    pub p0_1: u64,
    /// 1 %.
    pub p1: u64,
    /// 5 %.
    pub p5: u64,
    /// 10 %.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "n={} p50={} p90={} p99={} p99.9={}",
            self.samples, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Named histograms, printed one per line where the original draws them.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    rows: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// An empty chart.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more row.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows
            .iter()
            .try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_factor_of_two() {
        let mut histogram = Histogram::<()>::new();
        for value in 0..=1000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1001);
        for (found, truth) in [(stats.p10, 100), (stats.p50, 500), (stats.p99, 990)] {
            assert!(found <= truth && truth < found * 2, "{found} for {truth}");
        }
        histogram.record(u64::MAX);
        assert_eq!(Histogram::<()>::new().percentile_stats().p99, 0);
    }
}
