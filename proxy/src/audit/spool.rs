//! A queue of lines on disk: events on their way to a webhook, which outlive the agent, and the webhook's own absence.
//!
//! One side appends, as to a file; the other reads in the same order, and says how far it has come. Segments of a few
//! MiB each are removed when they have been read. What a killed agent left half written is passed over, and a new agent
//! begins a segment of its own. The position is written after the lines were taken: whoever is killed between the two
//! sends them again, and nothing is lost. Nothing is fsynced: what the system hasn't written is lost with the node.
//!
//! While one agent hands over to another both write. So each has a directory of its own below the queue's, locked for as
//! long as it runs; what an agent left behind is whosever can lock it.

mod appender;

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

pub(super) use self::appender::Appender;

const SUFFIX: &str = "events";
const POSITION: &str = "position";
const LOCK: &str = "lock";

/// A queue of lines. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// The most that may be on disk, in bytes, with what is in others that this agent reads.
    limit: u64,
    state: Mutex<State>,
    /// There is more to read.
    more: Notify,
    /// Shows how much is left to be read, in all queues together.
    left: Gauge,
    /// What of it is this one's.
    shown: AtomicI64,
    /// Held for as long as the queue is.
    _lock: fs::File,
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
    /// Begins a queue of this agent's own below `root`, which is made for the agent alone.
    pub(super) fn begin(root: &Path, limit: u64, left: &Gauge) -> io::Result<Self> {
        make(root, true)?;
        let mut number = siblings(root)?.last().map_or(1, |(last, _)| last + 1);
        loop {
            let directory = root.join(number.to_string());
            match make(&directory, false) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            match Self::open(&directory, limit, left.clone()) {
                Ok(Some(spool)) => return Ok(spool),
                // Somebody took it for one that was left behind.
                Ok(None) => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// What other agents left behind beside this queue, oldest first, and nobody has taken up yet.
    pub(super) fn left_behind(&self) -> io::Result<Vec<Self>> {
        let Some(root) = self.0.directory.parent() else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (_, directory) in siblings(root)? {
            if directory == self.0.directory {
                continue;
            }
            if let Some(spool) = Self::open(&directory, self.0.limit, self.0.left.clone())? {
                found.push(spool);
            }
        }
        Ok(found)
    }

    /// Removes a queue in which nothing is left.
    pub(super) fn remove(self) -> io::Result<()> {
        self.0.left.dec_by(self.0.shown.swap(0, Ordering::SeqCst));
        fs::remove_dir_all(&self.0.directory)
    }

    /// Opens the queue in a directory, and finds what is left in it. `None`: it is somebody else's.
    fn open(directory: &Path, limit: u64, left: Gauge) -> io::Result<Option<Self>> {
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join(LOCK));
        let lock = match lock {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had it may have removed all of it before this came to lock it.
        let named = fs::metadata(directory.join(LOCK)).map(|metadata| metadata.ino()).ok();
        if named != Some(lock.metadata()?.ino()) {
            return Ok(None);
        }
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
            left,
            shown: AtomicI64::new(0),
            _lock: lock,
        }));
        spool.0.shows(&spool.0.state());
        Ok(Some(spool))
    }

    /// The writing side.
    pub(super) fn appender(&self) -> Appender {
        Appender::new(self.clone())
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
        if let Err(error) = self.write_position(batch) {
            // What can't be noted on a full disk is sent again after a restart. Reading goes on: it is what makes room.
            if !is_full(&error) {
                return Err(error);
            }
            tracing::debug!(%error, "how far the webhook's queue was read isn't noted");
        }
        let mut state = self.0.state();
        if state
            .segments
            .front()
            .is_some_and(|first| first.number == batch.segment)
        {
            state.offset = batch.end;
        }
        self.0.shows(&state);
        let done = state
            .first()
            .filter(|(segment, offset, is_last)| !is_last && *offset >= segment.size);
        drop(state);
        if let Some((segment, ..)) = done {
            self.pass(segment.number)?;
        }
        Ok(())
    }

    fn write_position(&self, batch: &Batch) -> io::Result<()> {
        let position = self.0.directory.join(POSITION);
        let next = position.with_extension("next");
        fs::write(&next, format!("{} {}\n", batch.segment, batch.end))?;
        fs::rename(&next, &position)
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
        self.0.shows(&state);
        Ok(())
    }
}

impl Inner {
    /// A poisoned lock is taken over: what it guards is whole after each change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock of the state: whoever shows later shows what is later.
    fn shows(&self, state: &State) {
        let left = i64::try_from(state.left()).unwrap_or(i64::MAX);
        let before = self.shown.swap(left, Ordering::SeqCst);
        self.left.inc_by(left - before);
    }
}

impl Inner {
    /// What is left in the other queues that this agent reads, in bytes.
    fn left_in_others(&self) -> u64 {
        let others = self.left.get() - self.shown.load(Ordering::SeqCst);
        u64::try_from(others).unwrap_or(0)
    }
}

impl Drop for Inner {
    /// What is left is whosever takes it up.
    fn drop(&mut self) {
        self.left.dec_by(self.shown.load(Ordering::SeqCst));
    }
}

impl State {
    /// On disk.
    fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Of it, what isn't taken.
    fn left(&self) -> u64 {
        self.size().saturating_sub(self.offset)
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

impl Inner {
    /// A number that no segment had which was read, so that the position can't be taken for one in this.
    fn after_position(&self) -> u64 {
        let position = fs::read_to_string(self.directory.join(POSITION)).unwrap_or_default();
        parse_position(&position).map_or(1, |(number, _)| number + 1)
    }
}

/// Whether there is no room on the disk, or none for this user.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// For the agent alone.
fn make(directory: &Path, recursive: bool) -> io::Result<()> {
    fs::DirBuilder::new().recursive(recursive).mode(0o700).create(directory)
}

/// The queues below a directory, oldest first.
fn siblings(root: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut queues = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.is_dir()) {
            queues.push((number, path));
        }
    }
    queues.sort();
    Ok(queues)
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
