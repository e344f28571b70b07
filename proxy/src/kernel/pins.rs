//! The directory in which programs and maps outlive the agent.
//!
//! It must be on a bpffs that is mounted on the node. One that the agent mounted itself would, inside a container,
//! die with the agent, and with it the interception: connects would go straight through. So the agent mounts none.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use aya::maps::{MapInfo, MapType};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use understudy_common::{Endpoint, FlowKey, FlowRecord, Heartbeat, Origin, PROGRAMS, PodEntry, map};

use super::sys;

/// Why the pin directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It isn't on a bpffs.
    #[error(
        "{path} is not on a BPF file system: on the node, run `mount -t bpf bpf {mount_point}`; in a container, \
         mount the node's directory (hostPath)"
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
        /// Where to mount one.
        mount_point: PathBuf,
    },
    /// The directory can't be used as such.
    #[error("the pin directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another agent runs.
    #[error("{0} is in use: another agent of this node runs, and two can't share one")]
    InUse(PathBuf),
    /// A map of an agent that lays its data out differently.
    #[error(
        "the pinned map {path} was made by another version of the agent ({found}; this one wants {wanted}): drain \
         the node, then run `understudy uninstall --pin-dir {directory}` and start again"
    )]
    OtherLayout {
        /// The map.
        path: PathBuf,
        /// The directory it lies in.
        directory: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A map that can't be examined.
    #[error("the pinned map {path}: {source}")]
    Map {
        /// The map.
        path: PathBuf,
        /// What aya says.
        source: aya::maps::MapError,
    },
}

/// What a map must be for this agent to use it.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
}

impl Shape {
    const fn of<K, V>(name: &'static str, kind: MapType) -> Self {
        Self {
            name,
            kind,
            key: size_of::<K>(),
            value: size_of::<V>(),
        }
    }
}

const SHAPES: [Shape; 9] = [
    Shape::of::<u64, PodEntry>(map::PODS, MapType::Hash),
    Shape::of::<u32, u32>(map::MARKS, MapType::Array),
    Shape::of::<Endpoint, u32>(map::API_SERVERS, MapType::Hash),
    Shape::of::<i32, Origin>(map::ORIGINS, MapType::SkStorage),
    Shape::of::<FlowKey, FlowRecord>(map::FLOWS, MapType::Hash),
    Shape::of::<u64, u64>(map::HELD, MapType::Hash),
    Shape::of::<u64, u64>(map::TAKEN, MapType::Hash),
    Shape::of::<u32, Heartbeat>(map::HEARTBEAT, MapType::Array),
    Shape::of::<u32, u64>(map::COUNTERS, MapType::PerCpuArray),
];

/// The names of all maps.
pub(super) fn maps() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The pin directory, and the claim to it.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    lock: File,
}

impl Pins {
    /// Makes the directory if need be, and claims it for as long as the lock lives.
    pub(super) fn claim(directory: &Path) -> Result<Self, PinError> {
        let failed = |source| PinError::Directory {
            path: directory.to_owned(),
            source,
        };
        check_bpffs(directory)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let pins = Self {
            directory: directory.to_owned(),
            lock: File::open(directory).map_err(failed)?,
        };
        pins.reclaim()?;
        Ok(pins)
    }

    /// Claims the directory after a [`release`](Self::release).
    pub(super) fn reclaim(&self) -> Result<(), PinError> {
        match self.lock.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(PinError::InUse(self.directory.clone())),
            Err(TryLockError::Error(source)) => Err(PinError::Directory {
                path: self.directory.clone(),
                source,
            }),
        }
    }

    /// Leaves the directory to another agent.
    pub(super) fn release(&self) {
        // Closing alone would leave the claim to a child process that is between fork and exec.
        let _released = self.lock.unlock();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Refuses maps that this agent would misread.
    pub(super) fn check_maps(&self) -> Result<(), PinError> {
        for shape in &SHAPES {
            let path = self.path(shape.name);
            if !path.try_exists().map_err(|source| PinError::Directory {
                path: path.clone(),
                source,
            })? {
                continue;
            }
            let unreadable = |source| PinError::Map {
                path: path.clone(),
                source,
            };
            let info = MapInfo::from_pin(&path).map_err(unreadable)?;
            let found = (
                info.map_type().map_err(unreadable)?,
                info.key_size() as usize,
                info.value_size() as usize,
            );
            if found != (shape.kind, shape.key, shape.value) {
                let text = |(kind, key, value): (MapType, usize, usize)| {
                    format!("{kind:?} of {key}-byte keys and {value}-byte values")
                };
                return Err(self.other_layout(shape.name, text(found), text((shape.kind, shape.key, shape.value))));
            }
        }
        Ok(())
    }

    pub(super) fn other_layout(&self, map: &str, found: String, wanted: String) -> PinError {
        PinError::OtherLayout {
            path: self.path(map),
            directory: self.directory.clone(),
            found,
            wanted,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a directory, made or to be made, is on a bpffs.
pub(super) fn check_bpffs(directory: &Path) -> Result<(), PinError> {
    let existing = directory
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or_else(|| Path::new("/"));
    let stat = statfs(existing).map_err(|source| PinError::Directory {
        path: existing.to_owned(),
        source: source.into(),
    })?;
    if stat.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let usual = Path::new("/sys/fs/bpf");
    let mount_point = if directory.starts_with(usual) { usual } else { directory };
    Err(PinError::NotBpffs {
        path: directory.to_owned(),
        mount_point: mount_point.to_owned(),
    })
}

/// Takes interception off the node: programs, maps, and the directory. What was tagged is so no longer.
///
/// # Errors
/// Where an agent still runs on the directory, or it can't be removed. A directory that isn't there is no error.
pub fn uninstall(directory: &Path) -> Result<(), PinError> {
    if !directory.try_exists().map_err(|source| PinError::Directory {
        path: directory.to_owned(),
        source,
    })? {
        return Ok(());
    }
    let pins = Pins::claim(directory)?;
    // The connect hooks go first: nothing is redirected that the others could no longer complete.
    let names = PROGRAMS
        .iter()
        .rev()
        .flat_map(|name| [(*name).to_owned(), replacement(name)]);
    for name in names.chain(maps().map(str::to_owned)) {
        let path = pins.path(&name);
        // A program whose pin is gone stays in force until the kernel gets round to freeing the link.
        if let Ok(link) = sys::object(&path) {
            let _not_a_link = sys::detach(link.as_fd());
        }
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PinError::Directory { path, source }),
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        // The mount point of a bpffs of its own: empty, and not ours to unmount.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        Err(source) => Err(PinError::Directory {
            path: directory.to_owned(),
            source,
        }),
    }
}

/// Where a link is pinned until it takes another's place. bpffs takes no dots in names.
pub(super) fn replacement(name: &str) -> String {
    format!("{name}_new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_refused_with_the_command_to_type() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("understudy");
        let message = Pins::claim(&inside).unwrap_err().to_string();
        assert!(
            message.contains(&format!("mount -t bpf bpf {}", inside.display())),
            "{message}"
        );
        assert!(!inside.exists());
    }
}
