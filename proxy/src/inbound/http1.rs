//! HTTP/1.1 as the agent serves it: one connection, its requests one at a time and in their order, in one task.
//!
//! [`framer`] takes requests off the stream, strictly, with [`head`] and [`chunks`]. In place of the first one that can be
//! read in two ways, or not at all, the service is asked to refuse it, in its turn, and nothing that follows is read as a
//! request. [`connection`] reads and writes, and keeps the client's time; [`answer`] says how an answer is framed, and
//! [`sending`] frames it. A connection that is idle, or whose answer is silent, holds no buffer.

mod ahead;
pub(super) mod answer;
mod chunks;
mod connection;
pub(crate) mod framer;
pub(crate) mod head;
mod sending;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use self::{
    answer::{Asked, Malformed},
    connection::{Connection, Next},
};
use super::service::Service;
use crate::limits::Limits;

/// Why a connection was cut: nothing more can be said on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the client left before its answer")]
    Left,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("an answer has no end: {0}")]
    Answer(String),
    #[error("an answer can't be framed: {0}")]
    Malformed(#[from] Malformed),
}

/// Serves a connection until the client leaves it, or, once `stopping` is set and it is polled again, until the answer at
/// hand has ended.
///
/// # Errors
/// If it couldn't be closed in order. The client sees that something is missing: no answer, or one without its end.
pub(super) async fn serve<S, V>(io: S, limits: &Limits, service: &V, stopping: &AtomicBool) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    V: Service,
{
    let mut connection = Connection::new(io, limits);
    while let Some(next) = poll_fn(|cx| connection.poll_next(cx, stopping)).await {
        let (asked, answer, release) = match next {
            Next::Request(head) => {
                let asked = Asked::of(&head);
                let (request, release) = connection.begin(*head);
                // Boxed, and gone when the answer comes, whose body may last for long.
                let mut serving = Box::pin(service.serve(request));
                let answer = poll_fn(|cx| connection.poll_served(cx, serving.as_mut())).await?;
                (asked, answer, release)
            }
            Next::Refused(verdict) => {
                let answer = service.refuse(&verdict.request(), verdict.refusal);
                (Asked::refused(&verdict), answer, None)
            }
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(release) = release
        {
            connection.switch(answer.headers()).await?;
            // Whoever asked for it may have given up since.
            let _ = release.send(Box::new(connection.into_stream()));
            return Ok(());
        }
        let keeps = asked.keeps_alive && !stopping.load(Ordering::Relaxed);
        if !connection
            .answer(
                answer,
                Asked {
                    keeps_alive: keeps,
                    ..asked
                },
            )
            .await?
        {
            break;
        }
    }
    connection.close().await?;
    Ok(())
}
