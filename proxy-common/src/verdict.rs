//! The decision on a `connect()`: plain data in, a verdict out. Looking things up and acting on the verdict is the
//! kernel programs' part.

use crate::{Counter, Family, Heartbeat, PodEntry};

/// What is known of a TCP connect to the API server when it is decided.
#[derive(Debug, Clone, Copy)]
pub struct Dial<'a> {
    /// The tagged pod that the dialling task belongs to.
    pub pod: Option<&'a PodEntry>,
    /// Which listener would take it.
    pub family: Family,
    /// How many records the pod's enrolment has in the flow table; none where nobody counts them.
    pub flows: Option<u64>,
    /// The namespace of the dialling socket.
    pub netns_cookie: u64,
    /// The agent's last sign of life.
    pub heartbeat: Option<&'a Heartbeat>,
    /// The time, to judge that by.
    pub now_ns: u64,
}

/// What becomes of a `connect()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Untouched,
    /// It is turned to the loopback address of its family, at this port.
    Redirect {
        /// The listener's port, in host byte order; not 0.
        port: u16,
    },
    /// It fails with EPERM, for this reason.
    Deny(Counter),
}

/// Decides. A tagged pod's connect is redirected or refused, and never goes straight through.
#[must_use]
#[inline(always)]
pub fn decide(dial: &Dial<'_>) -> Verdict {
    let Some(pod) = dial.pod else {
        return Verdict::Untouched;
    };
    let most = match dial.heartbeat {
        Some(heartbeat) if heartbeat.is_fresh(dial.now_ns) => heartbeat.flows_per_pod,
        _ => return Verdict::Deny(Counter::StaleHeartbeat),
    };
    let port = pod.port(dial.family);
    if pod.netns_cookie == 0 || port == 0 {
        return Verdict::Deny(Counter::NoListener);
    }
    if pod.netns_cookie != dial.netns_cookie {
        return Verdict::Deny(Counter::ForeignNamespace);
    }
    // What isn't counted has no bound, and one pod could take all places from the others.
    if !has_room(dial.flows, most) {
        return Verdict::Deny(Counter::PodFull);
    }
    Verdict::Redirect { port }
}

/// Whether an enrolment that has so many records in the flow table may have one more.
#[must_use]
#[inline(always)]
pub const fn has_room(flows: Option<u64>, most: u32) -> bool {
    matches!(flows, Some(flows) if flows < most as u64)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const POD: PodEntry = PodEntry {
        netns_cookie: 7,
        enrolment: 1,
        port4: 4000,
        port6: 6000,
        reserved: 0,
    };
    const ONLY_V4: PodEntry = PodEntry { port6: 0, ..POD };
    const SECOND: u64 = 1_000_000_000;
    const BEAT: Heartbeat = Heartbeat {
        boot_ns: 10 * SECOND,
        max_age_ns: SECOND,
        layout: 1,
        flows_per_pod: 2,
    };
    const NEVER: Heartbeat = Heartbeat {
        boot_ns: 0,
        max_age_ns: u64::MAX,
        layout: 1,
        flows_per_pod: 2,
    };

    #[rstest]
    #[case::untagged(None, Family::V4, 7, Some(BEAT), 10 * SECOND, Verdict::Untouched)]
    #[case::untagged_and_no_agent(None, Family::V4, 7, None, 0, Verdict::Untouched)]
    #[case::v4(Some(POD), Family::V4, 7, Some(BEAT), 10 * SECOND, Verdict::Redirect { port: 4000 })]
    #[case::v6(Some(POD), Family::V6, 7, Some(BEAT), 10 * SECOND, Verdict::Redirect { port: 6000 })]
    #[case::as_old_as_may_be(Some(POD), Family::V4, 7, Some(BEAT), 11 * SECOND, Verdict::Redirect { port: 4000 })]
    #[case::beaten_since(Some(POD), Family::V4, 7, Some(BEAT), 9 * SECOND, Verdict::Redirect { port: 4000 })]
    #[case::too_old(Some(POD), Family::V4, 7, Some(BEAT), 11 * SECOND + 1, Verdict::Deny(Counter::StaleHeartbeat))]
    #[case::never_beaten(Some(POD), Family::V4, 7, Some(NEVER), 1, Verdict::Deny(Counter::StaleHeartbeat))]
    #[case::no_heartbeat(Some(POD), Family::V4, 7, None, 1, Verdict::Deny(Counter::StaleHeartbeat))]
    #[case::foreign(Some(POD), Family::V4, 8, Some(BEAT), 10 * SECOND, Verdict::Deny(Counter::ForeignNamespace))]
    #[case::no_v6(Some(ONLY_V4), Family::V6, 7, Some(BEAT), 10 * SECOND, Verdict::Deny(Counter::NoListener))]
    #[case::not_enrolled(
        Some(PodEntry::without_listener(1)), Family::V4, 7, Some(BEAT), 10 * SECOND, Verdict::Deny(Counter::NoListener)
    )]
    #[case::cookies_of_zero_do_not_match(
        Some(PodEntry { netns_cookie: 0, ..POD }), Family::V4, 0, Some(BEAT), 10 * SECOND, Verdict::Deny(Counter::NoListener)
    )]
    fn connects(
        #[case] pod: Option<PodEntry>,
        #[case] family: Family,
        #[case] netns_cookie: u64,
        #[case] heartbeat: Option<Heartbeat>,
        #[case] now_ns: u64,
        #[case] expected: Verdict,
    ) {
        let dial = Dial {
            pod: pod.as_ref(),
            family,
            flows: Some(1),
            netns_cookie,
            heartbeat: heartbeat.as_ref(),
            now_ns,
        };
        assert_eq!(decide(&dial), expected);
    }

    #[rstest]
    #[case::none(Some(0), Verdict::Redirect { port: 4000 })]
    #[case::one_less(Some(1), Verdict::Redirect { port: 4000 })]
    #[case::all(Some(2), Verdict::Deny(Counter::PodFull))]
    #[case::more(Some(u64::MAX), Verdict::Deny(Counter::PodFull))]
    #[case::nobody_counts(None, Verdict::Deny(Counter::PodFull))]
    fn a_pod_has_so_many_places(#[case] flows: Option<u64>, #[case] expected: Verdict) {
        let dial = Dial {
            pod: Some(&POD),
            family: Family::V4,
            flows,
            netns_cookie: 7,
            heartbeat: Some(&BEAT),
            now_ns: 10 * SECOND,
        };
        assert_eq!(decide(&dial), expected);
        assert_eq!(decide(&Dial { pod: None, ..dial }), Verdict::Untouched);
    }

    /// Invariant 1, over every combination of the states that matter: a tagged pod never gets "untouched".
    #[test]
    fn no_state_lets_a_tagged_pod_through() {
        for pod in [POD, ONLY_V4, PodEntry::without_listener(9)] {
            for family in [Family::V4, Family::V6] {
                for netns_cookie in [0, 7, 8] {
                    for heartbeat in [None, Some(BEAT), Some(NEVER)] {
                        for now_ns in [0, 10 * SECOND, u64::MAX] {
                            let dial = Dial {
                                pod: Some(&pod),
                                family,
                                flows: Some(1),
                                netns_cookie,
                                heartbeat: heartbeat.as_ref(),
                                now_ns,
                            };
                            assert_ne!(decide(&dial), Verdict::Untouched, "{dial:?}");
                        }
                    }
                }
            }
        }
    }
}
