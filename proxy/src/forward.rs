//! One request: looked up, guarded, judged by the session's own rules, its caller's proof seen to, stripped, dressed, sent
//! on, streamed back, written down.
//!
//! The order is the point of this module. Each step may refuse, and a refused request sends nothing upstream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    audit::{Audit, User},
    body::{RequestBody, ResponseBody, client::ClientBody, pace::Pace},
    caller::{Prover, Shown, x509::Certificate},
    clock::Clock,
    exchange::{Exchange, Opening},
    identity::{self, ActsAs},
    limits::{Limits, load::Place, memory::Pressure},
    metrics::{Completion, Limit, Metrics, RecordingFailure, What},
    pod::{ClientAddr, EnrolledPod, OriginalDst},
    recording::{
        about::{About, Asked, Target},
        policy,
        recorder::{Recording, Recordings},
    },
    request_info::RequestInfo,
    sessions::{live::LiveSession, store::SessionLookup},
    status::Refusal,
    traces::Traces,
    upgrade::{self, Upgrade},
    upstream::UpstreamError,
};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What every request needs, shared by all.
pub struct Forwarder {
    /// Which sessions are in force.
    pub sessions: SessionLookup,
    /// Judges expiry.
    pub clock: Clock,
    /// Where each request is written down.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is traced.
    pub traces: Traces,
    /// The node's name, for the audit event.
    pub node: Arc<str>,
    /// The tasks of upgraded streams, which outlive their requests.
    pub streams: TaskTracker,
    /// How much a pod may ask.
    pub limits: Limits,
    /// How the agent's memory stands.
    pub pressure: Arc<Pressure>,
    /// Where streams are recorded.
    pub recordings: Recordings,
}

/// The connection that a request came on, as the kernel vouched for it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The pod that dialled.
    pub pod: Arc<EnrolledPod>,
    /// What it dialled.
    pub original_dst: OriginalDst,
    /// From where.
    pub client: ClientAddr,
    /// The certificate that the client showed, where it was asked for one. It proves nothing before it is judged.
    pub certificate: Option<Arc<Certificate>>,
}

/// As whom a request goes upstream.
enum Acting {
    /// As the session says.
    Session,
    /// As the caller proved to be, or may be.
    Caller(ActsAs),
    /// As nobody: without a credential.
    Nobody,
}

impl Forwarder {
    /// Serves one request. Always answers: an error of ours is a `Status`.
    pub async fn serve(&self, origin: &Origin, request: Request<ClientBody>) -> Response<ResponseBody> {
        let reading = RequestInfo::parse(request.method(), request.uri());
        let place = if self.pressure.refuses(&origin.pod) {
            Err(Limit::Memory)
        } else {
            Place::for_request(&origin.pod, &request, &reading, &self.limits)
        };
        // Who has no place doesn't wait for one in the log either.
        let admitted = match place {
            Ok(_) => self.audit.admit().await,
            Err(_) => self.audit.admit_at_once(),
        };
        if let Err(limit) = place {
            self.metrics.limit_hit(limit);
        }
        let unread = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        let Ok(ticket) = admitted else {
            let refusal = place.map_or(Refusal::TooManyRequests, |_| Refusal::AuditUnavailable);
            return self.unwritten(&request, refusal, unread);
        };
        let snapshot = self.sessions.snapshot();
        let session = snapshot.session(&origin.pod.wanted.session, self.clock.now());
        let place = place.map_err(|_| Refusal::TooManyRequests);
        let (place, session) = match place {
            Ok(place) => (Some(place), session),
            Err(refusal) => (None, Err(refusal)),
        };
        let exchange = Arc::new(Exchange::open(Opening {
            ticket,
            place,
            metrics: Arc::clone(&self.metrics),
            traces: &self.traces,
            clock: self.clock.clone(),
            node: Arc::clone(&self.node),
            origin,
            session: session.as_deref().ok(),
            request: &request,
            reading,
        }));
        let outcome = match session {
            Ok(session) => self.forward(session, origin, request, &exchange).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(answer) => {
                exchange.passes_on(answer.status(), answer.headers());
                answer.map(|body| body.counted(exchange))
            }
            Err(refusal) => {
                self.remember(origin, refusal);
                refuse(exchange, refusal, unread)
            }
        }
    }

    /// Answers a request that is refused before its session is looked at: nothing of it can be relied on.
    pub fn decline<B>(&self, origin: &Origin, request: &Request<B>, refusal: Refusal) -> Response<ResponseBody> {
        let closes = request.version() < Version::HTTP_2;
        let Ok(ticket) = self.audit.admit_at_once() else {
            return self.unwritten(request, refusal, closes);
        };
        let snapshot = self.sessions.snapshot();
        let session = snapshot.session(&origin.pod.wanted.session, self.clock.now());
        let exchange = Arc::new(Exchange::open(Opening {
            ticket,
            place: None,
            metrics: Arc::clone(&self.metrics),
            traces: &self.traces,
            clock: self.clock.clone(),
            node: Arc::clone(&self.node),
            origin,
            session: session.as_deref().ok(),
            request,
            reading: RequestInfo::parse(request.method(), request.uri()),
        }));
        self.remember(origin, refusal);
        refuse(exchange, refusal, closes)
    }

    /// For an operator who asks why.
    fn remember(&self, origin: &Origin, refusal: Refusal) {
        let (pod, now) = (&origin.pod.wanted.name, self.clock.now());
        self.metrics.lately().refused(pod, What::Request, refusal.as_str(), now);
    }

    /// Refuses a request that the audit log has no room for; its loss is written down there when there is.
    fn unwritten<B>(&self, request: &Request<B>, refusal: Refusal, closes: bool) -> Response<ResponseBody> {
        self.metrics.limit_hit(Limit::AuditBacklog);
        self.metrics.completed(&Completion {
            method: request.method().as_str(),
            code: refusal.code().as_u16(),
            refused: Some(refusal),
            duration: Duration::ZERO,
            audit_id: None,
        });
        answer(refusal, closes).map(ResponseBody::ours)
    }

    async fn forward(
        &self,
        session: Arc<LiveSession>,
        origin: &Origin,
        mut request: Request<ClientBody>,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let is_callers_own = session.spec.method.is_callers_own();
        // Whoever reaches the agent's own listener is nobody until it proves otherwise: it is lent no identity.
        if origin.pod.is_outside() && !is_callers_own {
            return Err(Refusal::SessionInvalid);
        }
        let upgrade = upgrade::requested(&mut request)?;
        let (mut head, body) = request.into_parts();
        identity::guard(&head, is_callers_own)?;
        if session.spec.refuse.refuse(exchange.reading(), upgrade.is_some()) {
            return Err(Refusal::NotGranted);
        }
        let recorded = policy::judge(session.spec.recording, exchange.reading(), upgrade.is_some())?.map(Box::new);
        let is_websocket = upgrade.as_ref().is_some_and(Upgrade::is_websocket);
        let acting = match &session.prover {
            // Boxed, as all is here that few requests need: a request's future is moved about, and held by every watch.
            Some(prover) => {
                let acting = self.acting(&session, prover, origin, &head.headers, is_websocket, exchange);
                Box::pin(acting).await?
            }
            // Without proof nobody is anybody: the agent's own token would go upstream as itself.
            None if session.spec.needs_proof() => return Err(Refusal::Internal),
            None => Acting::Session,
        };
        identity::strip(&mut head.headers);
        let token = match acting {
            Acting::Nobody => None,
            Acting::Session | Acting::Caller(_) => Some(session.token(self.clock.now()).map_err(|error| {
                tracing::error!(session = %session.id, %error, "no credential to act with");
                Refusal::CredentialUnavailable
            })?),
        };
        let acts_as = match &acting {
            Acting::Session => session.spec.method.acts_as(),
            Acting::Caller(acts_as) => Some(acts_as),
            Acting::Nobody => None,
        };
        if let (Acting::Session, None, Some(token)) = (&acting, acts_as, &token)
            && let Some(user) = token.user()
        {
            exchange.acts_as(Arc::clone(user));
        }
        identity::dress(&mut head.headers, token.as_ref(), acts_as, session.told()).map_err(|error| {
            tracing::error!(session = %session.id, %error, "a request is not forwarded");
            Refusal::Internal
        })?;
        let mut audit_id = uuid::Uuid::encode_buffer();
        let audit_id = exchange.audit_id().hyphenated().encode_lower(&mut audit_id);
        let audit_id = HeaderValue::from_str(audit_id).map_err(|_| Refusal::Internal)?;
        head.headers.insert(AUDIT_ID, audit_id);
        let recording = match (&upgrade, recorded) {
            (Some(upgrade), Some(target)) => {
                let acts_as = acts_as.map(ActsAs::name);
                let begun = self.begin_recording(&session, origin, upgrade, &mut head, *target, acts_as, exchange);
                Box::pin(begun).await?.map(Box::new)
            }
            _ => None,
        };
        if let Some(upgrade) = &upgrade {
            upgrade.ask(&mut head.headers);
        }
        exchange.sent(&mut head.headers, session.upstream.url());
        let body = RequestBody::new(body, Arc::clone(exchange), &session.ended, Pace::of(&self.limits));
        let request = Request::from_parts(head, body);

        let answered = async {
            match upgrade {
                Some(upgrade) => Box::pin(self.upgrade(&session, upgrade, request, recording, exchange)).await,
                None => self.send(&session, request, exchange).await,
            }
        };
        tokio::select! {
            biased;
            () = session.ended.cancelled() => Err(session.refusal()),
            // Why there is no answer is the client's doing, and it may still read.
            answered = answered => answered.map_err(|refusal| exchange.broken_off().unwrap_or(refusal)),
        }
    }

    /// Has the caller prove what the session asks for.
    async fn acting(
        &self,
        session: &LiveSession,
        prover: &Prover,
        origin: &Origin,
        headers: &HeaderMap,
        is_websocket: bool,
        exchange: &Exchange,
    ) -> Result<Acting, Refusal> {
        let shown = Shown::read(headers, is_websocket)?;
        if session.spec.require_pod_token {
            prover.is_of_pod(&shown, origin.pod.wanted.uid.as_deref()).await?;
        }
        if !session.spec.method.is_callers_own() {
            return Ok(Acting::Session);
        }
        let caller = prover
            .prove(origin.certificate.as_deref(), &shown, self.clock.now())
            .await?;
        exchange.proved(&caller);
        let acts_as = prover.acts_as(&caller, &shown).await?;
        exchange.acts_as(Arc::new(match &acts_as {
            Some(acts_as) => User::impersonated(acts_as, session.told()),
            None => User::anonymous(),
        }));
        Ok(acts_as.map_or(Acting::Nobody, Acting::Caller))
    }

    /// Begins the recording of a stream before it is asked for: what must be recorded and can't be takes no effect.
    #[expect(clippy::too_many_arguments, reason = "who, where and what: it is all written down")]
    async fn begin_recording(
        &self,
        session: &LiveSession,
        origin: &Origin,
        upgrade: &Upgrade,
        head: &mut Parts,
        target: Target,
        acts_as: Option<&str>,
        exchange: &Exchange,
    ) -> Result<Option<Recording>, Refusal> {
        let Some(terms) = session.spec.recording else {
            return Ok(None);
        };
        if !upgrade.ask_for_what_can_be_recorded(&mut head.headers, target.is_forward()) {
            self.metrics.recording().failed(RecordingFailure::Protocol);
            return if terms.required {
                Err(Refusal::NotRecordable)
            } else {
                Ok(None)
            };
        }
        let about = About {
            audit_id: exchange.audit_id().to_string(),
            session: session.id.to_string(),
            node: self.node.to_string(),
            pod: origin.pod.wanted.name.to_string(),
            user: exchange.caller().map(str::to_owned),
            impersonated_user: acts_as.map(str::to_owned),
            target,
            asked: Asked::of(head.uri.query().unwrap_or_default()),
            records_stdin: terms.stdin,
        };
        match self.recordings.begin(about, terms).await {
            Ok(recording) => Ok(Some(recording)),
            Err(error) => {
                tracing::error!(session = %session.id, required = terms.required, %error, "a stream can't be recorded");
                if terms.required {
                    Err(Refusal::RecordingUnavailable)
                } else {
                    Ok(None)
                }
            }
        }
    }

    async fn upgrade(
        &self,
        session: &Arc<LiveSession>,
        upgrade: Upgrade,
        request: Request<RequestBody>,
        recording: Option<Box<Recording>>,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let answer = session
            .upstream
            .send_upgrade(request)
            .await
            .map_err(|error| self.unreachable(session, &error))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let recording = recording.map(|recording| *recording);
            return upgrade.switch(answer, session, Arc::clone(exchange), &self.streams, recording);
        }
        Ok(pass_on(answer.map(crate::upstream::UpstreamBody::unpooled), session))
    }

    async fn send(
        &self,
        session: &LiveSession,
        request: Request<RequestBody>,
        exchange: &Exchange,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let handed_on = Instant::now();
        // What stays open is cheaper to hold as one stream of many; so is, to send, what comes as one of many.
        let answer = if exchange.runs_long() || request.version() == Version::HTTP_2 {
            session.upstream.send(request).await
        } else {
            session.upstream.send_short(request).await
        };
        let answer = answer.map_err(|error| self.unreachable(session, &error))?;
        exchange.took(handed_on);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            tracing::error!(session = %session.id, "the upstream switched protocols unasked");
            return Err(Refusal::UpstreamFailed);
        }
        Ok(pass_on(answer, session))
    }

    /// The cause goes to the log; the client is told which kind.
    fn unreachable(&self, session: &LiveSession, error: &UpstreamError) -> Refusal {
        if error.given_up() {
            // A pod can bring this about as often as it likes.
            tracing::debug!(session = %session.id, %error, "a client broke off its request");
        } else {
            tracing::warn!(session = %session.id, %error, "a request was not answered by the upstream");
        }
        if let Some(limit) = error.limit() {
            self.metrics.limit_hit(limit);
            return Refusal::Overloaded;
        }
        match error {
            UpstreamError::Request(_) => Refusal::NotForwardable,
            error if error.nothing_sent() => Refusal::UpstreamUnreachable,
            _ => Refusal::UpstreamFailed,
        }
    }
}

fn pass_on(answer: Response<crate::upstream::UpstreamBody>, session: &LiveSession) -> Response<ResponseBody> {
    let mut answer = answer.map(|body| ResponseBody::upstream(body, &session.ended));
    identity::strip_response(answer.headers_mut());
    answer
}

/// Refuses a request, and writes it down.
fn refuse(exchange: Arc<Exchange>, refusal: Refusal, closes: bool) -> Response<ResponseBody> {
    exchange.refuse(refusal);
    let response = answer(refusal, closes);
    exchange.answered(response.status());
    response.map(|bytes| ResponseBody::ours(bytes).counted(exchange))
}

/// The answer that says so. A refused request may have left a body unread: the connection is closed after it
/// where the protocol allows, so that what follows on it can't be taken for another request.
fn answer(refusal: Refusal, closes: bool) -> Response<Bytes> {
    let mut response = refusal.response();
    if closes {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
