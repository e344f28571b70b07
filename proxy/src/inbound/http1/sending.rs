//! An answer's body on its way out, framed.

use std::{
    fmt::Display,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Body;

use super::{
    Cut,
    answer::{self, Length},
};

/// An answer's body on its way out.
pub(super) struct Sending<B> {
    /// None once nothing more of it is to be had.
    body: Option<B>,
    length: Length,
    broken: Option<String>,
}

impl<B: Body<Data = Bytes, Error: Display> + Unpin> Sending<B> {
    pub(super) fn new(body: B, length: Length) -> Self {
        Self {
            body: Some(body).filter(|_| !matches!(length, Length::Nothing | Length::Sized(0))),
            length,
            broken: None,
        }
    }

    /// Whether more of it is to be had.
    pub(super) fn goes_on(&self) -> bool {
        self.body.is_some()
    }

    /// Has the next piece written, or what comes after the last.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>, mut write: impl FnMut(Bytes)) -> Poll<()> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(());
        };
        let data = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            // No field was announced that could come behind an answer: trailers stay behind.
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => {
                self.broken(error.to_string());
                return Poll::Ready(());
            }
            None => {
                self.end(write);
                return Poll::Ready(());
            }
        };
        let mut ends = body.is_end_stream();
        match &mut self.length {
            // An empty chunk would be the last.
            _ if data.is_empty() => {}
            Length::Chunked => answer::chunk(data, &mut write),
            Length::Sized(left) => {
                let Some(rest) = left.checked_sub(data.len() as u64) else {
                    self.broken("it is longer than it says".to_owned());
                    return Poll::Ready(());
                };
                *left = rest;
                ends |= rest == 0;
                write(data);
            }
            Length::Close | Length::Nothing => write(data),
        }
        if ends {
            self.end(write);
        }
        Poll::Ready(())
    }

    fn end(&mut self, mut write: impl FnMut(Bytes)) {
        match self.length {
            Length::Sized(1..) => return self.broken("it is shorter than it says".to_owned()),
            Length::Chunked => write(answer::last_chunk()),
            Length::Sized(0) | Length::Close | Length::Nothing => {}
        }
        self.body = None;
    }

    fn broken(&mut self, why: String) {
        self.body = None;
        self.broken = Some(why);
    }

    /// How it ended.
    pub(super) fn outcome(&mut self) -> Result<(), Cut> {
        self.broken.take().map_or(Ok(()), |why| Err(Cut::Answer(why)))
    }
}
