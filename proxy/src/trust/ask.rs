//! Asking the API server: an end to waiting for an answer, and an error that says what was asked for.

use std::{future::Future, time::Duration};

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
