//! Requests, over either version of HTTP.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::server::{Dialler, Protocol};

/// Windows as Go's client has them, which is what kubectl and controllers are.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// A connection, and what every request on it carries.
pub(crate) struct Connection {
    sender: Sender,
    dialler: Dialler,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// What may come of one send over HTTP/2 beside others.
#[derive(Clone)]
pub(crate) struct Stream {
    sender: http2::SendRequest<Empty<Bytes>>,
    dialler: Dialler,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(dialler: &Dialler) -> Result<Self> {
        let stream = dialler.tls().await?;
        let stream = TokioIo::new(stream);
        let sender = match dialler.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .handshake(stream)
                    .await
                    .context("the HTTP/2 handshake")?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        };
        Ok(Self {
            sender,
            dialler: dialler.clone(),
        })
    }

    /// The head of the answer to a GET, which must be 200.
    pub(crate) async fn get(&mut self, target: &str) -> Result<Response<Incoming>> {
        let request = request(&self.dialler, target)?;
        let answer = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        good(answer)
    }

    /// GETs a small object and reads it to its end.
    pub(crate) async fn get_small(&mut self, target: &str) -> Result<()> {
        let mut body = self.get(target).await?.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        ensure!(length == SMALL, "an object of {length} bytes came in place of {SMALL}");
        Ok(())
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// A handle for one of many streams; none over HTTP/1.1.
    pub(crate) fn stream(&self) -> Option<Stream> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => Some(Stream {
                sender: sender.clone(),
                dialler: self.dialler.clone(),
            }),
        }
    }
}

impl Stream {
    /// As [`Connection::get`].
    pub(crate) async fn get(mut self, target: &str) -> Result<Response<Incoming>> {
        let request = request(&self.dialler, target)?;
        self.sender.ready().await?;
        good(self.sender.send_request(request).await?)
    }
}

/// How long the upstream's small object is.
const SMALL: usize = 1024;

/// The small object's path.
pub(crate) const SMALL_TARGET: &str = "/api/v1/namespaces/bench/configmaps/bench";

fn good(answer: Response<Incoming>) -> Result<Response<Incoming>> {
    ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
    Ok(answer)
}

fn request(dialler: &Dialler, target: &str) -> Result<Request<Empty<Bytes>>> {
    let mut request = Request::new(Empty::new());
    *request.headers_mut() = (*dialler.headers).clone();
    match dialler.protocol {
        Protocol::Http1 => {
            *request.uri_mut() = target.parse()?;
            request.headers_mut().insert(header::HOST, dialler.host.parse()?);
        }
        Protocol::Http2 => *request.uri_mut() = format!("https://{}{target}", dialler.host).parse()?,
    }
    Ok(request)
}
