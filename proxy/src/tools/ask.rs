//! Asking an agent: HTTP with JSON, over its socket or over a port that leads to it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

use crate::operator::view::ErrorView;

/// How long an agent may take. It may have to ask the API server.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer: all sessions of a node with all of its pods are a tenth of it.
const ANSWER: usize = 16 * 1024 * 1024;
/// What stays as it is in a path of ours.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

/// Why an agent doesn't answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is nobody on the socket.
    #[error(
        "no agent answers on {path} ({source}): see that it runs on this node, that --socket is in its --run-dir, and that \
         you are root"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The connection.
    #[error("the agent {whom} broke off: {source}; ask again, and look in its log")]
    Broken {
        /// Which agent.
        whom: String,
        /// What became of it.
        source: hyper::Error,
    },
    /// It takes too long.
    #[error("the agent {0} didn't answer in time: ask again, and look in its log")]
    Silent(String),
    /// It says no.
    #[error("the agent {whom} refuses: {message}")]
    Refused {
        /// Which agent.
        whom: String,
        /// By which code.
        code: StatusCode,
        /// What it says.
        message: String,
    },
    /// It says something else.
    #[error("the agent {whom} says what isn't understood ({problem}): use the plugin of the agents' release")]
    Gibberish {
        /// Which agent.
        whom: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Asks the agent on a socket of this node.
pub(crate) async fn ask_socket<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| AskError::Socket {
        path: socket.to_owned(),
        source,
    })?;
    ask(stream, path, None, "of this node").await
}

/// The path of what is known of a pod.
pub(crate) fn pod_path(name: &str) -> String {
    format!("/v1/pods/{}", utf8_percent_encode(name, PATH))
}

/// Asks an agent over a connection to it. `bearer` is the whole value of the field.
pub(crate) async fn ask<T, S>(stream: S, path: &str, bearer: Option<HeaderValue>, whom: &str) -> Result<T, AskError>
where
    T: DeserializeOwned,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match timeout(PATIENCE, exchange(stream, path, bearer, whom)).await {
        Ok(answer) => answer,
        Err(_) => Err(AskError::Silent(whom.to_owned())),
    }
}

async fn exchange<T, S>(stream: S, path: &str, bearer: Option<HeaderValue>, whom: &str) -> Result<T, AskError>
where
    T: DeserializeOwned,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (answer, driver) = send(stream, path, bearer, whom).await?;
    let gibberish = |problem: String| AskError::Gibberish {
        whom: whom.to_owned(),
        problem,
    };
    let (code, body) = whole(answer).await;
    drop(driver);
    let body = body.map_err(gibberish)?;
    if code != StatusCode::OK {
        return Err(refusal(code, &body, whom));
    }
    serde_json::from_slice(&body).map_err(|error| gibberish(error.to_string()))
}

/// Drives a connection; it ends with this.
#[derive(Debug)]
struct Driver(JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a question, and returns when the answer begins.
async fn send<S>(
    stream: S,
    path: &str,
    bearer: Option<HeaderValue>,
    whom: &str,
) -> Result<(Response<Incoming>, Driver), AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |source| AskError::Broken {
        whom: whom.to_owned(),
        source,
    };
    let gibberish = |problem: String| AskError::Gibberish {
        whom: whom.to_owned(),
        problem,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = Driver(tokio::spawn(connection));
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse().map_err(|error| gibberish(format!("{path}: {error}")))?;
    request
        .headers_mut()
        .insert(header::HOST, HeaderValue::from_static("understudy"));
    if let Some(bearer) = bearer {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    let answer = sender.send_request(request).await.map_err(broken)?;
    Ok((answer, driver))
}

async fn whole(answer: Response<Incoming>) -> (StatusCode, Result<Bytes, String>) {
    let code = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER).collect().await;
    (
        code,
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| error.to_string()),
    )
}

fn refusal(code: StatusCode, body: &[u8], whom: &str) -> AskError {
    let error: ErrorView = serde_json::from_slice(body).unwrap_or_default();
    let message = if error.message.is_empty() {
        code.to_string()
    } else {
        error.message
    };
    AskError::Refused {
        whom: whom.to_owned(),
        code,
        message,
    }
}

/// An answer that goes on, line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    /// What has come, and how far it has been looked through for an end of line.
    kept: BytesMut,
    seen: usize,
    whom: String,
    _driver: Driver,
}

/// Looks on over the agent's socket.
pub(crate) async fn follow_socket(socket: &Path, path: &str) -> Result<Lines, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| AskError::Socket {
        path: socket.to_owned(),
        source,
    })?;
    follow(stream, path, None, "of this node").await
}

/// Looks on over a connection to an agent.
pub(crate) async fn follow<S>(stream: S, path: &str, bearer: Option<HeaderValue>, whom: &str) -> Result<Lines, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = async {
        let (answer, driver) = send(stream, path, bearer, whom).await?;
        if answer.status() != StatusCode::OK {
            let (code, body) = whole(answer).await;
            return Err(refusal(code, &body.unwrap_or_default(), whom));
        }
        Ok(Lines {
            body: answer.into_body(),
            kept: BytesMut::new(),
            seen: 0,
            whom: whom.to_owned(),
            _driver: driver,
        })
    };
    match timeout(PATIENCE, begun).await {
        Ok(begun) => begun,
        Err(_) => Err(AskError::Silent(whom.to_owned())),
    }
}

impl Lines {
    /// The next line, without its end; nothing at the end of all.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, AskError> {
        loop {
            let unseen = self.kept.get(self.seen..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', unseen) {
                let line = self.kept.split_to(self.seen + end).freeze();
                self.kept.advance(1);
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.kept.len();
            if self.seen > ANSWER {
                return Err(AskError::Gibberish {
                    whom: self.whom.clone(),
                    problem: "a line has no end".to_owned(),
                });
            }
            // An agent gives a sign of life every few seconds.
            let frame = timeout(PATIENCE, self.body.frame()).await;
            match frame.map_err(|_| AskError::Silent(self.whom.clone()))? {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.kept.extend_from_slice(data);
                    }
                }
                Some(Err(source)) => {
                    return Err(AskError::Broken {
                        whom: self.whom.clone(),
                        source,
                    });
                }
            }
        }
    }
}
