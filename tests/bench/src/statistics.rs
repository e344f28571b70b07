//! What a handful of noisy samples allow one to say: medians, and how far they can be trusted. Plain functions.

use serde::Serialize;

/// How often the samples are drawn again.
const RESAMPLES: usize = 4_000;
/// Draws are the same in every run, so that the same samples always give the same interval.
const SEED: u64 = 0x5eed;

/// A median, and the interval that holds 95 % of the medians of samples drawn again (percentile bootstrap).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// How many samples there were.
    pub samples: usize,
}

impl Estimate {
    /// Of the samples; none where there are none, or one isn't a number.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let middle = median(samples)?;
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut drawn = vec![0.0; samples.len()];
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                drawn.fill_with(|| samples[random.usize(..samples.len())]);
                median(&drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Self {
            median: middle,
            low: quantile(&medians, 0.025)?,
            high: quantile(&medians, 0.975)?,
            samples: samples.len(),
        })
    }

    /// Half of the interval's width, as a part of the median: 0.05 is 5 % to either side.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median.abs()
    }
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The value below which that part of `sorted` lies, between two of them in proportion.
#[must_use]
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "a handful of samples")]
    let place = last as f64 * part.clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    let share = place - place.floor();
    Some(sorted[below] * (1.0 - share) + sorted[above] * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn quantiles_lie_between_samples_in_proportion() {
        let sorted = [0.0, 10.0, 20.0, 30.0, 40.0];
        assert_eq!(quantile(&sorted, 0.0), Some(0.0));
        assert_eq!(quantile(&sorted, 0.25), Some(10.0));
        assert_eq!(quantile(&sorted, 0.975), Some(39.0));
        assert_eq!(quantile(&sorted, 1.0), Some(40.0));
    }

    #[test]
    fn an_interval_holds_the_median_and_widens_with_noise() {
        let calm: Vec<f64> = (0..15).map(|sample| 100.0 + f64::from(sample % 3)).collect();
        let wild: Vec<f64> = (0..15).map(|sample| 100.0 + 20.0 * f64::from(sample % 3)).collect();
        let (calm, wild) = (Estimate::of(&calm).unwrap(), Estimate::of(&wild).unwrap());
        assert!(calm.low <= calm.median && calm.median <= calm.high, "{calm:?}");
        assert!(calm.spread() < 0.02, "{calm:?}");
        assert!(wild.spread() > 0.05, "{wild:?}");
    }

    #[test]
    fn one_outlier_of_fifteen_moves_nothing() {
        let mut samples = vec![1.0; 15];
        samples[7] = 50.0;
        let estimate = Estimate::of(&samples).unwrap();
        assert_eq!((estimate.median, estimate.low, estimate.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let samples = [5.0, 3.0, 8.0, 1.0, 9.0, 2.0];
        assert_eq!(Estimate::of(&samples), Estimate::of(&samples));
    }

    #[test]
    fn nothing_is_said_of_nothing_or_of_what_is_no_number() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, f64::NAN]), None);
    }
}
