//! Cgroup v2 directories: where the hierarchy is mounted, and how a pod's cgroup is found below the root without
//! leaving it.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        stat::{Mode, fstat},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs, statfs},
    },
};
use understudy_common::MAX_CGROUP_LEVELS;

use super::mounts::{level, mounts};
use crate::pod::CgroupId;

/// Why a cgroup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 anywhere.
    #[error("cgroup v2 is not mounted: on the node, run `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NotMounted,
    /// The root is on another file system.
    #[error("{0} is not a cgroup v2 directory: give --cgroup-root one under cgroup v2's mount")]
    NotCgroup2(PathBuf),
    /// The kubelet's cgroup isn't where it usually is.
    #[error(
        "no pods' cgroup tree (kubepods, kubepods.slice, or either below the kubelet's) in {0}: give --cgroup-root its \
         root; in a container, mount the node's /sys/fs/cgroup (hostPath)"
    )]
    NoPods(PathBuf),
    /// Which of them is the pods' can't be told.
    #[error(
        "more than one pods' cgroup tree, and not one alone has processes in it ({}): give --cgroup-root the root of the \
         kubelet's",
        list(.0)
    )]
    Ambiguous(Vec<PathBuf>),
    /// A pod's cgroup must lie under the root.
    #[error("{0:?} is not a path below the cgroup root: give it relative, without '.' and '..'")]
    Path(PathBuf),
    /// The kernel programs don't look that deep.
    #[error("{0:?} lies more than {MAX_CGROUP_LEVELS} levels deep")]
    TooDeep(PathBuf),
    /// The system's answer.
    #[error("the cgroup {path}: {source}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl CgroupError {
    /// Whether the cgroup simply isn't there, or no longer.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        // ENODEV is what the files of a removed cgroup answer that one still holds open.
        matches!(self, Self::Io { source, .. }
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(Errno::ENODEV as i32))
    }
}

/// Where the kubelet puts the pods below the root of cgroup v2: with the cgroupfs driver or the systemd driver
/// (`k8s.io/kubernetes/pkg/kubelet/cm`, `defaultNodeAllocatableCgroupName`), and below the kubelet's own cgroup where
/// it is given one (`--cgroup-root=/kubelet`), as kind's nodes are.
const PODS: [&str; 4] = [
    "kubepods",
    "kubepods.slice",
    "kubelet/kubepods",
    "kubelet.slice/kubelet-kubepods.slice",
];

/// Finds the root of the pods' cgroup tree, in whichever mount of cgroup v2 shows it: a container sees its own cgroup
/// at `/sys/fs/cgroup`, and the node's where the node's directory is mounted.
///
/// # Errors
/// Where there is none, or more than one that may be it, or no cgroup v2.
pub fn pods_root() -> Result<PathBuf, CgroupError> {
    let points = mount_points()?;
    pods_below(&points)?.ok_or_else(|| CgroupError::NoPods(points.into_iter().next().unwrap_or_default()))
}

/// A node whose kubelet has changed its cgroup driver has the tree of the old one still, empty.
fn pods_below(points: &[PathBuf]) -> Result<Option<PathBuf>, CgroupError> {
    let mut candidates: Vec<((u64, u64), PathBuf)> = Vec::new();
    for path in points.iter().flat_map(|point| PODS.map(|name| point.join(name))) {
        // One tree may be seen through several mounts.
        if let Ok(found) = std::fs::metadata(&path)
            && found.is_dir()
            && candidates.iter().all(|(id, _)| *id != (found.dev(), found.ino()))
        {
            candidates.push(((found.dev(), found.ino()), path));
        }
    }
    let mut candidates: Vec<PathBuf> = candidates.into_iter().map(|(_, path)| path).collect();
    if candidates.len() > 1 {
        let populated: Vec<PathBuf> = candidates.iter().filter(|path| is_populated(path)).cloned().collect();
        if populated.len() != 1 {
            return Err(CgroupError::Ambiguous(candidates));
        }
        candidates = populated;
    }
    Ok(candidates.into_iter().next())
}

/// Whether a process lives in the cgroup at this path or below, as far as can be read.
#[must_use]
pub fn is_populated(path: &Path) -> bool {
    std::fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| says_populated(&events))
}

fn says_populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// Finds the mount point of cgroup v2, in the unified layout (`/sys/fs/cgroup`) or the hybrid one
/// (`/sys/fs/cgroup/unified`).
///
/// # Errors
/// Where there is none, or the mounts can't be read.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    mount_points()?.into_iter().next().ok_or(CgroupError::NotMounted)
}

/// The usual place first, and what lies less deep. Never none.
fn mount_points() -> Result<Vec<PathBuf>, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(path).map_err(|source| CgroupError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut points: Vec<PathBuf> = mounts(&text).map(|mount| mount.point).collect();
    points.sort_by_key(|point| (!point.starts_with("/sys/fs/cgroup"), point.components().count()));
    if points.is_empty() {
        return Err(CgroupError::NotMounted);
    }
    Ok(points)
}

/// The root of the pods' cgroup tree.
#[derive(Debug)]
pub struct CgroupRoot {
    path: PathBuf,
    directory: File,
    id: CgroupId,
    level: usize,
}

impl CgroupRoot {
    /// Opens it.
    ///
    /// # Errors
    /// Where it isn't a directory of cgroup v2.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let failed = |source: io::Error| CgroupError::Io {
            path: path.to_owned(),
            source,
        };
        let path = path.canonicalize().map_err(failed)?;
        let directory = File::open(&path).map_err(failed)?;
        let metadata = directory.metadata().map_err(failed)?;
        let file_system = fstatfs(&directory).map_err(|errno| failed(errno.into()))?;
        if file_system.filesystem_type() != CGROUP2_SUPER_MAGIC || !metadata.is_dir() {
            return Err(CgroupError::NotCgroup2(path));
        }
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
        let level = level(&mountinfo, &path);
        Ok(Self {
            id: CgroupId(metadata.ino()),
            path,
            directory,
            level,
        })
    }

    /// The topmost cgroup that is to be seen from here: the hierarchy's root, or that of the node's cgroup namespace.
    ///
    /// # Errors
    /// Where it can't be opened.
    pub fn top(&self) -> Result<Self, CgroupError> {
        let is_cgroup2 = |path: &&Path| statfs(*path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let top = self.path.ancestors().take_while(is_cgroup2).last();
        Self::open(top.unwrap_or(&self.path))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a pod's cgroup. Neither `..` nor a symbolic link nor another mount leads out of the root.
    ///
    /// # Errors
    /// Where the path isn't one below the root, or there is no such cgroup ([`CgroupError::is_absent`]).
    pub fn descend(&self, relative: &Path) -> Result<CgroupDir, CgroupError> {
        let depth = depth_below(relative)?;
        // The root of the hierarchy is level 0, and the programs look at MAX_CGROUP_LEVELS levels.
        if self.level + depth >= MAX_CGROUP_LEVELS as usize {
            return Err(CgroupError::TooDeep(relative.to_owned()));
        }
        CgroupDir::open(&self.directory, relative, self.path.join(relative))
    }
}

impl AsFd for CgroupRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Counts the levels of a relative path that has nothing but names in it.
fn depth_below(relative: &Path) -> Result<usize, CgroupError> {
    let plain = relative
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    match relative.components().count() {
        depth if depth > 0 && plain => Ok(depth),
        _ => Err(CgroupError::Path(relative.to_owned())),
    }
}

/// A cgroup, held open: once it is removed nothing that takes its name is mistaken for it.
#[derive(Debug)]
pub struct CgroupDir {
    path: PathBuf,
    directory: OwnedFd,
    id: CgroupId,
}

impl CgroupDir {
    fn open(at: impl AsFd, relative: &Path, path: PathBuf) -> Result<Self, CgroupError> {
        let failed = |errno: Errno| CgroupError::Io {
            path: path.clone(),
            source: errno.into(),
        };
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        let directory = openat2(at, relative, how).map_err(failed)?;
        let id = CgroupId(fstat(&directory).map_err(failed)?.st_ino);
        Ok(Self { path, directory, id })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process lives in it or below.
    ///
    /// # Errors
    /// Where the cgroup is gone ([`CgroupError::is_absent`]) or can't be read.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(says_populated(&self.read("cgroup.events")?))
    }

    /// The processes in it, those below not included.
    fn own_processes(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self
            .read("cgroup.procs")?
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect())
    }

    /// The processes in it and below, but for cgroups whose name is to be left out, and what is below those. They come
    /// and go meanwhile.
    ///
    /// # Errors
    /// Where the cgroup is gone ([`CgroupError::is_absent`]) or can't be read.
    pub fn processes(&self, leave_out: fn(&str) -> bool) -> Result<Vec<i32>, CgroupError> {
        let mut processes = match self.own_processes() {
            // A threaded cgroup lists its threads only, and belongs to a domain above that lists the processes.
            Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Vec::new()
            }
            other => other?,
        };
        for child in self.children()? {
            if child.name().is_some_and(leave_out) {
                continue;
            }
            match child.processes(leave_out) {
                Ok(below) => processes.extend(below),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(processes)
    }

    fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// Its id, and those of all cgroups below.
    ///
    /// # Errors
    /// Where they can't be read. What has gone is no error.
    pub fn subtree(&self) -> Result<HashSet<CgroupId>, CgroupError> {
        let mut ids = HashSet::from([self.id]);
        let children = match self.children() {
            Err(error) if error.is_absent() => Vec::new(),
            children => children?,
        };
        for child in children {
            ids.extend(child.subtree()?);
        }
        Ok(ids)
    }

    fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let failed = |errno: Errno| CgroupError::Io {
            path: self.path.clone(),
            source: errno.into(),
        };
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut listing = Dir::openat(&self.directory, ".", flags, Mode::empty()).map_err(failed)?;
        let mut children = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." || entry.file_type() != Some(nix::dir::Type::Directory) {
                continue;
            }
            match Self::open(&self.directory, Path::new(name), self.path.join(name)) {
                Ok(child) => children.push(child),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(children)
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        let failed = |source: io::Error| CgroupError::Io {
            path: self.path.join(name),
            source,
        };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH);
        let file = openat2(&self.directory, name, how).map_err(|errno| failed(errno.into()))?;
        io::read_to_string(File::from(file)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("kubepods/pod1", Some(2))]
    #[case("pod1", Some(1))]
    #[case("pod1/", Some(1))]
    #[case("", None)]
    #[case(".", None)]
    #[case("/pod1", None)]
    #[case("../pod1", None)]
    #[case("kubepods/../../pod1", None)]
    #[case("./pod1", None)]
    fn pods_lie_below_the_root(#[case] path: &str, #[case] expected: Option<usize>) {
        assert_eq!(depth_below(Path::new(path)).ok(), expected);
    }

    #[rstest]
    #[case::cgroupfs(&["kubepods"], Some("kubepods"))]
    #[case::systemd(&["kubepods.slice", "system.slice"], Some("kubepods.slice"))]
    #[case::kind_cgroupfs(&["kubelet/kubepods", "init.scope"], Some("kubelet/kubepods"))]
    #[case::kind_systemd(&["kubelet.slice/kubelet-kubepods.slice"], Some("kubelet.slice/kubelet-kubepods.slice"))]
    #[case::the_kubelets_own_alone(&["kubelet", "kubelet.slice/kubelet-other.slice"], None)]
    #[case::nothing(&["system.slice"], None)]
    fn layouts(#[case] made: &[&str], #[case] expected: Option<&str>) {
        let tree = tempfile::tempdir().unwrap();
        // A container's own cgroup, which comes first and holds no pods.
        let (own, node) = (tree.path().join("own"), tree.path().join("node"));
        std::fs::create_dir(&own).unwrap();
        for name in made {
            std::fs::create_dir_all(node.join(name)).unwrap();
        }
        let found = pods_below(&[own, node.clone()]).unwrap();
        assert_eq!(found, expected.map(|name| node.join(name)));
    }

    #[rstest]
    #[case::the_driver_was_changed(&[("kubepods", false), ("kubepods.slice", true)], Some("kubepods.slice"))]
    #[case::and_back(&[("kubepods", true), ("kubepods.slice", false)], Some("kubepods"))]
    #[case::alone(&[("kubepods.slice", false)], Some("kubepods.slice"))]
    #[case::both(&[("kubepods", true), ("kubelet/kubepods", true), ("kubepods.slice", false)], None)]
    #[case::neither(&[("kubepods", false), ("kubepods.slice", false)], None)]
    fn of_several_trees_the_one_with_processes_counts(#[case] made: &[(&str, bool)], #[case] expected: Option<&str>) {
        let tree = tempfile::tempdir().unwrap();
        for (name, populated) in made {
            std::fs::create_dir_all(tree.path().join(name)).unwrap();
            let events = format!("populated {}\nfrozen 0\n", u8::from(*populated));
            std::fs::write(tree.path().join(name).join("cgroup.events"), events).unwrap();
        }
        // The same through another mount.
        let again = tree.path().join("../").join(tree.path().file_name().unwrap());
        match (pods_below(&[tree.path().to_owned(), again]), expected) {
            (Ok(found), Some(name)) => assert_eq!(found, Some(tree.path().join(name))),
            (Err(error @ CgroupError::Ambiguous(_)), None) => {
                let text = error.to_string();
                assert!(text.contains("--cgroup-root"), "{text}");
                assert!(made.iter().all(|(name, _)| text.contains(name)), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_root_must_be_cgroup2() {
        assert!(matches!(
            CgroupRoot::open(Path::new("/proc")),
            Err(CgroupError::NotCgroup2(_))
        ));
        assert!(CgroupRoot::open(Path::new("/does/not/exist")).unwrap_err().is_absent());
    }
}
