//! The time of day, as a value that is passed in: what expires is judged by a `Clock`, so that a test can choose the
//! hour. Timers are tokio's; nothing else reads the system's clock.
//!
//! What an agent does by the clock though nothing happens, it does at moments that are the same for all of it: it wakes a
//! processor once for all.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// tokio's timers lie in slots of 64 ms where they are further off than that, and one that isn't at a slot's beginning
/// wakes its thread twice: to be put into finer slots, and then.
const SLOT: Duration = Duration::from_millis(64);
/// How far apart the moments are.
pub const MOMENTS: Duration = SLOT.saturating_mul(8);

/// When the runtime's slots began.
static SLOTS: OnceLock<Instant> = OnceLock::new();

/// To be called just before the runtime is built, whose slots begin then.
pub fn slots_begin() {
    SLOTS.get_or_init(Instant::now);
}

/// The last of the moments that are no later than `span` from now, or the next: what is done every so often, for nobody
/// who waits, is done then.
#[must_use]
pub fn moment_in(span: Duration) -> Instant {
    multiple(SLOTS.get().copied(), Instant::now(), span, MOMENTS)
}

/// As [`moment_in`], but of the beginnings of slots.
#[must_use]
pub fn slot_in(span: Duration) -> Instant {
    multiple(SLOTS.get().copied(), Instant::now(), span, SLOT)
}

/// Where nobody said when the slots began, one time is as good as another.
fn multiple(origin: Option<Instant>, now: Instant, span: Duration, step: Duration) -> Instant {
    let Some(origin) = origin else { return now + span };
    let until = (now + span).saturating_duration_since(origin).as_nanos();
    let whole = until - until % step.as_nanos();
    let at = origin + Duration::from_nanos(u64::try_from(whole).unwrap_or(u64::MAX));
    if at > now { at } else { at + step }
}

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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_done_every_so_often_is_done_at_moments() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let next = |now, span, step| multiple(Some(origin), at(now), Duration::from_millis(span), step);
        assert_eq!(next(0, 512, MOMENTS), at(512));
        assert_eq!(next(513, 512, MOMENTS), at(1024), "late is not later each time");
        assert_eq!(next(511, 512, MOMENTS), at(512));
        assert_eq!(next(512, 511, MOMENTS), at(1024), "never at once");
        assert_eq!(next(1, 5000, MOMENTS), at(4608));
        assert_eq!(next(70, 256, SLOT), at(320));
        assert_eq!(multiple(None, at(70), SLOT, SLOT), at(134));
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_step_with_paused_timers() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::in_step_with_timers(start);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(clock.now().to_string(), "2026-01-01T01:00:00Z");
    }
}
