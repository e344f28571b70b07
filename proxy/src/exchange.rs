//! One request's account: what is known of it when it comes, what is counted as it passes, and the audit event
//! written when the last of it is gone.
//!
//! Bodies and pipes hold it. Dropping the last holder writes the event, so that no way out of a request can forget to.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
};

use http::{HeaderMap, Request, StatusCode};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    audit::{
        Asked, Bodies, CallerText, Capture, Event, Extent, Level, PodText, Stage, Ticket, User, capture::has_objects,
        policy::Attributes,
    },
    caller::Caller,
    clock::Clock,
    forward::Origin,
    limits::load::Place,
    metrics::{Completion, Limit, Metrics, OpenStream},
    pod::EnrolledPod,
    request_info::{Reading, RequestInfo},
    sessions::{live::LiveSession, usage},
    status::Refusal,
    traces::{Trace, Traces},
    upstream::target::Target,
};

/// What is known of a request when it comes.
pub struct Opening<'r, B> {
    /// The right to write an event, which the audit log gave.
    pub ticket: Ticket,
    /// Its place among what the pod may have in flight; none where it is refused for want of one.
    pub place: Option<Place>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is traced.
    pub traces: &'r Traces,
    /// Dates the event.
    pub clock: Clock,
    /// This node.
    pub node: Arc<str>,
    /// The connection.
    pub origin: &'r Origin,
    /// The session, if there is one in force.
    pub session: Option<&'r LiveSession>,
    /// The request, before anything was taken off it.
    pub request: &'r Request<B>,
    /// What it asks for.
    pub reading: Reading,
}

/// A request's account.
pub struct Exchange {
    asked: Arc<Asked>,
    reading: Reading,
    metrics: Arc<Metrics>,
    started: Instant,
    trace: Trace,
    ticket: Option<Ticket>,
    place: Option<Place>,
    _open: OpenStream,
    /// While it is held, the session isn't idle.
    used: Option<usage::Open>,
    code: AtomicU16,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    cut_short: AtomicBool,
    broken_off: OnceLock<Refusal>,
    upgrade: OnceLock<&'static str>,
    recording: OnceLock<Arc<str>>,
    refused: OnceLock<Refusal>,
    /// As whom the session has it act, until something else is known.
    acting: Option<Arc<User>>,
    /// The bodies as they pass, where they are to be written.
    request_body: OnceLock<Box<Capture>>,
    response_body: OnceLock<Box<Capture>>,
    caller: OnceLock<(Arc<User>, CallerText)>,
    acts_as: OnceLock<Arc<User>>,
}

impl Exchange {
    /// Opens the account of a request that has just come.
    #[must_use]
    pub fn open<B>(opening: Opening<'_, B>) -> Self {
        let Opening {
            ticket,
            place,
            metrics,
            traces,
            clock,
            node,
            origin,
            session,
            request,
            reading,
        } = opening;
        let auth_method = session.map_or("", |session| session.spec.method.name());
        Self {
            asked: Arc::new(Asked::new(origin, node, clock.now(), auth_method, request)),
            reading,
            _open: metrics.stream(),
            used: session.map(|session| session.usage.open(&clock)),
            metrics,
            started: Instant::now(),
            trace: traces.begin(request, origin),
            acting: session.and_then(|session| session.acting().cloned()),
            ticket: Some(ticket),
            place,
            code: AtomicU16::new(0),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            cut_short: AtomicBool::new(false),
            broken_off: OnceLock::new(),
            upgrade: OnceLock::new(),
            recording: OnceLock::new(),
            refused: OnceLock::new(),
            request_body: OnceLock::new(),
            response_body: OnceLock::new(),
            caller: OnceLock::new(),
            acts_as: OnceLock::new(),
        }
    }

    /// The id under which this request is written down, here and in the API server's own audit log.
    #[must_use]
    pub fn audit_id(&self) -> Uuid {
        self.asked.audit_id
    }

    /// What it asks for.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// The pod that asks.
    #[must_use]
    pub fn pod(&self) -> &EnrolledPod {
        &self.asked.pod
    }

    /// Whether it may stay open for long.
    #[must_use]
    pub fn runs_long(&self) -> bool {
        self.place.as_ref().is_some_and(Place::runs_long)
    }

    /// Bytes of the body, or of an upgraded stream, that came from the client.
    pub fn count_request_bytes(&self, bytes: u64) {
        self.request_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of the body, or of an upgraded stream, that came from the upstream.
    pub fn count_response_bytes(&self, bytes: u64) {
        self.response_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Some of the request's body passes.
    pub fn request_passes(&self, data: &[u8]) {
        self.count_request_bytes(data.len() as u64);
        if let Some(body) = self.request_body.get() {
            body.passes(data);
        }
    }

    /// Some of the answer's body passes.
    pub fn response_passes(&self, data: &[u8]) {
        self.count_response_bytes(data.len() as u64);
        if let Some(body) = self.response_body.get() {
            body.passes(data);
        }
    }

    /// The head goes upstream, and it is known who acts: whether the body is to be written can be told.
    pub fn sent(&self, headers: &mut HeaderMap, upstream: &Target) {
        self.trace.hand_on(headers, upstream);
        self.keep(Level::Request, &self.request_body, headers);
    }

    fn keep(&self, level: Level, body: &OnceLock<Box<Capture>>, headers: &HeaderMap) {
        let Some(ticket) = &self.ticket else { return };
        if self.extent(ticket).level >= level && !self.runs_long() && has_objects(&self.reading) {
            let _ = body.set(Box::new(Capture::of(headers, ticket.body_terms().limit)));
        }
    }

    /// The head of the answer is known, and goes on to the client.
    pub fn passes_on(&self, code: StatusCode, headers: &HeaderMap) {
        self.trace.answered();
        self.answered(code);
        self.keep(Level::RequestResponse, &self.response_body, headers);
        self.started();
    }

    /// The head of the answer is known.
    pub fn answered(&self, code: StatusCode) {
        self.code.store(code.as_u16(), Ordering::Relaxed);
    }

    /// The head of its answer has come, after it was handed on upstream at `handed_on`.
    pub fn took(&self, handed_on: Instant) {
        let added = handed_on.saturating_duration_since(self.started);
        self.metrics.answered(added, handed_on.elapsed());
        if let Some(used) = &self.used {
            used.added(added);
        }
    }

    /// We answered it ourselves.
    pub fn refuse(&self, refusal: Refusal) {
        let _ = self.refused.set(refusal);
    }

    /// The caller has proved who it is.
    pub fn proved(&self, caller: &Caller) {
        let user = Arc::new(caller.user.as_deref().map_or_else(User::anonymous, User::of));
        let text = CallerText::new(caller, &user);
        let _ = self.caller.set((user, text));
    }

    /// Who the caller proved to be.
    #[must_use]
    pub fn caller(&self) -> Option<&str> {
        self.caller.get().map(|(user, _)| user.name())
    }

    /// Whom it acts as, where that isn't for the session to say.
    pub fn acts_as(&self, user: Arc<User>) {
        let _ = self.acts_as.set(user);
    }

    /// It goes on in another protocol.
    pub fn upgraded(&self, protocol: &'static str) {
        let _ = self.upgrade.set(protocol);
    }

    /// What passes from now on is recorded, under that name.
    pub fn recorded(&self, recording: Arc<str>) {
        let _ = self.recording.set(recording);
    }

    /// The client's body has no end: it broke off, can't be understood any further, or comes too slowly.
    pub fn break_off(&self, refusal: Refusal) {
        if refusal == Refusal::RequestTimeout {
            self.metrics.limit_hit(Limit::BodyRate);
        }
        let _ = self.broken_off.set(refusal);
        self.cut_short();
    }

    /// What to answer where the client's body has no end.
    #[must_use]
    pub fn broken_off(&self) -> Option<Refusal> {
        self.broken_off.get().copied()
    }

    /// It didn't come to its own end: the session ended, or a peer broke off.
    pub fn cut_short(&self) {
        self.cut_short.store(true, Ordering::Relaxed);
    }
}

impl Exchange {
    /// The head of the answer goes out, of a request that may run long: that it runs is written down already.
    fn started(&self) {
        let Some(ticket) = self.ticket.as_ref().filter(|_| self.runs_long()) else {
            return;
        };
        let extent = self.extent(ticket);
        if !extent.is_silent() && !extent.omit_started {
            ticket.tell(self.event(Stage::ResponseStarted, extent, self.reading.clone()));
        }
    }

    /// How much is written of it, by what is known now.
    fn extent(&self, ticket: &Ticket) -> Extent {
        let asker = || PodText::user(&self.asked.pod, &self.asked.node);
        let caller = self.caller.get().map(|(user, _)| user);
        ticket.policy().extent(&Attributes {
            users: [Some(caller.unwrap_or_else(asker)), self.acting_user()].map(|user| user.map(Arc::as_ref)),
            reading: &self.reading,
            method: &self.asked.method,
            uri: &self.asked.uri,
            is_upgraded: self.upgrade.get().is_some(),
            is_refused: self.refused.get().is_some(),
        })
    }

    fn acting_user(&self) -> Option<&Arc<User>> {
        self.acts_as.get().or(self.acting.as_ref())
    }

    fn event(&self, stage: Stage, extent: Extent, reading: Reading) -> Event {
        Event {
            asked: Arc::clone(&self.asked),
            reading,
            stage,
            level: extent.level,
            elapsed: self.started.elapsed(),
            acts_as: self.acting_user().map(|user| Arc::clone(user.json())),
            caller: self.caller.get().map(|(_, text)| text.clone()),
            code: self.code.load(Ordering::Relaxed),
            request_bytes: self.request_bytes.load(Ordering::Relaxed),
            response_bytes: self.response_bytes.load(Ordering::Relaxed),
            cut_short: self.cut_short.load(Ordering::Relaxed),
            upgrade: self.upgrade.get().copied(),
            recording: self.recording.get().cloned(),
            refused: self.refused.get().copied(),
            bodies: None,
            bodies_left_out: false,
        }
    }

    fn bodies(&self, ticket: &Ticket, extent: Extent) -> Option<Arc<Bodies>> {
        let (request, response) = (self.request_body.get(), self.response_body.get());
        if request.is_none() && response.is_none() {
            return None;
        }
        let captures = [request, response].map(|body| body.map(Box::as_ref));
        Bodies::take(captures, ticket.body_terms(), extent.omit_managed_fields).map(Arc::new)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let extent = self.extent(&ticket);
        let reading = std::mem::replace(&mut self.reading, Ok(RequestInfo::NonResource));
        let mut event = self.event(Stage::ResponseComplete, extent, reading);
        event.bodies = self.bodies(&ticket, extent);
        if let Some(used) = self.used.as_ref().filter(|_| event.code >= 400) {
            used.failed();
        }
        self.metrics.completed(&Completion {
            method: &self.asked.method,
            code: event.code,
            refused: event.refused,
            duration: event.elapsed,
            audit_id: Some(&self.audit_id()),
        });
        self.trace.end(&event, self.acting_user().map(|user| user.name()));
        if extent.is_silent() {
            ticket.omit();
        } else {
            ticket.finish(event);
        }
    }
}
