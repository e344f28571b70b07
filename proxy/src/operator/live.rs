//! Answers that go on: lines of JSON, as things come to be. Of these there are few at a time. One whose reader doesn't read
//! is cut off, one whose reader's right is gone ends, and so it says; all of them end with the agent.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::{Either, Full};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{Answers, access::Access, of_type, view::NoticeView};
use crate::audit::tail::Listener;

/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(10);
/// Pieces on their way to a reader. Events wait before, where they are counted.
const PIECES: usize = 2;

/// The body of an answer.
pub(super) type Body = Either<Full<Bytes>, Lines>;

/// Lines that come when they come.
#[derive(Debug)]
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|lines| Some(Ok(Frame::data(lines?))))
    }
}

/// What goes on.
#[derive(Debug)]
pub(super) enum Live {
    /// Audit events.
    Events(Listener),
    /// Who is on, so often.
    Sessions(Duration),
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// A connection of whoever asks, reads, and goes.
    pub(super) lifetime: Duration,
    /// Between two looks whether one who looks on still may.
    pub(super) recheck: Duration,
    /// One who looks on may take none of what is there.
    pub(super) stall: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_mins(1),
            recheck: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// Who reads, and by what right.
#[derive(Debug)]
pub(super) struct Reader {
    /// Who says whether he may; nobody for the node's root.
    pub(super) access: Option<Arc<Access>>,
    /// What he showed.
    pub(super) headers: HeaderMap,
    /// Cuts his connection off.
    pub(super) cut: CancellationToken,
    /// How long he has for what.
    pub(super) times: Times,
    /// His place among those who look on.
    pub(super) _place: OwnedSemaphorePermit,
}

impl Reader {
    /// Begins an answer that goes on.
    pub(super) fn begin(self, answers: Arc<Answers>, live: Live) -> Response<Body> {
        let (lines, body) = mpsc::channel(PIECES);
        tokio::spawn(self.feed(answers, live, lines));
        of_type("application/x-ndjson", Either::Right(Lines(body)))
    }

    async fn feed(self, answers: Arc<Answers>, mut live: Live, to: mpsc::Sender<Bytes>) {
        let Times { recheck, stall, .. } = self.times;
        let mut beat = time::interval(BEAT);
        let mut recheck = time::interval_at(Instant::now() + recheck, recheck);
        let every = match live {
            Live::Sessions(every) => every,
            Live::Events(_) => BEAT,
        };
        let mut look = time::interval(every);
        for interval in [&mut beat, &mut recheck, &mut look] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let lines = tokio::select! {
                lines = live.next(&answers, &mut look) => lines,
                _ = beat.tick() => live.notice(&answers, None),
                _ = recheck.tick() => match self.ended().await {
                    None => continue,
                    Some(why) => {
                        // Whether that is heard or not, it ends.
                        let _unheard = time::timeout(stall, to.send(live.notice(&answers, Some(why)))).await;
                        return;
                    }
                },
                () = to.closed() => return,
            };
            match time::timeout(stall, to.send(lines)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::warn!("an operator reads nothing of a live answer: it is cut off");
                    self.cut.cancel();
                    return;
                }
            }
        }
    }

    /// Why the reader may not read any more.
    async fn ended(&self) -> Option<String> {
        let access = self.access.as_ref()?;
        access.admit(&self.headers).await.err().map(|denied| denied.to_string())
    }
}

impl Live {
    async fn next(&mut self, answers: &Answers, look: &mut time::Interval) -> Bytes {
        match self {
            Self::Events(listener) => listener.next().await.into(),
            Self::Sessions(_) => {
                look.tick().await;
                line(&answers.sessions())
            }
        }
    }

    fn notice(&self, answers: &Answers, ended: Option<String>) -> Bytes {
        let omitted = match self {
            Self::Events(listener) => listener.omitted(),
            Self::Sessions(_) => 0,
        };
        line(&NoticeView::new(&answers.node, omitted, ended))
    }
}

fn line(view: &impl Serialize) -> Bytes {
    // Our own types: they have a form in JSON.
    let mut line = serde_json::to_vec(view).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
