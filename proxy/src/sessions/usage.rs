//! When a session was last used, and for how long it has gone unused.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::spread::{Bucket, Spread};
use crate::clock::Clock;

/// A session's use on this node. It is the session's own, whoever it acts as meanwhile, and goes on when the session
/// acts otherwise or isn't in force.
#[derive(Debug)]
pub struct Usage {
    counted: Mutex<Counted>,
    /// Requests that were answered with 400 or above.
    failures: AtomicU64,
    /// What the agent added to requests before the API server had them.
    added: Spread,
}

#[derive(Debug)]
struct Counted {
    open: usize,
    /// Requests that have come so far.
    requests: u64,
    /// When the session came into force here.
    since: Timestamp,
    /// When it was last used or, before that, came into force.
    last: Timestamp,
    /// Since when it is unused, by the time of day and by a clock that doesn't jump, and how long it already was then.
    unused: Timestamp,
    from: Instant,
    already: Duration,
}

/// Something open under a session: a request, a stream. Dropping it ends it.
#[derive(Debug)]
pub struct Open {
    usage: Arc<Usage>,
    clock: Clock,
}

impl Usage {
    /// A session that comes into force `now`, and of which its source says when it was last used or, before that, came
    /// into force. What can't be yet is taken for not said.
    #[must_use]
    pub fn starting(now: Timestamp, last: Option<Timestamp>) -> Arc<Self> {
        let unused = last.filter(|last| *last <= now).unwrap_or(now);
        let counted = Mutex::new(Counted {
            open: 0,
            requests: 0,
            since: now,
            last: unused,
            unused,
            from: Instant::now(),
            already: between(unused, now),
        });
        Arc::new(Self {
            counted,
            failures: AtomicU64::new(0),
            added: Spread::default(),
        })
    }

    /// Something comes under the session.
    #[must_use]
    pub fn open(self: &Arc<Self>, clock: &Clock) -> Open {
        let mut counted = self.counted();
        counted.open += 1;
        counted.requests += 1;
        counted.used(clock.now());
        drop(counted);
        Open {
            usage: Arc::clone(self),
            clock: clock.clone(),
        }
    }

    /// It was used at `last`, as its source says: on another node.
    pub fn heard(&self, now: Timestamp, last: Timestamp) {
        let mut counted = self.counted();
        if last <= now && last > counted.unused {
            counted.unused = last;
            counted.from = Instant::now();
            counted.already = between(last, now);
        }
    }

    /// How long it has gone unused; zero while anything is open. Of the time of day and the timers' clock the one that
    /// says more counts: setting the time back doesn't lengthen a session, nor does a machine that slept.
    #[must_use]
    pub fn idle_for(&self, now: Timestamp) -> Duration {
        let counted = self.counted();
        if counted.open > 0 {
            return Duration::ZERO;
        }
        (counted.already.saturating_add(counted.from.elapsed())).max(between(counted.unused, now))
    }

    /// How much is open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counted().open
    }

    /// Requests that have come under it since this agent has known of it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counted().requests
    }

    /// Those of them that were answered with 400 or above, by whomever.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// What the agent added to those that it handed on.
    #[must_use]
    pub fn added(&self) -> Vec<Bucket> {
        self.added.buckets()
    }

    /// Since when this agent has known of it.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.counted().since
    }

    /// When something last came or ended or, before that, when it came into force: an agent that starts anew goes on from
    /// there with a session that was never used, too. While something is open under a session that may go idle, an hour hand that
    /// goes on in steps of a quarter of `idle_timeout`: whoever starts after us counts from there.
    #[must_use]
    pub fn last_used(&self, now: Timestamp, idle_timeout: Option<Duration>) -> Timestamp {
        let counted = self.counted();
        let step = idle_timeout.map_or(0, |timeout| (timeout / 4).as_secs().cast_signed());
        if counted.open == 0 || step == 0 {
            return counted.last;
        }
        let stepped = Timestamp::from_second(now.as_second() - now.as_second().rem_euclid(step));
        counted.last.max(stepped.unwrap_or(counted.last))
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Numbers can't be left half-written.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// It was answered with 400 or above.
    pub fn failed(&self) {
        self.usage.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The agent took so long before the API server had it.
    pub fn added(&self, latency: Duration) {
        self.usage.added.count(latency);
    }
}

impl Counted {
    fn used(&mut self, now: Timestamp) {
        self.last = now;
        self.unused = now;
        self.from = Instant::now();
        self.already = Duration::ZERO;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counted = self.usage.counted();
        counted.open = counted.open.saturating_sub(1);
        counted.used(self.clock.now());
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    let between: SignedDuration = later.duration_since(earlier);
    Duration::try_from(between).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use understudy_cases::{Area, seen};

    use super::*;

    const START: &str = "2026-01-01T00:00:00Z";

    fn start() -> Timestamp {
        START.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_is_not_idle() {
        let clock = Clock::in_step_with_timers(start());
        let usage = Usage::starting(clock.now(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(usage.idle_for(clock.now()), Duration::from_secs(5));
        assert_eq!(usage.last_used(clock.now(), None), start());
        let (one, other) = (usage.open(&clock), usage.open(&clock));
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(one);
        assert_eq!((usage.idle_for(clock.now()), usage.connections()), (Duration::ZERO, 1));
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(other);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(
            (usage.idle_for(clock.now()), usage.connections()),
            (Duration::from_secs(2), 0)
        );
        assert_eq!(usage.last_used(clock.now(), None), start() + Duration::from_secs(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_does_not_renew() {
        let clock = Clock::in_step_with_timers(start());
        let last = start() - Duration::from_mins(10);
        let usage = Usage::starting(clock.now(), Some(last));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(usage.idle_for(clock.now()), Duration::from_mins(11));
        // Another node's word, but not a word from the future.
        usage.heard(clock.now(), clock.now() - Duration::from_mins(5));
        assert_eq!(usage.idle_for(clock.now()), Duration::from_mins(5));
        usage.heard(clock.now(), clock.now() + Duration::from_mins(5));
        assert_eq!(usage.idle_for(clock.now()), Duration::from_mins(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_does_not_renew_what_was_never_used() {
        let clock = Clock::in_step_with_timers(start());
        let first = Usage::starting(clock.now(), None);
        tokio::time::advance(Duration::from_mins(10)).await;
        let reported = first.last_used(clock.now(), Some(Duration::from_hours(1)));
        let again = Usage::starting(clock.now(), Some(reported));
        assert_eq!(again.idle_for(clock.now()), Duration::from_mins(10));
    }

    /// Invariant 5.
    #[tokio::test(start_paused = true)]
    async fn no_jump_of_the_clock_lengthens() {
        let now = Arc::new(AtomicI64::new(start().as_second()));
        let usage = Usage::starting(start(), None);
        tokio::time::advance(Duration::from_mins(5)).await;
        now.fetch_sub(3600, Ordering::SeqCst);
        let set_back = Timestamp::from_second(now.load(Ordering::SeqCst)).unwrap();
        let idle = usage.idle_for(set_back);
        assert_eq!(idle, Duration::from_mins(5));
        // A machine that slept: its timers stood still.
        let slept = usage.idle_for(start() + Duration::from_hours(1));
        assert_eq!(slept, Duration::from_hours(1));
        seen(
            Area::Faults,
            "The clock jumps: five minutes unused, then set back an hour; asleep for an hour",
            format!(
                "the session is idle for {} s; for {} s",
                idle.as_secs(),
                slept.as_secs()
            ),
        );
    }

    #[tokio::test(start_paused = true)]
    async fn while_open_the_hand_goes_in_steps() {
        let clock = Clock::in_step_with_timers(start());
        let usage = Usage::starting(clock.now(), None);
        let _open = usage.open(&clock);
        let timeout = Some(Duration::from_mins(8));
        tokio::time::advance(Duration::from_secs(119)).await;
        assert_eq!(usage.last_used(clock.now(), timeout), start());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(usage.last_used(clock.now(), timeout), start() + Duration::from_mins(2));
    }
}
