//! Being told when a cgroup appears, vanishes, fills or empties: inotify on what exists. The rescan that goes by
//! the clock catches what this might miss.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use tracing::debug;

use super::notifier::Notifier;

/// The file of a cgroup that the kernel reports changes of.
const EVENTS: &str = "cgroup.events";

/// How often a cgroup is looked at again because, while it was put under watch, more of its path came to be. Every
/// time a level deeper; the rescan looks after what is made faster than that.
const ROUNDS: usize = 40;
/// How often putting it under watch may fail, since what existed is gone, or since the system grants no more watches.
const FAILURES: u32 = 3;

/// What may have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The cgroups at these paths, and those below.
    At(BTreeSet<PathBuf>),
    /// Anything.
    Everything,
}

/// The watches on a set of cgroups. What a change costs grows with what changed, not with how much is watched.
#[derive(Debug)]
pub(super) struct Watches {
    notifier: Notifier,
    root: PathBuf,
    /// For each cgroup that is followed, what is watched for it.
    followed: HashMap<PathBuf, Vec<PathBuf>>,
    paths: HashMap<PathBuf, Watch>,
    descriptors: HashMap<WatchDescriptor, PathBuf>,
}

/// A path under watch.
#[derive(Debug)]
struct Watch {
    /// For how many cgroups.
    users: usize,
    /// None where it couldn't be watched, or has vanished.
    descriptor: Option<WatchDescriptor>,
}

impl Watches {
    /// For cgroups below `root`.
    pub(super) fn new(root: PathBuf) -> io::Result<Self> {
        Ok(Self {
            notifier: Notifier::new()?,
            root,
            followed: HashMap::new(),
            paths: HashMap::new(),
            descriptors: HashMap::new(),
        })
    }

    /// Watches a cgroup, whether it exists or not: to be done before each look at it, and again after a change of
    /// it, for what there is to watch changes with it.
    pub(super) fn follow(&mut self, cgroup: &Path) {
        let mut failures = 0;
        // What was made between finding out what exists and watching it was made unseen.
        for _ in 0..ROUNDS {
            let wanted = watched_for(&self.root, cgroup);
            let watching = |path: &PathBuf| self.paths.get(path).is_some_and(|watch| watch.descriptor.is_some());
            if self.followed.get(cgroup) == Some(&wanted) && wanted.iter().all(watching) {
                return;
            }
            let mut failed = false;
            for path in &wanted {
                failed |= !self.watch(path);
            }
            let before = self.followed.insert(cgroup.to_owned(), wanted);
            before.into_iter().flatten().for_each(|path| self.release(&path));
            failures += u32::from(failed);
            if failures == FAILURES {
                return;
            }
        }
    }

    /// Watches a cgroup no longer.
    pub(super) fn forget(&mut self, cgroup: &Path) {
        let watched = self.followed.remove(cgroup);
        watched.into_iter().flatten().for_each(|path| self.release(&path));
    }

    /// Waits for the next changes.
    pub(super) async fn changed(&mut self) -> io::Result<Change> {
        let events = self.notifier.events().await?;
        Ok(self.digest(&events))
    }

    /// False where the path can't be watched.
    fn watch(&mut self, path: &Path) -> bool {
        let watch = self.paths.entry(path.to_owned()).or_insert(Watch {
            users: 0,
            descriptor: None,
        });
        watch.users += 1;
        if watch.descriptor.is_some() {
            return true;
        }
        let flags = if path.ends_with(EVENTS) {
            AddWatchFlags::IN_MODIFY
        } else {
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR
        };
        match self.notifier.inotify().add_watch(path, flags) {
            Ok(descriptor) => {
                watch.descriptor = Some(descriptor);
                self.descriptors.insert(descriptor, path.to_owned());
                true
            }
            Err(errno) => {
                debug!(path = %path.display(), %errno, "not watched");
                false
            }
        }
    }

    fn release(&mut self, path: &Path) {
        let Some(watch) = self.paths.get_mut(path) else { return };
        watch.users -= 1;
        if watch.users > 0 {
            return;
        }
        let descriptor = watch.descriptor;
        self.paths.remove(path);
        if let Some(descriptor) = descriptor {
            self.descriptors.remove(&descriptor);
            // It may be gone by itself, with what it watched.
            let _gone = self.notifier.inotify().rm_watch(descriptor);
        }
    }

    fn digest(&mut self, events: &[InotifyEvent]) -> Change {
        let mut paths = BTreeSet::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Change::Everything;
            }
            let Some(path) = self.descriptors.get(&event.wd).cloned() else {
                continue;
            };
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.descriptors.remove(&event.wd);
                if let Some(watch) = self.paths.get_mut(&path) {
                    watch.descriptor = None;
                }
            }
            let below = path.strip_prefix(&self.root).unwrap_or(&path);
            match &event.name {
                // A container of the pod's: `cgroup.events` says nothing of it where the pod had a process already.
                Some(_) if self.followed.contains_key(below) => paths.insert(path),
                Some(name) => paths.insert(path.join(name)),
                None if path.ends_with(EVENTS) => paths.insert(path.parent().unwrap_or(&path).to_owned()),
                None => paths.insert(path),
            };
        }
        Change::At(paths)
    }
}

/// What to watch for a cgroup: itself, its events and its parent where it exists, else the nearest ancestor that does.
fn watched_for(root: &Path, cgroup: &Path) -> Vec<PathBuf> {
    let path = root.join(cgroup);
    let nearest = path
        .ancestors()
        .skip(1)
        .find(|ancestor| *ancestor == root || ancestor.is_dir());
    let mut watched: Vec<PathBuf> = nearest.map(Path::to_owned).into_iter().collect();
    if path.is_dir() {
        watched.push(path.join(EVENTS));
        watched.push(path);
    }
    watched
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file system of a test stands in for the cgroups'.
    struct Tree {
        directory: tempfile::TempDir,
        watches: Watches,
    }

    impl Tree {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let watches = Watches::new(directory.path().to_owned()).unwrap();
            Self { directory, watches }
        }

        fn make(&self, cgroup: &str) {
            let path = self.directory.path().join(cgroup);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(EVENTS), "populated 0\n").unwrap();
        }

        async fn hears(&mut self, path: &str) {
            let expected = self.directory.path().join(path);
            loop {
                match self.watches.changed().await.unwrap() {
                    Change::At(paths) if paths.contains(&expected) => return,
                    Change::At(_) => {}
                    Change::Everything => panic!("an overflow"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_cgroup_is_followed_from_before_it_exists_to_its_second_life() {
        let mut tree = Tree::new();
        let cgroup = Path::new("a/b/pod");
        tree.watches.follow(cgroup);
        for _life in 0..2 {
            tree.make("a/b/pod");
            tree.hears("a").await;
            tree.watches.follow(cgroup);
            std::fs::write(tree.directory.path().join("a/b/pod").join(EVENTS), "populated 1\n").unwrap();
            tree.hears("a/b/pod").await;
            std::fs::remove_dir_all(tree.directory.path().join("a")).unwrap();
            tree.hears("a/b/pod").await;
            tree.watches.follow(cgroup);
        }
    }

    #[tokio::test]
    async fn a_container_that_comes_is_a_change_of_its_pod() {
        let mut tree = Tree::new();
        tree.make("pod");
        tree.watches.follow(Path::new("pod"));
        tree.make("pod/container");
        tree.hears("pod").await;
    }

    #[tokio::test]
    async fn what_is_followed_no_longer_is_watched_no_longer() {
        let mut tree = Tree::new();
        tree.make("slice/one");
        tree.make("slice/two");
        tree.watches.follow(Path::new("slice/one"));
        tree.watches.follow(Path::new("slice/two"));
        tree.watches.follow(Path::new("slice/two"));
        assert_eq!(
            tree.watches.paths.len(),
            5,
            "their parent, each one, and each one's events"
        );
        tree.watches.forget(Path::new("slice/one"));
        assert_eq!(tree.watches.paths.len(), 3);
        tree.make("slice/three");
        tree.hears("slice/three").await;
        tree.watches.forget(Path::new("slice/two"));
        tree.watches.forget(Path::new("slice/never"));
        assert!(tree.watches.paths.is_empty() && tree.watches.descriptors.is_empty());
    }
}
