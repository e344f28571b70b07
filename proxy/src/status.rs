//! What the agent itself answers: each refusal as a Kubernetes `Status`, so that kubectl prints it and client-go
//! understands it. The texts are static; a cause, a path or an error of the operating system goes to the log.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusDetails};

/// Seconds after which a client may come back, where waiting can help.
const RETRY_AFTER: u16 = 1;

/// Why a request isn't answered by the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// HTTP without TLS.
    PlainHttp,
    /// Not a request that can be understood in one way only.
    BadRequest,
    /// A head larger than is allowed.
    HeadTooLarge,
    /// A head with more fields than are allowed.
    TooManyHeaders,
    /// A head that didn't come to its end in time.
    RequestTimeout,
    /// The client asks to impersonate.
    Impersonation,
    /// The pod's session doesn't exist.
    NoSession,
    /// The session's time is over.
    SessionExpired,
    /// The session was ended before its time.
    SessionRevoked,
    /// The session went unused for too long.
    SessionIdle,
    /// The session can't be used as it is declared.
    SessionInvalid,
    /// Whether there is such a session isn't known yet.
    SessionUnknown,
    /// The session doesn't carry such a request.
    NotGranted,
    /// There is no credential to act with at the moment.
    CredentialUnavailable,
    /// `CONNECT` or `TRACE`.
    MethodNotAllowed,
    /// The API server doesn't accept a connection. No byte of the request was sent.
    UpstreamUnreachable,
    /// The connection to the API server broke before an answer.
    UpstreamFailed,
    /// An upgrade to a protocol that the agent doesn't carry.
    UnknownUpgrade,
    /// A request that has no form in which it can be sent on.
    NotForwardable,
    /// A mistake of the agent's own.
    Internal,
    /// The agent is going down.
    Draining,
    /// The agent has as much to do as it takes on.
    Overloaded,
    /// The credential that the caller shows isn't accepted.
    Unproven,
    /// Whether it is accepted can't be known at the moment.
    ProofUnavailable,
    /// The caller is somebody who can't be carried upstream exactly.
    Uncarriable,
    /// The caller may not be whom it asks to be.
    ImpersonationForbidden,
    /// The pod's own token is asked for, and isn't there or isn't good.
    NoPodToken,
    /// The token was made for another pod, or for none.
    OtherPodsToken,
    /// The pod has as many requests in flight as it may.
    TooManyRequests,
    /// The request can't be written to the audit log.
    AuditUnavailable,
    /// The session's streams must be recorded, and this one can't be as it is asked for.
    NotRecordable,
    /// The session's streams must be recorded, and nothing can be at the moment.
    RecordingUnavailable,
}

impl Refusal {
    /// All of them, as the tables of metrics and tests need.
    pub const ALL: [Self; 32] = [
        Self::PlainHttp,
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::TooManyHeaders,
        Self::RequestTimeout,
        Self::Impersonation,
        Self::NoSession,
        Self::SessionExpired,
        Self::SessionRevoked,
        Self::SessionIdle,
        Self::SessionInvalid,
        Self::SessionUnknown,
        Self::NotGranted,
        Self::CredentialUnavailable,
        Self::MethodNotAllowed,
        Self::UpstreamUnreachable,
        Self::UpstreamFailed,
        Self::UnknownUpgrade,
        Self::NotForwardable,
        Self::Internal,
        Self::Draining,
        Self::Overloaded,
        Self::Unproven,
        Self::ProofUnavailable,
        Self::Uncarriable,
        Self::ImpersonationForbidden,
        Self::NoPodToken,
        Self::OtherPodsToken,
        Self::TooManyRequests,
        Self::AuditUnavailable,
        Self::NotRecordable,
        Self::RecordingUnavailable,
    ];

    /// Its name in metrics and the audit log. It doesn't change between releases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PlainHttp => "plain-http",
            Self::BadRequest => "bad-request",
            Self::HeadTooLarge => "head-too-large",
            Self::TooManyHeaders => "too-many-headers",
            Self::RequestTimeout => "request-timeout",
            Self::Impersonation => "impersonation",
            Self::NoSession => "no-session",
            Self::SessionExpired => "session-expired",
            Self::SessionRevoked => "session-revoked",
            Self::SessionIdle => "session-idle",
            Self::SessionInvalid => "session-invalid",
            Self::SessionUnknown => "session-unknown",
            Self::NotGranted => "not-granted",
            Self::CredentialUnavailable => "credential-unavailable",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::UpstreamUnreachable => "upstream-unreachable",
            Self::UpstreamFailed => "upstream-failed",
            Self::UnknownUpgrade => "unknown-upgrade",
            Self::NotForwardable => "not-forwardable",
            Self::Internal => "internal",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Unproven => "unproven",
            Self::ProofUnavailable => "proof-unavailable",
            Self::Uncarriable => "uncarriable",
            Self::ImpersonationForbidden => "impersonation-forbidden",
            Self::NoPodToken => "no-pod-token",
            Self::OtherPodsToken => "other-pods-token",
            Self::TooManyRequests => "too-many-requests",
            Self::AuditUnavailable => "audit-unavailable",
            Self::NotRecordable => "not-recordable",
            Self::RecordingUnavailable => "recording-unavailable",
        }
    }

    /// The HTTP status code.
    #[must_use]
    pub fn code(self) -> StatusCode {
        match self {
            Self::PlainHttp | Self::BadRequest | Self::UnknownUpgrade => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unproven | Self::NoPodToken => StatusCode::UNAUTHORIZED,
            Self::Uncarriable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Impersonation
            | Self::NoSession
            | Self::SessionExpired
            | Self::SessionRevoked
            | Self::SessionIdle
            | Self::SessionInvalid
            | Self::NotGranted
            | Self::ImpersonationForbidden
            | Self::NotRecordable
            | Self::OtherPodsToken => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Overloaded | Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            // Not the client's doing: what is wrong is the operator's to mend.
            Self::CredentialUnavailable | Self::NotForwardable | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UpstreamFailed => StatusCode::BAD_GATEWAY,
            Self::UpstreamUnreachable
            | Self::SessionUnknown
            | Self::Draining
            | Self::ProofUnavailable
            | Self::RecordingUnavailable
            | Self::AuditUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason, one of `metav1.StatusReason`. Where it has none for a code (408, 431, 502), the nearest of its kind.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self.code() {
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
            StatusCode::REQUEST_TIMEOUT => "Timeout",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            code if code.is_client_error() => "BadRequest",
            _ => "InternalError",
        }
    }

    /// What the person at the client reads.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::PlainHttp => "understudy: this port speaks HTTPS; use https:// in the client's server URL",
            Self::BadRequest => "understudy: the request is malformed; nothing was sent on",
            Self::HeadTooLarge => {
                "understudy: the request's head is larger than is carried; nothing was sent on (the agent's --max-header-bytes)"
            }
            Self::TooManyHeaders => {
                "understudy: the request has more header fields than are carried; nothing was sent on (the agent's --max-headers)"
            }
            Self::RequestTimeout => "understudy: the request did not come in time, and was not sent on to its end",
            Self::Impersonation => {
                "understudy: a pod in a session cannot impersonate; remove the Impersonate-* headers (kubectl: --as, --as-group, --as-uid)"
            }
            Self::NoSession => {
                "understudy: this pod's session does not exist; ask the cluster's operator for a session"
            }
            Self::SessionExpired => {
                "understudy: this pod's session has expired; ask the cluster's operator to renew it"
            }
            Self::SessionRevoked => {
                "understudy: this pod's session was revoked; ask the cluster's operator for a new one"
            }
            Self::SessionIdle => {
                "understudy: this pod's session has been idle for too long; ask the cluster's operator for a new one"
            }
            Self::SessionUnknown => "understudy: this pod's session is not known to the agent yet; try again",
            Self::NotGranted => {
                "understudy: this pod's session does not carry this request (spec.refuse of the Session says which)"
            }
            Self::SessionInvalid => {
                "understudy: this pod's session is not valid as declared; the agent's log on this node says why"
            }
            Self::CredentialUnavailable => {
                "understudy: the session's credential is not available; the agent's log on this node says why"
            }
            Self::MethodNotAllowed => "understudy: this HTTP method is not carried; the Kubernetes API does not use it",
            Self::UpstreamUnreachable => "understudy: the API server cannot be reached; nothing was sent, try again",
            Self::UpstreamFailed => {
                "understudy: the connection to the API server failed before an answer; the request may have taken effect"
            }
            Self::UnknownUpgrade => "understudy: this protocol upgrade is not carried; use websocket or SPDY/3.1",
            Self::NotForwardable => "understudy: the request cannot be put in a form to send on; nothing was sent",
            Self::Internal => "understudy: internal error; the agent's log on this node says more",
            Self::Draining => "understudy: the agent on this node is restarting; try again",
            Self::Overloaded => "understudy: the agent on this node is overloaded; try again",
            Self::Unproven => {
                "understudy: Unauthorized: the certificate or token shown is not accepted; check whether it has expired"
            }
            Self::ProofUnavailable => {
                "understudy: who the caller is cannot be confirmed at the moment; nothing was sent, try again"
            }
            Self::Uncarriable => {
                "understudy: the caller's name, groups, UID or extra cannot be carried exactly; the agent's log on this node says which"
            }
            Self::ImpersonationForbidden => {
                "understudy: the caller may not impersonate whom it asks for (kubectl: --as, --as-group, --as-uid)"
            }
            Self::NoPodToken => {
                "understudy: Unauthorized: this pod's session asks for the pod's own service account token"
            }
            Self::OtherPodsToken => "understudy: the token shown was not made for this pod; use the pod's own",
            Self::TooManyRequests => "understudy: this pod has too many requests in flight; try again",
            Self::AuditUnavailable => {
                "understudy: the request cannot be written to the audit log, so nothing was sent; try again"
            }
            Self::NotRecordable => {
                "understudy: this pod's session is recorded, and this request could go unrecorded; use exec, attach or port-forward of a pod, as kubectl does"
            }
            Self::RecordingUnavailable => {
                "understudy: this pod's session is recorded, and that is not possible at the moment; nothing was sent; the agent's log on this node says why"
            }
        }
    }

    fn retry_after(self) -> Option<u16> {
        let can_help = matches!(
            self,
            Self::SessionUnknown
                | Self::Draining
                | Self::Overloaded
                | Self::ProofUnavailable
                | Self::TooManyRequests
                | Self::AuditUnavailable
                | Self::RecordingUnavailable
        );
        can_help.then_some(RETRY_AFTER)
    }

    /// The answer's body.
    #[must_use]
    pub fn status(self) -> Status {
        Status {
            code: Some(self.code().as_u16().into()),
            details: self.retry_after().map(|seconds| StatusDetails {
                retry_after_seconds: Some(seconds.into()),
                ..StatusDetails::default()
            }),
            message: Some(self.message().to_owned()),
            reason: Some(self.reason().to_owned()),
            status: Some("Failure".to_owned()),
            ..Status::default()
        }
    }

    /// The whole answer, its length known. It must not be cached: the same request is answered otherwise as soon as
    /// the session or the API server is back.
    #[must_use]
    pub fn response(self) -> Response<Bytes> {
        // A Status of static texts always serializes; an empty body would be the lesser evil.
        let body = Bytes::from(serde_json::to_vec(&self.status()).unwrap_or_default());
        let length = HeaderValue::from(body.len());
        let mut response = Response::new(body);
        *response.status_mut() = self.code();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, length);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::MethodNotAllowed {
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(Refusal::PlainHttp, 400, "BadRequest", "plain-http")]
    #[case(Refusal::BadRequest, 400, "BadRequest", "bad-request")]
    #[case(Refusal::HeadTooLarge, 431, "BadRequest", "head-too-large")]
    #[case(Refusal::TooManyHeaders, 431, "BadRequest", "too-many-headers")]
    #[case(Refusal::RequestTimeout, 408, "Timeout", "request-timeout")]
    #[case(Refusal::Impersonation, 403, "Forbidden", "impersonation")]
    #[case(Refusal::NoSession, 403, "Forbidden", "no-session")]
    #[case(Refusal::SessionExpired, 403, "Forbidden", "session-expired")]
    #[case(Refusal::SessionRevoked, 403, "Forbidden", "session-revoked")]
    #[case(Refusal::SessionInvalid, 403, "Forbidden", "session-invalid")]
    #[case(Refusal::CredentialUnavailable, 500, "InternalError", "credential-unavailable")]
    #[case(Refusal::MethodNotAllowed, 405, "MethodNotAllowed", "method-not-allowed")]
    #[case(Refusal::UpstreamUnreachable, 503, "ServiceUnavailable", "upstream-unreachable")]
    #[case(Refusal::UpstreamFailed, 502, "InternalError", "upstream-failed")]
    #[case(Refusal::UnknownUpgrade, 400, "BadRequest", "unknown-upgrade")]
    #[case(Refusal::NotForwardable, 500, "InternalError", "not-forwardable")]
    #[case(Refusal::Internal, 500, "InternalError", "internal")]
    #[case(Refusal::Unproven, 401, "Unauthorized", "unproven")]
    #[case(Refusal::NoPodToken, 401, "Unauthorized", "no-pod-token")]
    #[case(Refusal::OtherPodsToken, 403, "Forbidden", "other-pods-token")]
    #[case(Refusal::ImpersonationForbidden, 403, "Forbidden", "impersonation-forbidden")]
    #[case(Refusal::Uncarriable, 422, "Invalid", "uncarriable")]
    #[case(Refusal::NotRecordable, 403, "Forbidden", "not-recordable")]
    fn answers(#[case] refusal: Refusal, #[case] code: u16, #[case] reason: &str, #[case] name: &str) {
        assert_eq!(refusal.as_str(), name);
        let (head, body) = refusal.response().into_parts();
        assert_eq!(head.status, code);
        assert_eq!(head.headers["content-type"], "application/json");
        assert_eq!(head.headers["content-length"], body.len().to_string().as_str());
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": refusal.message(), "reason": reason, "code": code,
        });
        assert_eq!(status, expected);
    }

    #[rstest]
    #[case(Refusal::Draining, 503, "ServiceUnavailable")]
    #[case(Refusal::Overloaded, 429, "TooManyRequests")]
    #[case(Refusal::ProofUnavailable, 503, "ServiceUnavailable")]
    #[case(Refusal::TooManyRequests, 429, "TooManyRequests")]
    #[case(Refusal::AuditUnavailable, 503, "ServiceUnavailable")]
    #[case(Refusal::RecordingUnavailable, 503, "ServiceUnavailable")]
    fn asks_to_come_back(#[case] refusal: Refusal, #[case] code: u16, #[case] reason: &str) {
        let (head, body) = refusal.response().into_parts();
        assert_eq!(
            (head.status.as_u16(), &head.headers["retry-after"]),
            (code, &HeaderValue::from_static("1"))
        );
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&status["reason"], &status["details"]),
            (&json!(reason), &json!({"retryAfterSeconds": 1}))
        );
    }

    #[test]
    fn names_and_messages_are_told_apart() {
        let names: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.as_str()).collect();
        let messages: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.message()).collect();
        assert_eq!((names.len(), messages.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        assert!(messages.iter().all(|message| message.starts_with("understudy: ")));
    }
}
