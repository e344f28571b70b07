//! One request's answer: waited for, and sent as the client takes it.

use std::{
    fmt::Display,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};
use http_body::Body;

use super::super::http1::answer::{date, declared, has_none};
use crate::http2::server::{Responder, is_connections};

/// Whoever answers, at work.
pub(super) type Serving<'s, B> = Pin<Box<dyn Future<Output = Response<B>> + Send + 's>>;

/// Ends with the answer, or when the client doesn't want it any more. What it waits for is given up with it.
pub(super) struct Exchanging<'s, B> {
    responder: Responder,
    is_head: bool,
    phase: Phase<'s, B>,
}

enum Phase<'s, B> {
    /// Gone when the answer comes, whose body may last for long.
    Serving(Serving<'s, B>),
    Sending {
        body: B,
        piece: Bytes,
        /// Nothing follows the piece.
        is_last: bool,
    },
}

impl<'s, B> Exchanging<'s, B> {
    pub(super) fn new(responder: Responder, method: &Method, serving: Serving<'s, B>) -> Self {
        Self {
            responder,
            is_head: *method == Method::HEAD,
            phase: Phase::Serving(serving),
        }
    }
}

impl<B> Exchanging<'_, B>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    /// Sends the head; what is left to be sent, if anything is. Whatever an answer says of its connection isn't taken over.
    fn begin(&self, answer: Response<B>) -> Option<B> {
        let (parts, body) = answer.into_parts();
        // Dropped without an answer, the stream is reset: nobody knows where this one ends.
        let declared = declared(&parts.headers).ok()?;
        let is_empty = body.is_end_stream();
        let is_last = is_empty || self.is_head || has_none(parts.status);
        let exact = if is_empty { Some(0) } else { body.size_hint().exact() };
        let length = exact
            .filter(|exact| declared.is_none() && !has_none(parts.status) && (*exact > 0 || !self.is_head))
            .map(|exact| (header::CONTENT_LENGTH, HeaderValue::from(exact)));
        // A server with a clock says when it answered (RFC 9110, section 6.6.1): the upstream does, and otherwise we do.
        let date = if parts.headers.contains_key(header::DATE) {
            None
        } else {
            date().and_then(|date| Some((header::DATE, HeaderValue::from_bytes(&date).ok()?)))
        };
        let ours = [length, date];
        let ours = ours.iter().flatten().map(|(name, value)| (name, value));
        let theirs = parts.headers.iter().filter(|(name, _)| !is_connections(name));
        self.responder.head(parts.status, theirs.chain(ours), is_last);
        (!is_last).then_some(body)
    }
}

impl<B> Future for Exchanging<'_, B>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.responder.poll_unwanted(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            match &mut this.phase {
                Phase::Serving(serving) => {
                    let answer = ready!(serving.as_mut().poll(cx));
                    let Some(body) = this.begin(answer) else {
                        return Poll::Ready(());
                    };
                    this.phase = Phase::Sending {
                        body,
                        piece: Bytes::new(),
                        is_last: false,
                    };
                }
                Phase::Sending { body, piece, is_last } => {
                    if !piece.is_empty() {
                        let sent = ready!(this.responder.poll_data(cx, piece, *is_last));
                        if sent.is_err() || *is_last {
                            return Poll::Ready(());
                        }
                    }
                    match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => {
                                *is_last = body.is_end_stream() && !data.is_empty();
                                *piece = data;
                            }
                            Err(frame) => {
                                if let Ok(trailers) = frame.into_trailers() {
                                    this.responder.trailers(&trailers);
                                }
                                return Poll::Ready(());
                            }
                        },
                        Some(Err(error)) => {
                            tracing::debug!(%error, "an answer has no end");
                            return Poll::Ready(());
                        }
                        None => {
                            this.responder.finish();
                            return Poll::Ready(());
                        }
                    }
                }
            }
        }
    }
}
