//! One request: looked up, guarded, judged by the session's own rules, stripped, dressed, sent on, streamed back, written down.
//!
//! The order is the point of this module. Each step may refuse, and a refused request sends nothing upstream.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Incoming};
use tokio_util::task::TaskTracker;

use crate::{
    audit::Audit,
    body::{RequestBody, ResponseBody},
    clock::Clock,
    exchange::{Exchange, Opening},
    identity,
    metrics::Metrics,
    pod::{ClientAddr, EnrolledPod, OriginalDst},
    sessions::{live::LiveSession, store::SessionLookup},
    status::Refusal,
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
    /// The node's name, for the audit event.
    pub node: Arc<str>,
    /// The tasks of upgraded streams, which outlive their requests.
    pub streams: TaskTracker,
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
}

impl Forwarder {
    /// Serves one request. Always answers: an error of ours is a `Status`.
    pub async fn serve(&self, origin: &Origin, request: Request<Incoming>) -> Response<ResponseBody> {
        let ticket = self.audit.admit().await;
        let snapshot = self.sessions.snapshot();
        let session = snapshot.session(&origin.pod.wanted.session, self.clock.now());
        let exchange = Arc::new(Exchange::open(Opening {
            ticket,
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
            node: Arc::clone(&self.node),
            origin,
            session: session.as_deref().ok(),
            request: &request,
        }));
        let unread = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        let outcome = match session {
            Ok(session) => self.forward(session, request, &exchange).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(answer) => {
                exchange.answered(answer.status());
                answer.map(|body| body.counted(exchange))
            }
            Err(refusal) => refuse(exchange, refusal, unread),
        }
    }

    /// Answers a request that is refused before its session is looked at: nothing of it can be relied on.
    pub async fn decline<B>(&self, origin: &Origin, request: &Request<B>, refusal: Refusal) -> Response<ResponseBody> {
        let ticket = self.audit.admit().await;
        let snapshot = self.sessions.snapshot();
        let session = snapshot.session(&origin.pod.wanted.session, self.clock.now());
        let exchange = Arc::new(Exchange::open(Opening {
            ticket,
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
            node: Arc::clone(&self.node),
            origin,
            session: session.as_deref().ok(),
            request,
        }));
        refuse(exchange, refusal, request.version() < Version::HTTP_2)
    }

    async fn forward(
        &self,
        session: Arc<LiveSession>,
        mut request: Request<Incoming>,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let upgrade = upgrade::requested(&mut request)?;
        let (mut head, body) = request.into_parts();
        identity::guard(&head)?;
        if session.spec.refuse.refuse(&head.method, &head.uri, upgrade.is_some()) {
            return Err(Refusal::NotGranted);
        }
        identity::strip(&mut head.headers);
        let token = session.token(self.clock.now()).map_err(|error| {
            tracing::error!(session = %session.id, %error, "no credential to act with");
            Refusal::CredentialUnavailable
        })?;
        let acts_as = session.spec.method.acts_as();
        identity::dress(&mut head.headers, &token, acts_as, session.told()).map_err(|error| {
            tracing::error!(session = %session.id, %error, "a request is not forwarded");
            Refusal::Internal
        })?;
        let audit_id = HeaderValue::from_str(exchange.audit_id()).map_err(|_| Refusal::Internal)?;
        head.headers.insert(AUDIT_ID, audit_id);
        if let Some(upgrade) = &upgrade {
            upgrade.ask(&mut head.headers);
        }
        let body = RequestBody::new(body, Arc::clone(exchange), &session.ended);
        let request = Request::from_parts(head, body);

        let answered = async {
            match upgrade {
                Some(upgrade) => self.upgrade(&session, upgrade, request, exchange).await,
                None => send(&session, request).await,
            }
        };
        tokio::select! {
            biased;
            () = session.ended.cancelled() => Err(session.refusal()),
            // Why there is no answer is the client's doing, and it may still read.
            answered = answered => answered.map_err(|refusal| {
                if exchange.is_broken_off() { Refusal::BadRequest } else { refusal }
            }),
        }
    }

    async fn upgrade(
        &self,
        session: &Arc<LiveSession>,
        upgrade: Upgrade,
        request: Request<RequestBody>,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let answer = session
            .upstream
            .send_upgrade(request)
            .await
            .map_err(|error| unreachable(session, &error))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return upgrade.switch(answer, session, Arc::clone(exchange), &self.streams);
        }
        Ok(pass_on(answer.map(crate::upstream::UpstreamBody::unpooled), session))
    }
}

async fn send(session: &LiveSession, request: Request<RequestBody>) -> Result<Response<ResponseBody>, Refusal> {
    let answer = session
        .upstream
        .send(request)
        .await
        .map_err(|error| unreachable(session, &error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        tracing::error!(session = %session.id, "the upstream switched protocols unasked");
        return Err(Refusal::UpstreamFailed);
    }
    Ok(pass_on(answer, session))
}

fn pass_on(answer: Response<crate::upstream::UpstreamBody>, session: &LiveSession) -> Response<ResponseBody> {
    let mut answer = answer.map(|body| ResponseBody::upstream(body, &session.ended));
    identity::strip_response(answer.headers_mut());
    answer
}

/// The cause goes to the log; the client is told which kind.
fn unreachable(session: &LiveSession, error: &UpstreamError) -> Refusal {
    tracing::warn!(session = %session.id, %error, "a request was not answered by the upstream");
    match error {
        UpstreamError::Request(_) => Refusal::NotForwardable,
        UpstreamError::Exhausted => Refusal::Overloaded,
        error if error.nothing_sent() => Refusal::UpstreamUnreachable,
        _ => Refusal::UpstreamFailed,
    }
}

/// The answer that says so. A refused request may have left a body unread: the connection is closed after it
/// where the protocol allows, so that what follows on it can't be taken for another request.
fn refuse(exchange: Arc<Exchange>, refusal: Refusal, closes: bool) -> Response<ResponseBody> {
    exchange.refuse(refusal);
    let mut response = refusal.response();
    if closes {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.answered(response.status());
    response.map(|bytes| ResponseBody::ours(bytes).counted(exchange))
}
