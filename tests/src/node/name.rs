//! Names of what a box makes outside itself: `us-<pid>-<n>`, so that a later run can tell whose owner is dead.

use std::{
    fmt,
    path::Path,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::bail;

/// One box of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BoxName {
    pid: u32,
    number: u32,
}

impl BoxName {
    /// A name that no other box of this machine has.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            pid: std::process::id(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Whether the process that made it is gone.
    pub(crate) fn is_orphaned(self) -> bool {
        !Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// The box that `text`, the name of a namespace, cgroup or directory, belongs to.
    pub(crate) fn owner_of(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '-');
        let (prefix, pid, number) = (parts.next()?, parts.next()?, parts.next()?);
        format!("{prefix}-{pid}-{number}").parse().ok()
    }
}

impl fmt::Display for BoxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "us-{}-{}", self.pid, self.number)
    }
}

impl FromStr for BoxName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((pid, number)) = text.strip_prefix("us-").and_then(|rest| rest.split_once('-')) else {
            bail!("{text:?} is not of the form us-<pid>-<n>");
        };
        Ok(Self {
            pid: pid.parse()?,
            number: number.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::BoxName;

    #[test]
    fn a_name_says_whose_it_is() {
        let name = BoxName::fresh();
        assert_eq!(name.to_string().parse::<BoxName>().unwrap(), name);
        assert_eq!(BoxName::owner_of(&format!("{name}-pod-3")), Some(name));
        assert_eq!(BoxName::owner_of(&name.to_string()), Some(name));
        assert!(!name.is_orphaned());
    }

    #[test]
    fn others_names_are_left_alone() {
        for other in ["us", "us-east-1", "us-12", "system.slice", "us-1-x-pod", "usb-1-2"] {
            assert_eq!(BoxName::owner_of(other), None, "{other}");
        }
    }
}
