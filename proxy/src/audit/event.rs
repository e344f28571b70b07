//! What is said of a request, and the ticket that sees to it that it is said.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde::Serialize;

use super::Audit;

/// Longer texts are cut: the backlog's memory is bounded by it.
const URI_LIMIT: usize = 4096;
const VERB_LIMIT: usize = 32;
const NAME_LIMIT: usize = 1024;

/// A request, from the audit log's view. What is empty or zero isn't known, and stays out of the line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When the request came.
    pub time: Timestamp,
    /// The id that the API server's own audit log has as well.
    pub audit_id: String,
    /// The pod's session, `namespace/name`.
    pub session: String,
    /// The pod that asked; empty for clients of the agent's own listener.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The node it runs on.
    pub node: String,
    /// How the request was authenticated upstream.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub auth_method: &'static str,
    /// As whom, where that is impersonated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acts_as: Option<String>,
    /// Who the caller proved to be, where it had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// By what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<&'static str>,
    /// The HTTP method.
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// The URI was longer than is written. Filled in when the event is.
    #[serde(skip_serializing_if = "is_false")]
    pub uri_truncated: bool,
    /// The code that the client was answered with; zero if it went away before.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
    /// Bytes of the request's body, or sent by the client over an upgrade.
    pub request_bytes: u64,
    /// Bytes of the answer's body, or sent by the server over an upgrade.
    pub response_bytes: u64,
    /// From the request's coming to the end of the answer.
    pub duration_ms: u64,
    /// It didn't come to its own end: the session ended, or a peer broke off.
    #[serde(skip_serializing_if = "is_false")]
    pub cut_short: bool,
    /// The protocol upgraded to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<&'static str>,
    /// Why the agent answered by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'static str>,
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

    /// Hands the event over. It never waits.
    pub fn finish(mut self, mut event: Event) {
        cut(&mut event.verb, VERB_LIMIT);
        for name in [&mut event.acts_as, &mut event.caller].into_iter().flatten() {
            cut(name, NAME_LIMIT);
        }
        event.uri_truncated = cut(&mut event.uri, URI_LIMIT);
        self.finished = true;
        self.audit.send(event);
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

fn cut(text: &mut String, limit: usize) -> bool {
    let longer = text.len() > limit;
    if longer {
        text.truncate(text.floor_char_boundary(limit));
        text.shrink_to_fit();
    }
    longer
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(value: &u16) -> bool {
    *value == 0
}
