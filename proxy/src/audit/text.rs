//! Events as JSON, written straight into the bytes that go out: no value is built on the way, and what is the same for
//! every event of a pod or of a user is put into JSON once.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    event::{Event, Stage},
    gap::Gap,
    user::User,
};
use crate::{
    escape,
    pod::EnrolledPod,
    request_info::{RequestInfo, ResourceRequest},
    status::Refusal,
};

const HEAD: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":""#;
/// What the names of the agent's annotations begin with.
const PREFIX: &str = "understudy.dev/";

/// What every event says of a pod; kept with the pod, and made at its first request.
#[derive(Debug, Default)]
pub struct PodText(OnceLock<Made>);

#[derive(Debug)]
struct Made {
    user: Arc<User>,
    /// The annotations that name the node, the pod and the session.
    annotations: String,
}

impl PodText {
    /// The user that the pod is by itself, as far as the agent knows.
    pub(crate) fn user<'p>(pod: &'p EnrolledPod, node: &str) -> &'p Arc<User> {
        &Self::of(pod, node).user
    }

    fn of<'p>(pod: &'p EnrolledPod, node: &str) -> &'p Made {
        pod.in_audit.0.get_or_init(|| {
            let wanted = &pod.wanted;
            let mut out = Vec::with_capacity(128);
            annotation(&mut out, "node", node);
            if !wanted.name.is_empty() {
                annotation(&mut out, "pod", &wanted.name);
            }
            annotation(&mut out, "session", wanted.session.text());
            Made {
                user: Arc::new(User::of_pod(wanted)),
                annotations: String::from_utf8(out).unwrap_or_default(),
            }
        })
    }
}

/// Writes events, one a line.
#[derive(Debug, Default)]
pub(super) struct Scribe {
    dates: Dates,
    /// The address that was written last, with its quotes: most events are of one pod's, as those before.
    address: Option<(IpAddr, Box<[u8]>)>,
}

impl Scribe {
    /// Appends an event.
    pub(super) fn event(&mut self, out: &mut Vec<u8>, event: &Event) {
        let asked = &*event.asked;
        out.extend_from_slice(HEAD);
        out.extend_from_slice(event.level.name().as_bytes());
        out.extend_from_slice(br#"","auditID":""#);
        let mut id = uuid::Uuid::encode_buffer();
        out.extend_from_slice(asked.audit_id.hyphenated().encode_lower(&mut id).as_bytes());
        out.extend_from_slice(br#"","stage":""#);
        out.extend_from_slice(event.stage.name().as_bytes());
        out.extend_from_slice(br#"","requestURI":"#);
        string(out, &asked.uri);
        member(out, "verb", &event.verb());
        key(out, "user");
        match &event.caller {
            Some(caller) => out.extend_from_slice(caller.json.as_bytes()),
            None => out.extend_from_slice(PodText::of(&asked.pod, &asked.node).user.json().as_bytes()),
        }
        if let Some(user) = &event.acts_as {
            key(out, "impersonatedUser");
            out.extend_from_slice(user.as_bytes());
        }
        if let Some(source) = asked.source {
            out.extend_from_slice(br#","sourceIPs":["#);
            self.address(out, source);
            out.push(b']');
        }
        if let Some(agent) = &asked.user_agent {
            member(out, "userAgent", agent);
        }
        if let Ok(RequestInfo::Resource(request)) = &event.reading {
            object(out, request);
        }
        if event.code != 0 {
            status(out, event.code, event.refused);
        }
        let whys = bodies(out, event);
        key(out, "requestReceivedTimestamp");
        self.dates.time(out, asked.received);
        key(out, "stageTimestamp");
        self.dates.time(out, event.stage_time());
        out.extend_from_slice(br#","annotations":{"#);
        out.extend_from_slice(PodText::of(&asked.pod, &asked.node).annotations.as_bytes());
        annotations(out, event);
        for (name, why) in ["request-object", "response-object"].into_iter().zip(whys) {
            if let Some(why) = why {
                annotation(out, name, why);
            }
        }
        out.extend_from_slice(b"}}\n");
    }

    fn address(&mut self, out: &mut Vec<u8>, address: IpAddr) {
        let kept = self.address.take().filter(|(kept, _)| *kept == address);
        let (_, text) = self.address.insert(kept.unwrap_or_else(|| {
            let mut text = Vec::new();
            json(&mut text, &address);
            (address, text.into())
        }));
        out.extend_from_slice(text);
    }

    /// Appends what says that events are missing.
    pub(super) fn gap(&mut self, out: &mut Vec<u8>, gap: &Gap) {
        out.extend_from_slice(HEAD);
        out.extend_from_slice(br#"Metadata","auditID":""#);
        let mut id = uuid::Uuid::encode_buffer();
        out.extend_from_slice(gap.id.hyphenated().encode_lower(&mut id).as_bytes());
        out.extend_from_slice(
            br#"","stage":"ResponseComplete","requestURI":"","verb":"gap","user":{},"requestReceivedTimestamp":"#,
        );
        self.dates.time(out, gap.since());
        key(out, "stageTimestamp");
        self.dates.time(out, gap.until());
        out.extend_from_slice(br#","annotations":{"#);
        annotation(out, "node", gap.node());
        number_annotation(out, "lost", gap.lost());
        for (name, time) in [("lost-since", gap.since()), ("lost-until", gap.until())] {
            annotation_key(out, name);
            self.dates.time(out, time);
        }
        out.extend_from_slice(b"}}\n");
    }
}

/// The bodies, where there are some to be written; why one isn't.
fn bodies(out: &mut Vec<u8>, event: &Event) -> [Option<&'static str>; 2] {
    if event.bodies_left_out {
        return [Some("left out: too many events wait"); 2];
    }
    let Some(bodies) = &event.bodies else {
        return [None; 2];
    };
    let mut whys = [None; 2];
    let objects = bodies.objects(&event.reading).into_iter();
    for ((name, object), why) in ["requestObject", "responseObject"]
        .into_iter()
        .zip(objects)
        .zip(&mut whys)
    {
        match object {
            Some(Ok(object)) => {
                key(out, name);
                out.extend_from_slice(object.as_bytes());
            }
            Some(Err(reason)) => *why = Some(reason),
            None => {}
        }
    }
    whys
}

fn annotations(out: &mut Vec<u8>, event: &Event) {
    let asked = &*event.asked;
    let texts = [
        (
            "auth-method",
            Some(asked.auth_method).filter(|method| !method.is_empty()),
        ),
        ("http-method", Some(&*asked.method)),
        ("proof", event.caller.as_ref().map(|caller| caller.proof)),
        ("upgrade", event.upgrade),
        ("recording", event.recording.as_deref()),
        ("refused", event.refused.map(Refusal::as_str)),
        ("doubt", event.reading.as_ref().err().map(|doubt| doubt.why())),
        ("cut-short", event.cut_short.then_some("true")),
        ("uri-truncated", asked.uri_truncated.then_some("true")),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            annotation(out, name, value);
        }
    }
    if event.stage == Stage::ResponseComplete {
        number_annotation(out, "request-bytes", event.request_bytes);
        number_annotation(out, "response-bytes", event.response_bytes);
    }
}

/// `ObjectReference`, in Kubernetes' order.
fn object(out: &mut Vec<u8>, request: &ResourceRequest) {
    key(out, "objectRef");
    out.push(b'{');
    for (name, value) in [
        ("resource", &request.resource),
        ("namespace", &request.namespace),
        ("name", &request.name),
        ("apiGroup", &request.api_group),
        ("apiVersion", &request.api_version),
        ("subresource", &request.subresource),
    ] {
        if !value.is_empty() {
            member(out, name, value);
        }
    }
    out.push(b'}');
}

/// `metav1.Status`: whole where it is the agent's own, its code alone where it is the API server's.
fn status(out: &mut Vec<u8>, code: u16, refused: Option<Refusal>) {
    out.extend_from_slice(br#","responseStatus":{"metadata":{}"#);
    if let Some(refusal) = refused {
        member(out, "status", "Failure");
        member(out, "message", refusal.message());
        member(out, "reason", refusal.reason());
    }
    key(out, "code");
    json(out, &code);
    out.push(b'}');
}

/// Appends `"name":`, with a comma before it where something stands there. The name needs no escape.
pub(super) fn key(out: &mut Vec<u8>, name: &'static str) {
    separate(out);
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// The same, of whatever name.
pub(super) fn key_of(out: &mut Vec<u8>, name: &str) {
    separate(out);
    string(out, name);
    out.push(b':');
}

fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), None | Some(b'{')) {
        out.push(b',');
    }
}

/// Appends `"name":"value"`. The name needs no escape.
pub(super) fn member(out: &mut Vec<u8>, name: &'static str, value: &str) {
    key(out, name);
    string(out, value);
}

/// Appends an array of strings.
pub(super) fn strings(out: &mut Vec<u8>, values: &[&String]) {
    json(out, &values);
}

fn annotation_key(out: &mut Vec<u8>, name: &str) {
    separate(out);
    out.push(b'"');
    out.extend_from_slice(PREFIX.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// Appends an annotation of the agent's; the name needs no escape.
fn annotation(out: &mut Vec<u8>, name: &str, value: &str) {
    annotation_key(out, name);
    string(out, value);
}

fn number_annotation(out: &mut Vec<u8>, name: &str, value: u64) {
    annotation_key(out, name);
    out.push(b'"');
    json(out, &value);
    out.push(b'"');
}

/// Appends a string with its quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape::append(out, text, false);
    out.push(b'"');
}

/// Strings and numbers always serialize, and a vector takes all.
fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!(%error, "part of an audit event cannot be written as JSON");
    }
}

/// Writes `metav1.MicroTime`: RFC 3339 with six digits behind the point. The second that it wrote last is kept, for most
/// events fall into one that others are in.
#[derive(Debug, Default)]
struct Dates {
    second: Option<i64>,
    text: String,
}

impl Dates {
    fn time(&mut self, out: &mut Vec<u8>, time: Timestamp) {
        // The microseconds count forward from the second before, also before 1970.
        let micros = time.as_microsecond();
        let (second, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if self.second != Some(second) {
            self.second = Some(second);
            let whole = Timestamp::from_second(second).unwrap_or(Timestamp::MIN);
            self.text.clear();
            self.text.push_str(whole.to_string().trim_end_matches('Z'));
        }
        out.push(b'"');
        out.extend_from_slice(self.text.as_bytes());
        out.push(b'.');
        let mut digits = [b'0'; 6];
        let mut left = micros;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
        }
        out.extend_from_slice(&digits);
        out.extend_from_slice(b"Z\"");
    }
}

/// So much after a time; the calendar's end where there is none.
pub(super) fn after(time: Timestamp, elapsed: std::time::Duration) -> Timestamp {
    SignedDuration::try_from(elapsed)
        .ok()
        .and_then(|elapsed| time.checked_add(elapsed).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn written(time: Timestamp) -> String {
        let mut out = Vec::new();
        Dates::default().time(&mut out, time);
        String::from_utf8(out).unwrap()
    }

    #[rstest]
    #[case("2026-06-01T12:00:00Z", "\"2026-06-01T12:00:00.000000Z\"")]
    #[case("2026-06-01T12:00:00.0000019Z", "\"2026-06-01T12:00:00.000001Z\"")]
    #[case("1970-01-01T00:00:00.123456789Z", "\"1970-01-01T00:00:00.123456Z\"")]
    #[case("1969-12-31T23:59:59.75Z", "\"1969-12-31T23:59:59.750000Z\"")]
    fn micro_times(#[case] time: &str, #[case] expected: &str) {
        assert_eq!(written(time.parse().unwrap()), expected);
    }

    proptest! {
        /// However times follow each other, each is read back as it was, to the microsecond.
        #[test]
        fn times_are_read_back(micros in proptest::collection::vec(0..4_000_000_000_000_000_i64, 1..8)) {
            let mut dates = Dates::default();
            for micros in micros {
                let time = Timestamp::from_microsecond(micros).unwrap();
                let mut out = Vec::new();
                dates.time(&mut out, time);
                let read: Timestamp = serde_json::from_slice(&out).unwrap();
                prop_assert_eq!(read, time);
            }
        }
    }
}
