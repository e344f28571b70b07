//! The side of a queue that is written to, as if it were a file.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
};

use super::{Segment, Spool, is_full, path_of};
use crate::audit::sink::Sink;

/// A segment is closed when it is as long, in bytes, or an eighth of what the queue may hold.
const SEGMENT: u64 = 4 * 1024 * 1024;
const FULL: &str = "the webhook's queue is full: look in the agent's log for why the webhook doesn't take events, or raise --audit-webhook-queue-size";

/// The side of a queue that is written to.
#[derive(Debug)]
pub(in crate::audit) struct Appender {
    spool: Spool,
    pub(super) file: Option<fs::File>,
}

impl Appender {
    pub(super) fn new(spool: Spool) -> Self {
        spool.0.state().appenders += 1;
        Self { spool, file: None }
    }
}

impl Appender {
    /// There is no room. This segment may be the last thing that makes some, once it is read: only one that isn't
    /// written is removed.
    fn let_go(&mut self) {
        let state = self.spool.0.state();
        if state.segments.back().is_some_and(|last| last.size > 0) {
            self.file = None;
        }
    }
}

impl Sink for Appender {
    /// Begins a segment where there is none of this agent's, or it is long enough. Half a line that stands in the one
    /// before is written anew.
    fn prepare(&mut self) -> io::Result<bool> {
        let inner = &self.spool.0;
        let segment = SEGMENT.min(inner.limit / 8);
        let last = inner.state().segments.back().copied();
        let goes_on = last.is_some_and(|last| last.size < segment) && self.file.is_some();
        if goes_on {
            return Ok(false);
        }
        let number = last.map_or_else(|| inner.after_position(), |last| last.number + 1);
        let file = fs::OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path_of(&inner.directory, number))?;
        self.file = Some(file);
        let mut state = inner.state();
        if state.segments.is_empty() {
            state.offset = 0;
        }
        state.segments.push_back(Segment { number, size: 0 });
        state.writing = Some(number);
        drop(state);
        inner.more.notify_waiters();
        Ok(true)
    }

    /// Whole lines, as many as there is room for. One that is longer than all that may be waits alone.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = &self.spool.0;
        let size = inner.state().size() + inner.left_in_others();
        let room = usize::try_from(inner.limit.saturating_sub(size)).unwrap_or(usize::MAX);
        let fitting = match bytes.get(..room) {
            None => bytes,
            Some(fitting) => match memchr::memrchr(b'\n', fitting) {
                Some(end) => &fitting[..=end],
                None if size == 0 => bytes,
                None => {
                    self.let_go();
                    return Err(io::Error::new(io::ErrorKind::StorageFull, FULL));
                }
            },
        };
        let written = self.file.as_mut().ok_or(io::ErrorKind::NotConnected)?.write(fitting);
        if written.as_ref().is_err_and(is_full) {
            self.let_go();
        }
        let written = written?;
        let inner = &self.spool.0;
        let mut state = inner.state();
        if let Some(last) = state.segments.back_mut() {
            last.size += written as u64;
        }
        inner.shows(&state);
        drop(state);
        inner.more.notify_waiters();
        Ok(written)
    }

    /// Nobody moves it away.
    fn close(&mut self) {}
}

impl Drop for Appender {
    fn drop(&mut self) {
        let mut state = self.spool.0.state();
        state.appenders -= 1;
        state.writing = None;
        drop(state);
        self.spool.0.more.notify_waiters();
    }
}
