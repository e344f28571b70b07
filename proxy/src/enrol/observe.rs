//! Looking at a pod's cgroup: is it there, does a process live in it, and in which network namespace. Blocks.

use std::{fs, path::Path};

use super::{netns::Netns, place::Cgroup};
use crate::{
    kernel::cgroup::{CgroupDir, CgroupError, CgroupRoot},
    pod::CgroupId,
};

/// What a look showed.
#[derive(Debug)]
pub(super) enum Observation {
    /// There is no such cgroup.
    Absent,
    /// A cgroup without a process that shows a namespace.
    Empty(CgroupDir),
    /// A cgroup with processes.
    Inhabited {
        /// The cgroup.
        directory: CgroupDir,
        /// The namespaces of its processes, each once, never none. The first is that of the oldest process: in a pod
        /// the one that holds the namespace for the others, and not one that a workload made later.
        namespaces: Vec<Netns>,
    },
    /// It can't be looked at, or not into it.
    Failed {
        /// The cgroup. Where it is known which it is, it is tagged all the same (invariant 1).
        cgroup: Cgroup,
        /// Why.
        error: String,
    },
}

impl Observation {
    /// The cgroup that was seen.
    pub(super) fn cgroup(&self) -> Option<CgroupId> {
        match self {
            Self::Absent => None,
            Self::Empty(directory) | Self::Inhabited { directory, .. } => Some(directory.id()),
            Self::Failed { cgroup, .. } => match cgroup {
                Cgroup::Known(id) => Some(*id),
                Cgroup::None | Cgroup::Hidden => None,
            },
        }
    }
}

/// Looks at a pod's cgroup.
pub(super) fn observe(root: &CgroupRoot, relative: &Path) -> Observation {
    let failed = |cgroup, error: CgroupError| {
        if error.is_absent() {
            Observation::Absent
        } else {
            Observation::Failed {
                cgroup,
                error: error.to_string(),
            }
        }
    };
    match root.descend(relative) {
        Ok(directory) => {
            let id = directory.id();
            inhabitants(directory).unwrap_or_else(|error| failed(Cgroup::Known(id), error))
        }
        Err(error) => failed(Cgroup::after(&error), error),
    }
}

fn inhabitants(directory: CgroupDir) -> Result<Observation, CgroupError> {
    if !directory.is_populated()? {
        return Ok(Observation::Empty(directory));
    }
    let pids = directory.processes(is_of_the_runtime)?;
    if !pids.is_empty() && pids.iter().all(|pid| *pid == 0) {
        // The kernel shows 0 for what it can't name here.
        let text = "its processes are in another PID namespace than the agent: give the agent's pod hostPID";
        return Ok(Observation::Failed {
            cgroup: Cgroup::Known(directory.id()),
            error: text.to_owned(),
        });
    }
    let mut found: Vec<(u64, i32, Netns)> = pids
        .into_iter()
        .filter(|pid| *pid > 0)
        .filter_map(|pid| Some((start_time(pid)?, pid, Netns::of_process(pid).ok()?)))
        .collect();
    // A process may have ended since it was listed, and its number have gone to another one elsewhere.
    let still = directory.processes(is_of_the_runtime)?;
    found.retain(|(_, pid, _)| still.contains(pid));
    found.sort_by_key(|(start, pid, _)| (*start, *pid));
    let mut namespaces: Vec<Netns> = Vec::new();
    for (_, _, netns) in found {
        if namespaces.iter().all(|known| known.id() != netns.id()) {
            namespaces.push(netns);
        }
    }
    Ok(if namespaces.is_empty() {
        Observation::Empty(directory)
    } else {
        Observation::Inhabited { directory, namespaces }
    })
}

/// Whether a cgroup in a pod's holds a process that isn't of the pod, and whose namespace isn't the pod's: CRI-O puts
/// each container's monitor there (`crio-conmon-<id>.scope` with the systemd driver, `crio-conmon-<id>` with cgroupfs,
/// where `conmon_cgroup` is `pod`), which stays in the node's own namespace.
fn is_of_the_runtime(cgroup: &str) -> bool {
    cgroup.starts_with("crio-conmon-")
}

/// When a process started, in ticks since boot; none for one that has ended.
fn start_time(pid: i32) -> Option<u64> {
    start_time_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 22nd field of `proc_pid_stat(5)`. The 2nd, the command in parentheses, may hold anything.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(") ")?;
    let mut fields = after_command.split(' ');
    let state = fields.next()?;
    // Dead or a zombie: it shows no namespace any more.
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("7 (sh) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4321 9 10", Some(4321))]
    #[case(
        "7 (a) S 1 ) (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4321 9 10",
        Some(4321)
    )]
    #[case("7 (sh) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4321 9 10", None)]
    #[case("7 (sh) S 1 7", None)]
    #[case("", None)]
    fn start_times(#[case] stat: &str, #[case] expected: Option<u64>) {
        assert_eq!(start_time_in(stat), expected);
    }

    #[rstest]
    #[case("crio-conmon-5e3a.scope", true)]
    #[case("crio-conmon-5e3a", true)]
    #[case("crio-5e3a.scope", false)]
    #[case("cri-containerd-5e3a.scope", false)]
    #[case("conmon", false)]
    fn the_runtimes_own_are_known(#[case] cgroup: &str, #[case] expected: bool) {
        assert_eq!(is_of_the_runtime(cgroup), expected);
    }

    #[test]
    fn a_live_process_has_a_start_and_a_namespace() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(pid).is_some_and(|start| start > 0));
        assert!(Netns::of_process(pid).is_ok());
    }
}
