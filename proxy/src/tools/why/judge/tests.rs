use rstest::rstest;

use super::*;
use crate::{
    operator::view::{
        AgentView, ConditionView, EntryView, KernelRefusalView, KernelView, OwnRightsView, PodStateView, PodView,
        SessionView, What, WhyView,
    },
    tools::why::finding::Verdict,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const NOW: i64 = 10_000;

/// A pod of a cluster with which all is well.
fn well() -> Facts {
    Facts {
        pod: "support/shell".to_owned(),
        object: Told::Known(Some(PodFacts {
            label: Some("alice".to_owned()),
            node: Some("box".to_owned()),
            phase: "Running".to_owned(),
            ..PodFacts::default()
        })),
        session: Told::Known(Some(SessionFacts {
            phase: Some("Active".to_owned()),
            expires_at: Some(at(NOW + 600)),
            ..SessionFacts::default()
        })),
        agent_pods: Told::Known(vec![AgentPodFacts {
            name: "understudy-x".to_owned(),
            is_ready: true,
            waiting: None,
        }]),
        agent: Told::Known(view()),
    }
}

fn view() -> WhyView {
    WhyView {
        agent: AgentView {
            node: "box".to_owned(),
            version: "0.1.0".to_owned(),
            not_ready: vec![],
            certificate_expires: Some(at(NOW + 86_400)),
            now: Some(at(NOW)),
        },
        pod: Some(PodView {
            name: "support/shell".to_owned(),
            session: "support/alice".to_owned(),
            cgroup: "podx".to_owned(),
            state: PodStateView::Enrolled,
            reason: None,
        }),
        session: Some(SessionView {
            namespace: "support".to_owned(),
            name: "alice".to_owned(),
            phase: "Active".to_owned(),
            method: Some("gateway-kubernetes-auth".to_owned()),
            acts_as: Some("system:serviceaccount:prod:viewer".to_owned()),
            expires_at: Some(at(NOW + 600)),
            ..SessionView::default()
        }),
        kernel: KernelView {
            in_charge: true,
            heartbeat_ms: Some(200),
            heartbeat_most_ms: 1000,
            api_servers: vec!["10.96.0.1:443".parse().unwrap()],
            entry: Some(EntryView { port4: 4000, port6: 0 }),
            ..KernelView::default()
        },
        lacks: Some(vec![]),
        refused: vec![],
        own_rights: Some(OwnRightsView {
            account: "powerless".to_owned(),
            may: vec![],
        }),
    }
}

fn object(facts: &mut Facts) -> &mut PodFacts {
    match &mut facts.object {
        Told::Known(Some(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

fn session(facts: &mut Facts) -> &mut SessionFacts {
    match &mut facts.session {
        Told::Known(Some(session)) => session,
        other => panic!("{other:?}"),
    }
}

fn agent(facts: &mut Facts) -> &mut WhyView {
    match &mut facts.agent {
        Told::Known(view) => view,
        other => panic!("{other:?}"),
    }
}

fn pod(facts: &mut Facts) -> &mut PodView {
    agent(facts).pod.as_mut().unwrap()
}

fn live(facts: &mut Facts) -> &mut SessionView {
    agent(facts).session.as_mut().unwrap()
}

fn by_kernel(verdict: &str, ago: u64) -> KernelRefusalView {
    KernelRefusalView {
        verdict: verdict.to_owned(),
        ago_ms: ago * 1000,
    }
}

fn refused(what: What, reason: &str, ago: i64) -> Refused {
    Refused {
        what,
        reason: reason.to_owned(),
        times: 3,
        last: at(NOW - ago),
    }
}

#[test]
fn of_a_pod_that_is_well_each_step_says_so() {
    let findings = judge(&well(), at(0));
    assert!(findings.iter().all(|step| step.outcome == Outcome::Ok), "{findings:#?}");
    assert_eq!(Verdict::of(&findings), Verdict::Well);
    let said: Vec<&str> = findings
        .iter()
        .map(|step| step.what.split(':').next().unwrap())
        .collect();
    assert_eq!(
        said,
        [
            "label",
            "node",
            "session",
            "agent",
            "agent",
            "enrolment",
            "kernel",
            "session",
            "impersonation",
            "certificate",
            "refusals",
            "own rights"
        ]
    );
}

/// Each broken set-up has its cause first, what to do, and what a word of that is.
#[rstest]
#[case::no_pod(|facts: &mut Facts| facts.object = Told::Known(None), Cause::PodNotFound, "kubectl get pods", 3)]
#[case::no_label(|facts: &mut Facts| object(facts).label = None, Cause::NoLabel, "kubectl label pod", 3)]
#[case::bad_label(|facts: &mut Facts| object(facts).label = Some("Not_A".into()), Cause::LabelNotAName, "lower-case", 4)]
#[case::pending(|facts: &mut Facts| object(facts).node = None, Cause::NotScheduled, "scheduler", 3)]
#[case::over(|facts: &mut Facts| object(facts).phase = "Succeeded".into(), Cause::PodOver, "anew", 3)]
#[case::fixed(|facts: &mut Facts| object(facts).is_static = true, Cause::StaticPod, "Deployment", 3)]
#[case::no_session(|facts: &mut Facts| facts.session = Told::Known(None), Cause::SessionNotFound, "make it there", 4)]
#[case::leaving(|facts: &mut Facts| session(facts).is_leaving = true, Cause::SessionLeaving, "anew", 4)]
#[case::session_refused(
    |facts: &mut Facts| session(facts).phase = Some("Refused".into()), Cause::SessionRefused, "correct", 4
)]
#[case::expired(|facts: &mut Facts| session(facts).phase = Some("Expired".into()), Cause::SessionExpired, "spec.ttl", 4)]
#[case::expired_unseen(
    |facts: &mut Facts| session(facts).expires_at = Some(at(-1)), Cause::SessionExpired, "spec.expiresAt", 4
)]
#[case::idle(|facts: &mut Facts| session(facts).phase = Some("Idle".into()), Cause::SessionIdle, "idleTimeout", 4)]
#[case::no_agent(|facts: &mut Facts| facts.agent_pods = Told::Known(vec![]), Cause::NoAgent, "tolerations", 3)]
#[case::crashing(
    |facts: &mut Facts| facts.agent_pods = Told::Known(vec![AgentPodFacts {
        name: "u-1".into(), is_ready: false, waiting: Some("CrashLoopBackOff".into()),
    }]),
    Cause::AgentNotRunning, "kubectl logs u-1", 3
)]
#[case::agent_not_ready(
    |facts: &mut Facts| facts.agent_pods = Told::Known(vec![AgentPodFacts {
        name: "u-1".into(), is_ready: false, waiting: None,
    }]),
    Cause::AgentNotReady, "kubectl logs u-1", 3
)]
#[case::silent(|facts: &mut Facts| facts.agent = Told::Unknown("see that it runs".into()), Cause::AgentSilent, "see that it runs", 5)]
#[case::unready(
    |facts: &mut Facts| agent(facts).agent.not_ready = vec![ConditionView { name: "token".into(), reason: "gone".into() }],
    Cause::AgentUnready, "its log", 3
)]
#[case::unknown(|facts: &mut Facts| agent(facts).pod = None, Cause::UnknownToAgent, "watch", 3)]
#[case::no_cgroup(|facts: &mut Facts| pod(facts).state = PodStateView::Absent, Cause::NoCgroup, "--cgroup-root", 3)]
#[case::waiting(|facts: &mut Facts| pod(facts).state = PodStateView::Waiting, Cause::NoProcess, "first container", 3)]
#[case::failed(
    |facts: &mut Facts| {
        pod(facts).state = PodStateView::Failed;
        pod(facts).reason = Some("give the agent's pod hostPID".into());
    },
    Cause::NotEnrolled, "tried again", 3
)]
#[case::unreadable(
    |facts: &mut Facts| agent(facts).kernel.error = Some("EPERM".into()), Cause::KernelUnreadable, "understudy check", 3
)]
#[case::taken_over(|facts: &mut Facts| agent(facts).kernel.in_charge = false, Cause::NotInCharge, "ask that one", 3)]
#[case::stale(|facts: &mut Facts| agent(facts).kernel.heartbeat_ms = Some(1001), Cause::StaleHeartbeat, "CPU limit", 3)]
#[case::withdrawn(|facts: &mut Facts| agent(facts).kernel.heartbeat_ms = None, Cause::StaleHeartbeat, "CPU limit", 3)]
#[case::no_addresses(
    |facts: &mut Facts| agent(facts).kernel.api_servers = vec![], Cause::NoAddresses, "--api-address", 3
)]
#[case::no_entry(|facts: &mut Facts| agent(facts).kernel.entry = None, Cause::NoEntry, "--pin-dir", 3)]
#[case::no_listener(
    |facts: &mut Facts| agent(facts).kernel.entry = Some(EntryView::default()), Cause::NoListener, "enrolment", 3
)]
#[case::not_in_force(|facts: &mut Facts| agent(facts).session = None, Cause::NotInForce, "log", 4)]
#[case::older_state(|facts: &mut Facts| live(facts).phase = "Refused".into(), Cause::NotInForce, "watch", 4)]
#[case::no_credential(
    |facts: &mut Facts| live(facts).no_credential = Some("no Secret".into()), Cause::NoCredential, "Secret", 4
)]
#[case::may_not_impersonate(
    |facts: &mut Facts| agent(facts).lacks = Some(vec!["groups devs".into()]), Cause::MayNotImpersonate, "by name", 4
)]
#[case::certificate(
    |facts: &mut Facts| agent(facts).agent.certificate_expires = Some(at(NOW)), Cause::CertificateExpired, "--trust", 4
)]
#[case::distrusted(
    |facts: &mut Facts| agent(facts).refused = vec![refused(What::Handshake, "distrusted", 5)],
    Cause::Distrusted, "understudy-ca.crt", 4
)]
#[case::plain(
    |facts: &mut Facts| agent(facts).refused = vec![refused(What::Handshake, "plain_http", 5)],
    Cause::PlainHttp, "https://", 4
)]
#[case::upstream(
    |facts: &mut Facts| agent(facts).refused = vec![refused(What::Request, "upstream-unreachable", 5)],
    Cause::Refused, "no connection to the API server", 4
)]
fn what_is_wrong_is_found_first(
    #[case] breaks: fn(&mut Facts),
    #[case] cause: Cause,
    #[case] remedy: &str,
    #[case] exit_code: u8,
) {
    let mut facts = well();
    breaks(&mut facts);
    let findings = judge(&facts, at(NOW));
    let first = findings.iter().find(|step| step.outcome == Outcome::Fail);
    let first = first.unwrap_or_else(|| panic!("nothing is found: {findings:#?}"));
    assert_eq!(first.cause, Some(cause), "{findings:#?}");
    let told = first.remedy.as_deref().unwrap();
    assert!(told.contains(remedy), "{told}");
    assert_eq!(Verdict::of(&findings).exit_code(), exit_code);
    // No other step fails for the same: each names what is its own.
    let failures = findings.iter().filter(|step| step.outcome == Outcome::Fail).count();
    assert_eq!(failures, 1, "{findings:#?}");
}

#[rstest]
#[case::refuse(|facts: &mut Facts| agent(facts).refused = vec![refused(What::Request, "not-granted", 5)], Cause::Refused)]
#[case::used_since(
    |facts: &mut Facts| {
        agent(facts).refused = vec![refused(What::Handshake, "distrusted", 5)];
        live(facts).requests = 1;
        live(facts).last_used = Some(at(NOW - 1));
    },
    Cause::Distrusted
)]
#[case::by_the_kernel(
    |facts: &mut Facts| agent(facts).kernel.refused = vec![by_kernel("foreign_namespace", 5)], Cause::RefusedByKernel
)]
#[case::own_rights(
    |facts: &mut Facts| agent(facts).own_rights.as_mut().unwrap().may = vec!["list secrets".into()],
    Cause::OwnRights
)]
fn what_does_not_stand_in_the_way_is_a_warning(#[case] changes: fn(&mut Facts), #[case] cause: Cause) {
    let mut facts = well();
    changes(&mut facts);
    let findings = judge(&facts, at(NOW));
    let told: Vec<_> = findings
        .iter()
        .filter(|step| step.outcome != Outcome::Ok)
        .map(|step| (step.outcome, step.cause))
        .collect();
    assert_eq!(told, [(Outcome::Warn, Some(cause))]);
    assert_eq!(Verdict::of(&findings), Verdict::Well);
}

#[test]
fn what_is_long_past_is_not_told() {
    let mut facts = well();
    agent(&mut facts).refused = vec![
        refused(What::Handshake, "distrusted", 601),
        refused(What::Request, "upstream-unreachable", 601),
        refused(What::Request, "session-expired", 1),
    ];
    agent(&mut facts).kernel.refused = vec![by_kernel("pod_full", 601)];
    assert_eq!(Verdict::of(&judge(&facts, at(NOW))), Verdict::Well);
}

#[rstest]
#[case::refused("Refused", Cause::SessionRefused)]
#[case::expired("Expired", Cause::SessionExpired)]
#[case::idle("Idle", Cause::SessionIdle)]
fn without_a_cluster_the_agent_tells_of_the_session(#[case] phase: &str, #[case] cause: Cause) {
    let mut facts = well();
    (facts.object, facts.session, facts.agent_pods) = (Told::NotAsked, Told::NotAsked, Told::NotAsked);
    assert_eq!(Verdict::of(&judge(&facts, at(NOW))), Verdict::Well);
    live(&mut facts).phase = phase.to_owned();
    let findings = judge(&facts, at(NOW));
    let causes: Vec<_> = findings.iter().filter_map(|step| step.cause).collect();
    assert_eq!(causes, [cause]);
}

#[test]
fn what_cannot_be_asked_for_is_said_and_the_rest_judged() {
    let mut facts = well();
    facts.object = Told::Unknown("pods is forbidden".to_owned());
    let findings = judge(&facts, at(NOW));
    assert_eq!(findings[0].outcome, Outcome::Warn);
    assert_eq!(findings[0].remedy.as_deref(), Some("pods is forbidden"));
    assert_eq!(Verdict::of(&findings), Verdict::Well);
}
