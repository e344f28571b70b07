//! What a client asks, and what comes of it.

use std::task::Waker;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, Response, header};

use super::{
    ErrorCode, Fault, Http2Error,
    driver::{Block, Role},
    fields::{Fields, HEADER_LIST},
    frame::{
        ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, MAX_WINDOW, PREFACE,
        put_headers, put_settings,
    },
    stream::{STREAM_WINDOW, Stream, keep},
    streams::{Shared, State},
};

/// A request's head, but for what a connection adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'r> {
    pub(crate) method: &'r Method,
    pub(crate) authority: &'r HeaderValue,
    /// In origin form.
    pub(crate) path: &'r str,
    /// `Host` is passed over.
    pub(crate) fields: &'r HeaderMap,
}

/// Whoever asks.
#[derive(Debug)]
pub(crate) struct Asking;

impl Role for Asking {
    fn greet(&self, out: &mut BytesMut) {
        out.extend_from_slice(PREFACE);
        let settings = [
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_FRAME_SIZE, MAX_FRAME),
            (MAX_HEADER_LIST_SIZE, HEADER_LIST),
        ];
        // The connection's window is left open as far as may be, so that one slow reader holds up its own stream alone.
        put_settings(out, &settings, MAX_WINDOW);
    }

    fn headers(&mut self, state: &mut State, block: Block<'_>, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        state.headers(block, woken)
    }

    fn go_away(&mut self, shared: &Shared, state: &mut State, last: u32, code: ErrorCode, woken: &mut Vec<Waker>) {
        tracing::debug!(%code, last, "an upstream connection takes no more requests");
        shared.close();
        state.go_away(last, code, woken);
    }
}

impl State {
    /// Begins a stream.
    ///
    /// # Errors
    /// Where no stream can be begun any more. Nothing was sent.
    pub(super) fn begin(&mut self, head: Head<'_>, is_whole: bool, holders: u8) -> Result<u32, Http2Error> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let id = self.next;
        if id > MAX_WINDOW {
            return Err(Http2Error::GoAway(ErrorCode::NO_ERROR));
        }
        self.next += 2;
        let Head {
            method,
            authority,
            path,
            fields,
        } = head;
        let encoder = &mut self.encoder;
        put_headers(&mut self.out, id, is_whole, self.max_frame as usize, |out| {
            let fields = fields.iter().filter(|(name, _)| *name != header::HOST);
            encoder.encode(out, method, authority, path, fields);
        });
        let stream = Stream::new(holders, self.first_window, method == Method::HEAD, is_whole);
        self.streams.insert(id, stream);
        self.wake_driver();
        Ok(id)
    }

    /// The head of the answer, once.
    pub(super) fn take_head(&mut self, id: u32, waker: &Waker) -> Option<Result<Response<()>, Http2Error>> {
        let stream = self.streams.get_mut(&id)?;
        if let Some(head) = stream.head.take() {
            return Some(Ok(*head));
        }
        if let Some(error) = &stream.failed {
            return Some(Err(error.clone()));
        }
        keep(&mut stream.reader, waker);
        None
    }

    /// The server takes no stream after `last`.
    fn go_away(&mut self, last: u32, code: ErrorCode, woken: &mut Vec<Waker>) {
        self.ended.get_or_insert(Http2Error::GoAway(code));
        for (id, stream) in &mut self.streams {
            if *id > last {
                stream.fail(Http2Error::GoAway(code), woken);
            }
        }
        let streams = &self.streams;
        self.queue
            .retain(|id| streams.get(id).is_some_and(|stream| stream.failed.is_none()));
        self.wake_next();
    }

    /// The head of an answer, or the fields behind its body.
    fn headers(&mut self, block: Block<'_>, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        let Block {
            stream: id,
            code: block,
            is_last,
            decoder,
        } = block;
        self.known(id)?;
        let fields = Fields::decode(decoder, block)?;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            return Ok(());
        };
        match fields.and_then(|fields| stream.headers(fields, is_last)) {
            Ok(()) => woken.extend(stream.reader.take()),
            Err(fault) => self.fail(id, fault, woken),
        }
        Ok(())
    }
}
