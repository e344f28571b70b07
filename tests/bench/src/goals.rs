//! What Understudy is to reach, and whether a run says that it does.

use std::fmt;

use serde::Serialize;

use crate::{
    peers::Peer,
    run::{Samples, estimate, ratio},
    statistics::Estimate,
};

/// The widest interval, to either side of the median, that a verdict is based on.
pub const NOISE: f64 = 0.05;

/// What a goal says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Claim {
    /// A quantity is at least so many times the peer's.
    TimesAtLeast(Peer, f64),
    /// A quantity is at most so many times the peer's.
    TimesAtMost(Peer, f64),
    /// What is added to direct is at most so many times what the peer adds.
    AddedTimesAtMost(Peer, f64),
    /// A quantity is at most that.
    AtMost(f64),
}

/// A goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// In words.
    pub title: &'static str,
    /// Which measure it is about.
    pub measure: &'static str,
    /// And which of its quantities.
    pub quantity: &'static str,
    /// What it says.
    pub claim: Claim,
}

const fn goal(title: &'static str, measure: &'static str, quantity: &'static str, claim: Claim) -> Goal {
    Goal {
        title,
        measure,
        quantity,
        claim,
    }
}

/// All of them.
pub const GOALS: [Goal; 26] = [
    goal(
        "requests per CPU-second, HTTP/1.1, 1 connection: at least 1.3 times nginx",
        "h1-1",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Nginx, 1.3),
    ),
    goal(
        "requests per CPU-second, HTTP/1.1, 128 connections: at least 1.3 times nginx",
        "h1-128",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Nginx, 1.3),
    ),
    goal(
        "instructions per request, HTTP/1.1, 16 connections: at most 70 thousand",
        "h1-16",
        "instructions",
        Claim::AtMost(70_000.0),
    ),
    goal(
        "requests per CPU-second, HTTP/2, 16 x 8: ahead of HAProxy over h2",
        "h2-16x8",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::HaproxyH2, 1.0),
    ),
    goal(
        "instructions per request, HTTP/2, 16 x 8: at most 72 thousand",
        "h2-16x8",
        "instructions",
        Claim::AtMost(72_000.0),
    ),
    goal(
        "requests per CPU-second, HTTP/1.1, 1 connection: at least 3 times Go's ReverseProxy",
        "h1-1",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Go, 3.0),
    ),
    goal(
        "requests per CPU-second, HTTP/1.1, 128 connections: at least 3 times Go's ReverseProxy",
        "h1-128",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Go, 3.0),
    ),
    goal(
        "requests per CPU-second, HTTP/2, 16 x 8: at least 3 times Go's ReverseProxy",
        "h2-16x8",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Go, 3.0),
    ),
    goal(
        "100 MB bodies: at least 1.5 times Go's ReverseProxy",
        "list",
        "mb-per-cpu-second",
        Claim::TimesAtLeast(Peer::Go, 1.5),
    ),
    goal(
        "added latency at one connection, p50: at most 1.5 times the raw relay's",
        "latency-1",
        "p50-us",
        Claim::AddedTimesAtMost(Peer::Relay, 1.5),
    ),
    goal(
        "added latency at one connection, p99: below nginx's",
        "latency-1",
        "p99-us",
        Claim::AddedTimesAtMost(Peer::Nginx, 1.0),
    ),
    goal(
        "handshake and one request: at least 1.65 times Envoy",
        "handshakes",
        "per-cpu-second",
        Claim::TimesAtLeast(Peer::Envoy, 1.65),
    ),
    goal(
        "100 MB bodies: at least Envoy's MB per CPU-second",
        "list",
        "mb-per-cpu-second",
        Claim::TimesAtLeast(Peer::Envoy, 1.0),
    ),
    goal(
        "memory per idle watch, HTTP/1.1 clients: at most 18 KiB",
        "watches-h1",
        "kib-each",
        Claim::AtMost(18.0),
    ),
    goal(
        "memory per idle watch, HTTP/2 clients: at most 5 KiB",
        "watches-h2",
        "kib-each",
        Claim::AtMost(5.0),
    ),
    goal(
        "memory after HTTP/1.1 watches have closed: within 10 % of before",
        "watches-h1",
        "after",
        Claim::AtMost(1.1),
    ),
    goal(
        "memory after HTTP/2 watches have closed: within 10 % of before",
        "watches-h2",
        "after",
        Claim::AtMost(1.1),
    ),
    goal(
        "watch fan-out, p99: at most 1.5 times direct",
        "fanout",
        "p99-us",
        Claim::TimesAtMost(Peer::Direct, 1.5),
    ),
    goal(
        "recording of exec bulk, WebSocket: at most 1.05 times the CPU of unrecorded bulk",
        "bulk-recorded",
        "cpu-times",
        Claim::AtMost(1.05),
    ),
    goal(
        "recording of exec bulk, SPDY: at most 1.05 times the CPU of unrecorded bulk",
        "bulk-recorded-spdy",
        "cpu-times",
        Claim::AtMost(1.05),
    ),
    goal(
        "audit at Metadata: at most 1.05 times the CPU of requests without",
        "audit-cost",
        "cpu-times",
        Claim::AtMost(1.05),
    ),
    goal(
        "untagged connect: at most 200 ns of program time",
        "node",
        "untagged-ns",
        Claim::AtMost(200.0),
    ),
    goal(
        "tagged connect: at most 1.5 µs of program time",
        "node",
        "tagged-ns",
        Claim::AtMost(1_500.0),
    ),
    goal(
        "idle agent, no pods: under 15 MiB",
        "node",
        "idle-rss-mib-0",
        Claim::AtMost(15.0),
    ),
    goal(
        "idle agent, 250 pods: under 40 MiB",
        "node",
        "idle-rss-mib-250",
        Claim::AtMost(40.0),
    ),
    goal(
        "idle agent, no pods: no wake-ups to speak of (at most 10 a second)",
        "node",
        "idle-wakeups-0",
        Claim::AtMost(10.0),
    ),
];

/// What a run says of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is reached.
    Met,
    /// It isn't.
    NotMet,
    /// The samples don't agree enough to say.
    TooNoisy,
    /// It wasn't measured, or can't be here.
    NotMeasured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::TooNoisy => "no verdict: too noisy",
            Self::NotMeasured => "not measured",
        })
    }
}

/// A goal beside what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The goal, in words.
    pub goal: &'static str,
    /// What it is judged by.
    pub wanted: f64,
    /// The ratio, or the quantity.
    pub measured: Option<Estimate>,
    /// Whether it is reached.
    pub verdict: Verdict,
}

impl Goal {
    /// Who else it is about.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        match self.claim {
            Claim::TimesAtLeast(peer, _) | Claim::TimesAtMost(peer, _) | Claim::AddedTimesAtMost(peer, _) => Some(peer),
            Claim::AtMost(_) => None,
        }
    }

    /// What these slices say of it; none of them is about it where it is `None`.
    #[must_use]
    pub fn judge(&self, samples: Option<&Samples>) -> Outcome {
        let measured = samples.and_then(|samples| {
            let ours = samples.of(Peer::Understudy, self.quantity);
            match self.claim {
                Claim::TimesAtLeast(peer, _) | Claim::TimesAtMost(peer, _) => {
                    ratio(&ours, &samples.of(peer, self.quantity))
                }
                Claim::AddedTimesAtMost(peer, _) => ratio(
                    &samples.added(Peer::Understudy, self.quantity),
                    &samples.added(peer, self.quantity),
                ),
                Claim::AtMost(_) => estimate(&ours),
            }
        });
        self.outcome(measured)
    }

    /// Beside a figure that is no slice's.
    #[must_use]
    pub fn outcome(&self, measured: Option<Estimate>) -> Outcome {
        let (wanted, at_least) = match self.claim {
            Claim::TimesAtLeast(_, wanted) => (wanted, true),
            Claim::TimesAtMost(_, wanted) | Claim::AddedTimesAtMost(_, wanted) | Claim::AtMost(wanted) => {
                (wanted, false)
            }
        };
        let verdict = measured.map_or(Verdict::NotMeasured, |measured| verdict(measured, wanted, at_least));
        Outcome {
            goal: self.title,
            wanted,
            measured,
            verdict,
        }
    }
}

/// By the median, where the interval is narrow, or lies to one side as a whole.
fn verdict(measured: Estimate, wanted: f64, at_least: bool) -> Verdict {
    let met = |value: f64| if at_least { value >= wanted } else { value <= wanted };
    let one_sided = met(measured.low) == met(measured.high);
    if measured.spread() > NOISE && !one_sided {
        return Verdict::TooNoisy;
    }
    if met(measured.median) {
        Verdict::Met
    } else {
        Verdict::NotMet
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::measures;

    #[rstest]
    #[case::clearly_met((1.4, 1.38, 1.42), Verdict::Met)]
    #[case::clearly_not((1.1, 1.08, 1.12), Verdict::NotMet)]
    #[case::narrow_and_on_the_line((1.31, 1.28, 1.34), Verdict::Met)]
    #[case::wide_and_on_the_line((1.31, 1.1, 1.5), Verdict::TooNoisy)]
    #[case::wide_but_above((2.0, 1.5, 2.5), Verdict::Met)]
    #[case::wide_but_below((0.9, 0.7, 1.1), Verdict::NotMet)]
    fn a_verdict_needs_a_narrow_interval_or_one_side(
        #[case] (median, low, high): (f64, f64, f64),
        #[case] expected: Verdict,
    ) {
        let estimate = Estimate {
            median,
            low,
            high,
            samples: 15,
        };
        assert_eq!(verdict(estimate, 1.3, true), expected);
        // The other way round, it is the mirror image.
        let opposite = match expected {
            Verdict::Met => Verdict::NotMet,
            Verdict::NotMet => Verdict::Met,
            other => other,
        };
        assert_eq!(verdict(estimate, 1.3, false), opposite);
    }

    #[test]
    fn what_was_not_measured_is_no_success() {
        assert!(
            GOALS
                .iter()
                .all(|goal| goal.judge(None).verdict == Verdict::NotMeasured)
        );
    }

    #[test]
    fn goals_are_about_what_is_measured() {
        for goal in GOALS.iter().filter(|goal| goal.measure != "node") {
            let measure = measures::named(goal.measure).unwrap();
            assert!(
                measure.quantities().iter().any(|quantity| quantity.id == goal.quantity),
                "{}",
                goal.title
            );
            assert!(goal.peer().is_none_or(|peer| measure.fits(peer)), "{}", goal.title);
        }
    }
}
