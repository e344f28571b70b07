//! How long to wait before the same is done again, so that no two agents do it at the same moment.

use std::{ops::Range, time::Duration};

/// Longer and longer waits, none of which two agents share.
#[derive(Debug)]
pub struct Backoff {
    from: Duration,
    at_most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits [`around`] the first bound, then twice that, up to the second.
    #[must_use]
    pub fn new(bounds: Range<Duration>) -> Self {
        Self {
            from: bounds.start,
            at_most: bounds.end,
            next: bounds.start,
        }
    }

    /// How long to wait this time.
    pub fn wait(&mut self) -> Duration {
        let wait = around(self.next);
        self.next = (self.next * 2).min(self.at_most);
        wait
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.next = self.from;
    }
}

/// Between nothing and `most`.
#[must_use]
pub fn within(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

/// Between half of `wait` and all of it.
#[must_use]
pub fn up_to(wait: Duration) -> Duration {
    wait / 2 + within(wait / 2)
}

/// Between half of `wait` and three halves.
#[must_use]
pub fn around(wait: Duration) -> Duration {
    wait / 2 + within(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_again() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1)..seconds(8));
        for expected in [1, 2, 4, 8, 8] {
            let wait = backoff.wait();
            let bounds = seconds(expected) / 2..=seconds(expected) * 3 / 2;
            assert!(bounds.contains(&wait), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= seconds(3) / 2);
    }

    #[test]
    fn waits_are_spread_within_their_bounds() {
        let wait = Duration::from_secs(8);
        for _ in 0..1000 {
            assert!(within(wait) <= wait);
            assert!((wait / 2..=wait).contains(&up_to(wait)));
            assert!((wait / 2..=wait * 3 / 2).contains(&around(wait)));
        }
    }
}
