//! What the agent uses while nothing happens.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use understudy_bench::process::CpuTime;
use understudy_tests::node::{Agent, Node};

use super::stage;

/// How long what was just done is left to settle.
const SETTLE: Duration = Duration::from_secs(5);

/// What it used.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    /// How many pods are tagged.
    pods: usize,
    /// Its resident memory, in KiB.
    rss_kib: u64,
    /// Of which it alone has.
    rss_anonymous_kib: u64,
    /// Processor time, in milliseconds a second.
    cpu_ms_per_second: f64,
    /// How often one of its threads fell asleep, and so woke, a second.
    wakeups_per_second: f64,
    /// How many threads it has.
    threads: usize,
}

pub(crate) async fn measure(quick: bool) -> Result<Vec<Idle>> {
    let span = Duration::from_secs(if quick { 5 } else { 30 });
    let node = Node::new()?;
    let agent = stage::agent(&node).await?;
    let mut figures = vec![idle(&agent, 0, span).await?];
    let pods = 250;
    let mut crowd = stage::crowd(&node, "crowd", pods)?;
    let after = agent.log().len();
    crowd.appear()?;
    stage::last_enrolled(&agent, pods, after).await?;
    figures.push(idle(&agent, pods, span).await?);
    Ok(figures)
}

async fn idle(agent: &Agent, pods: usize, span: Duration) -> Result<Idle> {
    sleep(SETTLE).await;
    let process = u32::try_from(agent.pid()?.as_raw())?;
    let (cpu, (switches, threads)) = (CpuTime::of(process)?, switches(process)?);
    let begun = Instant::now();
    sleep(span).await;
    let seconds = begun.elapsed().as_secs_f64();
    let used = CpuTime::of(process)?.since(&cpu);
    let woken = self::switches(process)?.0.saturating_sub(switches);
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the agent has ended")?;
    Ok(Idle {
        pods,
        rss_kib: agent.rss_kib()?,
        rss_anonymous_kib: field(&status, "RssAnon").context("its memory")?,
        cpu_ms_per_second: used.as_secs_f64() * 1e3 / seconds,
        wakeups_per_second: f64::from(u32::try_from(woken)?) / seconds,
        threads,
    })
}

/// How often its threads have given up the processor by themselves, and how many there are.
fn switches(process: u32) -> Result<(u64, usize)> {
    let mut switches = 0;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).context("the agent has ended")? {
        // One may end between the two reads.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        switches += field(&status, "voluntary_ctxt_switches").context("its switches")?;
        threads += 1;
    }
    Ok((switches, threads))
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_form() {
        let status = "Name:\tunderstudy\nRssAnon:\t    5120 kB\nvoluntary_ctxt_switches:\t17\n\
                      nonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(field(status, "RssAnon"), Some(5120));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(17));
        assert_eq!(field(status, "VmSwap"), None);
    }
}
