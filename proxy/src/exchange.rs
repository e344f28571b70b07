//! One request's account: what is known of it when it comes, what is counted as it passes, and the audit event
//! written when the last of it is gone.
//!
//! Bodies and pipes hold it. Dropping the last holder writes the event, so that no way out of a request can forget to.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
};

use http::{Request, StatusCode};
use tokio::time::Instant;

use crate::{
    audit::{Event, Ticket, verb},
    caller::Caller,
    clock::Clock,
    forward::Origin,
    identity::ActsAs,
    limits::load::Place,
    metrics::{Completion, Limit, Metrics, OpenStream},
    pod::EnrolledPod,
    sessions::{live::LiveSession, usage},
    status::Refusal,
};

/// What is known of a request when it comes.
pub struct Opening<'r, B> {
    /// The right to write an event, which the audit log gave.
    pub ticket: Ticket,
    /// Its place among what the pod may have in flight; none where it is refused for want of one.
    pub place: Option<Place>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
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
}

/// A request's account.
pub struct Exchange {
    pod: Arc<EnrolledPod>,
    metrics: Arc<Metrics>,
    started: Instant,
    event: Event,
    ticket: Option<Ticket>,
    place: Option<Place>,
    _open: OpenStream,
    /// While it is held, the session isn't idle.
    _use: Option<usage::Open>,
    code: AtomicU16,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    cut_short: AtomicBool,
    broken_off: OnceLock<Refusal>,
    upgrade: OnceLock<&'static str>,
    refused: OnceLock<Refusal>,
    caller: OnceLock<(Option<String>, &'static str)>,
    acts_as: OnceLock<String>,
}

impl Exchange {
    /// Opens the account of a request that has just come.
    #[must_use]
    pub fn open<B>(opening: Opening<'_, B>) -> Self {
        let Opening {
            ticket,
            place,
            metrics,
            clock,
            node,
            origin,
            session,
            request,
        } = opening;
        let wanted = &origin.pod.wanted;
        let event = Event {
            time: clock.now(),
            audit_id: uuid::Uuid::new_v4().to_string(),
            session: Arc::clone(wanted.session.text()),
            pod: Arc::clone(&wanted.name),
            node,
            auth_method: session.map_or("", |session| session.spec.method.name()),
            acts_as: session
                .and_then(|session| session.spec.method.acts_as())
                .map(ActsAs::shared_name),
            verb: verb(request.method()),
            uri: request
                .uri()
                .path_and_query()
                .map_or_else(|| request.uri().to_string(), |target| target.as_str().to_owned()),
            ..Event::default()
        };
        Self {
            pod: Arc::clone(&origin.pod),
            _open: metrics.stream(),
            _use: session.map(|session| session.usage.open(&clock)),
            metrics,
            started: Instant::now(),
            event,
            ticket: Some(ticket),
            place,
            code: AtomicU16::new(0),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            cut_short: AtomicBool::new(false),
            broken_off: OnceLock::new(),
            upgrade: OnceLock::new(),
            refused: OnceLock::new(),
            caller: OnceLock::new(),
            acts_as: OnceLock::new(),
        }
    }

    /// The id under which this request is written down, here and in the API server's own audit log.
    #[must_use]
    pub fn audit_id(&self) -> &str {
        &self.event.audit_id
    }

    /// The pod that asks.
    #[must_use]
    pub fn pod(&self) -> &EnrolledPod {
        &self.pod
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

    /// The head of the answer is known.
    pub fn answered(&self, code: StatusCode) {
        self.code.store(code.as_u16(), Ordering::Relaxed);
    }

    /// We answered it ourselves.
    pub fn refuse(&self, refusal: Refusal) {
        let _ = self.refused.set(refusal);
    }

    /// The caller has proved who it is.
    pub fn proved(&self, caller: &Caller) {
        let _ = self.caller.set((caller.name().map(str::to_owned), caller.proof.name()));
    }

    /// Who the caller proved to be.
    #[must_use]
    pub fn caller(&self) -> Option<&str> {
        self.caller.get().and_then(|(name, _)| name.as_deref())
    }

    /// Whom it acts as, where that isn't for the session to say.
    pub fn acts_as(&self, name: &str) {
        let _ = self.acts_as.set(name.to_owned());
    }

    /// It goes on in another protocol.
    pub fn upgraded(&self, protocol: &'static str) {
        let _ = self.upgrade.set(protocol);
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

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let code = self.code.load(Ordering::Relaxed);
        let refused = self.refused.get().copied();
        let duration = self.started.elapsed();
        self.metrics.completed(&Completion {
            method: &self.event.verb,
            code,
            refused,
            duration,
        });
        let mut event = std::mem::take(&mut self.event);
        event.code = code;
        event.request_bytes = self.request_bytes.load(Ordering::Relaxed);
        event.response_bytes = self.response_bytes.load(Ordering::Relaxed);
        event.duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        event.cut_short = self.cut_short.load(Ordering::Relaxed);
        event.upgrade = self.upgrade.get().copied();
        event.refused = refused.map(Refusal::as_str);
        if let Some((name, proof)) = self.caller.take() {
            event.caller = name;
            event.proof = Some(proof);
        }
        if let Some(name) = self.acts_as.take() {
            event.acts_as = Some(name.into());
        }
        ticket.finish(event);
    }
}
