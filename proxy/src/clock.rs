//! The time of day, as a value that is passed in: what expires is judged by a `Clock`, so that a test can choose the
//! hour. Timers are tokio's; nothing else reads the system's clock.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Says what time it is.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that says what it is told, for tests.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn of(says: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(says))
    }

    /// A clock that shows `start` now and from then on keeps step with tokio's timers, also while these are paused.
    #[must_use]
    pub fn in_step_with_timers(start: Timestamp) -> Self {
        let origin = Instant::now();
        Self(Arc::new(move || {
            SignedDuration::try_from(origin.elapsed())
                .ok()
                .and_then(|elapsed| start.checked_add(elapsed).ok())
                .unwrap_or(Timestamp::MAX)
        }))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keeps_step_with_paused_timers() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::in_step_with_timers(start);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(clock.now().to_string(), "2026-01-01T01:00:00Z");
    }
}
