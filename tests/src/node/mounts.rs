//! Mounts: where cgroup v2 is, and a BPF file system of the box's own.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One line of /proc/self/mounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) target: PathBuf,
    pub(crate) kind: String,
}

/// The mounts that this process sees.
pub(crate) fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (target, kind) = (fields.nth(1)?, fields.next()?);
            // The kernel writes the four awkward characters in octal.
            let target = target
                .replace("\\040", " ")
                .replace("\\011", "\t")
                .replace("\\012", "\n");
            Some(Mount {
                target: PathBuf::from(target.replace("\\134", "\\")),
                kind: kind.to_owned(),
            })
        })
        .collect()
}

/// cgroup v2's mount: /sys/fs/cgroup where it is alone, /sys/fs/cgroup/unified in the hybrid layout.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    mounts()?
        .into_iter()
        .find(|mount| mount.kind == "cgroup2")
        .map(|mount| mount.target)
        .context("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// A mounted BPF file system; unmounting it lets go of whatever is pinned in it.
#[derive(Debug)]
pub(crate) struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    pub(crate) fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a BPF file system on {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A disk of a few bytes, for what becomes of one that is full.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one on `path`, which is made.
    ///
    /// # Errors
    /// It can't be mounted.
    pub fn mount(path: PathBuf, bytes: u64) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let size = format!("size={bytes}");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .with_context(|| format!("cannot mount a tmpfs on {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes up all the room that there is.
    ///
    /// # Errors
    /// It isn't full at the end.
    pub fn fill(&self) -> Result<()> {
        let mut filling = fs::File::create(self.path.join("filling"))?;
        loop {
            match filling.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
    }

    /// Gives it back.
    ///
    /// # Errors
    /// It wasn't taken.
    pub fn relieve(&self) -> Result<()> {
        fs::remove_file(self.path.join("filling")).context("relieving a disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::{Mount, parse};

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let text = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\nx /mnt/a\\040b ext4 rw 0 0\n";
        let expected = [("/sys/fs/cgroup/unified", "cgroup2"), ("/mnt/a b", "ext4")].map(|(target, kind)| Mount {
            target: target.into(),
            kind: kind.to_owned(),
        });
        assert_eq!(parse(text), expected);
    }
}
