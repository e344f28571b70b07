//! cgroup v2 directories held by a guard: what runs in one is killed, and it is removed.

use std::{
    fs::{self, File},
    io::Read as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// How long the kernel may take to reap what `cgroup.kill` killed.
const REAP: Duration = Duration::from_secs(5);

/// A cgroup and all below it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        Self::make(&path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a cgroup that lies in another's care.
    pub(crate) fn make(path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the cgroup {}", path.display()))
    }

    /// A cgroup below this one, which goes when this one does.
    pub(crate) fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        Self::make(&path)?;
        Ok(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What cannot be removed now is swept by a later run.
        drop(destroy(&self.path));
    }
}

/// Kills what runs in the cgroup `path` or below, waits until it is gone, and removes them all.
pub(crate) fn destroy(path: &Path) -> Result<()> {
    let deadline = Instant::now() + REAP;
    loop {
        fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("killing what runs in {}", path.display()))?;
        wait_until_empty(path, deadline)?;
        match remove_tree(path) {
            // A launcher that was on its way in when the others were killed; it goes with the next round.
            Err(_) if Instant::now() < deadline => wait(&mut [], Duration::from_millis(20))?,
            removed => return removed,
        }
    }
}

fn wait_until_empty(path: &Path, deadline: Instant) -> Result<()> {
    loop {
        let mut events = File::open(path.join("cgroup.events"))?;
        let mut text = String::new();
        events.read_to_string(&mut text)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if text.contains("populated 0") || left.is_zero() {
            return Ok(());
        }
        // The kernel raises POLLPRI when the file changes.
        let mut watched = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        wait(&mut watched, left)?;
    }
}

/// Waits for one of them, or for that long. A signal ends it early, which is as good as an event: what was killed here
/// may well be a child of this process, whose SIGCHLD comes just now.
fn wait(watched: &mut [PollFd<'_>], limit: Duration) -> Result<()> {
    match poll(watched, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("removing the cgroup {}", path.display()))
}
