//! HTTP/2 by the `h2` crate. Small answers are written where the request is read; only what lasts gets a task.

use std::{
    future::poll_fn,
    sync::{Arc, LazyLock, atomic::Ordering},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use understudy_bench::content;

use super::{
    Open, Shared,
    answer::{REFUSAL, SMALL, Wanted, path_and_query},
    events,
    identity::Shown,
};

/// What a client may send without being asked for more: bodies are discarded as they come.
const WINDOW: u32 = 1 << 20;
/// What is written of a list at once, and what may wait for a window.
const CHUNK: usize = 256 * 1024;

static SMALL_LENGTH: LazyLock<HeaderValue> = LazyLock::new(|| HeaderValue::from(SMALL.len()));

/// Serves the streams of a connection.
pub(crate) async fn serve(stream: TlsStream<TcpStream>, shared: &Arc<Shared>) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(shared.max_streams)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buffer_size(2 * CHUNK)
        .handshake(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        answer(&request, respond, shared)?;
    }
    Ok(())
}

fn answer(request: &Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, shared: &Arc<Shared>) -> Result<()> {
    let wanted = Wanted::of(path_and_query(request.uri()));
    let mut shown = Shown::default();
    for (name, value) in request.headers() {
        shared.expected.look(&mut shown, name.as_str(), value.as_bytes());
    }
    if wanted != Wanted::Health && !shared.expected.admits(&shown) {
        shared.counts.refused.fetch_add(1, Ordering::Relaxed);
        let length = HeaderValue::from(REFUSAL.len());
        return whole(&mut respond, StatusCode::FORBIDDEN, length, Bytes::from_static(REFUSAL));
    }
    shared.counts.requests.fetch_add(1, Ordering::Relaxed);
    match wanted {
        Wanted::Small => whole(&mut respond, StatusCode::OK, SMALL_LENGTH.clone(), SMALL.clone()),
        Wanted::Health => {
            let length = HeaderValue::from_static("2");
            whole(&mut respond, StatusCode::OK, length, Bytes::from_static(b"ok"))
        }
        // What asks for a switch over HTTP/2 asks for what no API server does either.
        Wanted::Switch => {
            let length = HeaderValue::from(REFUSAL.len());
            whole(
                &mut respond,
                StatusCode::BAD_REQUEST,
                length,
                Bytes::from_static(REFUSAL),
            )
        }
        Wanted::List { bytes, chunked } => {
            let length = (!chunked).then(|| HeaderValue::from(bytes));
            let stream = respond.send_response(head(StatusCode::OK, length), false)?;
            tokio::spawn(async move {
                // The client has taken its stream back.
                let _gone = list(stream, bytes).await;
            });
            Ok(())
        }
        Wanted::Watch => {
            let stream = respond.send_response(head(StatusCode::OK, None), false)?;
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let _gone = watch(stream, &shared).await;
            });
            Ok(())
        }
    }
}

fn head(status: StatusCode, length: Option<HeaderValue>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    response
}

fn whole(respond: &mut SendResponse<Bytes>, status: StatusCode, length: HeaderValue, body: Bytes) -> Result<()> {
    let mut stream = respond.send_response(head(status, Some(length)), false)?;
    Ok(stream.send_data(body, true)?)
}

async fn list(mut stream: SendStream<Bytes>, bytes: u64) -> Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let left = usize::try_from(bytes - sent).unwrap_or(usize::MAX);
        stream.reserve_capacity(CHUNK.min(left));
        // What is left of an earlier grant isn't told of again.
        let room = match stream.capacity() {
            0 => poll_fn(|context| stream.poll_capacity(context))
                .await
                .context("the stream has ended")??,
            room => room,
        };
        let data = content::at(sent, room.min(left));
        sent += data.len() as u64;
        stream.send_data(data, sent == bytes)?;
    }
    if bytes == 0 {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

async fn watch(mut stream: SendStream<Bytes>, shared: &Shared) -> Result<()> {
    let mut events = shared.events.follow();
    let _open = Open::count(&shared.counts.watches);
    loop {
        tokio::select! {
            event = events::next(&mut events) => {
                let Some(line) = event else { return Ok(()) };
                stream.send_data(line, false)?;
            }
            reset = poll_fn(|context| stream.poll_reset(context)) => {
                reset?;
                return Ok(());
            }
        }
    }
}
