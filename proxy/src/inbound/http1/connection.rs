//! One HTTP/1.1 connection's bytes: what was read and isn't taken yet, what is to be written, and the client's time.
//!
//! All of it is polled by the connection's one task. Whatever the task waits for, it reads as well: the body that the
//! request's server asks for, or the client's leaving.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::oneshot,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    Cut,
    ahead::Ahead,
    answer::{self, Asked},
    framer::{Framer, Piece},
    head::{Framing, Head, Verdict},
    sending::Sending,
};
use crate::{
    body::{
        client::ClientBody,
        upload::{Feed, UploadError, upload},
    },
    limits::Limits,
    status::Refusal,
    upgrade::ClientStream,
};

/// How much is read at a time: a TLS record.
const PIECE: usize = 16 * 1024;
/// As much of an answer is written together, where it is there.
const TOGETHER: usize = 64 * 1024;
/// In so many pieces at most.
const PIECES: usize = 16;
/// How long, and for how much, a client is listened to that still sends when it has had its answer. A connection that
/// is closed with bytes unread is reset, and the answer may be lost with it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

thread_local! {
    /// Where bytes arrive. A connection keeps those that have come, and no room for more.
    static ARRIVALS: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// A client's connection.
pub(super) struct Connection<S> {
    io: S,
    framer: Framer,
    /// What was read and not taken yet.
    held: BytesMut,
    /// What is to be written, and how much it is.
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    body: Uploading,
    /// The client waits to be told to send the body.
    expects: bool,
    /// A request was refused that was not read to its end, or not at all.
    refused: bool,
    patience: Duration,
    awaited: Awaited,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
}

/// The body of the request at hand.
enum Uploading {
    /// It was read to its end.
    Done,
    /// It goes to whoever serves the request.
    To(Feed),
    /// The rest of it isn't read: nobody wants it, or it has no end.
    Unread,
}

/// What the client is to send in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Request,
    RestOfHead,
}

/// What comes next on a connection.
pub(super) enum Next {
    Request(Box<Head>),
    /// A request that isn't to be served. It is the last.
    Refused(Verdict),
}

/// Gives the connection to whoever asked for it.
pub(super) type Release = oneshot::Sender<ClientStream>;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(io: S, limits: &Limits) -> Self {
        let deadline = Instant::now() + limits.header_timeout;
        Self {
            io,
            framer: Framer::new(limits),
            held: BytesMut::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            body: Uploading::Done,
            expects: false,
            refused: false,
            patience: limits.header_timeout,
            awaited: Awaited::Nothing,
            deadline,
            timer: Box::pin(sleep_until(deadline)),
        }
    }

    /// Waits for the next request. There is none where the client has closed, or taken too long, or where `stopping` is set.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, stopping: &AtomicBool) -> Poll<Option<Next>> {
        loop {
            if stopping.load(Ordering::Relaxed) {
                return Poll::Ready(None);
            }
            if !self.held.is_empty() {
                match self.framer.head(&mut self.held) {
                    Ok(Some(head)) => {
                        self.awaited = Awaited::Nothing;
                        return Poll::Ready(Some(Next::Request(Box::new(head))));
                    }
                    Ok(None) => {}
                    Err(verdict) => return Poll::Ready(Some(self.refuse(verdict))),
                }
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    let awaited = if self.held.is_empty() {
                        Awaited::Request
                    } else {
                        Awaited::RestOfHead
                    };
                    ready!(self.poll_late(cx, awaited));
                    return Poll::Ready(match awaited {
                        Awaited::RestOfHead => Some(self.refuse(Verdict::on(&self.held, Refusal::RequestTimeout))),
                        _ => None,
                    });
                }
            }
        }
    }

    fn refuse(&mut self, verdict: Verdict) -> Next {
        self.refused = true;
        self.held = BytesMut::new();
        Next::Refused(verdict)
    }

    /// Begins a request: what it is served with.
    pub(super) fn begin(&mut self, head: Head) -> (Request<ClientBody>, Option<Release>) {
        let Head {
            request,
            framing,
            expects,
            ..
        } = head;
        self.expects = expects;
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
        let length = match framing {
            Framing::Nothing => return (request.map(|()| ClientBody::nothing()), None),
            Framing::Undecided => {
                let (release, takeover) = oneshot::channel();
                return (request.map(|()| ClientBody::upgradable(takeover)), Some(release));
            }
            Framing::Sized(length) => Some(length),
            Framing::Chunked => None,
        };
        let (feed, upload) = upload(length);
        self.body = Uploading::To(feed);
        (request.map(|()| upload.into()), None)
    }

    /// Waits for the answer, while the client uploads, or until it leaves.
    pub(super) fn poll_served<F: Future>(
        &mut self,
        cx: &mut Context<'_>,
        serving: Pin<&mut F>,
    ) -> Poll<Result<F::Output, Cut>> {
        if let Poll::Ready(answer) = serving.poll(cx) {
            return Poll::Ready(Ok(answer));
        }
        self.poll_client(cx).map(Err)
    }

    /// Answers the request. Tells whether another may follow.
    pub(super) async fn answer<B>(&mut self, answer: Response<B>, asked: Asked) -> Result<bool, Cut>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        // What it waited for it doesn't need to be told any more.
        self.expects = false;
        let (parts, body) = answer.into_parts();
        let (head, length, keeps_alive) = answer::begin(&parts, &body, asked)?;
        drop(parts);
        self.write(head.into());
        let mut sending = Sending::new(body, length);
        std::future::poll_fn(|cx| self.poll_answer(cx, &mut sending)).await?;
        if keeps_alive {
            std::future::poll_fn(|cx| self.poll_uploaded(cx)).await?;
        }
        Ok(keeps_alive && matches!(self.body, Uploading::Done))
    }

    fn poll_answer<B>(&mut self, cx: &mut Context<'_>, sending: &mut Sending<B>) -> Poll<Result<(), Cut>>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        loop {
            let mut waits = false;
            while !waits && self.unsent.len() < PIECES && self.unsent_bytes < TOGETHER && sending.goes_on() {
                waits = sending.poll_piece(cx, |piece| self.write(piece)).is_pending();
            }
            // As much as goes together, and then more of it beside what the connection didn't take.
            let is_full = sending.goes_on() && !waits;
            let sent = if is_full {
                self.poll_write(cx)
            } else {
                self.poll_send(cx)
            };
            let Poll::Ready(sent) = sent else {
                break;
            };
            sent?;
            if !sending.goes_on() {
                return Poll::Ready(sending.outcome());
            }
            if waits {
                break;
            }
        }
        self.poll_client(cx).map(Err)
    }

    /// Waits until the body has been read, or isn't wanted.
    fn poll_uploaded(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Uploading::To(feed) = &self.body else {
                return Poll::Ready(Ok(()));
            };
            let is_wanted = match feed.poll_wanted(cx) {
                Poll::Ready(is_wanted) => is_wanted,
                Poll::Pending => return Poll::Pending,
            };
            match self.framer.body(&mut self.held) {
                Piece::Data(data, is_last) if is_wanted => {
                    feed.put(data, is_last);
                    if is_last {
                        self.body = Uploading::Done;
                    }
                }
                // What is here of it already is no trouble.
                Piece::Data(..) => {}
                Piece::End => {
                    feed.end(Ok(()));
                    self.body = Uploading::Done;
                }
                Piece::Broken => {
                    feed.end(Err(UploadError::Malformed));
                    self.body = Uploading::Unread;
                }
                Piece::More if is_wanted => {
                    if std::mem::take(&mut self.expects) {
                        self.write(Bytes::from_static(CONTINUE));
                    }
                    if !self.unsent.is_empty() {
                        // What can't be sent now is tried again with what comes next.
                        let _ = self.poll_send(cx)?;
                    }
                    let read = ready!(self.poll_read(cx));
                    if !matches!(read, Ok(1..)) {
                        // It may still read its answer.
                        self.body = Uploading::Unread;
                    }
                }
                Piece::More => self.body = Uploading::Unread,
            }
        }
    }

    /// Reads on, so that what the client uploads gets where it is wanted. Ready when it has left.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        if let Err(error) = ready!(self.poll_uploaded(cx)) {
            return Poll::Ready(error.into());
        }
        // What comes ahead of its time is held: one piece, for nobody has to read more of it.
        while self.held.is_empty() && matches!(self.body, Uploading::Done) {
            match ready!(self.poll_read(cx)) {
                Ok(0) => return Poll::Ready(Cut::Left),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error.into()),
            }
        }
        Poll::Pending
    }

    /// Answers that the connection goes on in another protocol.
    pub(super) async fn switch(&mut self, headers: &HeaderMap) -> io::Result<()> {
        self.write(answer::switch(headers).into());
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// The connection by itself, and first what was read of it.
    pub(super) fn into_stream(self) -> Ahead<S> {
        Ahead::new(self.held, self.io)
    }

    /// Tells the client that nothing more comes, and reads on for a while where it may still send, so that it gets to read its
    /// answer.
    pub(super) async fn close(mut self) -> io::Result<()> {
        let lingers = self.refused || !self.framer.is_between_requests();
        // Whoever takes an upload learns that no more of it comes.
        self.body = Uploading::Unread;
        self.held = BytesMut::new();
        self.io.shutdown().await?;
        if lingers {
            let unread = async {
                let mut left = LINGER_BYTES;
                while let Ok(read @ 1..) = std::future::poll_fn(|cx| self.poll_read(cx)).await
                    && left > read
                {
                    left -= read;
                    self.held.clear();
                }
            };
            let _ = timeout(LINGER, unread).await;
        }
        Ok(())
    }

    /// Has it written with what else is to be.
    fn write(&mut self, bytes: Bytes) {
        self.unsent_bytes += bytes.len();
        self.unsent.push_back(bytes);
    }

    /// Has the connection take some of what is to be sent, of which there is some.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); PIECES + 4];
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.unsent) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        let mut sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unsent_bytes -= sent;
        while let Some(first) = self.unsent.front_mut() {
            if sent < first.len() {
                first.advance(sent);
                break;
            }
            sent -= first.len();
            self.unsent.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    /// Has all sent that is to be.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            ready!(self.poll_write(cx))?;
        }
        if self.unsent.capacity() > PIECES / 2 {
            self.unsent = VecDeque::new();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Reads on behind what is held. Ready with how much it was.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ARRIVALS.with_borrow_mut(|room| {
            let mut arrived = ReadBuf::new(room);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut arrived))?;
            self.held.extend_from_slice(arrived.filled());
            Poll::Ready(Ok(arrived.filled().len()))
        })
    }

    /// Counts the time that the client takes over what is awaited. Ready when it has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>, awaited: Awaited) -> Poll<()> {
        if awaited != self.awaited {
            self.awaited = awaited;
            self.deadline = Instant::now() + self.patience;
        }
        // Set anew only when it has run out: most of what is waited for comes long before.
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            let deadline = self.deadline;
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
