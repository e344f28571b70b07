//! What becomes of a session: one decision, over plain data.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{live::End, spec::SessionSpec};
use crate::identity::ActsAs;

/// Of a session's terms, what its end depends on and what is told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) expires_at: Option<Timestamp>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) acts_as: Option<Arc<str>>,
    pub(super) method: Option<&'static str>,
}

impl From<&SessionSpec> for Terms {
    fn from(spec: &SessionSpec) -> Self {
        Self {
            expires_at: spec.expires_at,
            idle_timeout: spec.idle_timeout,
            acts_as: spec.method.acts_as().map(ActsAs::name).map(Arc::from),
            method: Some(spec.method.name()),
        }
    }
}

impl Terms {
    /// Whether the session is over by itself, and why.
    pub(super) fn over(&self, now: Timestamp, idle_for: Duration) -> Option<End> {
        if self.expires_at.is_some_and(|at| at <= now) {
            return Some(End::Expired);
        }
        self.idle_timeout
            .is_some_and(|timeout| timeout <= idle_for)
            .then_some(End::Idle)
    }
}

/// How a declaration and the session that was in force before differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// Neither was deleted in between.
    pub(super) same_incarnation: bool,
    pub(super) acts_alike: bool,
}

/// What becomes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The one in force goes on.
    GoOn,
    /// A new one comes into force; one that was, ends for this reason.
    Begin(End),
    /// None is in force; one that was, ends for this reason.
    End(End),
}

impl Verdict {
    /// Why a session that was in force ends.
    pub(super) fn ends(self) -> Option<End> {
        match self {
            Self::GoOn => None,
            Self::Begin(why) | Self::End(why) => Some(why),
        }
    }
}

/// Decides on a session: its terms as they are declared now (or why there are none), how long it has gone unused, and
/// what was in force.
pub(super) fn judge(terms: Result<&Terms, End>, before: Option<Before>, now: Timestamp, idle_for: Duration) -> Verdict {
    let terms = match terms {
        Err(why) => return Verdict::End(why),
        Ok(terms) => terms,
    };
    match (terms.over(now, idle_for), before) {
        (Some(why), _) => Verdict::End(why),
        (None, Some(before)) if !before.same_incarnation => Verdict::Begin(End::Removed),
        (None, Some(before)) if before.acts_alike => Verdict::GoOn,
        (None, _) => Verdict::Begin(End::Changed),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SAME: Option<Before> = Some(Before {
        same_incarnation: true,
        acts_alike: true,
    });
    const OTHERWISE: Option<Before> = Some(Before {
        same_incarnation: true,
        acts_alike: false,
    });
    const MADE_AGAIN: Option<Before> = Some(Before {
        same_incarnation: false,
        acts_alike: true,
    });

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn terms(expires_at: Option<i64>, idle_timeout: Option<u64>) -> Terms {
        Terms {
            expires_at: expires_at.map(seconds),
            idle_timeout: idle_timeout.map(Duration::from_secs),
            acts_as: None,
            method: None,
        }
    }

    /// At 100, unused for 10 s.
    #[rstest]
    #[case::first_seen(Ok(terms(None, None)), None, Verdict::Begin(End::Changed))]
    #[case::as_before(Ok(terms(None, None)), SAME, Verdict::GoOn)]
    #[case::acts_otherwise(Ok(terms(None, None)), OTHERWISE, Verdict::Begin(End::Changed))]
    #[case::made_again(Ok(terms(None, None)), MADE_AGAIN, Verdict::Begin(End::Removed))]
    #[case::refused(Err(End::Refused), SAME, Verdict::End(End::Refused))]
    #[case::removed(Err(End::Removed), SAME, Verdict::End(End::Removed))]
    #[case::in_time(Ok(terms(Some(101), None)), SAME, Verdict::GoOn)]
    #[case::at_its_time(Ok(terms(Some(100), None)), SAME, Verdict::End(End::Expired))]
    #[case::never_in_time(Ok(terms(Some(99), None)), None, Verdict::End(End::Expired))]
    #[case::used(Ok(terms(None, Some(11))), SAME, Verdict::GoOn)]
    #[case::unused(Ok(terms(None, Some(10))), SAME, Verdict::End(End::Idle))]
    #[case::was_idle_and_may_be_longer(Ok(terms(None, Some(11))), None, Verdict::Begin(End::Changed))]
    #[case::still_idle(Ok(terms(None, Some(10))), None, Verdict::End(End::Idle))]
    #[case::expired_and_idle(Ok(terms(Some(99), Some(1))), SAME, Verdict::End(End::Expired))]
    #[case::over_and_acts_otherwise(Ok(terms(Some(99), None)), OTHERWISE, Verdict::End(End::Expired))]
    fn decides(#[case] terms: Result<Terms, End>, #[case] before: Option<Before>, #[case] verdict: Verdict) {
        let idle_for = Duration::from_secs(10);
        assert_eq!(
            judge(terms.as_ref().map_err(|why| *why), before, seconds(100), idle_for),
            verdict
        );
    }
}
