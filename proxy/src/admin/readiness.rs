//! Readiness: named conditions, each kept by whom it concerns. The agent is ready when all are.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use tokio::sync::watch;

/// Names and, where a condition isn't met, the reason.
type Conditions = BTreeMap<&'static str, Option<Cow<'static, str>>>;

/// All conditions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<watch::Sender<Conditions>>);

/// One condition, held by whoever can say. Dropped, it counts as not met: nobody keeps it any more.
#[derive(Debug)]
pub struct Condition {
    name: &'static str,
    is_settled: bool,
    conditions: Arc<watch::Sender<Conditions>>,
}

/// How the conditions stand.
#[derive(Debug)]
pub(crate) struct Report {
    pub(super) ready: bool,
    conditions: Conditions,
}

impl Readiness {
    /// Adds a condition, not met until its holder says so.
    #[must_use]
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            is_settled: false,
            conditions: Arc::clone(&self.0),
        };
        condition.not_ready("starting");
        condition
    }

    /// Whether all are met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_met(&self.0.borrow())
    }

    /// Waits until all are met.
    pub async fn ready(&self) {
        // The sender lives as long as self: it can't be found closed.
        let _ = self.0.subscribe().wait_for(all_met).await;
    }

    /// Each condition's name and, where it isn't met, the reason.
    #[must_use]
    pub fn conditions(&self) -> Vec<(&'static str, Option<String>)> {
        let conditions = self.0.borrow();
        conditions
            .iter()
            .map(|(name, reason)| (*name, reason.as_ref().map(ToString::to_string)))
            .collect()
    }

    pub(crate) fn report(&self) -> Report {
        let conditions = self.0.borrow().clone();
        Report {
            ready: all_met(&conditions),
            conditions,
        }
    }
}

impl Condition {
    /// It is met.
    pub fn ready(&self) {
        self.set(None);
    }

    /// It isn't, for a reason that may be shown to whoever reaches the admin address: no secrets.
    pub fn not_ready(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(Some(reason.into()));
    }

    /// It stays as it is, without a holder: nothing can change it any more.
    pub fn keep(mut self) {
        self.is_settled = true;
    }

    fn set(&self, state: Option<Cow<'static, str>>) {
        self.conditions.send_if_modified(|conditions| {
            if conditions.get(self.name) == Some(&state) {
                return false;
            }
            if let Some(reason) = &state {
                tracing::info!(condition = self.name, %reason, "not ready");
            } else {
                tracing::info!(condition = self.name, "ready");
            }
            conditions.insert(self.name, state);
            true
        });
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        if !self.is_settled {
            self.not_ready("stopped");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, failed) in &self.conditions {
            match failed {
                None => writeln!(f, "[+]{name} ok")?,
                Some(reason) => writeln!(f, "[-]{name} failed: {reason}")?,
            }
        }
        writeln!(f, "readyz check {}", if self.ready { "passed" } else { "failed" })
    }
}

fn all_met(conditions: &Conditions) -> bool {
    conditions.values().all(Option::is_none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_every_holder_says_so() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.condition("a"), readiness.condition("b"));
        assert!(!readiness.is_ready());
        a.ready();
        assert!(!readiness.is_ready());
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        b.ready();
        waiting.await.unwrap();
        assert!(readiness.is_ready());
        let c = readiness.condition("c");
        c.ready();
        c.keep();
        assert!(readiness.is_ready());
        drop(a);
        assert!(!readiness.is_ready());
        assert_eq!(
            readiness.report().to_string(),
            "[-]a failed: stopped\n[+]b ok\n[+]c ok\nreadyz check failed\n"
        );
    }
}
