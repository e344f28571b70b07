//! Files that change under a running agent: noticing it, and reading them, both off the async threads. What the
//! files mean is their owners' affair.
//!
//! A watch is kept on directories, not on files, because nothing that matters is written in place: the kubelet swaps
//! the `..data` symlink, cert-manager and editors rename. inotify says when to look; a comparison of the contents
//! says whether anything changed. A slow poll stands behind inotify, whose watches can run out or get lost.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    fs,
    hash::{BuildHasher, Hasher},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use secrecy::zeroize::Zeroizing;
use tokio::{sync::Notify, task, time};

use crate::clock;

/// Quiet time that ends a burst of events.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A burst is looked at after this long even if it doesn't end.
const DEBOUNCE_AT_MOST: Duration = Duration::from_millis(300);
/// How often the files are compared where inotify can't tell of all of them.
const POLL: Duration = Duration::from_secs(10);
/// How often where it can, and no event came: what remote file systems and mounts change it doesn't see.
const SLOW_POLL: Duration = Duration::from_mins(1);
/// No file that the agent reads is near this size; one that is was not meant for it.
const SIZE_LIMIT: u64 = 8 << 20;

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such file.
    #[error("{0} does not exist: create it, or correct the path")]
    Missing(PathBuf),
    /// The operating system refuses.
    #[error("{path} cannot be read ({source}): check the permissions of the file and of its directories")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe.
    #[error("{0} is not a regular file: correct the path")]
    NotAFile(PathBuf),
    /// It is larger than any file meant for the agent.
    #[error("{0} is larger than 8 MiB: correct the path")]
    TooLarge(PathBuf),
}

/// Reads a whole file off the async threads. The bytes are wiped from memory when dropped, since they may be secret.
///
/// # Errors
/// Names the file and what is wrong with it.
pub async fn read(path: impl Into<PathBuf>) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let path = path.into();
    let name = path.clone();
    match task::spawn_blocking(move || read_blocking(&path)).await {
        Ok(read) => read,
        Err(stopped) => Err(ReadError::Unreadable {
            path: name,
            source: io::Error::other(stopped),
        }),
    }
}

/// [`read`] for a thread that may block.
///
/// # Errors
/// As [`read`].
pub fn read_blocking(path: &Path) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReadError::Missing(path.to_owned()),
        _ => ReadError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    // Looked at before it is opened: the opening of a pipe would wait for a writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    let file = fs::File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size > SIZE_LIMIT {
        return Err(ReadError::TooLarge(path.to_owned()));
    }
    // Room for all of it from the start: a vector that grows leaves copies behind.
    let mut contents = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    file.take(SIZE_LIMIT + 1)
        .read_to_end(&mut contents)
        .map_err(unreadable)?;
    if contents.len() as u64 > SIZE_LIMIT {
        return Err(ReadError::TooLarge(path.to_owned()));
    }
    Ok(contents)
}

/// Wakes its owner when the contents of some files, or of the files in some directories, have changed.
///
/// Start the watch first and read afterwards: then no change falls between the two.
#[derive(Debug)]
pub struct FileWatch {
    shared: Arc<Shared>,
    seen: Fingerprint,
    poll: Duration,
    // Survives a `changed()` that was cancelled between hearing of an event and acting on it.
    heard: bool,
}

#[derive(Debug)]
struct Shared {
    paths: Vec<PathBuf>,
    hashing: RandomState,
    event: Arc<Notify>,
    watcher: Mutex<Option<RecommendedWatcher>>,
}

type Fingerprint = u64;

/// What a look showed.
#[derive(Debug, Clone, Copy)]
struct Look {
    fingerprint: Fingerprint,
    /// When to look again where no event comes.
    poll: Duration,
}

impl FileWatch {
    /// Watches `paths`: files (which need not exist yet), or directories, whose files are compared one level deep.
    ///
    /// Where inotify isn't to be had, a line in the log says so and the poll does the work alone.
    pub async fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().map(Into::into).collect();
        let event = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            watcher: Mutex::new(start_watcher(&event)),
            paths,
            hashing: RandomState::new(),
            event,
        });
        let look = Shared::look(&shared).await;
        Self {
            shared,
            seen: look.map(|look| look.fingerprint).unwrap_or_default(),
            poll: look.map_or(POLL, |look| look.poll),
            heard: look.is_none(),
        }
    }

    /// Waits until the contents differ from those at the last return, or at the start. May be cancelled.
    pub async fn changed(&mut self) {
        loop {
            if !self.heard {
                // Either way it's time to look.
                self.heard = time::timeout_at(clock::moment_in(self.poll), self.shared.event.notified())
                    .await
                    .is_ok();
            }
            if self.heard {
                let burst = async { while time::timeout(DEBOUNCE, self.shared.event.notified()).await.is_ok() {} };
                let _ = time::timeout(DEBOUNCE_AT_MOST, burst).await;
            }
            let Some(now) = Shared::look(&self.shared).await else {
                self.heard = true;
                continue;
            };
            self.heard = false;
            self.poll = now.poll;
            if now.fingerprint != self.seen {
                self.seen = now.fingerprint;
                return;
            }
        }
    }
}

impl Shared {
    /// `None`: the runtime is going down.
    async fn look(shared: &Arc<Self>) -> Option<Look> {
        let shared = Arc::clone(shared);
        task::spawn_blocking(move || Look {
            poll: if shared.watch_directories() { SLOW_POLL } else { POLL },
            fingerprint: shared.fingerprint(),
        })
        .await
        .ok()
    }

    /// Done again at every look: directories get replaced, and symlinks come to point elsewhere. False where one isn't
    /// watched.
    fn watch_directories(&self) -> bool {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watcher) = watcher.as_mut() else {
            return false;
        };
        let mut all = true;
        for directory in self.directories() {
            if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::debug!(directory = %directory.display(), %error, "no inotify watch; the poll stands in");
                all = false;
            }
        }
        all
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        let mut directories = BTreeSet::new();
        for path in &self.paths {
            let real = fs::canonicalize(path);
            for path in std::iter::once(path).chain(&real) {
                if path.is_dir() {
                    directories.insert(path.clone());
                }
                match path.parent() {
                    Some(parent) if parent.as_os_str().is_empty() => directories.insert(PathBuf::from(".")),
                    Some(parent) => directories.insert(parent.to_owned()),
                    None => false,
                };
            }
        }
        directories
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut hasher = self.hashing.build_hasher();
        for path in &self.paths {
            if path.is_dir() {
                for file in files_in(path) {
                    hasher.write(file.as_os_str().as_encoded_bytes());
                    hash_file(&file, &mut hasher);
                }
            } else {
                hash_file(path, &mut hasher);
            }
        }
        hasher.finish()
    }
}

/// The entries of a directory in order, without those whose names begin with a dot (the kubelet's machinery, and what
/// editors leave about).
///
/// A directory that can't be read has none: its owner finds the error when it reads.
fn files_in(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect()
}

fn hash_file(path: &Path, hasher: &mut impl Hasher) {
    match read_blocking(path) {
        Ok(contents) => {
            hasher.write_u8(0);
            hasher.write_usize(contents.len());
            hasher.write(&contents);
        }
        Err(ReadError::Missing(_)) => hasher.write_u8(1),
        Err(ReadError::Unreadable { source, .. }) => {
            hasher.write_u8(2);
            hasher.write_i32(source.raw_os_error().unwrap_or(0));
        }
        Err(ReadError::NotAFile(_)) => hasher.write_u8(3),
        Err(ReadError::TooLarge(_)) => hasher.write_u8(4),
    }
}

fn start_watcher(event: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let event = Arc::clone(event);
    let heard = move |outcome: notify::Result<Event>| {
        // Our own reading opens files; hearing of that would make us read for ever.
        let ours = |kind: EventKind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
        if !outcome.is_ok_and(|event| ours(event.kind)) {
            event.notify_one();
        }
    };
    notify::recommended_watcher(heard)
        .inspect_err(|error| {
            tracing::warn!(%error, "inotify is not available: files are compared every 10 seconds instead; raise fs.inotify.max_user_instances");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    async fn unchanged(watch: &mut FileWatch) -> bool {
        timeout(Duration::from_millis(400), watch.changed()).await.is_err()
    }

    #[tokio::test]
    async fn a_rewritten_file_wakes_and_an_untouched_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "one").unwrap();
        let mut watch = FileWatch::new([&file]).await;

        assert!(unchanged(&mut watch).await, "nothing was written");
        fs::write(&file, "one").unwrap();
        assert!(unchanged(&mut watch).await, "the same was written");
        fs::write(directory.path().join("other"), "x").unwrap();
        assert!(unchanged(&mut watch).await, "another file was written");
        fs::write(&file, "two").unwrap();
        timeout(SOON, watch.changed()).await.expect("a new content wakes");
        fs::remove_file(&file).unwrap();
        timeout(SOON, watch.changed()).await.expect("a removal wakes");
    }

    #[tokio::test]
    async fn the_kubelets_swap_of_a_symlink_wakes() {
        let volume = tempfile::tempdir().unwrap();
        let at = |path: &str| volume.path().join(path);
        for (version, token) in [("..v1", "one"), ("..v2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("token"), token).unwrap();
        }
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/token", at("token")).unwrap();
        let mut watch = FileWatch::new([at("token")]).await;

        symlink("..v2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        fs::remove_dir_all(at("..v1")).unwrap();
        timeout(SOON, watch.changed()).await.expect("the swap wakes");
        assert_eq!(read(at("token")).await.unwrap().as_slice(), b"two");
    }

    #[tokio::test]
    async fn a_directory_wakes_for_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new([directory.path()]).await;
        fs::write(directory.path().join(".swp"), "x").unwrap();
        assert!(unchanged(&mut watch).await, "a hidden file is none of ours");
        fs::write(directory.path().join("a.yaml"), "x").unwrap();
        timeout(SOON, watch.changed()).await.expect("a new file wakes");
        fs::rename(directory.path().join("a.yaml"), directory.path().join("b.yaml")).unwrap();
        timeout(SOON, watch.changed()).await.expect("a new name wakes");
    }

    #[tokio::test]
    async fn a_change_during_a_cancelled_wait_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let mut watch = FileWatch::new([&file]).await;
        fs::write(&file, "one").unwrap();
        for _ in 0..3 {
            let _ = timeout(Duration::from_millis(20), watch.changed()).await;
        }
        timeout(SOON, watch.changed()).await.expect("it wakes at last");
    }

    #[tokio::test(start_paused = true)]
    async fn without_inotify_the_poll_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("not-yet/token");
        let mut watch = FileWatch::new([&file]).await;
        *watch.shared.watcher.lock().unwrap() = None;
        fs::create_dir(directory.path().join("not-yet")).unwrap();
        fs::write(&file, "one").unwrap();
        timeout(POLL * 2, watch.changed()).await.expect("the poll wakes");
    }

    #[tokio::test(start_paused = true)]
    async fn what_inotify_misses_the_slow_poll_finds() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let mut watch = FileWatch::new([&file]).await;
        assert_eq!(watch.poll, SLOW_POLL);
        let deaf = watch.shared.watcher.lock().unwrap().take();
        fs::write(&file, "one").unwrap();
        timeout(SLOW_POLL * 2, watch.changed()).await.expect("the poll wakes");
        assert_eq!(watch.poll, POLL, "nothing tells of events any more");
        drop(deaf);
    }

    #[rstest]
    #[case("nothing", "does not exist")]
    #[case("directory", "not a regular file")]
    #[case("pipe", "not a regular file")]
    #[case("large", "larger than 8 MiB")]
    #[tokio::test]
    async fn says_what_is_wrong_with_a_file(#[case] name: &str, #[case] says: &str) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("directory")).unwrap();
        nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::File::create(directory.path().join("large"))
            .unwrap()
            .set_len(SIZE_LIMIT + 1)
            .unwrap();
        let path = directory.path().join(name);
        let error = read(&path).await.unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}
