//! The recordings on the node: which wait to be brought to the store, and which are there.
//!
//! One that is written is locked by its writer, and one that is brought by whoever brings it, each for as long as its file is
//! open: so two agents of a node never get in each other's way, and what a killed agent held is free at once. That a
//! recording is stored stands in a mark of its own, made once the store has said so. Where the mark is lost, or wasn't made
//! any more, the recording is brought again, to the same name.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::destination::{Destination, Key};
use crate::recording::cast::Code;

/// Where the marks are, in the directory of recordings. It is none that recordings are looked for in.
const MARKS: &str = ".stored";
/// How a mark's name ends, after the recording's,
const MARK: &str = ".json";
/// and while it is made.
const NEW_MARK: &str = ".new";
/// One without an end has to be as old: in the moment between making a file and locking it, it looks as if nobody wrote it.
const SETTLED: Duration = Duration::from_secs(5);
/// The last lines of a recording with its end are shorter together.
const TAIL: u64 = 512;

/// Where recordings are, and where they go.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    marks: PathBuf,
    destination: Destination,
    node: Arc<str>,
    /// Removed once they are stored.
    remove: bool,
    /// Those that are known to be stored.
    stored: HashSet<OsString>,
}

/// One that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) name: OsString,
    pub(super) key: Key,
    /// When it was last written to, in seconds since 1970.
    pub(super) since: i64,
}

/// One that is brought: nobody else brings it meanwhile.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
}

/// What a mark says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The destination.
    to: String,
    /// The name there.
    key: String,
    bytes: u64,
}

impl Shelf {
    pub(super) fn new(directory: &Path, destination: Destination, node: Arc<str>, remove: bool) -> io::Result<Self> {
        let marks = directory.join(MARKS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&marks)?;
        Ok(Self {
            directory: directory.to_owned(),
            marks,
            destination,
            node,
            remove,
            stored: HashSet::new(),
        })
    }

    /// What waits, the oldest first. Marks of recordings that are gone go as well.
    pub(super) fn waiting(&mut self) -> io::Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        let mut there = HashSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(key) = name
                .to_str()
                .and_then(|name| Key::new(&self.destination, name, &self.node))
            else {
                continue;
            };
            if !self.stored.contains(&name) {
                match self.look(&name, &key) {
                    Ok(Some(since)) => waiting.push(Waiting {
                        name: name.clone(),
                        key,
                        since,
                    }),
                    Ok(None) => {}
                    // Removed meanwhile, by whoever keeps the node tidy.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => tracing::error!(
                        recording = %self.directory.join(&name).display(), %error,
                        "a recording can't be looked at, and isn't brought to its store: see what it is"
                    ),
                }
            }
            there.insert(name);
        }
        self.stored.retain(|name| there.contains(name));
        self.sweep(&there)?;
        waiting.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(waiting)
    }

    /// Since when it waits, if it does.
    fn look(&mut self, name: &OsStr, key: &Key) -> io::Result<Option<i64>> {
        let Some(claim) = self.claim(name, key)? else {
            return Ok(None);
        };
        Ok(Some(claim.file.metadata()?.mtime()))
    }

    /// Has it for as long as the claim is there. `None`: somebody else has it, or it is stored already.
    pub(super) fn claim(&mut self, name: &OsStr, key: &Key) -> io::Result<Option<Claim>> {
        let path = self.directory.join(name);
        // Never another file that somebody put in its place; a pipe would have to be waited for.
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits()).open(&path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("it isn't a file"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Once more, for what happened before it was locked.
        let about = file.metadata()?;
        if about.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let bytes = about.len();
        if self.is_marked(name, key, bytes) {
            self.stored.insert(name.to_owned());
            return Ok(None);
        }
        if !has_end(&file, bytes)? && age(about.modified()?) < SETTLED {
            return Ok(None);
        }
        Ok(Some(Claim {
            file: Arc::new(file),
            bytes,
        }))
    }

    /// The store has it. It is removed, or marked.
    pub(super) fn is_stored(&mut self, name: &OsStr, key: &Key, claim: &Claim) -> io::Result<()> {
        let path = self.directory.join(name);
        if self.remove {
            let named = fs::symlink_metadata(&path)?;
            let claimed = claim.file.metadata()?;
            // Moved away, and another put there.
            if (named.dev(), named.ino()) == (claimed.dev(), claimed.ino()) {
                fs::remove_file(&path)?;
            }
            return Ok(());
        }
        let mark = self.mark(key, claim.bytes);
        let (path, new) = (self.mark_path(name, MARK), self.mark_path(name, NEW_MARK));
        fs::write(&new, serde_json::to_vec(&mark)?)?;
        fs::rename(&new, &path)?;
        self.stored.insert(name.to_owned());
        Ok(())
    }

    fn is_marked(&self, name: &OsStr, key: &Key, bytes: u64) -> bool {
        let said = fs::read(self.mark_path(name, MARK)).ok();
        // What isn't whole is of a node that went down: it is brought again.
        let said = said.and_then(|said| serde_json::from_slice::<Mark>(&said).ok());
        said == Some(self.mark(key, bytes))
    }

    fn mark(&self, key: &Key, bytes: u64) -> Mark {
        Mark {
            to: self.destination.to_string(),
            key: key.as_str().to_owned(),
            bytes,
        }
    }

    fn mark_path(&self, name: &OsStr, ending: &str) -> PathBuf {
        let mut name = name.to_owned();
        name.push(ending);
        self.marks.join(name)
    }

    fn sweep(&self, there: &HashSet<OsString>) -> io::Result<()> {
        for entry in fs::read_dir(&self.marks)? {
            let path = entry?.path();
            if path.file_stem().is_some_and(|name| !there.contains(name)) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

impl Claim {
    /// A part of it, at most as much as `most`.
    pub(super) fn read(&self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut part = vec![0; left.min(most)];
        self.file.read_exact_at(&mut part, at)?;
        Ok(part)
    }
}

fn age(then: SystemTime) -> Duration {
    // What is of a time to come is as good as old: the clock was set.
    SystemTime::now().duration_since(then).unwrap_or(SETTLED)
}

/// Whether the last line but one is that of the end.
fn has_end(file: &File, bytes: u64) -> io::Result<bool> {
    let at = bytes.saturating_sub(TAIL);
    let mut tail = vec![0; usize::try_from(bytes - at).unwrap_or_default()];
    file.read_exact_at(&mut tail, at)?;
    let Some(tail) = tail.strip_suffix(b"\n") else {
        return Ok(false);
    };
    let line = tail.rsplit(|byte| *byte == b'\n').nth(1).unwrap_or_default();
    let event = serde_json::from_slice::<(f64, char, String)>(line);
    Ok(event.is_ok_and(|(_, code, _)| code == Code::End.letter()))
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;

    use rstest::rstest;

    use super::*;
    use crate::recording::{
        about::About,
        cast::{Cast, End},
    };

    const NAME: &str = "20261122T140501Z_support_alice_6f1c7a52.cast";

    fn shelf(directory: &Path, url: &str, remove: bool) -> Shelf {
        Shelf::new(directory, url.parse().unwrap(), "node-1".into(), remove).unwrap()
    }

    fn whole() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut cast = Cast::begin(&mut bytes, &About::default(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        cast.end(Duration::ZERO, End::CutShort).unwrap();
        bytes
    }

    fn names(shelf: &mut Shelf) -> Vec<String> {
        let waiting = shelf.waiting().unwrap();
        waiting.iter().map(|one| one.name.display().to_string()).collect()
    }

    fn claimed(shelf: &mut Shelf) -> (Waiting, Option<Claim>) {
        let one = shelf.waiting().unwrap().remove(0);
        let claim = shelf.claim(&one.name, &one.key).unwrap();
        (one, claim)
    }

    #[rstest]
    #[case::whole(whole(), Duration::ZERO, true)]
    #[case::made_just_now(Vec::new(), Duration::ZERO, false)]
    #[case::begun_just_now(whole()[..100].to_vec(), Duration::ZERO, false)]
    #[case::cut_a_while_ago(whole()[..100].to_vec(), SETTLED, true)]
    #[case::cut_before_its_sum(whole()[..whole().len() - 20].to_vec(), Duration::ZERO, false)]
    #[case::of_a_time_to_come(whole(), Duration::ZERO, true)]
    fn what_is_at_its_end_waits(#[case] bytes: Vec<u8>, #[case] age: Duration, #[case] waits: bool) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(&path, bytes).unwrap();
        let then = SystemTime::now() - age;
        let times = FileTimes::new().set_modified(then);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        assert_eq!(
            !names(&mut shelf(directory.path(), "s3://audit", false)).is_empty(),
            waits
        );
    }

    #[test]
    fn what_is_written_or_brought_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(&path, whole()).unwrap();
        fs::write(directory.path().join("shell.cast"), whole()).unwrap();
        fs::create_dir(directory.path().join("20261122T140502Z_a.cast")).unwrap();
        std::os::unix::fs::symlink(&path, directory.path().join("20261122T140503Z_a.cast")).unwrap();
        nix::unistd::mkfifo(
            &directory.path().join("20261122T140504Z_a.cast"),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .unwrap();
        let [mut first, mut second] = [(); 2].map(|()| shelf(directory.path(), "s3://audit", false));
        let writer = File::options().append(true).open(&path).unwrap();
        writer.try_lock().unwrap();
        assert!(names(&mut first).is_empty());
        drop(writer);
        assert_eq!(names(&mut first), [NAME]);
        let (one, claim) = claimed(&mut first);
        assert!(names(&mut second).is_empty(), "another agent brings it");
        assert!(second.claim(&one.name, &one.key).unwrap().is_none());
        drop(claim);
        assert_eq!(names(&mut second), [NAME], "it didn't get there");
    }

    #[test]
    fn what_is_stored_waits_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(&path, whole()).unwrap();
        let mut first = shelf(directory.path(), "s3://audit", false);
        let mut second = shelf(directory.path(), "s3://audit", false);
        let (one, claim) = claimed(&mut first);
        first.is_stored(&one.name, &one.key, &claim.unwrap()).unwrap();
        assert!(path.exists());
        assert!(names(&mut first).is_empty() && names(&mut second).is_empty());
        assert!(
            second.claim(&one.name, &one.key).unwrap().is_none(),
            "it was, meanwhile"
        );
        assert_eq!(names(&mut shelf(directory.path(), "s3://other", false)), [NAME]);
        // As a node leaves it that went down.
        let mark = directory.path().join(format!(".stored/{NAME}.json"));
        let said = fs::read(&mark).unwrap();
        fs::write(&mark, &said[..said.len() / 2]).unwrap();
        assert_eq!(names(&mut shelf(directory.path(), "s3://audit", false)), [NAME]);
        fs::write(&mark, &said).unwrap();
        assert!(names(&mut shelf(directory.path(), "s3://audit", false)).is_empty());
        let mut longer = whole();
        longer.extend(whole());
        fs::write(&path, longer).unwrap();
        assert_eq!(
            names(&mut shelf(directory.path(), "s3://audit", false)),
            [NAME],
            "not all of it is there"
        );
        // Moved away, as whoever runs the node has it.
        fs::remove_file(&path).unwrap();
        assert!(names(&mut first).is_empty() && !mark.exists());
        fs::write(&path, whole()).unwrap();
        assert_eq!(names(&mut first), [NAME], "another of that name");
    }

    #[test]
    fn what_is_stored_is_removed_where_it_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(&path, whole()).unwrap();
        let mut shelf = shelf(directory.path(), "s3://audit", true);
        let (one, claim) = claimed(&mut shelf);
        let claim = claim.unwrap();
        assert!(path.exists());
        // Another was put in its place, and isn't stored.
        fs::rename(&path, directory.path().join("away")).unwrap();
        fs::write(&path, whole()).unwrap();
        shelf.is_stored(&one.name, &one.key, &claim).unwrap();
        assert!(path.exists());
        let claim = shelf.claim(&one.name, &one.key).unwrap().unwrap();
        shelf.is_stored(&one.name, &one.key, &claim).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn parts_are_as_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), whole()).unwrap();
        let (_, claim) = claimed(&mut shelf(directory.path(), "s3://audit", false));
        let claim = claim.unwrap();
        let parts: Vec<_> = (0..claim.bytes)
            .step_by(7)
            .flat_map(|at| claim.read(at, 7).unwrap())
            .collect();
        assert_eq!(parts, whole());
        File::options()
            .write(true)
            .open(directory.path().join(NAME))
            .unwrap()
            .set_len(9)
            .unwrap();
        assert!(claim.read(7, 7).is_err(), "it isn't whole any more");
    }
}
