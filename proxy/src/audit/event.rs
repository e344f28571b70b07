//! What is said of a request, and the ticket that sees to it that it is said.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
};

use http::Method;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

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
    #[serde(serialize_with = "shared")]
    pub session: Arc<str>,
    /// The pod that asked; empty for clients of the agent's own listener.
    #[serde(serialize_with = "shared", skip_serializing_if = "is_empty")]
    pub pod: Arc<str>,
    /// The node it runs on.
    #[serde(serialize_with = "shared")]
    pub node: Arc<str>,
    /// How the request was authenticated upstream.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub auth_method: &'static str,
    /// As whom, where that is impersonated.
    #[serde(serialize_with = "maybe_shared", skip_serializing_if = "Option::is_none")]
    pub acts_as: Option<Arc<str>>,
    /// Who the caller proved to be, where it had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// By what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<&'static str>,
    /// The HTTP method.
    pub verb: Cow<'static, str>,
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
        if let Cow::Owned(verb) = &mut event.verb {
            cut(verb, VERB_LIMIT);
        }
        if let Some(name) = &mut event.caller {
            cut(name, NAME_LIMIT);
        }
        if let Some(name) = event.acts_as.as_mut().filter(|name| name.len() > NAME_LIMIT) {
            *name = Arc::from(&name[..name.floor_char_boundary(NAME_LIMIT)]);
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

/// A method's name, without an allocation where it is a usual one.
#[must_use]
pub fn verb(method: &Method) -> Cow<'static, str> {
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
    Cow::Owned(method.to_string())
}

fn shared<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

#[expect(clippy::ref_option, reason = "the signature is serde's")]
fn maybe_shared<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(serializer)
}

fn is_empty(text: &Arc<str>) -> bool {
    text.is_empty()
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
