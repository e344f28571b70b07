//! A queue of lines on disk: events on their way to a webhook, which outlive the agent, and the webhook's own absence.
//!
//! One side appends, as to a file; the other reads in the same order, and says how far it has come. Segments of a few
//! MiB each are removed when they have been read. What a killed agent left half written is passed over, and a new agent
//! begins a segment of its own. The position is written after the lines were taken: whoever is killed between the two
//! sends them again, and nothing is lost. Nothing is fsynced: what the system hasn't written is lost with the node.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::sink::Sink;

/// A segment is closed when it is as long, in bytes, or an eighth of what the queue may hold.
const SEGMENT: u64 = 4 * 1024 * 1024;
const SUFFIX: &str = "events";
const POSITION: &str = "position";

/// A queue of lines. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// The most that may be on disk, in bytes.
    limit: u64,
    state: Mutex<State>,
    /// There is more to read.
    more: Notify,
    size: Gauge,
}

#[derive(Debug)]
struct State {
    /// Oldest first; the last is the one that is being written, if it is this agent's.
    segments: VecDeque<Segment>,
    /// Where reading goes on in the first.
    offset: u64,
    /// The number of the one that is being written.
    writing: Option<u64>,
    /// How many could write.
    appenders: usize,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u64,
    size: u64,
}

/// Lines that were read.
#[derive(Debug)]
pub(super) struct Batch {
    /// Whole lines, each with its end.
    pub(super) lines: Vec<u8>,
    /// How many.
    pub(super) count: usize,
    segment: u64,
    end: u64,
}

impl Spool {
    /// Opens the queue in a directory, made for the agent alone, and finds what is left in it.
    pub(super) fn open(directory: &Path, limit: u64, size: Gauge) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some(number) = number_of(&entry.path()) {
                let size = entry.metadata()?.len();
                segments.push(Segment { number, size });
            }
        }
        segments.sort_by_key(|segment| segment.number);
        let position = fs::read_to_string(directory.join(POSITION)).unwrap_or_default();
        let (number, offset) = parse_position(&position).unwrap_or_default();
        // Segments before the position have been read; they are removed when they have, or here.
        while segments.first().is_some_and(|segment| segment.number < number) {
            fs::remove_file(path_of(directory, segments.remove(0).number))?;
        }
        let is_first = segments.first().is_some_and(|segment| segment.number == number);
        let spool = Self(Arc::new(Inner {
            directory: directory.to_owned(),
            limit,
            state: Mutex::new(State {
                segments: segments.into(),
                offset: if is_first { offset } else { 0 },
                writing: None,
                appenders: 0,
            }),
            more: Notify::new(),
            size,
        }));
        spool.0.shows();
        Ok(spool)
    }

    /// The writing side.
    pub(super) fn appender(&self) -> Appender {
        self.0.state().appenders += 1;
        Appender {
            spool: self.clone(),
            file: None,
        }
    }

    /// Waits for something to be read. False: there is nothing, and nobody writes any more.
    pub(super) async fn readable(&self) -> bool {
        loop {
            let more = self.0.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let (has_more, is_written) = {
                let state = self.0.state();
                (state.has_more(), state.appenders > 0)
            };
            if has_more || !is_written {
                return has_more;
            }
            more.await;
        }
    }

    /// Reads the next lines, `most_lines` and about `most_bytes` of them at most; `None` if there are none. Blocks.
    pub(super) fn read(&self, most_lines: usize, most_bytes: usize) -> io::Result<Option<Batch>> {
        loop {
            let Some((segment, offset, is_last)) = self.0.state().first() else {
                return Ok(None);
            };
            let lines = self.lines(segment, offset, most_bytes)?;
            let ends = memchr::memchr_iter(b'\n', &lines).take(most_lines);
            let (count, end) = ends.fold((0, 0), |(count, _), at| (count + 1, at + 1));
            if count > 0 {
                let mut lines = lines;
                lines.truncate(end);
                return Ok(Some(Batch {
                    lines,
                    count,
                    segment: segment.number,
                    end: offset + end as u64,
                }));
            }
            if is_last {
                return Ok(None);
            }
            // What is left of it is half a line, of an agent that was killed or a disk that was full: the rest of it is
            // nowhere, or whole in the next.
            self.pass(segment.number)?;
        }
    }

    /// What was read has arrived. Blocks.
    pub(super) fn taken(&self, batch: &Batch) -> io::Result<()> {
        let position = self.0.directory.join(POSITION);
        let next = position.with_extension("next");
        fs::write(&next, format!("{} {}\n", batch.segment, batch.end))?;
        fs::rename(&next, &position)?;
        let mut state = self.0.state();
        if state
            .segments
            .front()
            .is_some_and(|first| first.number == batch.segment)
        {
            state.offset = batch.end;
        }
        let done = state
            .first()
            .filter(|(segment, offset, is_last)| !is_last && *offset >= segment.size);
        drop(state);
        if let Some((segment, ..)) = done {
            self.pass(segment.number)?;
        }
        Ok(())
    }

    /// How much is left, in bytes.
    pub(super) fn left(&self) -> u64 {
        let state = self.0.state();
        state.size() - state.offset.min(state.size())
    }

    fn lines(&self, segment: Segment, offset: u64, most_bytes: usize) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path_of(&self.0.directory, segment.number))?;
        let mut most = most_bytes as u64;
        loop {
            file.seek(SeekFrom::Start(offset))?;
            let mut lines = Vec::new();
            (&mut file)
                .take(most.min(segment.size.saturating_sub(offset)))
                .read_to_end(&mut lines)?;
            // A single line may be longer than a batch should be.
            if lines.contains(&b'\n') || most >= segment.size {
                return Ok(lines);
            }
            most = most.saturating_mul(2);
        }
    }

    fn pass(&self, number: u64) -> io::Result<()> {
        match fs::remove_file(path_of(&self.0.directory, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut state = self.0.state();
        if state.segments.front().is_some_and(|first| first.number == number) {
            state.segments.pop_front();
            state.offset = 0;
        }
        drop(state);
        self.0.shows();
        Ok(())
    }
}

impl Inner {
    /// A poisoned lock is taken over: what it guards is whole after each change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shows(&self) {
        self.size.set(i64::try_from(self.state().size()).unwrap_or(i64::MAX));
    }
}

impl State {
    fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// The segment that is read, from where, and whether it is still being written.
    fn first(&self) -> Option<(Segment, u64, bool)> {
        let segment = *self.segments.front()?;
        Some((segment, self.offset, self.writing == Some(segment.number)))
    }

    fn has_more(&self) -> bool {
        self.first()
            .is_some_and(|(segment, offset, is_last)| !is_last || offset < segment.size)
    }
}

/// The side of a queue that is written to.
#[derive(Debug)]
pub(super) struct Appender {
    spool: Spool,
    file: Option<fs::File>,
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = &self.spool.0;
        if inner.state().size() + bytes.len() as u64 > inner.limit {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the webhook's queue is full: look in the agent's log for why the webhook doesn't take events, or raise --audit-webhook-queue-size",
            ));
        }
        let written = self.file.as_mut().ok_or(io::ErrorKind::NotConnected)?.write(bytes)?;
        if let Some(last) = inner.state().segments.back_mut() {
            last.size += written as u64;
        }
        inner.shows();
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

impl Inner {
    /// A number that no segment had which was read, so that the position can't be taken for one in this.
    fn after_position(&self) -> u64 {
        let position = fs::read_to_string(self.directory.join(POSITION)).unwrap_or_default();
        parse_position(&position).map_or(1, |(number, _)| number + 1)
    }
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016}.{SUFFIX}"))
}

fn number_of(path: &Path) -> Option<u64> {
    let is_ours = path.extension().is_some_and(|suffix| suffix == SUFFIX);
    path.file_stem()?.to_str()?.parse().ok().filter(|_| is_ours)
}

fn parse_position(text: &str) -> Option<(u64, u64)> {
    let (number, offset) = text.trim_end().split_once(' ')?;
    Some((number.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests;
