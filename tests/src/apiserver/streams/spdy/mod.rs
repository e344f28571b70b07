//! SPDY/3.1 as a server, as far as Kubernetes' clients use it: streams that the client opens, data, half-close and
//! pings. There is no flow control: those clients neither send window updates nor wait for them.

mod dictionary;
pub(super) mod exec;
mod frame;
mod header;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use self::frame::FrameError;
pub(super) use self::{
    frame::{Frame, FrameReader, FrameWriter},
    header::Headers,
};

/// Chunks in flight on a stream.
const IN_FLIGHT: usize = 8;
/// How long the client may take to close after we have.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct Stream {
    id: u32,
    headers: Headers,
    /// Ends where the client half-closes.
    pub(super) input: mpsc::Receiver<Bytes>,
    writer: mpsc::Sender<Frame>,
}

/// The connection is gone.
#[derive(Debug, thiserror::Error)]
#[error("the SPDY connection is gone")]
pub(super) struct Gone;

impl Stream {
    /// A header of the stream; names are in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.value(name)
    }

    /// A handle that writes to it.
    pub(super) fn output(&self) -> StreamOutput {
        StreamOutput {
            id: self.id,
            writer: self.writer.clone(),
        }
    }
}

/// The writing side of a stream.
#[derive(Debug, Clone)]
pub(super) struct StreamOutput {
    id: u32,
    writer: mpsc::Sender<Frame>,
}

impl StreamOutput {
    pub(super) async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.frame(bytes, false).await
    }

    /// Half-closes our side.
    pub(super) async fn finish(&self) -> Result<(), Gone> {
        self.frame(Bytes::new(), true).await
    }

    async fn frame(&self, bytes: Bytes, fin: bool) -> Result<(), Gone> {
        let frame = Frame::Data {
            stream: self.id,
            fin,
            bytes,
        };
        self.writer.send(frame).await.map_err(|_| Gone)
    }
}

/// What a server of streams holds of the connection.
#[derive(Debug)]
pub(super) struct Session {
    /// The streams, as they are opened. Ends with the connection.
    pub(super) opened: mpsc::Receiver<Stream>,
    writer: mpsc::Sender<Frame>,
}

impl Session {
    /// Closes the connection once all that was sent has left.
    pub(super) async fn close(&self) {
        // A connection that is gone is closed.
        let _ = self.writer.send(Frame::Close).await;
    }
}

/// Starts a session. The future does its work and must be polled beside what uses the session.
pub(super) fn start<S>(stream: S) -> (Session, impl Future<Output = Result<(), FrameError>>)
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let (opened, accepted) = mpsc::channel(IN_FLIGHT);
    let (sender, frames) = mpsc::channel(IN_FLIGHT);
    let session = Session {
        opened: accepted,
        writer: sender.clone(),
    };
    (session, async move {
        let read = read(FrameReader::new(reader), opened, sender);
        tokio::pin!(read);
        tokio::select! {
            result = &mut read => return result,
            result = write(FrameWriter::new(writer), frames) => result?,
        }
        // A close with bytes unread would be a reset, which could overtake what was just sent.
        let _ = tokio::time::timeout(LINGER, read).await;
        Ok(())
    })
}

async fn read<S: AsyncRead>(
    mut reader: FrameReader<ReadHalf<S>>,
    opened: mpsc::Sender<Stream>,
    writer: mpsc::Sender<Frame>,
) -> Result<(), FrameError> {
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some(frame) = reader.next().await? {
        let answer = match frame {
            Frame::SynStream { stream, fin, headers } => {
                let (input, receiver) = mpsc::channel(IN_FLIGHT);
                if !fin {
                    inputs.insert(stream, input);
                }
                let accepted = Stream {
                    id: stream,
                    headers,
                    input: receiver,
                    writer: writer.clone(),
                };
                if opened.send(accepted).await.is_err() {
                    Some(Frame::Reset { stream, status: 3 })
                } else {
                    Some(Frame::SynReply { stream })
                }
            }
            Frame::Data { stream, fin, bytes } => {
                if let Some(input) = inputs.get(&stream)
                    && !bytes.is_empty()
                {
                    // Whoever served it may have had enough: the rest is dropped.
                    let _ = input.send(bytes).await;
                }
                if fin {
                    inputs.remove(&stream);
                }
                None
            }
            Frame::Reset { stream, .. } => {
                inputs.remove(&stream);
                None
            }
            ping @ Frame::Ping { .. } => Some(ping),
            Frame::GoAway | Frame::Ignored | Frame::SynReply { .. } | Frame::Close => None,
        };
        if let Some(answer) = answer {
            // After our own close, nothing is answered any more.
            let _ = writer.send(answer).await;
        }
    }
    Ok(())
}

async fn write<S: AsyncWrite>(
    mut writer: FrameWriter<WriteHalf<S>>,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), FrameError> {
    while let Some(frame) = frames.recv().await {
        if matches!(frame, Frame::Close) {
            break;
        }
        writer.send(&frame).await?;
    }
    writer.into_inner().shutdown().await.map_err(FrameError::Io)
}
