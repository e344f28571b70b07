//! Bodies on their way out: as much as the windows allow, and one after the other.

use std::task::Waker;

use bytes::Bytes;

use super::{Http2Error, frame::put_data, stream::keep, streams::State};

/// Uploads wait while so many bytes are still to be sent.
const SEND_BUFFER: usize = 64 * 1024;

impl State {
    /// How the server, or the connection, ended an upload before its time.
    pub(super) fn stopped(&mut self, id: u32, waker: &Waker) -> Option<Http2Error> {
        let stream = self.streams.get_mut(&id)?;
        if stream.failed.is_none() {
            keep(&mut stream.writer, waker);
        }
        stream.failed.clone()
    }

    /// Sends what may be sent of a body, `is_last` with its end, and says whether that was anything. Where it wasn't, `waker` is woken when that has
    /// changed.
    pub(super) fn send(&mut self, id: u32, data: &mut Bytes, is_last: bool, waker: &Waker) -> Result<bool, Http2Error> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Http2Error::Dropped);
        };
        if let Some(error) = &stream.failed {
            return Err(error.clone());
        }
        if stream.send_window <= 0 {
            keep(&mut stream.writer, waker);
            self.leave_queue(id);
            return Ok(false);
        }
        let is_anothers_turn = self.queue.front().is_some_and(|first| *first != id);
        let room = SEND_BUFFER.saturating_sub(self.out.len());
        if is_anothers_turn || self.window <= 0 || room == 0 {
            keep(&mut stream.writer, waker);
            if !self.queue.contains(&id) {
                self.queue.push_back(id);
            }
            return Ok(false);
        }
        let windows = usize::try_from(stream.send_window.min(self.window)).unwrap_or(usize::MAX);
        let length = data.len().min(windows).min(room).min(self.max_frame as usize);
        let ends = is_last && length == data.len();
        stream.is_sent |= ends;
        put_data(&mut self.out, id, &data.split_to(length), ends);
        let sent = i64::try_from(length).unwrap_or(i64::MAX);
        stream.send_window -= sent;
        self.window -= sent;
        self.leave_queue(id);
        self.wake_driver();
        Ok(true)
    }

    /// The body has been sent.
    pub(super) fn finish(&mut self, id: u32) -> Result<(), Http2Error> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Http2Error::Dropped);
        };
        if let Some(error) = &stream.failed {
            return Err(error.clone());
        }
        stream.is_sent = true;
        put_data(&mut self.out, id, &[], true);
        self.wake_driver();
        Ok(())
    }

    /// It is the next one's turn, if this was the first.
    pub(super) fn leave_queue(&mut self, id: u32) {
        if let Some(place) = self.queue.iter().position(|waiting| *waiting == id) {
            self.queue.remove(place);
            self.wake_next();
        }
    }

    /// Has the first of those who wait for room look again.
    pub(super) fn wake_next(&mut self) {
        if let Some(stream) = self.queue.front().and_then(|id| self.streams.get_mut(id))
            && let Some(writer) = stream.writer.take()
        {
            writer.wake();
        }
    }
}
