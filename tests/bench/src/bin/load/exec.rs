//! An exec, over WebSocket or SPDY: what goes to the program and what comes of it, however it is framed.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::ValueEnum;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::client::generate_key, protocol::Role},
};
use understudy_tests::apiserver::{Channel, SpdyExec};

use super::server::{Protocol, Server};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
/// Of v5: the next byte is a channel that is closed.
const CLOSE: u8 = 255;

/// How it is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Websocket,
    Spdy,
}

/// A running program.
pub(crate) enum Exec {
    Websocket(Box<WebSocketStream<TokioIo<Upgraded>>>),
    Spdy(Box<SpdyExec<TokioIo<Upgraded>>>),
}

/// What came of it.
pub(crate) enum Came {
    Stdout(Bytes),
    /// It has ended, well.
    End,
}

impl Exec {
    /// Runs a command in a pod.
    pub(crate) async fn start(server: &Server, transport: Transport, command: &[&str]) -> Result<Self> {
        let dialler = server.dialler_for(Protocol::Http1, true)?;
        let stream = TokioIo::new(dialler.tls().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection.with_upgrades());
        let mut target = "/api/v1/namespaces/bench/pods/bench/exec?stdin=true&stdout=true".to_owned();
        for word in command {
            target.push_str("&command=");
            target.push_str(word);
        }
        let mut request = Request::post(target).body(Empty::<Bytes>::new())?;
        let headers = request.headers_mut();
        *headers = (*dialler.headers).clone();
        headers.insert(header::HOST, dialler.host.parse()?);
        headers.insert(header::CONNECTION, "Upgrade".parse()?);
        match transport {
            Transport::Websocket => {
                headers.insert(header::UPGRADE, "websocket".parse()?);
                headers.insert(header::SEC_WEBSOCKET_VERSION, "13".parse()?);
                headers.insert(header::SEC_WEBSOCKET_KEY, generate_key().parse()?);
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io".parse()?);
                *request.method_mut() = http::Method::GET;
            }
            Transport::Spdy => {
                headers.insert(header::UPGRADE, "SPDY/3.1".parse()?);
                headers.insert("x-stream-protocol-version", "v4.channel.k8s.io".parse()?);
                headers.insert(header::CONTENT_LENGTH, "0".parse()?);
            }
        }
        let answer = sender.send_request(request).await?;
        ensure!(
            answer.status() == StatusCode::SWITCHING_PROTOCOLS,
            "the exec was answered {}",
            answer.status()
        );
        let upgraded = TokioIo::new(hyper::upgrade::on(answer).await?);
        Ok(match transport {
            Transport::Websocket => Self::Websocket(Box::new(
                WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await,
            )),
            Transport::Spdy => Self::Spdy(Box::new(SpdyExec::open(upgraded).await?)),
        })
    }

    /// Writes to its stdin; nothing at all ends it.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> Result<()> {
        match self {
            Self::Websocket(socket) => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                if bytes.is_empty() {
                    message.put_slice(&[CLOSE, STDIN]);
                } else {
                    message.put_u8(STDIN);
                    message.put_slice(bytes);
                }
                socket.send(Message::Binary(message.freeze())).await?;
            }
            Self::Spdy(exec) => exec.write(bytes.clone()).await?,
        }
        Ok(())
    }

    /// What comes next.
    pub(crate) async fn read(&mut self) -> Result<Came> {
        match self {
            Self::Websocket(socket) => loop {
                let message = socket.next().await.context("the exec breaks off")??;
                let Message::Binary(mut data) = message else { continue };
                ensure!(!data.is_empty(), "a message without a channel");
                match data.split_to(1)[0] {
                    STDOUT => return Ok(Came::Stdout(data)),
                    ERROR => return ended(&data),
                    other => bail!("a message on channel {other}"),
                }
            },
            Self::Spdy(exec) => match exec.read().await?.context("the exec breaks off")? {
                (Channel::Stdout, data) => Ok(Came::Stdout(data)),
                (Channel::Error, data) => ended(&data),
            },
        }
    }
}

/// The status at a program's end.
fn ended(status: &[u8]) -> Result<Came> {
    let status: serde_json::Value = serde_json::from_slice(status)?;
    ensure!(status["status"] == "Success", "the program ended so: {status}");
    Ok(Came::End)
}
