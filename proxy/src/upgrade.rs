//! Upgrades: exec, attach and port-forward over WebSocket or SPDY/3.1.
//!
//! The protocol is not looked into here. Both sides become byte streams, and bytes pass as they come, each
//! direction closed on its own, until both are or the session ends. Where the session is recorded, they pass its taps.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::oneshot::{self, error::RecvError},
};
use tokio_util::task::TaskTracker;

use crate::{
    body::{ResponseBody, client::ClientBody},
    exchange::Exchange,
    identity,
    recording::{
        cast::End,
        ports::Carrier,
        recorder::{Form, Recording, Running},
        stream::{Framing, Side},
    },
    sessions::live::LiveSession,
    status::Refusal,
    tls,
};

/// What a pipe may hold on its way to the server: what is typed, for the most part.
const PIPE_UP: usize = 16 * 1024;
/// What it may hold on its way to the client, in bytes: as much as [`tls`] sends with one call.
const PIPE_DOWN: usize = tls::WRITE_MOST;

/// A client's wish to go on in another protocol.
pub struct Upgrade {
    protocol: Protocol,
    client: Takeover,
}

/// A client's connection that goes on in another protocol, from the first byte behind the request.
pub type ClientStream = Box<dyn Duplex>;

/// Brings the client's connection, once the answer says that it switches and is on its way.
pub type Takeover = oneshot::Receiver<ClientStream>;

/// A stream of bytes in either direction.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The protocols that Kubernetes upgrades to. Others are refused: what can't be named can't be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    WebSocket,
    Spdy,
}

impl Protocol {
    fn parse(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"websocket") {
            Some(Self::WebSocket)
        } else if name.eq_ignore_ascii_case(b"SPDY/3.1") {
            Some(Self::Spdy)
        } else {
            None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        }
    }
}

/// Whether a request asks for an upgrade, and to what. Without `Connection: upgrade` an `Upgrade` field is only
/// an offer, and is ignored (RFC 9110, section 7.8).
///
/// # Errors
/// An unknown protocol, or a request with a body.
pub fn requested(request: &mut Request<ClientBody>) -> Result<Option<Upgrade>, Refusal> {
    if request.version() != Version::HTTP_11 {
        return Ok(None);
    }
    let Some(protocol) = protocol(request.headers())? else {
        return Ok(None);
    };
    let client = request.body_mut().takeover().ok_or(Refusal::BadRequest)?;
    Ok(Some(Upgrade { protocol, client }))
}

fn protocol(headers: &HeaderMap) -> Result<Option<Protocol>, Refusal> {
    let asks = identity::list_members(headers, &header::CONNECTION).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    if !asks || !headers.contains_key(header::UPGRADE) {
        return Ok(None);
    }
    let mut names = identity::list_members(headers, &header::UPGRADE);
    match (names.next().and_then(Protocol::parse), names.next()) {
        (Some(protocol), None) => Ok(Some(protocol)),
        _ => Err(Refusal::UnknownUpgrade),
    }
}

impl Upgrade {
    /// Whether it is a WebSocket handshake.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.protocol == Protocol::WebSocket
    }

    /// Whether whatever may come of it can be recorded, by what a stripped request offers. Nothing is compressed that
    /// isn't asked to be, so that is taken off.
    pub fn ask_for_what_can_be_recorded(&self, headers: &mut HeaderMap, is_forward: bool) -> bool {
        headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        if self.protocol == Protocol::Spdy {
            return true;
        }
        let mut offers = identity::list_members(headers, &header::SEC_WEBSOCKET_PROTOCOL).peekable();
        // Without a sub-protocol, a port-forward is of a form of its own.
        let has_offers = offers.peek().is_some() || !is_forward;
        has_offers && offers.all(|name| form_of(name, is_forward).is_some())
    }

    /// How the stream is read, by the head of the 101.
    fn form(&self, headers: &HeaderMap, is_forward: bool) -> Option<Form> {
        if self.protocol == Protocol::Spdy {
            return Some(if is_forward {
                Form::Ports(Carrier::Spdy)
            } else {
                Form::Channels(Framing::Spdy)
            });
        }
        if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return None;
        }
        let mut agreed = identity::list_members(headers, &header::SEC_WEBSOCKET_PROTOCOL);
        match (agreed.next(), agreed.next()) {
            (name, None) => form_of(name.unwrap_or_default(), is_forward),
            _ => None,
        }
    }

    /// Puts the wish on a request that has been stripped and dressed.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(self.protocol.name()));
    }

    /// Hands the upstream's 101 to the client and joins the two byte streams, and starts the recording where there is
    /// to be one.
    ///
    /// # Errors
    /// If the upstream switched to another protocol than was asked for, or to one that must be recorded and can't be.
    pub fn switch(
        self,
        mut answer: Response<Incoming>,
        session: &LiveSession,
        exchange: Arc<Exchange>,
        streams: &TaskTracker,
        recording: Option<Recording>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let switched = identity::list_members(answer.headers(), &header::UPGRADE)
            .next()
            .and_then(Protocol::parse);
        if switched != Some(self.protocol) {
            tracing::error!(session = %session.id, "the upstream switched to a protocol that wasn't asked for");
            return Err(Refusal::UpstreamFailed);
        }
        let started = recording.map(|recording| {
            let form = self.form(answer.headers(), recording.is_forward());
            recording.start(form, streams)
        });
        let recording = match started {
            None => None,
            Some(started) => started.map_err(|_| Refusal::NotRecordable)?,
        };
        let upstream = hyper::upgrade::on(&mut answer);
        let mut headers = std::mem::take(answer.headers_mut());
        identity::strip_response(&mut headers);
        self.ask(&mut headers);
        exchange.upgraded(self.protocol.name());
        if let Some(recording) = &recording {
            exchange.recorded(recording.name());
        }
        let ended = session.ended.clone();
        let id = session.id.clone();
        let client = self.client;
        streams.spawn(async move {
            let end = tokio::select! {
                piped = pipe(client, upstream, &exchange, recording.as_ref()) => match piped {
                    Ok(()) => End::Closed,
                    Err(error) => {
                        tracing::debug!(session = %id, %error, "an upgraded stream broke off");
                        End::CutShort
                    }
                },
                () = forbidden(recording.as_ref()) => End::BrokenOff,
                () = ended.cancelled() => End::CutShort,
                () = exchange.pod().gone.cancelled() => End::CutShort,
                () = exchange.pod().load.shed.notified() => End::CutShort,
            };
            if end != End::Closed {
                exchange.cut_short();
            }
            if let Some(recording) = recording {
                recording.end(end);
            }
        });
        let mut response = Response::new(ResponseBody::ours(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// A pipe broke.
#[derive(Debug, thiserror::Error)]
enum PipeError {
    #[error("the client left before the switch")]
    Client(#[from] RecvError),
    #[error("the switch didn't come about: {0}")]
    Upstream(#[from] hyper::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Carries bytes both ways. What either peer sent right behind its head comes once and first.
async fn pipe(
    client: Takeover,
    upstream: OnUpgrade,
    exchange: &Exchange,
    recording: Option<&Running>,
) -> Result<(), PipeError> {
    let (client, upstream) = (client.await?, upstream.await?);
    let upstream = TokioIo::new(upstream);
    let up = |read| exchange.count_request_bytes(read);
    let down = |read| exchange.count_response_bytes(read);
    match recording {
        None => join(client, upstream, up, down).await?,
        // Boxed, as few streams are recorded.
        Some(recording) => {
            let (client, upstream) = (
                recording.tap(Side::Client, client),
                recording.tap(Side::Server, upstream),
            );
            Box::pin(join(client, upstream, up, down)).await?;
        }
    }
    Ok(())
}

/// How a WebSocket of a sub-protocol is read.
fn form_of(subprotocol: &[u8], is_forward: bool) -> Option<Form> {
    if is_forward {
        Carrier::of_subprotocol(subprotocol).map(Form::Ports)
    } else {
        Framing::of_subprotocol(subprotocol).map(Form::Channels)
    }
}

/// Resolves when a stream has to end because it isn't recorded any further.
async fn forbidden(recording: Option<&Running>) {
    match recording {
        Some(recording) => recording.forbids().await,
        None => std::future::pending().await,
    }
}

/// Carries bytes both ways until both ends have closed, and tells how many come from each.
pub(crate) async fn join<C, U>(client: C, upstream: U, up: impl Fn(u64), down: impl Fn(u64)) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Counted { io: client, count: &up };
    let mut upstream = Counted {
        io: upstream,
        count: &down,
    };
    copy_bidirectional_with_sizes(&mut client, &mut upstream, PIPE_UP, PIPE_DOWN)
        .await
        .map(drop)
}

/// Tells how much was read.
struct Counted<'f, I, F> {
    io: I,
    count: &'f F,
}

impl<I: AsyncRead + Unpin, F: Fn(u64)> AsyncRead for Counted<'_, I, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.io).poll_read(cx, buf)) {
            // Without a close_notify: the end all the same. What came before it has still to reach the other side, and
            // whether it was whole, the protocol inside knows.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
            outcome => outcome?,
        }
        (self.count)((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin, F> AsyncWrite for Counted<'_, I, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], Ok(None))]
    #[case::offer_only(&[("upgrade", "websocket")], Ok(None))]
    #[case::no_field(&[("connection", "upgrade")], Ok(None))]
    #[case::websocket(&[("connection", "Upgrade"), ("upgrade", "websocket")], Ok(Some(Protocol::WebSocket)))]
    #[case::keep_alive(
        &[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")], Ok(Some(Protocol::WebSocket))
    )]
    #[case::two_lines(
        &[("connection", "keep-alive"), ("connection", "upgrade"), ("upgrade", "SPDY/3.1")], Ok(Some(Protocol::Spdy))
    )]
    #[case::h2c(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], Err(Refusal::UnknownUpgrade))]
    #[case::choice(&[("connection", "upgrade"), ("upgrade", "websocket, SPDY/3.1")], Err(Refusal::UnknownUpgrade))]
    fn recognises(#[case] lines: &[(&'static str, &str)], #[case] expected: Result<Option<Protocol>, Refusal>) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        assert_eq!(protocol(&headers), expected);
    }
}
