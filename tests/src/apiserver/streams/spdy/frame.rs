//! Frames of SPDY/3.1, read from and written to bytes. What they mean to a session is the parent's.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::header::{Deflater, HeaderError, Headers, Inflater};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const CONTROL: u16 = 0x8000;
/// A length is 24 bits; no client of ours comes near this.
const LONGEST: usize = 4 * 1024 * 1024;

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The connection failed.
    #[error("SPDY connection: {0}")]
    Io(#[from] std::io::Error),
    /// A control frame of another version.
    #[error("SPDY version {0} in place of 3")]
    Version(u16),
    /// A frame that is shorter than its kind needs.
    #[error("SPDY frame of kind {0} is too short")]
    Short(u16),
    /// A frame that is longer than any sensible one.
    #[error("SPDY frame of {0} bytes")]
    Long(usize),
    /// A header block that can't be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// One frame, as far as it is of interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates and whatever else is safe to pass over.
    Ignored,
    /// Not a frame: the writer's own end.
    Close,
}

/// Reads frames.
pub(crate) struct FrameReader<R> {
    reader: R,
    inflater: Inflater,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            inflater: Inflater::new(),
        }
    }

    /// The next frame; `None` at a clean end.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut head = [0; 8];
        if self.reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.reader.read_exact(&mut head[1..]).await?;
        let mut head = &head[..];
        let (first, second) = (head.get_u16(), head.get_u16());
        let flags_length = head.get_u32();
        let flags = flags_length.to_be_bytes()[0];
        let length = (flags_length & 0x00ff_ffff) as usize;
        if length > LONGEST {
            return Err(FrameError::Long(length));
        }
        let mut body = BytesMut::zeroed(length);
        self.reader.read_exact(&mut body).await?;
        let fin = flags & FIN != 0;
        if first & CONTROL == 0 {
            return Ok(Some(Frame::Data {
                stream: u32::from(first) << 16 | u32::from(second),
                fin,
                bytes: body.freeze(),
            }));
        }
        let version = first & !CONTROL;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        self.control(second, fin, &mut body.freeze()).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, body: &mut Bytes) -> Result<Frame, FrameError> {
        let short = |_| FrameError::Short(kind);
        Ok(match kind {
            SYN_STREAM => {
                let stream = body.try_get_u32().map_err(short)? & !(1 << 31);
                let _associated = body.try_get_u32().map_err(short)?;
                let _priority = body.try_get_u16().map_err(short)?;
                Frame::SynStream {
                    stream,
                    fin,
                    headers: self.inflater.headers(body)?,
                }
            }
            // Both are read for the sake of the compression's state, which all header blocks share.
            SYN_REPLY | HEADERS => {
                body.try_get_u32().map_err(short)?;
                self.inflater.headers(body)?;
                Frame::Ignored
            }
            RST_STREAM => Frame::Reset {
                stream: body.try_get_u32().map_err(short)? & !(1 << 31),
                status: body.try_get_u32().map_err(short)?,
            },
            PING => Frame::Ping {
                id: body.try_get_u32().map_err(short)?,
            },
            GOAWAY => Frame::GoAway,
            _ => Frame::Ignored,
        })
    }
}

/// Writes frames.
pub(crate) struct FrameWriter<W> {
    writer: W,
    deflater: Deflater,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self {
            writer,
            deflater: Deflater::new(),
        }
    }

    pub(crate) fn into_inner(self) -> W {
        self.writer
    }

    /// Sends one frame, and everything before it.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let bytes = self.encode(frame)?;
        self.writer.write_all(&bytes).await?;
        self.writer.flush().await?;
        Ok(())
    }

    fn encode(&mut self, frame: &Frame) -> Result<Bytes, FrameError> {
        let mut body = BytesMut::new();
        let (kind, fin) = match frame {
            Frame::Data { stream, fin, bytes } => {
                body.put_u32(*stream);
                put_flags_length(&mut body, *fin, bytes.len());
                body.put_slice(bytes);
                return Ok(body.freeze());
            }
            Frame::SynStream { stream, fin, headers } => {
                body.put_u32(*stream);
                body.put_bytes(0, 6);
                body.put_slice(&self.deflater.headers(headers)?);
                (SYN_STREAM, *fin)
            }
            Frame::SynReply { stream } => {
                body.put_u32(*stream);
                body.put_slice(&self.deflater.headers(&Headers::default())?);
                (SYN_REPLY, false)
            }
            Frame::Reset { stream, status } => {
                body.put_u32(*stream);
                body.put_u32(*status);
                (RST_STREAM, false)
            }
            Frame::Ping { id } => {
                body.put_u32(*id);
                (PING, false)
            }
            Frame::GoAway | Frame::Ignored | Frame::Close => {
                body.put_u64(0);
                (GOAWAY, false)
            }
        };
        let mut frame = BytesMut::with_capacity(body.len() + 8);
        frame.put_u16(CONTROL | VERSION);
        frame.put_u16(kind);
        put_flags_length(&mut frame, fin, body.len());
        frame.put_slice(&body);
        Ok(frame.freeze())
    }
}

fn put_flags_length(buffer: &mut BytesMut, fin: bool, length: usize) {
    buffer.put_u8(if fin { FIN } else { 0 });
    buffer.put_uint(length as u64, 3);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn headers() -> Headers {
        Headers::from_iter([("streamtype", "stdin"), ("port", "8080")])
    }

    #[rstest]
    #[case::open(Frame::SynStream { stream: 1, fin: false, headers: headers() })]
    #[case::open_and_end(Frame::SynStream { stream: 3, fin: true, headers: headers() })]
    #[case::data(Frame::Data { stream: 0x7fff_ffff, fin: false, bytes: Bytes::from_static(b"abc") })]
    #[case::end(Frame::Data { stream: 1, fin: true, bytes: Bytes::new() })]
    #[case::reset(Frame::Reset { stream: 5, status: 1 })]
    #[case::ping(Frame::Ping { id: 7 })]
    #[case::go_away(Frame::GoAway)]
    #[tokio::test]
    async fn frames_are_read_as_written(#[case] frame: Frame) {
        let mut writer = FrameWriter::new(Vec::new());
        // Twice, since header blocks depend on those before.
        writer.send(&frame).await.unwrap();
        writer.send(&frame).await.unwrap();
        let bytes = writer.into_inner();
        let mut reader = FrameReader::new(&bytes[..]);
        assert_eq!(reader.next().await.unwrap(), Some(frame.clone()));
        assert_eq!(reader.next().await.unwrap(), Some(frame));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[rstest]
    #[case::data(&[0, 0, 0, 1, 1, 0, 0, 2, b'h', b'i'], Frame::Data { stream: 1, fin: true, bytes: Bytes::from_static(b"hi") })]
    #[case::ping(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], Frame::Ping { id: 9 })]
    #[case::reset(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 1], Frame::Reset { stream: 5, status: 1 })]
    #[case::settings(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0], Frame::Ignored)]
    #[case::window_update(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1], Frame::Ignored)]
    #[tokio::test]
    async fn frames_on_the_wire(#[case] bytes: &[u8], #[case] frame: Frame) {
        assert_eq!(FrameReader::new(bytes).next().await.unwrap(), Some(frame));
    }

    #[rstest]
    #[case::version(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9])]
    #[case::short(&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0])]
    #[case::cut(&[0x80, 3, 0, 6, 0, 0])]
    #[case::long(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff])]
    #[case::no_zlib(&[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])]
    #[tokio::test]
    async fn nonsense_is_an_error(#[case] bytes: &[u8]) {
        assert!(FrameReader::new(bytes).next().await.is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut reader = FrameReader::new(&bytes[..]);
                while let Ok(Some(_)) = reader.next().await {}
            });
        }
    }
}
