//! Being told when a cgroup appears, vanishes, fills or empties: inotify on what exists. The rescan that goes by
//! the clock catches what this might miss.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use tracing::debug;

use super::notifier::Notifier;

/// The file of a cgroup that the kernel reports changes of.
const EVENTS: &str = "cgroup.events";

/// What may have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The cgroups at these paths, and those below.
    At(HashSet<PathBuf>),
    /// Anything.
    Everything,
}

/// The watches on a set of cgroups.
#[derive(Debug)]
pub(super) struct Watches {
    notifier: Notifier,
    paths: HashMap<PathBuf, WatchDescriptor>,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            notifier: Notifier::new()?,
            paths: HashMap::new(),
        })
    }

    /// Watches these cgroups, whether they exist or not, and no others. True where something came under watch
    /// that wasn't: it may have changed before, and wants another look.
    pub(super) fn follow<'a>(&mut self, root: &Path, cgroups: impl Iterator<Item = &'a Path>) -> bool {
        let wanted: HashSet<PathBuf> = cgroups.flat_map(|cgroup| watched_for(root, cgroup)).collect();
        let unwanted: Vec<PathBuf> = self
            .paths
            .keys()
            .filter(|path| !wanted.contains(*path))
            .cloned()
            .collect();
        for path in unwanted {
            if let Some(descriptor) = self.paths.remove(&path) {
                // It may be gone by itself, with what it watched.
                let _gone = self.notifier.inotify().rm_watch(descriptor);
            }
        }
        let mut new = false;
        for path in wanted {
            if self.paths.contains_key(&path) {
                continue;
            }
            let flags = if path.ends_with(EVENTS) {
                AddWatchFlags::IN_MODIFY
            } else {
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR
            };
            match self.notifier.inotify().add_watch(&path, flags) {
                Ok(descriptor) => {
                    self.paths.insert(path, descriptor);
                    new = true;
                }
                Err(errno) => debug!(path = %path.display(), %errno, "not watched"),
            }
        }
        new
    }

    /// Waits for the next changes.
    pub(super) async fn changed(&mut self) -> io::Result<Change> {
        let events = self.notifier.events().await?;
        Ok(self.digest(&events))
    }

    fn digest(&mut self, events: &[InotifyEvent]) -> Change {
        let mut paths = HashSet::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Change::Everything;
            }
            let Some(path) = self
                .paths
                .iter()
                .find_map(|(path, wd)| (*wd == event.wd).then(|| path.clone()))
            else {
                continue;
            };
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.paths.remove(&path);
            }
            match &event.name {
                Some(name) => paths.insert(path.join(name)),
                None if path.ends_with(EVENTS) => paths.insert(path.parent().unwrap_or(&path).to_owned()),
                None => paths.insert(path),
            };
        }
        Change::At(paths)
    }
}

/// What to watch for a cgroup: its events and its parent where it exists, else the nearest ancestor that does.
fn watched_for(root: &Path, cgroup: &Path) -> Vec<PathBuf> {
    let path = root.join(cgroup);
    let nearest = path
        .ancestors()
        .skip(1)
        .find(|ancestor| *ancestor == root || ancestor.is_dir());
    let mut watched: Vec<PathBuf> = nearest.map(Path::to_owned).into_iter().collect();
    if path.is_dir() {
        watched.push(path.join(EVENTS));
    }
    watched
}
