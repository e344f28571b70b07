//! Puts the kernel side in force, taking it over from the agent before where there is one, and keeps the addresses that
//! it intercepts those of the API server.

use std::{
    collections::BTreeSet, fmt, future::pending, net::SocketAddr, ops::Range, path::Path, sync::Arc, time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Condition,
    backoff::Backoff,
    cluster::addresses::Addresses,
    enrol::{self, Enrolment, Leftovers, PodStatus, Steward},
    handover::Predecessor,
    kernel::{API_SERVERS_MOST, InstallError, Kernel, Options as KernelInstallation, PinError, cgroup::CgroupRoot},
    pod::{Inbound, WantedPod},
};

/// How long an agent that holds the pin directory is waited for.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);

/// How long after a failure the addresses are set again.
const RETRY: Range<Duration> = Duration::from_millis(200)..Duration::from_secs(10);

/// What is intercepted.
pub(super) struct Interception<'a> {
    pub(super) root: &'a Path,
    pub(super) installation: KernelInstallation,
    /// Whether an agent that runs has handed over.
    pub(super) yielded: bool,
    pub(super) addresses: watch::Receiver<Option<Addresses>>,
    pub(super) wanted: watch::Receiver<Arc<[WantedPod]>>,
    pub(super) leftovers: watch::Receiver<Leftovers>,
}

/// Puts the kernel side in force, and enrols the pods that are wanted.
pub(super) async fn intercept(
    interception: Interception<'_>,
    accept: mpsc::Sender<Inbound>,
    shutdown: CancellationToken,
    condition: Condition,
) -> anyhow::Result<(Enrolment, Arc<Kernel>)> {
    let Interception {
        root,
        installation,
        yielded,
        mut addresses,
        wanted,
        leftovers,
    } = interception;
    let root = CgroupRoot::open(root)?;
    let kernel = Arc::new(install(&installation, yielded, &root).await?);
    let first = addresses.borrow_and_update().clone().unwrap_or_default();
    let (fitting, left_out) = fit(&BTreeSet::new(), &first, API_SERVERS_MOST);
    kernel.set_api_servers(&fitting)?;
    say(&condition, left_out);
    let setter = Arc::clone(&kernel);
    let set = move |addresses: &BTreeSet<SocketAddr>| setter.set_api_servers(addresses);
    tokio::spawn(follow_addresses(set, addresses, fitting, condition));
    let enrolment = enrol::start(Arc::clone(&kernel), root, wanted, leftovers, accept, shutdown);
    Ok((enrolment, kernel))
}

/// Puts the kernel side in force. An agent that is just ending, and hasn't been able to yield, is waited for.
async fn install(installation: &KernelInstallation, yielded: bool, root: &CgroupRoot) -> Result<Kernel, InstallError> {
    let deadline = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        let installed = if yielded {
            Kernel::succeed(root, installation)
        } else {
            Kernel::install(root, installation)
        };
        match installed {
            Err(InstallError::Pin(PinError::InUse(_))) if Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            installed => return installed,
        }
    }
}

/// Waits until every pod's entry is this agent's, and lets the one before go.
pub(super) async fn succeed(
    predecessor: Predecessor,
    mut pods: watch::Receiver<Arc<[PodStatus]>>,
) -> anyhow::Result<()> {
    pods.changed().await.context("enrolment didn't begin")?;
    if let Err(error) = predecessor.done().await {
        tracing::warn!(%error, "the agent before is gone already");
    }
    tracing::info!("the node is taken over from the agent before");
    Ok(())
}

/// When another agent has taken over, this one isn't ready any more, and clients are told to go, for their next
/// connection is the other's. What streams goes on until this agent is ended.
pub(super) async fn retire(steward: Steward, in_charge: Condition, no_new_requests: CancellationToken) {
    in_charge.ready();
    steward.retired().await;
    in_charge.not_ready("another agent has taken this node over");
    in_charge.keep();
    no_new_requests.cancel();
}

/// Keeps the kernel's set as the addresses are, until they have no owner any more. What can't be set is tried again.
async fn follow_addresses<E: fmt::Display>(
    set: impl Fn(&BTreeSet<SocketAddr>) -> Result<(), E>,
    mut addresses: watch::Receiver<Option<Addresses>>,
    mut in_force: BTreeSet<SocketAddr>,
    condition: Condition,
) {
    let mut backoff = Backoff::new(RETRY);
    let mut again = None;
    loop {
        let retry = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = addresses.changed() => if changed.is_err() {
                break;
            },
            () = retry => {}
        }
        let wanted = addresses.borrow_and_update().clone().unwrap_or_default();
        let (fitting, left_out) = fit(&in_force, &wanted, API_SERVERS_MOST);
        again = match set(&fitting) {
            Ok(()) => {
                in_force = fitting;
                say(&condition, left_out);
                backoff.reset();
                None
            }
            Err(error) => {
                let wait = backoff.wait();
                tracing::error!(%error, ?wait, "connections to the API server's new addresses aren't intercepted; tried again");
                condition.not_ready(
                    "the API server's addresses can't be set, which is tried again; the agent's log says why",
                );
                Some(Instant::now() + wait)
            }
        };
    }
    condition.keep();
}

fn say(condition: &Condition, left_out: usize) {
    if left_out == 0 {
        condition.ready();
        return;
    }
    tracing::error!(
        left_out,
        "the API server has more addresses than the kernel's set holds ({API_SERVERS_MOST}): connections to the rest \
         aren't intercepted"
    );
    condition.not_ready(format!(
        "{left_out} of the API server's addresses aren't intercepted: the kernel's set holds {API_SERVERS_MOST}"
    ));
}

/// The addresses that the kernel's set has room for, those that it has already before others, and how many are left out.
fn fit(in_force: &BTreeSet<SocketAddr>, wanted: &BTreeSet<SocketAddr>, most: usize) -> (BTreeSet<SocketAddr>, usize) {
    let (kept, new): (Vec<_>, Vec<_>) = wanted.iter().partition(|address| in_force.contains(address));
    let fitting: BTreeSet<_> = kept.into_iter().chain(new).take(most).copied().collect();
    let left_out = wanted.len() - fitting.len();
    (fitting, left_out)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rstest::rstest;

    use super::*;
    use crate::admin::Readiness;

    fn set(ports: &[u16]) -> BTreeSet<SocketAddr> {
        ports
            .iter()
            .map(|port| SocketAddr::new([10, 0, 0, 1].into(), *port))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_cannot_be_set_are_tried_again() {
        let readiness = Readiness::default();
        let (publish, addresses) = watch::channel(None);
        let (told, mut attempts) = mpsc::unbounded_channel();
        let failures = AtomicUsize::new(3);
        let attempt = move |wanted: &BTreeSet<SocketAddr>| {
            told.send(wanted.clone()).unwrap();
            let left = failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_ok() { Err("no memory") } else { Ok(()) }
        };
        let condition = readiness.condition("addresses");
        condition.ready();
        tokio::spawn(follow_addresses(attempt, addresses, BTreeSet::new(), condition));
        publish.send_replace(Some(Arc::new(set(&[1]))));
        for _ in 0..3 {
            assert_eq!(attempts.recv().await.unwrap(), set(&[1]));
        }
        assert!(!readiness.is_ready());
        assert_eq!(attempts.recv().await.unwrap(), set(&[1]), "without another change");
        readiness.ready().await;
        let quiet = tokio::time::timeout(Duration::from_mins(10), attempts.recv()).await;
        assert!(quiet.is_err(), "and no more once it is set");
    }

    #[rstest]
    #[case::room(&[1], &[1, 2, 3], &[1, 2, 3], 0)]
    #[case::the_old_stay(&[7, 8], &[1, 7, 8, 9], &[1, 7, 8], 1)]
    #[case::first(&[], &[1, 2, 3, 4], &[1, 2, 3], 1)]
    #[case::gone(&[7], &[1], &[1], 0)]
    fn what_fits(#[case] before: &[u16], #[case] wanted: &[u16], #[case] expected: &[u16], #[case] left_out: usize) {
        assert_eq!(fit(&set(before), &set(wanted), 3), (set(expected), left_out));
    }
}
