//! A file that is appended to, or standard output.

use std::{
    fs,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{Destination, Rotation, Sink};
use crate::clock::Clock;

const MIB: u64 = 1024 * 1024;
/// How a renamed file says when it was (`natefinch/lumberjack`, by which kube-apiserver rotates its log).
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%3f";
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// A file that is appended to, or standard output.
#[derive(Debug)]
pub(in crate::audit) struct File {
    // None: standard output, which has no name to open it by again.
    path: Option<PathBuf>,
    rotation: Rotation,
    open: Option<fs::File>,
    clock: Clock,
    complained: Option<Instant>,
}

impl File {
    pub(in crate::audit) fn open(destination: Destination, clock: Clock) -> io::Result<Self> {
        let (path, rotation, file) = match destination {
            // Not through `io::stdout`, whose buffer would hide how much was written when a write fails.
            Destination::Stdout => (
                None,
                Rotation::default(),
                io::stdout().as_fd().try_clone_to_owned()?.into(),
            ),
            Destination::File(path, rotation) => {
                let file = open(&path)?;
                (Some(path), rotation, file)
            }
        };
        Ok(Self {
            path,
            rotation,
            open: Some(file),
            clock,
            complained: None,
        })
    }

    /// True: another file is written from now on. What can't be renamed goes on, and is told of: events matter more than
    /// the size of their file.
    fn rotate(&mut self, path: &Path) -> bool {
        let now = self.clock.now();
        let renamed = rename(path, now)
            .and_then(|()| open(path))
            .map(|file| self.open = Some(file));
        let is_another = renamed.is_ok();
        if let Err(error) = renamed.and_then(|()| remove_old(path, self.rotation, now))
            && self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::warn!(path = %path.display(), %error, "the audit log isn't rotated as it should be: look at the permissions of its directory");
        }
        is_another
    }
}

impl Sink for File {
    fn prepare(&mut self) -> io::Result<bool> {
        let Some(path) = self.path.clone() else {
            return Ok(false);
        };
        let named = fs::metadata(&path)
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .ok();
        let held = match &self.open {
            Some(file) => file.metadata().ok(),
            None => None,
        };
        let size = held.as_ref().map_or(0, fs::Metadata::len);
        let held = held.map(|metadata| (metadata.dev(), metadata.ino()));
        if held.is_some() && held == named {
            if self.rotation.max_size > 0 && size >= self.rotation.max_size.saturating_mul(MIB) {
                return Ok(self.rotate(&path));
            }
            return Ok(false);
        }
        let file = open(&path)?;
        let same = held.is_some() && held == file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
        self.open = Some(file);
        Ok(!same)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.as_mut().ok_or(io::ErrorKind::NotConnected)?.write(bytes)
    }

    fn close(&mut self) {
        if self.path.is_some() {
            self.open = None;
        }
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `audit.log` becomes `audit-2026-06-01T12-00-00.000.log`, or the next millisecond that no file has.
fn rename(path: &Path, now: Timestamp) -> io::Result<()> {
    let mut at = now;
    loop {
        let name = backup(path, &at.strftime(STAMP).to_string());
        if !name.try_exists()? {
            return fs::rename(path, name);
        }
        at = at
            .checked_add(SignedDuration::from_millis(1))
            .map_err(io::Error::other)?;
    }
}

fn backup(path: &Path, stamp: &str) -> PathBuf {
    let (stem, suffix) = parts(path);
    path.with_file_name(format!("{stem}-{stamp}{suffix}"))
}

/// The name before its last point, and the rest with it.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let suffix = path
        .extension()
        .map_or(String::new(), |suffix| format!(".{}", suffix.to_string_lossy()));
    (text(path.file_stem()), suffix)
}

/// Renamed files that are too many, or too old by what their names say. Files of other names are left alone.
fn remove_old(path: &Path, rotation: Rotation, now: Timestamp) -> io::Result<()> {
    let (stem, suffix) = parts(path);
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut backups: Vec<(Timestamp, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let stamp = name.to_str().and_then(|name| {
            let stamp = name.strip_prefix(&stem)?.strip_prefix('-')?.strip_suffix(&suffix)?;
            let time = jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S.%f", stamp).ok()?;
            Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
        });
        if let Some(stamp) = stamp {
            backups.push((stamp, directory.join(name)));
        }
    }
    backups.sort();
    let too_many = match rotation.max_backups {
        0 => 0,
        kept => backups.len().saturating_sub(kept),
    };
    let oldest = SignedDuration::from_hours(24 * i64::from(rotation.max_age));
    for (index, (stamp, path)) in backups.iter().enumerate() {
        let is_old = rotation.max_age > 0 && now.duration_since(*stamp) > oldest;
        if index < too_many || is_old {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::audit::sink::Pending;

    fn put(file: &mut File, text: &str) {
        Pending::of(text.as_bytes()).write_to(file).unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn clock(hours: &std::sync::Arc<std::sync::atomic::AtomicI64>) -> Clock {
        let hours = std::sync::Arc::clone(hours);
        Clock::of(move || {
            let hours = hours.load(std::sync::atomic::Ordering::SeqCst);
            "2026-06-01T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
        })
    }

    #[test]
    fn a_file_that_is_large_enough_is_renamed_and_old_ones_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        for other in [
            "audit-x.log",
            "audit-2020-01-01T00-00-00.000.txt",
            "other-2020-01-01T00-00-00.000.log",
        ] {
            fs::write(directory.path().join(other), "").unwrap();
        }
        let rotation = Rotation {
            max_size: 1,
            max_age: 3,
            max_backups: 2,
        };
        let hours = std::sync::Arc::default();
        let mut file = File::open(Destination::File(path.clone(), rotation), clock(&hours)).unwrap();
        let line = format!("{}\n", "x".repeat(999_999));
        let backups = |directory: &Path| {
            let names = names(directory).into_iter();
            names.filter(|name| name.starts_with("audit-2026")).collect::<Vec<_>>()
        };
        put(&mut file, &line);
        put(&mut file, &line);
        assert_eq!(
            backups(directory.path()),
            Vec::<String>::new(),
            "it wasn't full when it was begun"
        );
        put(&mut file, "a\n");
        assert_eq!(backups(directory.path()), ["audit-2026-06-01T12-00-00.000.log"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // Twice within a millisecond, beyond the count.
        for _ in 0..2 {
            put(&mut file, &line);
            put(&mut file, &line);
        }
        put(&mut file, "b\n");
        assert_eq!(
            backups(directory.path()),
            ["audit-2026-06-01T12-00-00.001.log", "audit-2026-06-01T12-00-00.002.log"]
        );
        hours.store(73, std::sync::atomic::Ordering::SeqCst);
        put(&mut file, &line);
        put(&mut file, &line);
        put(&mut file, "c\n");
        assert_eq!(
            backups(directory.path()),
            ["audit-2026-06-04T13-00-00.000.log"],
            "too old"
        );
        assert_eq!(
            names(directory.path()).len(),
            5,
            "others stay: {:?}",
            names(directory.path())
        );
    }

    #[test]
    fn what_cannot_be_renamed_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let rotation = Rotation {
            max_size: 1,
            ..Rotation::default()
        };
        // A time that no file name can be made of.
        let clock = Clock::of(|| Timestamp::MAX);
        let mut file = File::open(Destination::File(path.clone(), rotation), clock).unwrap();
        fs::write(backup(&path, &Timestamp::MAX.strftime(STAMP).to_string()), "taken").unwrap();
        let line = format!("{}\n", "x".repeat(1_100_000));
        for _ in 0..3 {
            put(&mut file, &line);
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 3_300_003);
    }

    #[test]
    fn without_rotation_a_file_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let destination = Destination::File(path.clone(), Rotation::default());
        let mut file = File::open(destination, Clock::system()).unwrap();
        let line = format!("{}\n", "x".repeat(1_100_000));
        put(&mut file, &line);
        put(&mut file, &line);
        assert_eq!(
            (names(directory.path()).len(), fs::metadata(&path).unwrap().len()),
            (1, 2_200_002)
        );
    }
}
