//! What follows from the facts: a plain function. Each step says how it stands; what is wrong has a cause with a name
//! that programs can rely on, and a remedy.

mod agent;

use std::time::Duration;

use jiff::Timestamp;

use super::{
    facts::{AgentPodFacts, Facts, PodFacts, SessionFacts, Told},
    finding::{Cause, Finding},
};
use crate::{
    check::Outcome,
    cluster::pods::LABEL,
    operator::view::Refused,
    pod::is_dns1123_subdomain,
    tools::table::{ago, until},
};

/// A refusal that is older says little of now.
const LATELY: Duration = Duration::from_mins(10);

/// The steps, in the order of a connection's way.
#[must_use]
pub fn judge(facts: &Facts, now: Timestamp) -> Vec<Finding> {
    let mut steps = Steps::default();
    match &facts.object {
        Told::NotAsked => {}
        Told::Unknown(why) => steps.unknown("the pod", why),
        Told::Known(None) => {
            steps.fail(
                Cause::PodNotFound,
                format!("pod: there is no {}", facts.pod),
                "name it as kubectl get pods does, and its namespace with -n",
            );
            return steps.0;
        }
        Told::Known(Some(pod)) => {
            if !steps.object(pod) {
                return steps.0;
            }
        }
    }
    match &facts.session {
        Told::NotAsked => {}
        Told::Unknown(why) => steps.unknown("session", why),
        Told::Known(session) => steps.session_object(session.as_ref(), now),
    }
    match &facts.agent_pods {
        Told::NotAsked => {}
        // It is between the pod and its session: without it nothing is known.
        Told::Unknown(why) => steps.fail(Cause::AgentSilent, "agent: its pods can't be asked for", why.clone()),
        Told::Known(pods) => steps.agent_pods(pods),
    }
    match &facts.agent {
        Told::NotAsked => {}
        Told::Unknown(why) => steps.fail(Cause::AgentSilent, "agent: it doesn't answer".to_owned(), why.clone()),
        Told::Known(view) => steps.agent(facts, view, now),
    }
    steps.0
}

#[derive(Default)]
struct Steps(Vec<Finding>);

impl Steps {
    fn ok(&mut self, what: impl Into<String>) {
        self.0.push(Finding {
            outcome: Outcome::Ok,
            what: what.into(),
            cause: None,
            remedy: None,
        });
    }

    fn wrong(&mut self, outcome: Outcome, cause: Cause, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding {
            outcome,
            what: what.into(),
            cause: Some(cause),
            remedy: Some(remedy.into()),
        });
    }

    fn fail(&mut self, cause: Cause, what: impl Into<String>, remedy: impl Into<String>) {
        self.wrong(Outcome::Fail, cause, what, remedy);
    }

    fn warn(&mut self, cause: Cause, what: impl Into<String>, remedy: impl Into<String>) {
        self.wrong(Outcome::Warn, cause, what, remedy);
    }

    /// What couldn't be asked for. Other steps may tell all the same.
    fn unknown(&mut self, thing: &str, why: &str) {
        self.0.push(Finding {
            outcome: Outcome::Warn,
            what: format!("{thing}: it can't be asked for"),
            cause: None,
            remedy: Some(why.to_owned()),
        });
    }

    /// The pod's object. False where nothing else can follow.
    fn object(&mut self, pod: &PodFacts) -> bool {
        let Some(label) = &pod.label else {
            self.fail(
                Cause::NoLabel,
                format!("label: the pod doesn't carry {LABEL}"),
                format!("kubectl label pod NAME {LABEL}=SESSION, and in the template that it is made from"),
            );
            return false;
        };
        if is_dns1123_subdomain(label) {
            self.ok(format!("label: {LABEL}={label}"));
        } else {
            self.fail(
                Cause::LabelNotAName,
                format!("label: {LABEL} says {label:?}, which no Session can be called"),
                "name a Session of the pod's namespace: lower-case letters, digits, '-' and '.'",
            );
        }
        let ended = pod.phase == "Succeeded" || pod.phase == "Failed";
        if ended {
            self.fail(
                Cause::PodOver,
                format!("pod: its containers have ended ({})", pod.phase),
                "start it anew: there is nothing to intercept",
            );
            return false;
        }
        let Some(node) = &pod.node else {
            self.fail(
                Cause::NotScheduled,
                "node: the pod isn't bound to one yet",
                "kubectl describe pod says what the scheduler lacks",
            );
            return false;
        };
        self.ok(format!(
            "node: {node}{}",
            if pod.is_leaving {
                ", and the pod is being deleted"
            } else {
                ""
            }
        ));
        if pod.is_static {
            self.fail(
                Cause::StaticPod,
                "pod: it is a static pod outside kube-system, whose cgroup can't be told for certain",
                "have a Deployment or a DaemonSet make it",
            );
        }
        true
    }

    fn session_object(&mut self, session: Option<&SessionFacts>, now: Timestamp) {
        let Some(session) = session else {
            self.fail(
                Cause::SessionNotFound,
                "session: there is no Session of that name in the pod's namespace",
                "make it there, or mend the pod's label; until then the pod's requests are refused",
            );
            return;
        };
        if session.is_leaving {
            self.fail(
                Cause::SessionLeaving,
                "session: it is being deleted",
                "make it anew when it is gone",
            );
            return;
        }
        let expired = session.expires_at.is_some_and(|at| at <= now);
        match session.phase.as_deref() {
            Some("Refused") => self.fail(
                Cause::SessionRefused,
                format!(
                    "session: it is refused: {}",
                    session.refusal.as_deref().unwrap_or("what it says can't be granted")
                ),
                "correct the Session",
            ),
            _ if expired => self.expired(session.expires_at, now),
            Some("Expired") => self.expired(session.expires_at, now),
            Some("Idle") => self.idle(),
            Some(phase) => self.ok(format!("session: {phase}, ends {}", ends(session.expires_at, now))),
            None => self.ok("session: it is there, and no agent has said anything of it yet"),
        }
    }

    fn expired(&mut self, at: Option<Timestamp>, now: Timestamp) {
        self.fail(
            Cause::SessionExpired,
            format!("session: it expired {} ago", ago(at, now)),
            "set spec.expiresAt or spec.ttl of the Session to later, or make another",
        );
    }

    fn idle(&mut self) {
        self.fail(
            Cause::SessionIdle,
            "session: it went unused for longer than spec.idleTimeout",
            "make the Session anew, or raise spec.idleTimeout",
        );
    }

    fn agent_pods(&mut self, pods: &[AgentPodFacts]) {
        let logs = |name: &str| {
            format!("kubectl logs {name} and kubectl describe pod {name}, in the agents' namespace, say why")
        };
        match pods {
            [] => self.fail(
                Cause::NoAgent,
                "agent: none on the pod's node",
                "see the DaemonSet's tolerations and node selector; an agent before it may still have the kernel refuse the pod",
            ),
            [first, ..] => {
                if let Some(pod) = pods.iter().find(|pod| pod.is_ready) {
                    return self.ok(format!("agent: {} is ready", pod.name));
                }
                let (cause, what) = match &first.waiting {
                    Some(why) => (Cause::AgentNotRunning, format!("doesn't run: {why}")),
                    None => (Cause::AgentNotReady, "isn't ready".to_owned()),
                };
                self.fail(cause, format!("agent: {} {what}", first.name), logs(&first.name));
            }
        }
    }
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn times(refused: &Refused, now: Timestamp) -> String {
    format!("{} time(s), last {} ago", refused.times, ago(Some(refused.last), now))
}

fn ends(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "never".to_owned(), |at| format!("in {}", until(Some(at), now)))
}

#[cfg(test)]
mod tests;
