//! Asking the API server: an end to waiting for an answer, an error that says what was asked for, and how long to wait
//! before asking again.

use std::{future::Future, ops::Range, time::Duration};

use tokio::time;

use super::TrustError;

/// Begins the names of our objects, and is the field manager that all agents write as.
pub(super) const MANAGER: &str = "understudy";
/// The label that our objects carry, and its value.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", MANAGER);

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits the answer to `question`; `what` completes "the agent may not ...".
pub(super) async fn ask<T>(
    what: impl FnOnce() -> String,
    question: impl Future<Output = kube::Result<T>>,
) -> Result<T, TrustError> {
    match time::timeout(PATIENCE, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Err(TrustError::Forbidden {
            what: what(),
            message: status.message,
        }),
        Ok(Err(kube::Error::Api(status))) => Err(TrustError::Refused {
            what: what(),
            message: status.message,
        }),
        Ok(Err(source)) => Err(TrustError::Unanswered {
            what: what(),
            source: Box::new(source),
        }),
        Err(_) => Err(TrustError::Silent { what: what() }),
    }
}

/// An answer that isn't a failure where it is one of some kinds: `None`.
pub(super) fn unless<T>(answer: kube::Result<T>, kind: fn(&kube::core::Status) -> bool) -> kube::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(status)) if kind(&status) => Ok(None),
        Err(error) => Err(error),
    }
}

impl TrustError {
    /// Whether it may pass by itself, or by what an operator does in the cluster.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Forbidden { .. }
                | Self::Refused { .. }
                | Self::Unanswered { .. }
                | Self::Silent { .. }
                | Self::NotASecret { .. }
                | Self::Contended(_)
        )
    }
}

/// Longer and longer waits, none of which two agents share.
#[derive(Debug)]
pub(super) struct Backoff {
    from: Duration,
    at_most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(bounds: Range<Duration>) -> Self {
        Self {
            from: bounds.start,
            at_most: bounds.end,
            next: bounds.start,
        }
    }

    /// How long to wait this time.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = jittered(self.next);
        self.next = (self.next * 2).min(self.at_most);
        wait
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.next = self.from;
    }
}

/// Between half of `wait` and three halves.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64())
}

/// Between nothing and `at_most`.
pub(super) fn spread(at_most: Duration) -> Duration {
    at_most.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_again() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1)..seconds(8));
        for around in [1, 2, 4, 8, 8] {
            let wait = backoff.wait();
            assert!(
                wait >= seconds(around) / 2 && wait <= seconds(around) * 3 / 2,
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= seconds(3) / 2);
    }
}
