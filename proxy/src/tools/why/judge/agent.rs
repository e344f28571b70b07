//! The steps that an agent tells of: enrolment, kernel, session in force, certificate, refusals, the pod's own rights.

use std::time::Duration;

use jiff::Timestamp;

use super::{LATELY, Steps, age, ends, times};
use crate::{
    check::Outcome,
    operator::view::{KernelRefusalView, KernelView, PodStateView, PodView, Refused, SessionView, What, WhyView},
    tools::{
        table::{ago, short, until},
        why::{
            facts::{Facts, Told},
            finding::Cause,
            remedies::{Weight, remedy},
        },
    },
};

impl Steps {
    pub(super) fn agent(&mut self, facts: &Facts, view: &WhyView, now: Timestamp) {
        // The agent's own clock is the one that it judges by.
        let now = view.agent.now.unwrap_or(now);
        let agent = &view.agent;
        if agent.not_ready.is_empty() {
            self.ok(format!("agent: it answers and is ready, release {}", agent.version));
        } else {
            let reasons: Vec<String> = agent
                .not_ready
                .iter()
                .map(|one| format!("{}: {}", one.name, one.reason))
                .collect();
            self.fail(
                Cause::AgentUnready,
                format!("agent: it isn't ready: {}", reasons.join("; ")),
                "mend what it names; its log says more",
            );
        }
        let Some(pod) = &view.pod else {
            let remedy = match facts.object {
                Told::NotAsked => {
                    "name it as the session files do; if they do, the agent's log says what is wrong with them"
                }
                _ => {
                    "it watches this node's pods with the label: see that its clock and its watch are right, in its log and metrics"
                }
            };
            self.fail(
                Cause::UnknownToAgent,
                "enrolment: nothing that the agent follows names this pod",
                remedy,
            );
            return;
        };
        self.enrolment(pod);
        self.kernel(&view.kernel, pod.state == PodStateView::Enrolled);
        self.in_force(pod, view.session.as_ref(), facts.session.known().is_some(), now);
        self.impersonation(view);
        self.certificate(view, now);
        self.refusals(&view.refused, now);
        self.own_rights(view);
    }

    fn enrolment(&mut self, pod: &PodView) {
        match pod.state {
            PodStateView::Enrolled => self.ok(format!("enrolment: done; its cgroup is {}", pod.cgroup)),
            PodStateView::Absent => self.fail(
                Cause::NoCgroup,
                format!("enrolment: there is no cgroup {}", pod.cgroup),
                "if the pod runs, see --cgroup-root of the agent, or the path in the session file; else wait for its start",
            ),
            PodStateView::Waiting => self.fail(
                Cause::NoProcess,
                format!("enrolment: no process in {} shows the pod's network namespace yet", pod.cgroup),
                "wait for its first container; until then its connects to the API server are refused",
            ),
            PodStateView::Failed => self.fail(
                Cause::NotEnrolled,
                format!("enrolment: {}", pod.reason.as_deref().unwrap_or("it failed")),
                "mend what it names; it is tried again by itself",
            ),
        }
    }

    fn kernel(&mut self, kernel: &KernelView, is_enrolled: bool) {
        if let Some(error) = &kernel.error {
            self.fail(
                Cause::KernelUnreadable,
                format!("kernel: {error}"),
                "see what understudy check says on the node",
            );
            return;
        }
        if !kernel.in_charge {
            self.fail(
                Cause::NotInCharge,
                "kernel: another agent has taken this node over from the one that answers",
                "ask that one: it is the younger of the node's two",
            );
            return;
        }
        let most = Duration::from_millis(kernel.heartbeat_most_ms);
        match kernel.heartbeat_ms.map(Duration::from_millis) {
            Some(age) if age <= most => {}
            age => {
                let age = age.map_or_else(|| "withdrawn".to_owned(), |age| format!("{} old", short(age)));
                self.fail(
                    Cause::StaleHeartbeat,
                    format!("kernel: the agent's sign of life is {age}: all tagged pods are refused"),
                    "the agent gets no processor time, or is ending: look at the node's load and the agent's CPU limit",
                );
                return;
            }
        }
        if kernel.api_servers.is_empty() {
            self.fail(
                Cause::NoAddresses,
                "kernel: it knows no address of the API server, and so intercepts nothing",
                "name them with --api-address, or see that the agent may read the Service kubernetes and its EndpointSlices",
            );
            return;
        }
        match kernel.entry {
            // Enrolment has said why.
            None if !is_enrolled => {}
            None => self.fail(
                Cause::NoEntry,
                "kernel: it has no entry for the pod, whose connects go straight through",
                "something else has changed the map: start the agent anew, and see who writes below --pin-dir",
            ),
            Some(entry) if entry.port4 == 0 && entry.port6 == 0 => self.fail(
                Cause::NoListener,
                "kernel: the pod's entry names no listener: its connects to the API server are refused",
                "see the step about enrolment; it is tried again by itself",
            ),
            Some(entry) => {
                let ports: Vec<String> = [("IPv4", entry.port4), ("IPv6", entry.port6)]
                    .iter()
                    .filter(|(_, port)| *port != 0)
                    .map(|(family, port)| format!("{family} to port {port}"))
                    .collect();
                let addresses = kernel.api_servers.len();
                self.ok(format!(
                    "kernel: connects to {addresses} address(es) of the API server are turned: {}",
                    ports.join(", ")
                ));
                self.refused_by_kernel(&kernel.refused);
            }
        }
    }

    /// The kernel counts for the node and not for each pod: so it may have been another's.
    fn refused_by_kernel(&mut self, refused: &[KernelRefusalView]) {
        for one in refused {
            let ago = Duration::from_millis(one.ago_ms);
            if ago > LATELY {
                continue;
            }
            let verdict = one.verdict.as_str();
            let remedy = match verdict {
                "foreign_namespace" => {
                    "if it was this pod's: a process of it dials from a network namespace that it made itself; dial from the pod's own"
                }
                "pod_full" => {
                    "if it was this pod's: it has --max-pending-connections on their way; find what in it dials without end"
                }
                _ => "find which pod dials without end: understudy_flow_records says how many are on their way",
            };
            self.warn(
                Cause::RefusedByKernel,
                format!(
                    "kernel: it refused a tagged pod of this node {} ago: {verdict}",
                    short(ago)
                ),
                remedy,
            );
        }
    }

    /// The session as the agent has it. What its object says already isn't said again.
    fn in_force(&mut self, pod: &PodView, session: Option<&SessionView>, is_told: bool, now: Timestamp) {
        let has_failed = |steps: &Self| {
            let causes = [
                Cause::SessionNotFound,
                Cause::SessionLeaving,
                Cause::SessionRefused,
                Cause::SessionExpired,
                Cause::SessionIdle,
                Cause::LabelNotAName,
            ];
            steps
                .0
                .iter()
                .any(|step| step.cause.is_some_and(|cause| causes.contains(&cause)))
        };
        if has_failed(self) {
            return;
        }
        let Some(session) = session else {
            self.fail(
                Cause::NotInForce,
                format!("session: the agent has nothing in force as {}", pod.session),
                "see the agent's log for the Session's name",
            );
            return;
        };
        let reason = session.reason.as_deref().unwrap_or("what it says can't be granted");
        match session.phase.as_str() {
            "Active" => {}
            "Expired" => return self.expired(session.expires_at, now),
            "Idle" => return self.idle(),
            _ if is_told => {
                return self.fail(
                    Cause::NotInForce,
                    format!("session: the agent refuses it: {reason}"),
                    "it may have an older state of the Session: see its watch, in its log and metrics",
                );
            }
            _ => {
                return self.fail(
                    Cause::SessionRefused,
                    format!("session: {} is refused: {reason}", pod.session),
                    "correct what it says",
                );
            }
        }
        if let Some(why) = &session.no_credential {
            self.fail(
                Cause::NoCredential,
                format!("credential: there is none to act with: {why}"),
                "mend what it names: the session's Secret or file, or the agent's own token",
            );
            return;
        }
        let whom = session.acts_as.as_deref().unwrap_or(match session.method.as_deref() {
            Some("caller-identity") => "whoever the caller proves to be",
            _ => "whose token it has",
        });
        self.ok(format!(
            "session: {} acts as {whom}, ends {}; {} request(s) so far, {} open",
            pod.session,
            ends(session.expires_at, now),
            session.requests,
            session.streams
        ));
    }

    fn impersonation(&mut self, view: &WhyView) {
        let Some(lacks) = &view.lacks else { return };
        if lacks.is_empty() {
            self.ok("impersonation: the agent's own account may act so");
        } else {
            self.fail(
                Cause::MayNotImpersonate,
                format!(
                    "impersonation: the agent's own account may not impersonate {}",
                    lacks.join(", ")
                ),
                "grant it that by name: the chart's impersonate, or the Roles of deploy/examples/support; until then the API server answers 403",
            );
        }
    }

    fn certificate(&mut self, view: &WhyView, now: Timestamp) {
        // Something that came through since, of this pod or of another of the session's, says that it has passed.
        let used = view.session.as_ref().filter(|session| session.requests > 0);
        let used = used.and_then(|session| session.last_used);
        let lately = |reason: &str| {
            let found = view
                .refused
                .iter()
                .find(|one| one.what == What::Handshake && one.reason == reason);
            let found = found.filter(|found| age(found.last, now) <= LATELY)?;
            Some((found, used.is_some_and(|used| used > found.last)))
        };
        if let Some(expires) = view.agent.certificate_expires
            && expires <= now
        {
            self.fail(
                Cause::CertificateExpired,
                format!(
                    "certificate: what workloads are shown expired {} ago",
                    ago(Some(expires), now)
                ),
                "the agent's log says why there is no other: see --trust",
            );
            return;
        }
        let outcome = |is_over| if is_over { Outcome::Warn } else { Outcome::Fail };
        if let Some((found, is_over)) = lately("distrusted") {
            self.wrong(
                outcome(is_over),
                Cause::Distrusted,
                format!("certificate: the pod's clients didn't trust it, {}", times(found, now)),
                "with --trust own-ca, see that the pod mounts understudy-ca.crt in place of kube-root-ca.crt, and was made after the admission policy",
            );
            return;
        }
        if let Some((found, is_over)) = lately("plain_http") {
            self.wrong(
                outcome(is_over),
                Cause::PlainHttp,
                format!(
                    "certificate: the pod's clients spoke HTTP without TLS, {}",
                    times(found, now)
                ),
                "have them use https://, or start the agents with --allow-plain-http",
            );
            return;
        }
        self.ok(format!(
            "certificate: what workloads are shown is good for {}",
            until(view.agent.certificate_expires, now)
        ));
    }

    fn refusals(&mut self, refused: &[Refused], now: Timestamp) {
        let mut is_quiet = true;
        for one in refused.iter().filter(|one| age(one.last, now) <= LATELY) {
            let (weight, remedy) = remedy(&one.reason);
            let outcome = match weight {
                Weight::Told => continue,
                Weight::Ours => Outcome::Fail,
                Weight::Theirs => Outcome::Warn,
            };
            is_quiet = false;
            let thing = match one.what {
                What::Request => "requests",
                What::Handshake => "connections",
            };
            self.wrong(
                outcome,
                Cause::Refused,
                format!("refusals: {thing} as {}, {}", one.reason, times(one, now)),
                remedy,
            );
        }
        if is_quiet {
            self.ok(format!("refusals: none in the last {}", short(LATELY)));
        }
    }

    fn own_rights(&mut self, view: &WhyView) {
        let Some(rights) = &view.own_rights else { return };
        if rights.may.is_empty() {
            self.ok(format!("own rights: {} holds none of the telling ones", rights.account));
        } else {
            self.warn(
                Cause::OwnRights,
                format!(
                    "own rights: the pod's own account {} may {}",
                    rights.account,
                    rights.may.join(", ")
                ),
                "a session grants, it doesn't confine: give the pod an account without rights",
            );
        }
    }
}
