//! What a process and its children have used, by the kernel's own account in /proc.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// The processor time of every thread of a process and of its children, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuTime {
    threads: BTreeMap<u32, Duration>,
}

impl CpuTime {
    /// As it is now.
    ///
    /// # Errors
    /// The process has ended.
    pub fn of(process: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for process in family(process)? {
            for thread in tasks(process)? {
                // A thread may end between the two reads.
                let Ok(text) = fs::read_to_string(thread.path.join("schedstat")) else {
                    continue;
                };
                threads.insert(thread.id, parse_schedstat(&text)?);
            }
        }
        Ok(Self { threads })
    }

    /// What was used since then. Of threads that have ended in between nothing is known, nor counted.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        self.threads
            .iter()
            .map(|(thread, now)| now.saturating_sub(earlier.threads.get(thread).copied().unwrap_or_default()))
            .sum()
    }
}

/// Resident memory of a process and its children, in bytes.
///
/// # Errors
/// The process has ended.
pub fn resident(process: u32) -> Result<u64> {
    family(process)?.into_iter().try_fold(0, |sum, process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).context("the process has ended")?;
        Ok(sum + parse_resident(&status)?)
    })
}

/// Whether the process listens on that TCP port, in the network namespace that it is in.
///
/// # Errors
/// The process has ended.
pub fn listens(process: u32, port: u16) -> Result<bool> {
    let sockets = fs::read_to_string(format!("/proc/{process}/net/tcp")).context("the process has ended")?;
    Ok(is_listening(&sockets, port))
}

/// The process and all below it.
fn family(process: u32) -> Result<Vec<u32>> {
    let mut found = vec![process];
    let mut next = 0;
    while let Some(process) = found.get(next).copied() {
        next += 1;
        for thread in tasks(process)? {
            let children = fs::read_to_string(thread.path.join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
    }
    Ok(found)
}

struct Task {
    id: u32,
    path: PathBuf,
}

fn tasks(process: u32) -> Result<Vec<Task>> {
    let directory = PathBuf::from(format!("/proc/{process}/task"));
    let entries = fs::read_dir(&directory).with_context(|| format!("process {process} has ended"))?;
    let task = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    Ok(entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some(Task { id: task(&path)?, path })
        })
        .collect())
}

/// The first field is the time on a processor, in nanoseconds.
fn parse_schedstat(text: &str) -> Result<Duration> {
    let field = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(
        field.parse().context("schedstat begins with a number")?,
    ))
}

fn parse_resident(status: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("the process has ended: it has no memory any more")?;
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("VmRSS is a number of kB")?;
    Ok(kib * 1024)
}

/// Reads /proc/net/tcp: local address and port in hexadecimal, and state 0A.
fn is_listening(sockets: &str, port: u16) -> bool {
    let port = format!("{port:04X}");
    sockets.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit(':').next());
        local == Some(&port) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn reads_the_kernels_forms() {
        assert_eq!(
            parse_schedstat("297950474 565925141 82\n").unwrap(),
            Duration::from_nanos(297_950_474)
        );
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t    1234 kB\nRssAnon: 1 kB\n").unwrap(),
            1_263_616
        );
        assert!(parse_resident("Name:\tx\nState:\tZ (zombie)\n").is_err());
    }

    #[test]
    fn finds_listeners_by_port_and_state() {
        let sockets = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:1F42 0100007F:9999 01 00000000:00000000 00:00000000\n";
        assert!(is_listening(sockets, 8001));
        assert!(
            !is_listening(sockets, 8002),
            "that one is connected, and doesn't listen"
        );
        assert!(!is_listening(sockets, 39321));
    }

    #[test]
    fn counts_this_processs_own_work() {
        let process = std::process::id();
        let before = CpuTime::of(process).unwrap();
        let start = Instant::now();
        while CpuTime::of(process).unwrap().since(&before) < Duration::from_millis(20) {
            assert!(start.elapsed() < Duration::from_secs(20), "no time was counted");
        }
        assert!(resident(process).unwrap() > 1024 * 1024);
    }

    #[test]
    fn threads_that_are_new_count_whole() {
        let at = |threads: &[(u32, u64)]| CpuTime {
            threads: threads
                .iter()
                .map(|(id, millis)| (*id, Duration::from_millis(*millis)))
                .collect(),
        };
        let used = at(&[(1, 30), (3, 5)]).since(&at(&[(1, 10), (2, 100)]));
        assert_eq!(used, Duration::from_millis(25));
    }
}
