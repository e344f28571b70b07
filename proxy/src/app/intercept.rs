//! Puts the kernel side in force, and keeps the addresses that it intercepts those of the API server.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, sync::Arc};

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Condition,
    cluster::addresses::Addresses,
    enrol::{self, Enrolment, Leftovers},
    kernel::{API_SERVERS_MOST, Kernel, Options as KernelInstallation, cgroup::CgroupRoot},
    metrics::register_counts,
    pod::{Inbound, WantedPod},
};

/// What is intercepted.
pub(super) struct Interception<'a> {
    pub(super) root: &'a Path,
    pub(super) pin_dir: &'a Path,
    pub(super) addresses: watch::Receiver<Option<Addresses>>,
    pub(super) wanted: watch::Receiver<Arc<[WantedPod]>>,
    pub(super) leftovers: Leftovers,
}

/// Puts the kernel side in force, and enrols the pods that are wanted.
pub(super) fn intercept(
    interception: Interception<'_>,
    accept: mpsc::Sender<Inbound>,
    shutdown: CancellationToken,
    condition: Condition,
    registry: &mut Registry,
) -> anyhow::Result<Enrolment> {
    let Interception {
        root,
        pin_dir,
        mut addresses,
        wanted,
        leftovers,
    } = interception;
    let root = CgroupRoot::open(root)?;
    let kernel = Arc::new(Kernel::install(&root, &KernelInstallation::new(pin_dir))?);
    let first = addresses.borrow_and_update().clone().unwrap_or_default();
    let (fitting, left_out) = fit(&BTreeSet::new(), &first, API_SERVERS_MOST);
    kernel.set_api_servers(&fitting)?;
    say(&condition, left_out);
    tokio::spawn(follow_addresses(Arc::clone(&kernel), addresses, fitting, condition));
    let counters = Arc::clone(&kernel);
    register_counts(
        registry,
        "kernel_connects",
        "Connects that the kernel programs judged, by verdict",
        "verdict",
        move || {
            counters
                .counters()
                .map(|counters| counters.iter().collect())
                .unwrap_or_default()
        },
    );
    let enrolment = enrol::start(kernel, root, wanted, leftovers, accept, shutdown);
    let refusals = Arc::clone(&enrolment.refusals);
    register_counts(
        registry,
        "inbound_refusals",
        "Connections to the listeners that were closed because the kernel didn't vouch for them, by reason",
        "reason",
        move || refusals.iter().collect(),
    );
    Ok(enrolment)
}

/// Keeps the kernel's set as the addresses are, until they have no owner any more.
async fn follow_addresses(
    kernel: Arc<Kernel>,
    mut addresses: watch::Receiver<Option<Addresses>>,
    mut in_force: BTreeSet<SocketAddr>,
    condition: Condition,
) {
    while addresses.changed().await.is_ok() {
        let wanted = addresses.borrow_and_update().clone().unwrap_or_default();
        let (fitting, left_out) = fit(&in_force, &wanted, API_SERVERS_MOST);
        match kernel.set_api_servers(&fitting) {
            Ok(()) => {
                in_force = fitting;
                say(&condition, left_out);
            }
            Err(error) => {
                tracing::error!(%error, "connections to the API server's new addresses aren't intercepted");
                condition.not_ready("the API server's addresses can't be set; the agent's log says why");
            }
        }
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
    use rstest::rstest;

    use super::*;

    fn set(ports: &[u16]) -> BTreeSet<SocketAddr> {
        ports
            .iter()
            .map(|port| SocketAddr::new([10, 0, 0, 1].into(), *port))
            .collect()
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
