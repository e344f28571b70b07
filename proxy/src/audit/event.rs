//! What is said of a request, and the ticket that sees to it that it is said.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderMap, Method, Request, header};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Audit,
    capture::{Bodies, BodyTerms},
    policy::Policy,
    text,
    user::User,
};
use crate::{
    caller::Caller,
    forward::Origin,
    pod::EnrolledPod,
    request_info::{Reading, RequestInfo},
    status::Refusal,
};

/// Longer texts are cut: the backlog's memory is bounded by it.
const URI_LIMIT: usize = 4096;
const VERB_LIMIT: usize = 32;
const NAME_LIMIT: usize = 1024;
/// As kube-apiserver cuts it, and what it puts in place of the rest (`k8s.io/apiserver/pkg/audit`, `request.go`).
const USER_AGENT_LIMIT: usize = 1024;
const USER_AGENT_CUT: &str = "...TRUNCATED";

/// How much of a request is written down (`audit.k8s.io/v1` `Level`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and what came of it.
    #[default]
    Metadata,
    /// And the request's body.
    Request,
    /// And the answer's.
    RequestResponse,
}

impl Level {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When in a request's life an event is written (`audit.k8s.io/v1` `Stage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The answer has begun, of a request that may run long.
    ResponseStarted,
    /// All has passed.
    ResponseComplete,
}

impl Stage {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
        }
    }
}

/// What is known of a request when it comes, and doesn't change any more.
#[derive(Debug)]
pub struct Asked {
    /// The id that the API server's own audit log has as well.
    pub audit_id: Uuid,
    /// When it came.
    pub received: Timestamp,
    /// The pod that asked, or what stands for the clients of the agent's own listener.
    pub pod: Arc<EnrolledPod>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// How the request is authenticated upstream; empty where no session was in force.
    pub auth_method: &'static str,
    /// The HTTP method.
    pub method: Cow<'static, str>,
    /// Path and query.
    pub uri: String,
    /// It was longer than is written.
    pub uri_truncated: bool,
    /// Where the connection came from.
    pub source: Option<IpAddr>,
    /// What the client calls itself.
    pub user_agent: Option<Box<str>>,
}

impl Asked {
    /// Takes from a request what its event will say.
    #[must_use]
    pub fn new<B>(
        origin: &Origin,
        node: Arc<str>,
        received: Timestamp,
        auth_method: &'static str,
        request: &Request<B>,
    ) -> Self {
        let uri = match request.uri().path_and_query() {
            Some(target) => Cow::Borrowed(target.as_str()),
            None => Cow::Owned(request.uri().to_string()),
        };
        let kept = uri.floor_char_boundary(URI_LIMIT);
        Self {
            audit_id: Uuid::new_v4(),
            received,
            pod: Arc::clone(&origin.pod),
            node,
            auth_method,
            method: method_name(request.method()),
            uri_truncated: kept < uri.len(),
            uri: uri[..kept].to_owned(),
            source: Some(origin.client.0.ip()),
            user_agent: user_agent(request.headers()),
        }
    }
}

/// A request at one stage, from the audit log's view.
#[derive(Debug, Clone)]
pub struct Event {
    /// What is known since it came.
    pub asked: Arc<Asked>,
    /// What it asks for, as far as it could be read.
    pub reading: Reading,
    /// The stage.
    pub stage: Stage,
    /// How much is written of it.
    pub level: Level,
    /// Since it came.
    pub elapsed: Duration,
    /// As whom it went upstream, where that is known; in JSON.
    pub acts_as: Option<Arc<str>>,
    /// Who the caller proved to be, where it had to.
    pub caller: Option<CallerText>,
    /// The code that the client was answered with; zero if it went away before.
    pub code: u16,
    /// Bytes of the request's body, or sent by the client over an upgrade.
    pub request_bytes: u64,
    /// Bytes of the answer's body, or sent by the server over an upgrade.
    pub response_bytes: u64,
    /// It didn't come to its own end: the session ended, or a peer broke off.
    pub cut_short: bool,
    /// The protocol upgraded to.
    pub upgrade: Option<&'static str>,
    /// The name of its recording, where it has one.
    pub recording: Option<Arc<str>>,
    /// Why the agent answered by itself.
    pub refused: Option<Refusal>,
    /// The bodies, at the levels that ask for them.
    pub bodies: Option<Arc<Bodies>>,
    /// They were to be written, and there were too many of them.
    pub bodies_left_out: bool,
}

/// Who a caller proved to be.
#[derive(Debug, Clone)]
pub struct CallerText {
    /// The user, in JSON.
    pub json: Arc<str>,
    /// By what it did.
    pub proof: &'static str,
}

impl CallerText {
    /// What is written of a caller.
    #[must_use]
    pub fn new(caller: &Caller, user: &User) -> Self {
        Self {
            json: Arc::clone(user.json()),
            proof: caller.proof.name(),
        }
    }
}

impl Event {
    /// As in RBAC for a resource, else the method in lower case.
    pub(super) fn verb(&self) -> Cow<'_, str> {
        verb(&self.reading, &self.asked.method)
    }

    /// When the stage was reached: by the clock that doesn't jump, so that the two times say how long it took.
    pub(super) fn stage_time(&self) -> Timestamp {
        text::after(self.asked.received, self.elapsed)
    }

    /// How much memory its bodies take, in bytes.
    pub(super) fn bodies_size(&self) -> usize {
        self.bodies.as_ref().map_or(0, |bodies| bodies.size())
    }

    pub(super) fn leave_bodies_out(&mut self) {
        self.bodies = None;
        self.bodies_left_out = true;
    }

    /// An event waits in memory, and a target may be as long as a head.
    fn bound(&mut self) {
        let Ok(RequestInfo::Resource(request)) = &mut self.reading else {
            return;
        };
        for part in [
            &mut request.api_group,
            &mut request.api_version,
            &mut request.namespace,
            &mut request.resource,
            &mut request.subresource,
            &mut request.name,
        ] {
            if part.len() > NAME_LIMIT {
                part.truncate(part.floor_char_boundary(NAME_LIMIT));
                part.shrink_to_fit();
            }
        }
    }
}

/// The verb that an event has.
pub(super) fn verb<'r>(reading: &'r Reading, method: &'r str) -> Cow<'r, str> {
    match reading {
        Ok(RequestInfo::Resource(request)) => request.verb.into(),
        _ => match method {
            "GET" => "get".into(),
            other => other.to_ascii_lowercase().into(),
        },
    }
}

/// The right, and the duty, to write the event of one admitted request.
#[derive(Debug)]
#[must_use = "a request that was admitted has to be written down"]
pub struct Ticket {
    audit: Audit,
    finished: bool,
}

impl Ticket {
    pub(super) fn new(audit: Audit) -> Self {
        audit.shared.open.fetch_add(1, Ordering::SeqCst);
        Self { audit, finished: false }
    }

    /// Writes down a stage that isn't the last. It never waits.
    pub fn tell(&self, mut event: Event) {
        event.bound();
        self.audit.send(&event);
    }

    /// Hands the last event over. It never waits.
    pub fn finish(mut self, event: Event) {
        self.tell(event);
        self.finished = true;
    }

    /// The policy has it that there is none.
    pub fn omit(mut self) {
        self.audit.shared.metrics.audit_omitted();
        self.finished = true;
    }

    /// How much of bodies is written.
    #[must_use]
    pub fn body_terms(&self) -> &BodyTerms {
        &self.audit.shared.terms.bodies
    }

    /// How much is written of which request.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.audit.shared.terms.policy
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.finished {
            tracing::error!("a request ended without its audit event: please report this");
        }
        self.audit.shared.ticket_gone();
    }
}

/// A method's name, without an allocation where it is a usual one.
fn method_name(method: &Method) -> Cow<'static, str> {
    for usual in [
        &Method::GET,
        &Method::POST,
        &Method::PUT,
        &Method::PATCH,
        &Method::DELETE,
        &Method::HEAD,
        &Method::OPTIONS,
    ] {
        if method == usual {
            return Cow::Borrowed(usual.as_str());
        }
    }
    // A method is ASCII.
    let name = method.as_str();
    Cow::Owned(name.get(..VERB_LIMIT).unwrap_or(name).to_owned())
}

fn user_agent(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(header::USER_AGENT)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    let kept = text.floor_char_boundary(USER_AGENT_LIMIT);
    if kept == text.len() {
        return Some(text.into());
    }
    Some(format!("{}{USER_AGENT_CUT}", &text[..kept]).into())
}
