//! How lengths of time are spread: counts by length, which cost a request one addition, and what can be said of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What counts are kept of: up to so many microseconds, and the rest.
const BOUNDS: [u64; 12] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000, 10_000_000,
];

/// Counts of lengths of time.
#[derive(Debug, Default)]
pub struct Spread([AtomicU64; BOUNDS.len() + 1]);

/// How many were no longer than this, and longer than the bucket before says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    /// In microseconds; nothing is however long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<u64>,
    /// How many.
    pub count: u64,
}

impl Spread {
    /// Counts one.
    pub fn count(&self, length: Duration) {
        let micros = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.0.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted; nothing where that is nothing.
    #[must_use]
    pub fn buckets(&self) -> Vec<Bucket> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        let bounds = BOUNDS.into_iter().map(Some).chain([None]);
        let buckets: Vec<Bucket> = bounds
            .zip(counts)
            .map(|(up_to, count)| Bucket { up_to, count })
            .collect();
        if buckets.iter().all(|bucket| bucket.count == 0) {
            return Vec::new();
        }
        buckets
    }
}

/// The length that so many of a hundred stay below, as Prometheus reckons it: evenly within a bucket, and of those beyond
/// the last bound, that bound. Nothing of nothing.
#[must_use]
pub fn percentile(buckets: &[Bucket], percent: u64) -> Option<Duration> {
    let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    let rank = (total * percent).div_ceil(100).max(1);
    let (mut seen, mut from) = (0, 0);
    for bucket in buckets {
        let up_to = bucket.up_to.unwrap_or(from);
        if bucket.count > 0 && seen + bucket.count >= rank {
            return Some(Duration::from_micros(
                from + (up_to - from) * (rank - seen) / bucket.count,
            ));
        }
        seen += bucket.count;
        from = up_to;
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, Some(50))]
    #[case(50, Some(50))]
    #[case(51, Some(100))]
    #[case(10_000_000, Some(10_000_000))]
    #[case(10_000_001, None)]
    fn each_has_its_bucket(#[case] micros: u64, #[case] up_to: Option<u64>) {
        let spread = Spread::default();
        assert!(spread.buckets().is_empty());
        spread.count(Duration::from_micros(micros));
        let found = spread.buckets().into_iter().find(|bucket| bucket.count > 0);
        assert_eq!(found, Some(Bucket { up_to, count: 1 }));
    }

    #[rstest]
    #[case(&[], 50, None)]
    #[case(&[(Some(100), 0)], 50, None)]
    #[case(&[(Some(100), 2)], 50, Some(50))]
    #[case(&[(Some(100), 98), (Some(500), 2)], 50, Some(50))]
    #[case(&[(Some(100), 98), (Some(500), 2)], 99, Some(300))]
    #[case(&[(Some(100), 1), (None, 9)], 99, Some(100))]
    fn percentiles(#[case] counts: &[(Option<u64>, u64)], #[case] percent: u64, #[case] micros: Option<u64>) {
        let bucket = |(up_to, count): &(Option<u64>, u64)| Bucket {
            up_to: *up_to,
            count: *count,
        };
        let buckets: Vec<Bucket> = counts.iter().map(bucket).collect();
        // Half of 98 and 2 is the 50th of 98 in the first hundred microseconds.
        let expected = micros.map(Duration::from_micros);
        let found = percentile(&buckets, percent);
        let near = |one: Duration, other: Duration| one.abs_diff(other) <= Duration::from_micros(1);
        assert!(
            found == expected || found.zip(expected).is_some_and(|(one, other)| near(one, other)),
            "{found:?}"
        );
    }
}
