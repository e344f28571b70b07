//! The cases of h2spec (<https://github.com/summerwind/h2spec>), by RFC 9113's sections, re-expressed against the agent.
//!
//! Codes are the RFC's. What isn't a request is answered (section 8.1.1 allows that), so that its author learns why and the audit
//! log has it.

mod frames;
mod messages;

use understudy_cases::{Area, seen};

use crate::{
    frames::{END_HEADERS, END_STREAM, End, HEADERS, Raw, SETTINGS, WINDOW_UPDATE, frame, hpack},
    stage::{Stage, Terms, whole},
    wire::upstream,
};

fn with(first: &[(&str, &str)], more: &[(&str, &str)]) -> Vec<u8> {
    hpack(&[first, more].concat())
}

/// A request whose fields are these, and that ends with them.
fn ask(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, hpack(fields))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(
        SETTINGS,
        0,
        0,
        [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat(),
    )
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

/// What is sent, on which stream its end is looked for (0: the connection's), what comes of it, and how many requests
/// the upstream sees.
type Case = (&'static str, Vec<Vec<u8>>, u32, &'static str, usize);

async fn play(cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (case, frames, stream, expected, requests) in cases {
        let stage = Stage::new(
            Terms::default(),
            |request: http::Request<hyper::body::Incoming>| async move {
                use http_body_util::BodyExt;
                let _ = request.into_body().collect().await;
                // Late enough for whatever comes behind a request to be there before its answer.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                whole("served")
            },
        )
        .await;
        let mut raw = Raw::new(&stage).await;
        raw.send(frames.concat()).await;
        let end = raw.end_of(stream).await;
        let on = match &end {
            End::GoAway(_) if raw.lives().await => ", which isn't so",
            End::GoAway(_) => "",
            _ if raw.lives().await => "",
            _ => ", connection closed",
        };
        let outcome = format!("{end}{on}; {}", upstream(stage.seen.count()));
        if outcome != format!("{expected}; {}", upstream(requests)) {
            wrong.push(format!("{case}: {outcome}, expected {expected} and {requests}"));
        }
        seen(Area::Http2, format!("h2spec {case}"), outcome);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn frames_are_taken_as_the_rfc_says() {
    play(frames::cases()).await;
}

/// Invariant 2: what isn't a well-formed request goes no further.
#[tokio::test]
async fn messages_are_taken_as_the_rfc_says() {
    play(messages::cases()).await;
}
