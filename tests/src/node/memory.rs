//! A limit on memory, as the kubelet sets it on a container: beyond it the kernel kills.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{mounts, name::BoxName};

/// Where cgroup v1 keeps memory, in the hybrid layout.
const V1: &str = "/sys/fs/cgroup/memory";

/// A cgroup of the memory controller, in whichever version has it. Removed when it is dropped, by which time nothing may
/// run in it.
#[derive(Debug)]
pub struct MemoryLimit {
    path: PathBuf,
    is_v2: bool,
}

impl MemoryLimit {
    /// Makes one of so many bytes, without swap.
    ///
    /// # Errors
    /// There is no memory controller, or it isn't for us to use.
    pub fn new(bytes: u64) -> Result<Self> {
        let root = mounts::cgroup2()?;
        let is_v2 = fs::read_to_string(root.join("cgroup.controllers"))?.contains("memory");
        ensure!(
            is_v2 || Path::new(V1).is_dir(),
            "no cgroup has the memory controller: mount -t cgroup -o memory none {V1}"
        );
        let root = if is_v2 { root } else { V1.into() };
        let path = root.join(format!("{}-memory", BoxName::fresh()));
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        let limit = Self { path, is_v2 };
        let bytes = bytes.to_string();
        if is_v2 {
            limit
                .set("memory.max", &bytes)
                .context("is memory in the root's cgroup.subtree_control?")?;
            limit.set("memory.swap.max", "0")?;
        } else {
            limit.set("memory.limit_in_bytes", &bytes)?;
            // Where swap isn't accounted for, there is no such file.
            drop(limit.set("memory.memsw.limit_in_bytes", &bytes));
        }
        Ok(limit)
    }

    /// Where a process joins it.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// How many processes the kernel has killed in it for want of memory.
    ///
    /// # Errors
    /// It doesn't say.
    pub fn killed(&self) -> Result<u64> {
        let file = if self.is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.path.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.context("oom_kill")?.trim().parse().context("a number")
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.path.join(file), value).with_context(|| format!("setting {file} of {}", self.path.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
