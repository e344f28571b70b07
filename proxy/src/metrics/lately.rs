//! What each pod was refused last: for an operator who asks why something doesn't work. Refusals alone come here, so that
//! a request that is served costs nothing; and of each reason only how often and when, for a pod can bring them about as
//! often as it likes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// As many pods as the kernel's map holds. Beyond, whoever was refused longest ago is forgotten.
const PODS: usize = 4096;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// A request, by an answer of ours.
    Request,
    /// A connection, before its first request.
    Handshake,
}

/// What a pod was refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// What.
    pub what: What,
    /// Why, in the words of metrics and the audit log.
    pub reason: String,
    /// How often, since the agent started.
    pub times: u64,
    /// When last.
    pub last: Timestamp,
}

/// By pod, what it was refused.
#[derive(Debug, Default)]
pub struct Lately(Mutex<ByPod>);

type ByPod = HashMap<Arc<str>, Tallies>;
type Tallies = HashMap<(What, &'static str), Tally>;

#[derive(Debug)]
struct Tally {
    times: u64,
    last: Timestamp,
}

impl Lately {
    /// A pod is refused something.
    pub fn refused(&self, pod: &Arc<str>, what: What, reason: &'static str, now: Timestamp) {
        let mut pods = self.pods();
        if pods.len() >= PODS && !pods.contains_key(pod) {
            let last = |tallies: &Tallies| tallies.values().map(|tally| tally.last).max();
            let oldest = pods.iter().min_by_key(|(_, tallies)| last(tallies));
            if let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) {
                pods.remove(&oldest);
            }
        }
        let tallies = pods.entry(Arc::clone(pod)).or_default();
        let tally = tallies.entry((what, reason)).or_insert(Tally { times: 0, last: now });
        tally.times += 1;
        tally.last = now;
    }

    /// What a pod was refused, the latest first.
    #[must_use]
    pub fn of(&self, pod: &str) -> Vec<Refused> {
        let pods = self.pods();
        let tallies = pods.get(pod).into_iter().flatten();
        let mut refused: Vec<Refused> = tallies
            .map(|((what, reason), tally)| Refused {
                what: *what,
                reason: (*reason).to_owned(),
                times: tally.times,
                last: tally.last,
            })
            .collect();
        refused.sort_by(|one, other| other.last.cmp(&one.last).then_with(|| one.reason.cmp(&other.reason)));
        refused
    }

    fn pods(&self) -> MutexGuard<'_, ByPod> {
        // Numbers can't be left half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn each_reason_is_counted_and_the_latest_comes_first() {
        let lately = Lately::default();
        let pod: Arc<str> = "a/shell".into();
        lately.refused(&pod, What::Request, "no-session", at(1));
        lately.refused(&pod, What::Handshake, "distrusted", at(2));
        lately.refused(&pod, What::Request, "no-session", at(3));
        let found = lately.of("a/shell");
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.reason.as_str(), one.times, one.last))
            .collect();
        assert_eq!(told, [("no-session", 2, at(3)), ("distrusted", 1, at(2))]);
        assert_eq!(lately.of("a/other"), []);
    }

    #[test]
    fn no_more_pods_are_kept_than_there_can_be() {
        let lately = Lately::default();
        for number in 0..=PODS {
            let second = i64::try_from(number).unwrap();
            lately.refused(&format!("a/{number}").into(), What::Request, "no-session", at(second));
        }
        assert_eq!(lately.pods().len(), PODS);
        assert_eq!(lately.of("a/0"), []);
        assert_eq!(lately.of(&format!("a/{PODS}")).len(), 1);
    }
}
