//! TLS over one TCP connection, by rustls, with buffers that are there only while something is in them.
//!
//! rustls' own buffers stay with a connection for as long as it lasts, and take four KiB from the socket at a time.
//! Here a connection that is silent holds none, and one that streams reads and writes several records with one system
//! call. rustls does all of TLS through its unbuffered interface; this module carries bytes to it and from it.

mod side;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::{
    ClientConfig, CommonState, ProtocolVersion, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus, WriteTraffic},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use self::side::Side;

/// What is read at a time at first, in bytes: a request, or an event of a watch.
const READ_FIRST: usize = 4 * 1024;
/// What is read at a time of a stream that fills its buffer again and again: four records.
const READ_MOST: usize = 64 * 1024;
/// The most plaintext of a record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// What is encrypted at a time: as many records are handed to the kernel together. With what TLS adds to them they are one
/// packet over the loopback, whose MTU is 65,536 bytes. One byte more is another packet, and that costs as much as the first.
pub(crate) const WRITE_MOST: usize = 4 * RECORD - 256;
/// As much that waits to be sent is sent along with what is encrypted next: a server's tickets, a change of keys.
const ALONG: usize = 2 * 1024;
/// Room for all of it, with what TLS adds to each record in either version.
const SCRATCH: usize = ALONG + WRITE_MOST + 8 * 256;
/// Room for an alert in a record of its own.
const ALERT: usize = 256;

thread_local! {
    /// Where records are put together that the kernel is to send. What it doesn't take is kept with the connection.
    static OUT: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
    /// Where small pieces are gathered for one record.
    static GATHERED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(RECORD));
    /// The buffer that something small was last read into, for whoever reads next.
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// A connection that speaks TLS, seen from the inside.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct TlsStream<S> {
    io: TcpStream,
    tls: S,
    /// Records as they came, whole and in part.
    incoming: BytesMut,
    /// What was in them and had no room with the reader.
    plain: BytesMut,
    /// Records that the kernel hasn't taken.
    outgoing: BytesMut,
    /// rustls has said something, and is still to be told that it goes out.
    encoded: bool,
    /// How much to read next.
    appetite: usize,
    /// The peer said that nothing more comes.
    finished: bool,
    /// The connection has ended on the peer's side, whatever was said.
    ended: bool,
    /// We said that nothing more comes.
    closing: bool,
    /// What was wrong with what the peer sent. It stays.
    failed: Option<rustls::Error>,
}

/// The server's end of a connection.
pub type Accepted = TlsStream<UnbufferedServerConnection>;
/// The client's.
pub type Dialled = TlsStream<UnbufferedClientConnection>;

/// The server's handshake.
///
/// # Errors
/// `InvalidData` around a [`rustls::Error`] where the peers don't come to terms; otherwise the connection's own.
pub async fn accept(io: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Accepted> {
    let tls = UnbufferedServerConnection::new(Arc::clone(config)).map_err(invalid)?;
    TlsStream::shake_hands(io, tls).await
}

/// The client's handshake, with a server that proves to be `name`.
///
/// # Errors
/// As [`accept`].
pub async fn connect(io: TcpStream, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Dialled> {
    let tls = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    TlsStream::shake_hands(io, tls).await
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

impl<S: Side> TlsStream<S> {
    async fn shake_hands(io: TcpStream, tls: S) -> io::Result<Self> {
        let mut stream = Self {
            io,
            tls,
            incoming: BytesMut::new(),
            plain: BytesMut::new(),
            outgoing: BytesMut::new(),
            encoded: false,
            appetite: READ_FIRST,
            finished: false,
            ended: false,
            closing: false,
            failed: None,
        };
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What was agreed on.
    pub fn terms(&self) -> &CommonState {
        &self.tls
    }

    /// Whether both sides have settled on HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.tls.alpn_protocol() == Some(b"h2")
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.go_on(cx, None)?;
            let done = !self.tls.is_handshaking();
            let is_tls13 = self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            if !(done && is_tls13 && S::LAST_WORDS_CAN_WAIT) {
                ready!(self.poll_send(cx))?;
            }
            if done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx))?;
            if self.ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Has rustls look at what has come, until it wants more or the reader has no more room. What it has to say itself
    /// goes to `outgoing`.
    fn go_on(&mut self, cx: &mut Context<'_>, mut reader: Option<&mut ReadBuf<'_>>) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(invalid(error.clone()));
        }
        loop {
            let came = self.incoming.len();
            let UnbufferedStatus { mut discard, state } = self.tls.process(&mut self.incoming);
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let room = reader.as_ref().map_or(0, |reader| reader.remaining());
                        let (now, later) = record.payload.split_at(room.min(record.payload.len()));
                        if let Some(reader) = &mut reader {
                            reader.put_slice(now);
                        }
                        self.plain.extend_from_slice(later);
                    }
                    // rustls is asked in vain where nothing is left to look at.
                    reader.as_ref().is_none_or(|reader| reader.remaining() > 0) && came > discard
                }
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    encode(message, &mut self.outgoing)?;
                    self.encoded = true;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(message)) => {
                    message.done();
                    self.encoded = false;
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.finished = true;
                    true
                }
                // More is wanted, or nothing more comes. No early data is taken, so that there is none.
                Ok(_) => false,
                Err(error) => {
                    self.incoming.advance(discard);
                    return Err(self.fail(cx, error));
                }
            };
            self.incoming.advance(discard);
            if !more {
                break;
            }
        }
        if self.finished {
            // What follows the end is nothing (RFC 8446, section 6.1).
            self.incoming.clear();
        }
        put_by(&mut self.incoming);
        Ok(())
    }

    /// Tells the peer what was wrong, as far as it listens.
    fn fail(&mut self, cx: &mut Context<'_>, error: rustls::Error) -> io::Error {
        self.failed = Some(error.clone());
        if self.collect().is_ok() {
            let _ = self.poll_send(cx);
        }
        invalid(error)
    }

    /// Takes what rustls has to say itself, and nothing of what has come.
    fn collect(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            let UnbufferedStatus { discard, state } = self.tls.process(&mut self.incoming);
            let Ok(ConnectionState::EncodeTlsData(message)) = state else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            encode(message, &mut self.outgoing)?;
            self.encoded = true;
            self.incoming.advance(discard);
        }
        Ok(())
    }

    /// Reads from the connection. Ready once something has come, or its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not before something is there to be read: a connection that waits has no buffer.
        ready!(self.io.poll_read_ready(cx))?;
        if self.incoming.is_empty() {
            self.incoming = SPARE.take().unwrap_or_default();
        }
        self.incoming.reserve(self.appetite);
        let room = self.incoming.capacity() - self.incoming.len();
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.incoming);
        match read {
            Poll::Ready(Ok(0)) => self.ended = true,
            Poll::Ready(Ok(read)) if read == room => self.appetite = READ_MOST.min(self.appetite * 4),
            Poll::Ready(Ok(read)) if read < self.appetite / 4 => self.appetite = READ_FIRST.max(self.appetite / 2),
            _ => put_by(&mut self.incoming),
        }
        read.map_ok(drop)
    }

    /// Has the kernel take what is to be sent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(sent);
        }
        release(&mut self.outgoing);
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that nothing more comes.
    fn say_goodbye(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.go_on(cx, None)?;
        let UnbufferedStatus { discard, state } = self.tls.process(&mut self.incoming);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
            let mut alert = [0; ALERT];
            let length = traffic.queue_close_notify(&mut alert).map_err(io::Error::other)?;
            self.outgoing.extend_from_slice(&alert[..length]);
        }
        self.incoming.advance(discard);
        Ok(())
    }

    /// Encrypts as much as goes at a time, and has the kernel take it. The rest of what was encrypted waits.
    fn poll_write_out(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.incoming.is_empty() || self.encoded || self.tls.wants_write() {
            self.go_on(cx, None)?;
        }
        if self.outgoing.len() > ALONG {
            ready!(self.poll_send(cx))?;
        }
        OUT.with_borrow_mut(|out| {
            let mut filled = self.outgoing.len();
            out[..filled].copy_from_slice(&self.outgoing);
            let UnbufferedStatus { discard, state } = self.tls.process(&mut self.incoming);
            let Ok(ConnectionState::WriteTraffic(mut traffic)) = state else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let taken = encrypt(&mut traffic, pieces, out, &mut filled)?;
            self.incoming.advance(discard);
            let sent = match Pin::new(&mut self.io).poll_write(cx, &out[..filled]) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            self.outgoing.clear();
            self.outgoing.extend_from_slice(&out[sent..filled]);
            release(&mut self.outgoing);
            Poll::Ready(Ok(taken))
        })
    }
}

/// Lets go of a buffer that has nothing in it.
fn release(buffer: &mut BytesMut) {
    if buffer.is_empty() {
        *buffer = BytesMut::new();
    }
}

/// Lets go of a buffer that has nothing in it, and leaves one of the usual size to whoever reads next: a larger one would
/// stay with a connection that sends a record's first bytes and no more.
fn put_by(buffer: &mut BytesMut) {
    if buffer.is_empty() {
        let mut buffer = mem::take(buffer);
        if buffer.try_reclaim(READ_FIRST) && buffer.capacity() == READ_FIRST {
            SPARE.set(Some(buffer));
        }
    }
}

/// Puts a message of rustls' own behind what is to be sent.
fn encode<D>(mut message: EncodeTlsData<'_, D>, outgoing: &mut BytesMut) -> io::Result<()> {
    // It says how much room it needs when it has none.
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        let end = outgoing.len();
        outgoing.resize(end + size.required_size, 0);
        message.encode(&mut outgoing[end..]).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Encrypts the pieces one after the other, as one stream, in records as full as may be: a frame's head goes into the
/// same record as what follows it. Returns how much of them it was.
fn encrypt<D>(
    traffic: &mut WriteTraffic<'_, D>,
    pieces: &[IoSlice<'_>],
    out: &mut [u8],
    filled: &mut usize,
) -> io::Result<usize> {
    let mut seal = |plain: &[u8]| {
        *filled += traffic.encrypt(plain, &mut out[*filled..]).map_err(io::Error::other)?;
        Ok::<_, io::Error>(())
    };
    GATHERED.with_borrow_mut(|gathered| {
        gathered.clear();
        let mut left = WRITE_MOST;
        for (index, piece) in pieces.iter().enumerate() {
            let mut piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            if !gathered.is_empty() {
                let (here, rest) = piece.split_at(piece.len().min(RECORD - gathered.len()));
                gathered.extend_from_slice(here);
                piece = rest;
                if gathered.len() == RECORD {
                    seal(gathered)?;
                    gathered.clear();
                }
            }
            // What nothing follows isn't gathered: that would be a copy.
            let is_last = left == 0 || index + 1 == pieces.len();
            let rest = if is_last && gathered.is_empty() {
                0
            } else {
                piece.len() % RECORD
            };
            let (whole, rest) = piece.split_at(piece.len() - rest);
            if !whole.is_empty() {
                seal(whole)?;
            }
            gathered.extend_from_slice(rest);
        }
        if !gathered.is_empty() {
            seal(gathered)?;
        }
        Ok(WRITE_MOST - left)
    })
}

impl<S: Side> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !this.plain.is_empty() {
                let here = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain[..here]);
                this.plain.advance(here);
                release(&mut this.plain);
                return Poll::Ready(Ok(()));
            }
            if !this.incoming.is_empty() || this.failed.is_some() {
                let outcome = this.go_on(cx, Some(buf));
                // What was good before an error is read first: the error stays.
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
                outcome?;
            }
            if this.finished {
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                // Whether that was all, only its close_notify could say.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(this.poll_receive(cx))?;
        }
    }
}

impl<S: Side> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_out(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_out(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            // Where it fails, the peer has had an alert that says why.
            let _ = this.say_goodbye(cx);
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            closed => Poll::Ready(closed),
        }
    }
}
