//! The kernel's own count of how often the agent's programs have run, and for how long. They are found by their pins,
//! so that no other agent's on the machine are counted.
//!
//! The kernel reads the clock before and after each run, which is in its figures: it is measured as well.

use std::{collections::BTreeMap, fs, os::fd::OwnedFd, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::{ProgramFd, links::PinnedLink, loaded_programs},
    sys::{Stats, enable_stats},
};
use understudy_common::PROGRAMS;

use super::clock::Nothing;

/// The agent's programs, which count their runs for as long as this is held.
pub(crate) struct Programs {
    ids: BTreeMap<u32, &'static str>,
    /// The program that shows what the counting itself takes.
    nothing: (u32, Nothing),
    /// What the kernel tells of a program it tells by its descriptor.
    _descriptors: Vec<ProgramFd>,
    _counting: OwnedFd,
}

/// What they have done so far, by name, and what the one that does nothing has.
#[derive(Debug, Clone)]
pub(crate) struct Runs {
    pub(crate) programs: BTreeMap<&'static str, Run>,
    pub(crate) nothing: Run,
}

/// What one of them has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

impl Programs {
    /// Those that are pinned in the directory, counted beside one that does nothing below the cgroup.
    pub(crate) fn pinned(directory: &Path, cgroup: &Path) -> Result<Self> {
        let counting = enable_stats(Stats::RunTime).context("having BPF programs' runs counted needs CAP_SYS_ADMIN")?;
        let mut ids = BTreeMap::new();
        for name in PROGRAMS {
            let path = directory.join(name);
            let held = PinnedLink::from_pin(&path).with_context(|| format!("the link {}", path.display()))?;
            ids.insert(linked()?, name);
            drop(held);
        }
        ensure!(ids.len() == PROGRAMS.len(), "each link is of a program of its own");
        let mut programs = Vec::new();
        for program in loaded_programs() {
            // One that goes while it is looked at is none of ours.
            let Ok(program) = program else { continue };
            if ids.contains_key(&program.id()) {
                programs.push(program.fd()?);
            }
        }
        ensure!(programs.len() == ids.len(), "a program that is linked is loaded");
        let nothing = Nothing::attach(cgroup)?;
        let (id, descriptor) = nothing.program()?;
        programs.push(descriptor);
        Ok(Self {
            ids,
            nothing: (id, nothing),
            _descriptors: programs,
            _counting: counting,
        })
    }

    /// What they have done so far.
    pub(crate) fn runs(&self) -> Result<Runs> {
        let mut runs = BTreeMap::new();
        let mut nothing = None;
        for text in descriptors()? {
            let Some((id, run)) = program(&text) else { continue };
            if let Some(name) = self.ids.get(&id) {
                runs.insert(*name, run);
            }
            if id == self.nothing.0 {
                nothing = Some(run);
            }
        }
        ensure!(runs.len() == self.ids.len(), "the kernel tells of every program's runs");
        Ok(Runs {
            programs: runs,
            nothing: nothing.context("the kernel tells of the program that does nothing")?,
        })
    }
}

impl Runs {
    /// What they have done since then.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let programs = self.programs.iter().map(|(name, run)| {
            let before = earlier.programs.get(name).copied().unwrap_or_default();
            (*name, run.since(before))
        });
        Self {
            programs: programs.collect(),
            nothing: self.nothing.since(earlier.nothing),
        }
    }

    /// What all of them have done.
    pub(crate) fn total(&self) -> Run {
        self.programs.values().copied().fold(Run::default(), Run::and)
    }
}

impl Run {
    fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            time: self.time.saturating_sub(earlier.time),
        }
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            time: self.time + other.time,
        }
    }

    /// How long one run took, in nanoseconds.
    pub(crate) fn each(self) -> f64 {
        self.nanoseconds() / float(self.count.max(1))
    }

    /// How long all runs took, in nanoseconds.
    pub(crate) fn nanoseconds(self) -> f64 {
        self.time.as_secs_f64() * 1e9
    }
}

/// A count to reckon with.
#[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The program of the one link that is open here.
fn linked() -> Result<u32> {
    let descriptors = descriptors()?;
    let mut links = descriptors.iter().filter(|text| field(text, "link_id").is_some());
    let link = links.next().context("a link is open")?;
    ensure!(links.next().is_none(), "one link is open at a time");
    let id = field(link, "prog_id").context("a link has a program")?;
    Ok(u32::try_from(id)?)
}

/// What the kernel tells of each of this process's descriptors.
fn descriptors() -> Result<Vec<String>> {
    let entries = fs::read_dir("/proc/self/fdinfo").context("reading /proc/self/fdinfo")?;
    // One that goes meanwhile, as that of the directory itself does, is none of interest.
    Ok(entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .collect())
}

/// A program's id and what it has done, where the descriptor is a program's.
fn program(text: &str) -> Option<(u32, Run)> {
    let run = Run {
        count: field(text, "run_cnt")?,
        time: Duration::from_nanos(field(text, "run_time_ns")?),
    };
    Some((u32::try_from(field(text, "prog_id")?).ok()?, run))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2092\nprog_type:\t18\nprog_jited:\t1\nprog_tag:\t\
                           d9f3a2b1c0e4f586\nmemlock:\t4096\nprog_id:\t713\nrun_time_ns:\t1234567\nrun_cnt:\t890\n\
                           recursion_misses:\t0\nverified_insns:\t321\n";
    const LINK: &str = "pos:\t0\nflags:\t02000000\nlink_type:\tcgroup\nlink_id:\t42\nprog_tag:\td9f3a2b1c0e4f586\nprog_id:\t\
                        713\ncgroup_id:\t1\nattach_type:\t10\n";

    #[test]
    fn reads_the_kernels_forms() {
        let run = Run {
            count: 890,
            time: Duration::from_nanos(1_234_567),
        };
        assert_eq!(program(PROGRAM), Some((713, run)));
        assert_eq!(program(LINK), None, "a link has no runs");
        assert_eq!(field(LINK, "prog_id"), Some(713));
        assert_eq!(field("pos:\t0\n", "link_id"), None);
    }

    fn run(count: u64, nanoseconds: u64) -> Run {
        Run {
            count,
            time: Duration::from_nanos(nanoseconds),
        }
    }

    #[test]
    fn what_was_done_since_is_the_difference() {
        let runs = |one, nothing| Runs {
            programs: [("connect4", one), ("connect6", run(7, 70))].into(),
            nothing,
        };
        let since = runs(run(15, 400), run(4, 40)).since(&runs(run(10, 100), run(1, 10)));
        assert_eq!(since.programs["connect4"], run(5, 300));
        assert_eq!(since.nothing, run(3, 30));
        assert_eq!(since.total(), run(5, 300));
    }

    #[test]
    fn a_run_is_the_mean_of_all() {
        assert!((run(10, 1000).each() - 100.0).abs() < 1e-9);
        assert!(Run::default().each().abs() < 1e-9);
    }
}
