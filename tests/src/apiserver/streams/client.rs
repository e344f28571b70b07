//! The client's side of exec over SPDY/3.1, as far as a measure of it needs: its streams opened, stdin written, and what
//! comes on the others told apart.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadHalf, WriteHalf};

use super::spdy::{Frame, FrameReader, FrameWriter, Headers};

/// Which of exec's streams something came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// How it ended, as a `Status`.
    Error,
    /// The program's output.
    Stdout,
}

/// The streams' ids: a client's are odd.
const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
/// How much is read at once.
const READ: usize = 64 * 1024;

/// An exec with stdin and stdout, over a connection that has been switched.
pub struct SpdyExec<S> {
    reader: FrameReader<BufReader<ReadHalf<S>>>,
    writer: FrameWriter<WriteHalf<S>>,
}

impl<S: AsyncRead + AsyncWrite> SpdyExec<S> {
    /// Opens its streams.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn open(stream: S) -> io::Result<Self> {
        let (reader, writer) = tokio::io::split(stream);
        let mut exec = Self {
            reader: FrameReader::new(BufReader::with_capacity(READ, reader)),
            writer: FrameWriter::new(writer),
        };
        for (stream, kind) in [(ERROR, "error"), (STDIN, "stdin"), (STDOUT, "stdout")] {
            let headers = Headers::from_iter([("streamtype", kind)]);
            let open = Frame::SynStream {
                stream,
                fin: false,
                headers,
            };
            exec.writer.send(&open).await.map_err(io::Error::other)?;
        }
        Ok(exec)
    }

    /// Writes to stdin; nothing at all ends it.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let frame = Frame::Data {
            stream: STDIN,
            fin: bytes.is_empty(),
            bytes,
        };
        self.writer.send(&frame).await.map_err(io::Error::other)
    }

    /// What comes next; none once the server has ended the connection. It mustn't be dropped before it has come.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn read(&mut self) -> io::Result<Option<(Channel, Bytes)>> {
        loop {
            match self.reader.next().await.map_err(io::Error::other)? {
                None | Some(Frame::GoAway) => return Ok(None),
                Some(Frame::Data { stream, bytes, .. }) if !bytes.is_empty() => match stream {
                    ERROR => return Ok(Some((Channel::Error, bytes))),
                    STDOUT => return Ok(Some((Channel::Stdout, bytes))),
                    _ => {
                        return Err(io::Error::other(format!(
                            "data on stream {stream}, which is none of its own"
                        )));
                    }
                },
                Some(Frame::Reset { stream, status }) => {
                    return Err(io::Error::other(format!("stream {stream} was reset: {status}")));
                }
                Some(_) => {}
            }
        }
    }
}

impl<S> std::fmt::Debug for SpdyExec<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpdyExec").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Uri};

    use super::*;
    use crate::apiserver::streams::Exec;

    #[tokio::test]
    async fn what_is_written_is_echoed_and_the_end_is_told() {
        let mut headers = HeaderMap::new();
        headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
        headers.insert(
            "x-stream-protocol-version",
            HeaderValue::from_static("v4.channel.k8s.io"),
        );
        let uri = Uri::from_static("/api/v1/namespaces/a/pods/b/exec?command=cat&stdin=true&stdout=true");
        let exec = Exec::agree(&uri, &headers).unwrap();
        assert_eq!(exec.headers()["upgrade"], "SPDY/3.1");
        let (near, far) = tokio::io::duplex(4096);
        let client = async {
            let mut client = SpdyExec::open(near).await.unwrap();
            for text in ["one", "two"] {
                client.write(Bytes::from(text)).await.unwrap();
                assert_eq!(client.read().await.unwrap(), Some((Channel::Stdout, Bytes::from(text))));
            }
            client.write(Bytes::new()).await.unwrap();
            let (channel, status) = client.read().await.unwrap().unwrap();
            assert_eq!(channel, Channel::Error);
            assert!(String::from_utf8_lossy(&status).contains("Success"));
        };
        tokio::join!(client, exec.run(far));
    }

    #[test]
    fn what_is_no_exec_is_refused() {
        let uri = Uri::from_static("/api/v1/namespaces/a/configmaps/b");
        assert!(Exec::agree(&uri, &HeaderMap::new()).is_err());
    }
}
