//! What the status of a Session should say, by what this node knows and what the other nodes' agents have written:
//! plain functions.
//!
//! Each agent keeps its own entry of `status.nodes`, under a field manager of its own. What stands above follows from
//! the entries and the spec alone, so that all agents would write the same, and whichever comes first does.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::sessions::SessionObject;
use crate::sessions::{
    resource::{NodeStatus, SessionStatus},
    store::Phase,
};

/// The field manager of what all agents share.
pub const SHARED: &str = "understudy";
/// The API server's limit on a field manager's name.
const MANAGER_MOST: usize = 128;
/// How often it is told when a session was last used and how many requests are open, at most.
const USAGE: SignedDuration = SignedDuration::from_secs(30);
/// Of a session with entries of many nodes, so much longer for each: they write to one object.
const USAGE_PER_NODE: SignedDuration = SignedDuration::from_millis(100);
/// More often than that it isn't told, however short `idleTimeout` is.
const USAGE_LEAST: SignedDuration = SignedDuration::from_secs(5);

/// What this node knows of a session that pods here carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// How it stands here.
    pub phase: Phase,
    /// Why it is refused, where it is.
    pub refused: Option<String>,
    /// Whom it acts as.
    pub acts_as: Option<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// Pods enrolled here.
    pub pods: i64,
    /// Pods here that aren't, or not yet.
    pub waiting: i64,
    /// Requests and streams open here.
    pub connections: i64,
    /// When a request last came here.
    pub last_used: Option<Timestamp>,
}

/// The field manager of a node's own entry. A node's name may be longer than a manager's: then a hash ends it.
#[must_use]
pub fn manager(node: &str) -> String {
    let whole = format!("{SHARED}/{node}");
    if whole.len() <= MANAGER_MOST {
        return whole;
    }
    // FNV-1a: the same in every build, and nobody gains by a collision.
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let kept: String = whole.chars().take(MANAGER_MOST - 17).collect();
    format!("{kept}-{hash:016x}")
}

/// This node's entry.
#[must_use]
pub fn entry(node: &str, local: &Local) -> NodeStatus {
    NodeStatus {
        node: node.to_owned(),
        phase: Some(phase_name(&local.phase).to_owned()),
        pods: local.pods,
        waiting: Some(local.waiting).filter(|waiting| *waiting > 0),
        connections: local.connections,
        last_used: local.last_used.map(whole_seconds),
    }
}

/// What stays of this node's entry of a session that may go idle when its last pod has gone: when it was `used` last.
/// Were that forgotten, the next pod would find the session as if it were new.
#[must_use]
pub fn left(node: &str, standing: Option<&NodeStatus>, used: Option<Timestamp>) -> Option<NodeStatus> {
    let last = standing.and_then(NodeStatus::last_used).max(used)?;
    Some(NodeStatus {
        node: node.to_owned(),
        phase: None,
        pods: 0,
        waiting: None,
        connections: 0,
        last_used: Some(whole_seconds(last)),
    })
}

/// Whether the entry is to be written: at once for what an operator waits for, from time to time for figures that
/// change with each request. An agent that is started anew counts idle time from what was written, so that is often
/// enough for it. `nodes` is the number of entries.
#[must_use]
pub fn entry_differs(
    seen: Option<&NodeStatus>,
    want: Option<&NodeStatus>,
    idle_timeout: Option<SignedDuration>,
    nodes: usize,
) -> bool {
    let (seen, want) = match (seen, want) {
        (None, None) => return false,
        (Some(seen), Some(want)) => (seen, want),
        _ => return true,
    };
    let outline = |entry: &NodeStatus| (entry.phase.clone(), entry.pods, entry.waiting);
    if outline(seen) != outline(want) {
        return true;
    }
    match (seen.last_used(), want.last_used()) {
        (Some(seen), Some(want)) => want.duration_since(seen) >= usage_every(idle_timeout, nodes),
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

fn usage_every(idle_timeout: Option<SignedDuration>, nodes: usize) -> SignedDuration {
    let most = USAGE.max(USAGE_PER_NODE * i32::try_from(nodes).unwrap_or(i32::MAX));
    idle_timeout.map_or(most, |idle| most.min(idle / 4)).max(USAGE_LEAST)
}

/// How the connections' number may wait: with the last use, which goes up whenever it does.
fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// What should stand above the entries, `own` being this node's as it will be. Without pods anywhere what was said of
/// the session stays, and says that there are none.
#[must_use]
pub fn top(
    object: &SessionObject,
    node: &str,
    own: Option<&NodeStatus>,
    local: Option<&Local>,
    now: Timestamp,
) -> SessionStatus {
    let seen = &object.status;
    let others = seen.nodes.iter().filter(|entry| entry.node != node);
    let entries: Vec<&NodeStatus> = others.chain(own).collect();
    let pods = entries.iter().map(|entry| entry.pods).sum();
    let waiting: i64 = entries.iter().filter_map(|entry| entry.waiting).sum();
    let Some(local) = local else {
        return SessionStatus {
            pods: Some(pods),
            nodes: Vec::new(),
            ..seen.clone()
        };
    };
    // What is refused or expired is so everywhere, whatever an entry says whose node hasn't heard of it, or is gone. A
    // session that is idle on one node may be in use on another.
    let is_expired = local.expires_at.is_some_and(|at| at <= now);
    let phase = match &local.phase {
        _ if local.refused.is_some() => Phase::Refused,
        _ if is_expired => Phase::Expired,
        certain @ (Phase::Refused | Phase::Expired) => certain.clone(),
        Phase::Active | Phase::Idle => [Phase::Active, Phase::Idle]
            .into_iter()
            .find(|phase| {
                entries
                    .iter()
                    .any(|entry| entry.phase.as_deref() == Some(phase_name(phase)))
            })
            .unwrap_or(local.phase.clone()),
    };
    let refusal = local
        .refused
        .clone()
        .unwrap_or_else(|| "what it says can't be granted".to_owned());
    let [accepted, ready, expired] = conditions(&phase, waiting, &refusal);
    let condition = |type_: &str, state: State| {
        let before = seen.conditions.iter().find(|condition| condition.type_ == type_);
        let status = if state.met { "True" } else { "False" };
        let since = before.filter(|before| before.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: state.reason.to_owned(),
            message: state.message,
            observed_generation: Some(object.generation),
            last_transition_time: since
                .map_or_else(|| whole_seconds(now), |before| before.last_transition_time.clone()),
        }
    };
    SessionStatus {
        phase: Some(phase_name(&phase).to_owned()),
        acts_as: local.acts_as.clone(),
        expires_at: local.expires_at.map(whole_seconds),
        pods: Some(pods),
        observed_generation: Some(object.generation),
        conditions: vec![
            condition("Accepted", accepted),
            condition("Ready", ready),
            condition("Expired", expired),
        ],
        nodes: Vec::new(),
    }
}

struct State {
    met: bool,
    reason: &'static str,
    message: String,
}

fn conditions(phase: &Phase, waiting: i64, refusal: &str) -> [State; 3] {
    let state = |met, reason, message: &str| State {
        met,
        reason,
        message: message.to_owned(),
    };
    let accepted = match phase {
        Phase::Refused => state(false, "Refused", refusal),
        _ => state(true, "Accepted", "What it says can be granted."),
    };
    let ready = match phase {
        Phase::Active if waiting > 0 => state(false, "PodsWaiting", "Some of its pods aren't enrolled yet."),
        Phase::Active => state(true, "Enrolled", "Its running pods act in it."),
        Phase::Idle => state(false, "Idle", "It went unused for longer than spec.idleTimeout."),
        Phase::Expired => state(false, "Expired", "Its time is up."),
        Phase::Refused => state(false, "Refused", "It isn't accepted."),
    };
    let expired = match phase {
        Phase::Expired => state(true, "Expired", "Its time is up."),
        Phase::Idle => state(true, "Idle", "It went unused for longer than spec.idleTimeout."),
        _ => state(false, "InTime", "Its time isn't up."),
    };
    [accepted, ready, expired]
}

/// Whether what stands above the entries is to be written. Messages alone aren't reason enough: agents of different
/// builds would correct each other for ever.
#[must_use]
pub fn top_differs(seen: &SessionStatus, want: &SessionStatus) -> bool {
    let outline = |status: &SessionStatus| {
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|one| {
                (
                    one.type_.clone(),
                    one.status.clone(),
                    one.reason.clone(),
                    one.observed_generation,
                )
            })
            .collect();
        (
            status.phase.clone(),
            status.acts_as.clone(),
            status.expires_at.clone(),
            status.pods,
            status.observed_generation,
            conditions,
        )
    };
    outline(seen) != outline(want)
}

/// In `status.phase`.
#[must_use]
pub fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Active => "Active",
        Phase::Expired => "Expired",
        Phase::Idle => "Idle",
        Phase::Refused => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::sessions::spec::Policy;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    pub(crate) fn local() -> Local {
        Local {
            phase: Phase::Active,
            refused: None,
            acts_as: Some("system:serviceaccount:prod:viewer".into()),
            expires_at: Some(at("2030-01-01T00:00:00Z")),
            pods: 2,
            waiting: 0,
            connections: 1,
            last_used: Some(at("2026-01-01T00:00:00.5Z")),
        }
    }

    fn object(status: &Value) -> SessionObject {
        let object = json!({
            "metadata": {"name": "alice", "namespace": "a", "uid": "u", "generation": 3},
            "spec": {}, "status": status,
        });
        SessionObject::read(serde_json::from_value(object).unwrap(), Policy::default())
    }

    #[test]
    fn what_stands_above_is_the_same_whoever_writes_it() {
        let now = at("2026-01-01T00:00:00Z");
        let (here, there) = (entry("one", &local()), entry("two", &Local { pods: 3, ..local() }));
        let both = object(&json!({"nodes": [here, there]}));
        let by_one = top(&both, "one", Some(&here), Some(&local()), now);
        let by_two = top(&both, "two", Some(&there), Some(&local()), now);
        assert_eq!(by_one, by_two);
        assert_eq!(by_one.pods, Some(5));
        assert_eq!(by_one.observed_generation, Some(3));
        let text: Vec<_> = by_one
            .conditions
            .iter()
            .map(|one| format!("{}={} {}", one.type_, one.status, one.reason))
            .collect();
        assert_eq!(
            text,
            ["Accepted=True Accepted", "Ready=True Enrolled", "Expired=False InTime"]
        );
        // Written, it is right.
        let written = SessionStatus {
            nodes: vec![here.clone(), there],
            ..by_one
        };
        let written = object(&serde_json::to_value(written).unwrap());
        let again = top(&written, "one", Some(&here), Some(&local()), at("2027-01-01T00:00:00Z"));
        assert!(!top_differs(&written.status, &again));
    }

    #[rstest]
    #[case::in_use_elsewhere(Phase::Idle, Phase::Active, "Active", "Ready=True Enrolled")]
    #[case::idle_everywhere(Phase::Idle, Phase::Idle, "Idle", "Expired=True Idle")]
    #[case::expired(Phase::Expired, Phase::Expired, "Expired", "Expired=True Expired")]
    #[case::refused(Phase::Refused, Phase::Refused, "Refused", "Accepted=False Refused")]
    fn phases_join(#[case] here: Phase, #[case] there: Phase, #[case] phase: &str, #[case] condition: &str) {
        let ours = Local { phase: here, ..local() };
        let theirs = Local {
            phase: there,
            ..local()
        };
        let (one, two) = (entry("one", &ours), entry("two", &theirs));
        let object = object(&json!({"nodes": [one, two]}));
        let now = at("2026-01-01T00:00:00Z");
        let joined = top(&object, "one", Some(&one), Some(&ours), now);
        assert_eq!(joined.phase.as_deref(), Some(phase));
        assert!(
            !top_differs(&joined, &top(&object, "two", Some(&two), Some(&theirs), now)),
            "both nodes say the same"
        );
        let text: Vec<_> = joined
            .conditions
            .iter()
            .map(|one| format!("{}={} {}", one.type_, one.status, one.reason))
            .collect();
        assert!(text.iter().any(|found| found == condition), "{text:?}");
    }

    #[rstest]
    #[case::refused(Local { refused: Some("no".into()), ..local() }, "Refused")]
    #[case::expired(Local { expires_at: Some(at("2025-01-01T00:00:00Z")), ..local() }, "Expired")]
    #[case::neither_any_more(local(), "Active")]
    fn a_stale_entry_does_not_outweigh_the_spec_and_the_clock(#[case] ours: Local, #[case] expected: &str) {
        let now = at("2026-01-01T00:00:00Z");
        for stale in [Phase::Active, Phase::Idle, Phase::Expired, Phase::Refused] {
            let theirs = Local {
                phase: stale,
                ..local()
            };
            let (one, two) = (entry("one", &ours), entry("two", &theirs));
            let object = object(&json!({"nodes": [one, two]}));
            let joined = top(&object, "one", Some(&one), Some(&ours), now);
            assert_eq!(joined.phase.as_deref(), Some(expected), "{theirs:?}");
        }
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let first = at("2026-01-01T00:00:00Z");
        let own = entry("one", &local());
        let before = top(&object(&json!({})), "one", Some(&own), Some(&local()), first);
        let seen = object(&serde_json::to_value(&before).unwrap());
        let expired = Local {
            phase: Phase::Expired,
            ..local()
        };
        let after = top(
            &seen,
            "one",
            Some(&entry("one", &expired)),
            Some(&expired),
            at("2026-01-02T00:00:00Z"),
        );
        let times: Vec<_> = after
            .conditions
            .iter()
            .map(|one| one.last_transition_time.0.to_string())
            .collect();
        assert_eq!(
            times,
            ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"]
        );
    }

    #[test]
    fn the_last_pods_leaving_says_so_and_nothing_else() {
        let own = entry("one", &local());
        let now = at("2026-01-01T00:00:00Z");
        let said = top(&object(&json!({})), "one", Some(&own), Some(&local()), now);
        let seen = object(
            &serde_json::to_value(SessionStatus {
                nodes: vec![own],
                ..said.clone()
            })
            .unwrap(),
        );
        let left = top(&seen, "one", None, None, now);
        assert_eq!(left, SessionStatus { pods: Some(0), ..said });
    }

    #[rstest]
    #[case::same(0, 0, None, 1, false)]
    #[case::soon(29, 0, None, 1, false)]
    #[case::later(30, 0, None, 1, true)]
    #[case::many_nodes(499, 0, None, 5000, false)]
    #[case::many_nodes_later(500, 0, None, 5000, true)]
    #[case::many_nodes_and_an_idle_time(10, 0, Some(40), 5000, true)]
    #[case::short_idle_time(10, 0, Some(40), 1, true)]
    #[case::short_idle_time_soon(9, 0, Some(40), 1, false)]
    #[case::very_short_idle_time(4, 0, Some(2), 1, false)]
    #[case::another_pod(0, 1, None, 5000, true)]
    fn entries_are_written_when(
        #[case] seconds: i64,
        #[case] more_pods: i64,
        #[case] idle: Option<i64>,
        #[case] nodes: usize,
        #[case] expected: bool,
    ) {
        let want = Local {
            pods: 2 + more_pods,
            connections: 17,
            last_used: local().last_used.map(|at| at + SignedDuration::from_secs(seconds)),
            ..local()
        };
        let differs = entry_differs(
            Some(&entry("one", &local())),
            Some(&entry("one", &want)),
            idle.map(SignedDuration::from_secs),
            nodes,
        );
        assert_eq!(differs, expected);
    }

    #[test]
    fn entries_come_and_go() {
        let own = entry("one", &local());
        assert!(entry_differs(None, Some(&own), None, 1));
        assert!(entry_differs(Some(&own), None, None, 1));
        assert!(!entry_differs(None, None, None, 1));
    }

    #[test]
    fn managers_fit() {
        assert_eq!(manager("node-1"), "understudy/node-1");
        let long = "n".repeat(253);
        let other = format!("{}m", "n".repeat(252));
        assert_eq!(manager(&long).len(), MANAGER_MOST);
        assert_ne!(manager(&long), manager(&other));
    }
}
