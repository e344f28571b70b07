//! The context of a trace in a request's fields, as the W3C has it (<https://www.w3.org/TR/trace-context/>, level 1).
//!
//! The processing model of section 4.3: a `traceparent` that can't be read counts as none, and then `tracestate` isn't looked
//! at either; a version that isn't known is read as far as 00 goes; whoever adds a span of its own changes the parent's id.
//! `tracestate` goes on as it came, for nothing is added to it.

use std::str::FromStr as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId, TraceState};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// As long as `traceparent` is in version 00: four fields, and a hyphen between two.
const LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// The span that a request was sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) is_sampled: bool,
}

/// The span that a request was sent in, if its client says so in one way.
pub(super) fn read(headers: &HeaderMap) -> Option<Parent> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    parse(line.to_str().ok()?)
}

fn parse(text: &str) -> Option<Parent> {
    let (known, more) = text.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let mut field = |length: usize| {
        let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        fields
            .next()
            .filter(|field| field.len() == length && field.bytes().all(is_lower_hex))
    };
    let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let is_whole = match version {
        "ff" => false,
        "00" => more.is_empty(),
        _ => more.is_empty() || more.starts_with('-'),
    };
    let trace_id = TraceId::from_hex(trace_id).ok().filter(|id| *id != TraceId::INVALID)?;
    let span_id = SpanId::from_hex(span_id).ok().filter(|id| *id != SpanId::INVALID)?;
    let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    is_whole.then_some(Parent {
        trace_id,
        span_id,
        is_sampled,
    })
}

/// What other tracers say of it, for our own spans. None of it where it can't be read.
pub(super) fn state(headers: &HeaderMap) -> TraceState {
    let lines = headers.get_all(TRACESTATE).iter().map(|line| line.to_str());
    let lines: Result<Vec<_>, _> = lines.collect();
    lines
        .ok()
        .and_then(|lines| TraceState::from_str(&lines.join(",")).ok())
        .unwrap_or_default()
}

/// Makes `span_id` the parent of what is done upstream. What other tracers say stays, if the client's context does.
pub(super) fn write(headers: &mut HeaderMap, trace_id: TraceId, span_id: SpanId, is_continued: bool) {
    let text = format!("00-{trace_id}-{span_id}-01");
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
    if !is_continued {
        headers.remove(TRACESTATE);
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[rstest]
    #[case::sampled("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true)]
    #[case::not_sampled("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", false)]
    #[case::other_flags("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff", true)]
    #[case::other_flags_alone("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe", false)]
    #[case::later_version("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true)]
    #[case::later_version_with_more("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else", true)]
    fn a_parent_is_read(#[case] text: &str, #[case] is_sampled: bool) {
        let parent = Parent {
            trace_id: TraceId::from_hex(TRACE).unwrap(),
            span_id: SpanId::from_hex(SPAN).unwrap(),
            is_sampled,
        };
        assert_eq!(read(&headers(&[("traceparent", text)])), Some(parent));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_version("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    #[case::forbidden_version("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    #[case::version_not_hex("0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    #[case::more("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else")]
    #[case::more_at_once("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-010")]
    #[case::later_version_with_more_at_once("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what")]
    #[case::no_trace("00-00000000000000000000000000000000-b7ad6b7169203331-01")]
    #[case::no_span("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01")]
    #[case::upper_case("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01")]
    #[case::short_trace("00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01")]
    #[case::sign("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    #[case::flags_not_hex("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x")]
    #[case::short("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1")]
    #[case::not_ascii("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é")]
    fn what_is_no_parent_is_none(#[case] text: &str) {
        let map = [(TRACEPARENT, HeaderValue::from_bytes(text.as_bytes()).unwrap())];
        assert_eq!(read(&map.into_iter().collect()), None);
    }

    #[test]
    fn two_parents_are_none() {
        let (one, other) = (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-00"));
        assert_eq!(read(&headers(&[("traceparent", &one), ("traceparent", &other)])), None);
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn what_others_say_is_read_over_all_lines_or_not_at_all() {
        let said = state(&headers(&[("tracestate", "a=1,b=2"), ("tracestate", "c=3")]));
        assert_eq!(said.header(), "a=1,b=2,c=3");
        assert_eq!(state(&headers(&[("tracestate", "no pair")])), TraceState::default());
    }

    #[test]
    fn the_parent_is_changed_and_what_others_say_stays_with_its_trace() {
        let trace_id = TraceId::from_hex(TRACE).unwrap();
        let write = |is_continued| {
            let mut map = headers(&[("traceparent", "not one"), ("traceparent", "x"), ("tracestate", "a=1")]);
            write(&mut map, trace_id, SpanId::from(1), is_continued);
            map
        };
        let parent = format!("00-{TRACE}-0000000000000001-01");
        assert_eq!(write(true), headers(&[("traceparent", &parent), ("tracestate", "a=1")]));
        assert_eq!(write(false), headers(&[("traceparent", &parent)]));
    }
}
