//! What the agent's own refusals mean to an operator.

/// How a reason is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// The session carries nothing, or not all: the agent's or the cluster's to mend.
    Ours,
    /// What the pod's clients ask for.
    Theirs,
    /// Steps of their own tell of it, from what stands now.
    Told,
}

/// What to do about a refusal of a request or of a connection, by its name in metrics and the audit log.
pub(super) fn remedy(reason: &str) -> (Weight, &'static str) {
    use Weight::{Ours, Theirs, Told};
    match reason {
        "no-session"
        | "session-expired"
        | "session-revoked"
        | "session-idle"
        | "session-invalid"
        | "session-unknown"
        | "credential-unavailable"
        | "draining" => (Told, "it was so when the request came; see the other steps for now"),
        "distrusted" | "plain-http" | "plain_http" => (Told, "see the step about the certificate"),
        "upstream-unreachable" => (
            Ours,
            "no connection to the API server: look in the agent's log, and at its way to the server",
        ),
        "upstream-failed" => (
            Ours,
            "connections to the API server broke: look in the agent's log, and at the server",
        ),
        "audit-unavailable" => (
            Ours,
            "the audit log can't be written: mend its destination, which the agent's log names",
        ),
        "overloaded" => (
            Ours,
            "the API server takes no more streams of the session: look at its load, and at --queue-timeout",
        ),
        "proof-unavailable" => (
            Ours,
            "the API server can't be asked who callers are: see that it answers, and that the agent may create tokenreviews",
        ),
        "not-forwardable" | "internal" => (Ours, "a fault of the agent's: its log says more; please report it"),
        "not-granted" => (
            Theirs,
            "spec.refuse of the Session names these requests: change it if they should pass",
        ),
        "impersonation" => (
            Theirs,
            "a pod in a session can't impersonate: have it leave out --as, --as-group and Impersonate-* headers",
        ),
        "impersonation-forbidden" => (
            Theirs,
            "the caller itself may not impersonate whom it asks to be: grant it that right",
        ),
        "unproven" => (
            Theirs,
            "the caller's certificate or token isn't accepted: look at spec.callerIdentity, and at what the caller shows",
        ),
        "uncarriable" => (
            Theirs,
            "the caller is somebody who can't be impersonated exactly: look at its name, groups and extra in the agent's log",
        ),
        "no-pod-token" | "other-pods-token" => (
            Theirs,
            "spec.requirePodToken asks for the pod's own bound token: mount one (automountServiceAccountToken), and have clients send it",
        ),
        "too-many-requests" => (
            Theirs,
            "the pod has as many requests in flight as it may: have it ask for less, or raise --max-requests-per-pod",
        ),
        "head-too-large" | "too-many-headers" => (
            Theirs,
            "its requests' heads are larger than is carried: see --max-header-bytes and --max-headers",
        ),
        "request-timeout" | "timeout" => (
            Theirs,
            "its clients are too slow: look at the pod's CPU limit, and at --handshake-timeout and --header-timeout",
        ),
        "crowded" => (
            Theirs,
            "too many of its clients shake hands at once: have them keep connections, or raise --max-handshakes-per-pod",
        ),
        "bad-request" | "method-not-allowed" | "unknown-upgrade" => (
            Theirs,
            "its client sends what isn't carried: the audit log has the request",
        ),
        "not-recordable" => (
            Theirs,
            "the session's streams are to be recorded, and this one can't be read: have the client speak WebSocket or SPDY as kubectl does",
        ),
        "recording-unavailable" => (
            Ours,
            "the session's streams are to be recorded, and can't be: see --recordings, and the room on its disk",
        ),
        "silent" | "io" => (
            Theirs,
            "its clients hung up before they said anything: a probe of a port, most likely",
        ),
        _ => (Theirs, "the agent's log says more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Refusal;

    #[test]
    fn every_refusal_is_explained() {
        let (_, unknown) = remedy("something-new");
        for refusal in Refusal::ALL {
            assert_ne!(remedy(refusal.as_str()).1, unknown, "{refusal:?}");
        }
    }
}
