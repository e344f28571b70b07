//! WebSocket: exec's channels, one byte before each message, and port-forward's tunnel, in which messages are
//! nothing but a byte stream.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::{
    Wanted,
    negotiate::Channels,
    program::{Output, Program, Streams, exit_status},
};
use crate::apiserver::body::BoxError;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Of v5: the next byte is a channel that the client closes.
const CLOSE: u8 = 255;
/// How long a program takes to start. kubectl discards what arrives before it has set up its streams, which a real
/// container is never quick enough to show.
const START: Duration = Duration::from_millis(50);
/// How long the client may take to answer our close.
const LINGER: Duration = Duration::from_secs(5);
/// How much of a tunnel is in flight.
const TUNNEL: usize = 64 * 1024;

/// Runs a program on the channels of a WebSocket.
pub(crate) async fn channels<S>(stream: S, version: Channels, wanted: Wanted, program: Program) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (mut sink, mut messages) = socket.split();
    let (stdin, receiver) = mpsc::channel(4);
    let (sender, mut output) = mpsc::channel(4);
    let running = async {
        tokio::time::sleep(START).await;
        let streams = Streams {
            stdin: receiver,
            output: sender,
        };
        program.run(streams).await
    };
    let write = async {
        let code = {
            tokio::pin!(running);
            let mut code = None;
            loop {
                tokio::select! {
                    biased;
                    written = output.recv() => match written {
                        Some((to, bytes)) => if let Some(channel) = channel(to, wanted) {
                            sink.send(message(channel, &bytes)).await?;
                        },
                        None => break code.unwrap_or(0),
                    },
                    exit = &mut running, if code.is_none() => code = Some(exit),
                }
            }
        };
        sink.send(message(ERROR, exit_status(code).to_string().as_bytes()))
            .await?;
        // kubectl takes a close without a code for a failure.
        sink.send(Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: Utf8Bytes::default(),
        })))
        .await
    };
    let read = async {
        let mut stdin = wanted.stdin.then_some(stdin);
        while let Some(Ok(received)) = messages.next().await {
            let data = match received {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            match data.split_first() {
                Some((&STDIN, bytes)) if !bytes.is_empty() => {
                    if let Some(stdin) = &stdin {
                        // A program that has ended reads no more; what comes for it is dropped.
                        let _ = stdin.send(data.slice_ref(bytes)).await;
                    }
                }
                Some((&CLOSE, [STDIN])) if version == Channels::V5 => stdin = None,
                _ => {}
            }
        }
    };
    tokio::pin!(read);
    tokio::select! {
        result = write => {
            result?;
            // The client answers the close, or drops the connection.
            let _ = tokio::time::timeout(LINGER, &mut read).await;
        }
        () = &mut read => {}
    }
    Ok(())
}

fn channel(output: Output, wanted: Wanted) -> Option<u8> {
    match output {
        Output::Stdout => wanted.stdout.then_some(STDOUT),
        // A terminal has one output.
        Output::Stderr if wanted.tty => wanted.stdout.then_some(STDOUT),
        Output::Stderr => wanted.stderr.then_some(STDERR),
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut data = BytesMut::with_capacity(bytes.len() + 1);
    data.put_u8(channel);
    data.put_slice(bytes);
    Message::Binary(data.freeze())
}

/// The byte stream in a WebSocket's messages, and the work that moves it.
pub(crate) async fn tunnel<S>(stream: S) -> (DuplexStream, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (near, far) = tokio::io::duplex(TUNNEL);
    (near, async move {
        if let Err(error) = pump(socket, far).await {
            tracing::debug!(%error, "tunnel ended");
        }
    })
}

async fn pump<S>(socket: WebSocketStream<S>, stream: DuplexStream) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut messages) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let inward = async {
        while let Some(received) = messages.next().await {
            match received? {
                Message::Binary(data) => writer.write_all(&data).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        writer.shutdown().await?;
        Ok::<_, tungstenite::Error>(())
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(TUNNEL);
        while reader.read_buf(&mut buffer).await? > 0 {
            let data: Bytes = buffer.split().freeze();
            sink.send(Message::Binary(data)).await?;
        }
        sink.close().await?;
        Ok::<_, tungstenite::Error>(())
    };
    tokio::try_join!(inward, outward)?;
    Ok(())
}
