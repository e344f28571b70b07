//! A named network namespace, gone when its guard is. Only `ip` and `nsenter` enter one; this process never does.

use std::path::PathBuf;

use anyhow::Result;

use super::tools;

/// Where `ip netns` keeps the names.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A network namespace with its loopback up and nothing else.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn create(name: String) -> Result<Self> {
        tools::run("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A path that `nsenter --net=` takes.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// Runs `ip` commands inside, one a line.
    pub(crate) fn ip(&self, script: &str) -> Result<()> {
        tools::run_with_input("ip", &["-netns", &self.name, "-batch", "-"], script).map(drop)
    }

    /// Sets a `net.*` kernel parameter, named by its path under /proc/sys/net. Those are the namespace's own.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let enter = format!("--net={}", self.path().display());
        let script = "echo \"$2\" > \"/proc/sys/net/$1\"";
        tools::run("nsenter", &[&enter, "--", "sh", "-c", script, "sh", key, value]).map(drop)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A name that stays is swept by a later run.
        drop(tools::run("ip", &["netns", "del", &self.name]));
    }
}
