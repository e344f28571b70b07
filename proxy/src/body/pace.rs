//! How fast an upload has to come. Only the time counts in which the client is waited for: one whose upstream is slow to
//! take it isn't behind.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::Limits;

/// An upload's pace.
pub struct Pace {
    /// Bytes a second, one at least.
    rate: u32,
    /// How far it may be behind at most.
    most: Duration,
    /// How far it may be behind now.
    left: Duration,
    /// When it was begun to be waited for.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// The pace that the limits ask for, if they do.
    #[must_use]
    pub fn of(limits: &Limits) -> Option<Self> {
        (limits.min_body_rate > 0).then(|| Self {
            rate: limits.min_body_rate,
            most: limits.header_timeout,
            left: limits.header_timeout,
            since: None,
            timer: None,
        })
    }

    /// Nothing has come, and something is waited for. Ready when that has been for too long.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let until = since + self.left;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(())
    }

    /// So many bytes came.
    pub fn came(&mut self, bytes: usize) {
        let waited = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let earned = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / u64::from(self.rate));
        self.left = (self.left.saturating_sub(waited) + earned).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{sleep, timeout};

    use super::*;

    fn pace() -> Pace {
        let limits = Limits {
            header_timeout: Duration::from_secs(10),
            min_body_rate: 100,
            ..Limits::default()
        };
        Pace::of(&limits).unwrap()
    }

    async fn waits(pace: &mut Pace, seconds: u64) -> bool {
        timeout(Duration::from_secs(seconds), poll_fn(|cx| pace.poll_lost(cx)))
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_the_pace_is_never_late_and_who_does_not_is() {
        let mut pace = pace();
        for _ in 0..100 {
            assert!(waits(&mut pace, 2).await);
            pace.came(200);
        }
        let mut bytes = 0;
        while waits(&mut pace, 2).await {
            pace.came(1);
            bytes += 1;
        }
        assert_eq!(bytes, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_is_asked_for_does_not_count() {
        let mut pace = pace();
        for _ in 0..10 {
            assert!(waits(&mut pace, 1).await);
            pace.came(100);
            sleep(Duration::from_mins(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn much_at_once_earns_no_more_than_there_was_at_first() {
        let mut pace = pace();
        pace.came(1 << 30);
        assert!(waits(&mut pace, 9).await);
        assert!(!waits(&mut pace, 2).await);
    }
}
