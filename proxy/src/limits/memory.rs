//! Gives way before the kernel's out-of-memory killer comes: what pods have open is memory, and a pod that has much of it
//! open loses it before the agent is lost to all.
//!
//! The limit is told (`--memory-limit`), the kubelet's own by default; what counts against it is the process's resident
//! memory. From four fifths of it on, pods that have much open get nothing more; from nine tenths on, the pod that has
//! most open loses it all. A pod that has little open is never asked, so that while all have little open there is nothing
//! to look for, and the memory is looked at now and then only.
//!
//! When much of what was open has closed, what it had goes back to the system.

use std::{
    collections::HashMap,
    fs, io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};

use super::{
    heap::{self, Ebb},
    load::SPARED,
};
use crate::{
    clock,
    metrics::{Limit, Metrics},
    pod::{CgroupId, EnrolledPod},
};

/// How often the memory is looked at while a pod has much open. A pod's clients can fill some tens of megabytes meanwhile.
const TICK: Duration = Duration::from_millis(50);
/// How often what is open is looked at while it is much, but no one pod's; or there is no limit.
const SLOW_TICK: Duration = Duration::from_secs(2);
/// How often while it is little.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// How long what was ended may take to be given back before another pod is looked for; and the least between two times that
/// spare memory goes back.
const RESPITE: Duration = Duration::from_secs(1);

/// How the agent's memory stands, and whose connections fill it.
#[derive(Debug, Default)]
pub struct Pressure {
    high: AtomicBool,
    pods: Mutex<HashMap<CgroupId, Weak<EnrolledPod>>>,
    /// Told by each pod that has much open whenever it opens more.
    crowding: Arc<Notify>,
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
        // Set already, where the pod had a first connection before.
        let _ = pod.load.crowding.set(Arc::clone(&self.crowding));
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(pod.cgroup_id, Arc::downgrade(pod));
    }

    /// Whether a pod must do without anything more for now.
    #[must_use]
    pub fn refuses(&self, pod: &EnrolledPod) -> bool {
        self.high.load(Ordering::Relaxed) && pod.load.total() > SPARED
    }

    /// Looks at the memory for as long as the agent runs. `resident` tells it in bytes, and `give_back` gives back what is
    /// spare; it may block.
    pub async fn watch(
        self: Arc<Self>,
        limit: Option<u64>,
        resident: impl Fn() -> io::Result<u64>,
        give_back: impl Fn() + Clone + Send + 'static,
        metrics: Metrics,
    ) {
        let mut ebb = Ebb::new();
        let mut shed = None;
        let mut look = Instant::now() + RESPITE;
        loop {
            let crowded = match limit {
                Some(limit) => match resident() {
                    Ok(resident) => {
                        self.hold(resident, limit, &mut shed, &metrics);
                        self.heaviest().is_some()
                    }
                    Err(error) => {
                        tracing::error!(%error, "the agent's memory can't be read: --memory-limit isn't kept");
                        return;
                    }
                },
                None => false,
            };
            let open = self.open();
            ebb.saw(open);
            if look <= Instant::now() {
                look = Instant::now() + RESPITE;
                if ebb.is_due(open)
                    && let Err(error) = spawn_blocking(give_back.clone()).await
                {
                    tracing::warn!(%error, "memory that is spare isn't given back");
                }
            }
            if crowded {
                sleep(TICK).await;
                continue;
            }
            // Whoever opens much after it was last looked is heard here: what was told is kept until then.
            let tick = if ebb.holds_much() { SLOW_TICK } else { IDLE_TICK };
            let crowding = timeout_at(clock::moment_in(tick), self.crowding.notified()).await;
            if crowding.is_ok() && limit.is_none() {
                // What a crowd opens is told each time.
                sleep(TICK).await;
            }
        }
    }

    /// Acts on how much memory is used.
    fn hold(&self, resident: u64, limit: u64, shed: &mut Option<Instant>, metrics: &Metrics) {
        let verdict = judge(resident, limit);
        let was_high = self.high.swap(verdict != Verdict::Calm, Ordering::Relaxed);
        if !was_high && verdict != Verdict::Calm {
            tracing::warn!(
                limit,
                "memory is nearly used up: pods that have much open get nothing more"
            );
        }
        if verdict == Verdict::GiveWay && shed.is_none_or(|at| at.elapsed() >= RESPITE) {
            *shed = Some(Instant::now());
            if let Some(pod) = self.heaviest() {
                metrics.limit_hit(Limit::Memory);
                tracing::error!(pod = %pod.wanted.name, open = pod.load.total(), limit, "memory is used up: all that the pod has open is ended");
                pod.load.shed.notify_waiters();
            }
        }
    }

    /// What all pods have open.
    fn open(&self) -> usize {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values()
            .filter_map(Weak::upgrade)
            .map(|pod| pod.load.total())
            .sum()
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

/// Gives what is spare back to the system, for [`Pressure::watch`].
pub fn give_back() {
    heap::give_back();
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
    use tokio::time::timeout;
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
        tokio::spawn(Arc::clone(&pressure).watch(Some(100), resident, || (), metrics.clone()));
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

    #[tokio::test(start_paused = true)]
    async fn it_is_looked_at_often_while_a_pod_has_much_open_and_seldom_otherwise() {
        let pressure = Arc::new(Pressure::default());
        let pod = pod(1);
        let modest = open(&pod, SPARED);
        pressure.notice(&pod);
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let resident = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(85)
        };
        tokio::spawn(Arc::clone(&pressure).watch(Some(100), resident, || (), Metrics::new()));
        let looks_in = async |span| {
            let before = looks.load(Ordering::SeqCst);
            sleep(span).await;
            looks.load(Ordering::SeqCst) - before
        };
        sleep(TICK).await;
        assert!(looks_in(Duration::from_mins(1)).await <= 31);
        // One more is heard of at once, though the next look would be seconds away.
        let one_more = open(&pod, 1);
        assert!(looks_in(TICK * 10).await >= 9);
        assert!(pressure.refuses(&pod));
        drop(one_more);
        sleep(TICK * 2).await;
        assert!(looks_in(Duration::from_mins(1)).await <= 32);
        drop(modest);
    }

    #[tokio::test(start_paused = true)]
    async fn what_closes_goes_back_with_and_without_a_limit() {
        for limit in [None, Some(1 << 40)] {
            let pressure = Arc::new(Pressure::default());
            let pod = pod(1);
            pressure.notice(&pod);
            let times = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&times);
            let give_back = move || {
                counted.fetch_add(1, Ordering::SeqCst);
            };
            tokio::spawn(Arc::clone(&pressure).watch(limit, || Ok(1), give_back, Metrics::new()));
            sleep(SLOW_TICK * 4).await;
            // Once at the ebb, and once for what is let go of a moment later.
            assert_eq!(times.load(Ordering::SeqCst), 2, "what starting took");
            let places = open(&pod, 900);
            sleep(SLOW_TICK * 2).await;
            assert_eq!(times.load(Ordering::SeqCst), 2);
            drop(places);
            sleep(SLOW_TICK * 4).await;
            assert_eq!(times.load(Ordering::SeqCst), 4, "limit {limit:?}");
        }
    }

    #[test]
    fn the_process_has_memory() {
        assert!(resident().unwrap() > 1 << 18);
    }
}
