//! How long many things took, in few numbers.

use std::time::Duration;

use serde::Serialize;

/// The percentiles of many durations, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50_us: f64,
    /// The 90th percentile.
    pub p90_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// Durations as they come.
#[derive(Debug, Clone, Default)]
pub struct Durations(Vec<u64>);

impl Durations {
    /// Takes one down.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes another's.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What they come to; none of none.
    #[must_use]
    pub fn percentiles(mut self) -> Option<Percentiles> {
        self.0.sort_unstable();
        Some(Percentiles {
            p50_us: self.rank(500)?,
            p90_us: self.rank(900)?,
            p99_us: self.rank(990)?,
            p999_us: self.rank(999)?,
            max_us: self.rank(1000)?,
        })
    }

    /// The smallest that so many of a thousand don't exceed.
    fn rank(&self, thousandths: usize) -> Option<f64> {
        let rank = (self.0.len() * thousandths).div_ceil(1000).max(1);
        // Tenths of a microsecond are more than any of it is good for.
        let tenths = u32::try_from(self.0.get(rank - 1)? / 100).unwrap_or(u32::MAX);
        Some(f64::from(tenths) / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut durations = Durations::default();
        for microseconds in (1..=1000).rev() {
            durations.push(Duration::from_micros(microseconds));
        }
        let found = durations.percentiles().unwrap();
        let found = [found.p50_us, found.p90_us, found.p99_us, found.p999_us, found.max_us];
        for (found, wanted) in found.into_iter().zip([500.0, 900.0, 990.0, 999.0, 1000.0]) {
            assert!((found - wanted).abs() < 1e-9, "{found} in place of {wanted}");
        }
    }

    #[test]
    fn one_is_every_percentile_and_none_is_none() {
        let mut durations = Durations::default();
        assert!(durations.clone().percentiles().is_none());
        durations.push(Duration::from_micros(7));
        let found = durations.percentiles().unwrap();
        assert!((found.p50_us - found.max_us).abs() < f64::EPSILON);
    }
}
