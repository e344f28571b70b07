//! A client's bytes on an HTTP/2 connection: the first says in pieces of what size they come, the rest follow the preface.
//!
//! What is taken for requests is compared with what the `h2` crate takes for them.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;

use super::said::{Said, finish};
use crate::http2::server::{RequestBody, Responder, Server, Terms};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// As many bytes stand before a frame's payload; the preface ends with such, of empty SETTINGS.
const FRAME_HEAD: usize = 9;
const TERMS: Terms = Terms {
    streams: 8,
    head: 2048,
    fields: 32,
};
/// A client that says so much has us say no more than this for each byte of it, beside the greeting: an answer of one frame for a
/// head of one.
const LOUDEST: usize = 8;
const GREETING: usize = 256;

/// However the bytes are cut, the same is served of them; and where `h2` takes a request as whole as well, it is the same.
pub(super) fn holds(bytes: &[u8]) {
    let Some((size, said)) = bytes.split_first() else {
        return;
    };
    let said = [PREFACE, said].concat();
    let (whole, written) = ours(&said, said.len());
    let (cut, _) = ours(&said, usize::from(*size).max(1));
    assert!(
        written <= GREETING + LOUDEST * said.len(),
        "{written} bytes for {}",
        said.len()
    );
    if !takes_leave(&said) {
        for whole in whole.iter().filter(|asked| asked.is_whole) {
            // What breaks a stream in sight of its head has it not served at all.
            assert!(cut.contains(whole), "{whole:?} {cut:?}");
        }
    }
    let theirs = theirs(&said);
    for ours in whole.iter().filter(|asked| asked.is_whole) {
        if let Some(theirs) = theirs.iter().find(|theirs| theirs.nth == ours.nth && theirs.is_whole) {
            assert_eq!(ours, theirs);
        }
    }
}

/// Whether the client says GOAWAY (RFC 9113, section 6.8). Its connection is closed once nothing is open on it, so that what it
/// asks after that is served where it has come by then.
fn takes_leave(said: &[u8]) -> bool {
    const GOAWAY: u8 = 7;
    let mut frames = &said[PREFACE.len() - FRAME_HEAD..];
    while let Some((&[high, middle, low, kind, ..], rest)) = frames.split_first_chunk::<FRAME_HEAD>() {
        if kind == GOAWAY {
            return true;
        }
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

/// A request that is served.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// Its stream.
    nth: u32,
    method: Method,
    uri: Uri,
    fields: HeaderMap,
    data: Vec<u8>,
    is_whole: bool,
}

impl Asked {
    fn of<B>(nth: u32, request: &Request<B>) -> Self {
        Self {
            nth,
            method: request.method().clone(),
            uri: request.uri().clone(),
            fields: request.headers().clone(),
            data: Vec::new(),
            is_whole: false,
        }
    }
}

/// What the agent's server makes of it, and how many bytes it says.
fn ours(said: &[u8], size: usize) -> (Vec<Asked>, usize) {
    let (io, begun) = Said::new(&[], said, size);
    begun.set(true);
    let mut server = Server::new(io, TERMS);
    let mut cx = Context::from_waker(Waker::noop());
    let mut requests: Vec<(Asked, Responder, Option<RequestBody>)> = Vec::new();
    let ended = finish(std::future::poll_fn(|_| {
        let outcome = server.poll_drive(&mut cx);
        while let Some((asked, responder, body)) = server.next() {
            let id = asked.stream();
            if asked.wrong.is_none() {
                requests.push((Asked::of(id, &asked.request), responder, body));
            } else {
                responder.head(StatusCode::BAD_REQUEST, std::iter::empty(), true);
            }
        }
        for (asked, responder, body) in &mut requests {
            take(asked, body, &mut cx);
            if asked.is_whole && body.take().is_some() {
                responder.head(StatusCode::OK, std::iter::empty(), true);
            }
        }
        outcome
    }));
    assert!(ended.is_some(), "it closes, and that is the end");
    let written = server.io().written;
    drop(server);
    let asked = requests.into_iter().map(|(mut asked, responder, mut body)| {
        take(&mut asked, &mut body, &mut cx);
        drop(responder);
        asked
    });
    (asked.collect(), written)
}

/// Takes what has come of a body.
fn take(asked: &mut Asked, body: &mut Option<RequestBody>, cx: &mut Context<'_>) {
    let Some(body) = body else {
        asked.is_whole = true;
        return;
    };
    while let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
        match frame {
            Some(Ok(frame)) => asked.data.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) => return,
            None => {
                asked.is_whole = true;
                return;
            }
        }
    }
}

/// What the `h2` crate makes of it.
fn theirs(said: &[u8]) -> Vec<Asked> {
    let (io, begun) = Said::new(&[], said, said.len());
    begun.set(true);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(TERMS.streams)
        .initial_window_size(256 * 1024)
        .max_frame_size(16 * 1024);
    let Some(Ok(mut connection)) = finish(builder.handshake::<_, Bytes>(io)) else {
        return Vec::new();
    };
    let mut served = Vec::new();
    while let Some(Some(Ok(accepted))) = finish(connection.accept()) {
        served.push(accepted);
    }
    let asked = served.into_iter().map(|(request, mut respond)| {
        let mut asked = Asked::of(respond.stream_id().into(), &request);
        let mut body = request.into_body();
        loop {
            match finish(body.data()) {
                Some(Some(Ok(data))) => asked.data.extend_from_slice(&data),
                Some(None) => break,
                _ => return asked,
            }
        }
        asked.is_whole = matches!(finish(body.trailers()), Some(Ok(_)));
        let _ = respond.send_response(Response::new(()), true);
        asked
    });
    asked.collect()
}
