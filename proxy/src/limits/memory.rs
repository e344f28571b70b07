//! Gives way before the kernel's out-of-memory killer comes: what pods have open is memory, and a pod that has much of it
//! open loses it before the agent is lost to all.
//!
//! The limit is told (`--memory-limit`), the kubelet's own by default; what counts against it is the process's resident
//! memory. From four fifths of it on, pods that have much open get nothing more; from nine tenths on, the pod that has
//! most open loses it all.

use std::{
    collections::HashMap,
    fs, io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    metrics::{Limit, Metrics},
    pod::{CgroupId, EnrolledPod},
};

/// How often the memory is looked at. A pod's clients can fill some tens of megabytes meanwhile.
const TICK: Duration = Duration::from_millis(50);
/// How long what was ended may take to be given back before another pod is looked for.
const RESPITE: Duration = Duration::from_secs(1);
/// A pod with no more than so much open isn't made to give way: it isn't what fills the memory.
const SPARED: usize = 64;

/// How the agent's memory stands, and whose connections fill it.
#[derive(Debug, Default)]
pub struct Pressure {
    high: AtomicBool,
    pods: Mutex<HashMap<CgroupId, Weak<EnrolledPod>>>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Calm,
    High,
    GiveWay,
}

impl Pressure {
    /// Remembers a pod that opens its first connection.
    pub fn notice(&self, pod: &Arc<EnrolledPod>) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(pod.cgroup_id, Arc::downgrade(pod));
    }

    /// Whether a pod must do without anything more for now.
    #[must_use]
    pub fn refuses(&self, pod: &EnrolledPod) -> bool {
        self.high.load(Ordering::Relaxed) && pod.load.total() > SPARED
    }

    /// Looks at the memory for as long as the agent runs. `resident` tells it in bytes.
    pub async fn watch(self: Arc<Self>, limit: u64, resident: impl Fn() -> io::Result<u64>, metrics: Metrics) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shed: Option<Instant> = None;
        loop {
            tick.tick().await;
            let verdict = match resident() {
                Ok(resident) => judge(resident, limit),
                Err(error) => {
                    tracing::error!(%error, "the agent's memory can't be read: --memory-limit isn't kept");
                    return;
                }
            };
            let was_high = self.high.swap(verdict != Verdict::Calm, Ordering::Relaxed);
            if !was_high && verdict != Verdict::Calm {
                tracing::warn!(
                    limit,
                    "memory is nearly used up: pods that have much open get nothing more"
                );
            }
            if verdict == Verdict::GiveWay && shed.is_none_or(|at| at.elapsed() >= RESPITE) {
                shed = Some(Instant::now());
                if let Some(pod) = self.heaviest() {
                    metrics.limit_hit(Limit::Memory);
                    tracing::error!(pod = %pod.wanted.name, open = pod.load.total(), limit, "memory is used up: all that the pod has open is ended");
                    pod.load.shed.notify_waiters();
                }
            }
        }
    }

    fn heaviest(&self) -> Option<Arc<EnrolledPod>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = pods.values().filter_map(Weak::upgrade);
        pods.max_by_key(|pod| pod.load.total())
            .filter(|pod| pod.load.total() > SPARED)
    }
}

fn judge(resident: u64, limit: u64) -> Verdict {
    if resident >= limit / 10 * 9 {
        Verdict::GiveWay
    } else if resident >= limit / 5 * 4 {
        Verdict::High
    } else {
        Verdict::Calm
    }
}

/// The process's resident memory in bytes, without what it shares with files.
///
/// # Errors
/// If procfs isn't to be read.
pub fn resident() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let mut pages = statm.split(' ').skip(1).map(str::parse::<u64>);
    let (Some(Ok(resident)), Some(Ok(shared))) = (pages.next(), pages.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let page = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096)).unwrap_or(4096);
    Ok(resident.saturating_sub(shared) * page)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use rstest::rstest;
    use tokio::time::{sleep, timeout};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        limits::{
            Limits,
            load::{Load, Place},
        },
        pod::WantedPod,
    };

    fn pod(id: u64) -> Arc<EnrolledPod> {
        Arc::new(EnrolledPod {
            wanted: WantedPod {
                cgroup: format!("pod{id}").into(),
                name: "a/b".into(),
                session: "a/s".parse().unwrap(),
                uid: None,
                service_account: None,
            },
            cgroup_id: CgroupId(id),
            gone: CancellationToken::new(),
            load: Load::default(),
            in_audit: crate::audit::PodText::default(),
        })
    }

    fn open(pod: &Arc<EnrolledPod>, count: usize) -> Vec<Place> {
        let limits = Limits::default();
        (0..count)
            .map(|_| Place::for_connection(pod, &limits).unwrap())
            .collect()
    }

    #[rstest]
    #[case(79, Verdict::Calm)]
    #[case(80, Verdict::High)]
    #[case(89, Verdict::High)]
    #[case(90, Verdict::GiveWay)]
    #[case(200, Verdict::GiveWay)]
    fn judges(#[case] resident: u64, #[case] expected: Verdict) {
        assert_eq!(judge(resident, 100), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pod_that_has_most_open_gives_way_and_no_other() {
        let pressure = Arc::new(Pressure::default());
        let (greedy, modest, busy) = (pod(1), pod(2), pod(3));
        let _open = (open(&greedy, 200), open(&modest, SPARED), open(&busy, 100));
        for pod in [&greedy, &modest, &busy] {
            pressure.notice(pod);
        }
        let memory = Arc::new(AtomicU64::new(50));
        let metrics = Metrics::new();
        let read = Arc::clone(&memory);
        let resident = move || Ok(read.load(Ordering::SeqCst));
        tokio::spawn(Arc::clone(&pressure).watch(100, resident, metrics.clone()));
        sleep(TICK * 2).await;
        assert!(!pressure.refuses(&greedy));
        memory.store(85, Ordering::SeqCst);
        sleep(TICK * 2).await;
        assert!(pressure.refuses(&greedy) && pressure.refuses(&busy) && !pressure.refuses(&modest));
        assert_eq!(metrics.limit_hits(Limit::Memory), 0);
        let ended = [&greedy, &modest, &busy].map(|pod| {
            let pod = Arc::clone(pod);
            tokio::spawn(async move { pod.load.shed.notified().await })
        });
        sleep(TICK).await;
        memory.store(95, Ordering::SeqCst);
        sleep(TICK * 2).await;
        assert_eq!(
            ended.each_ref().map(tokio::task::JoinHandle::is_finished),
            [true, false, false]
        );
        // What it takes to give back isn't held against the next.
        assert_eq!(metrics.limit_hits(Limit::Memory), 1);
        memory.store(10, Ordering::SeqCst);
        let calm = async {
            while pressure.refuses(&greedy) {
                sleep(TICK).await;
            }
        };
        timeout(RESPITE, calm).await.unwrap();
    }

    #[test]
    fn the_process_has_memory() {
        assert!(resident().unwrap() > 1 << 18);
    }
}
