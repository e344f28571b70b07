//! The enroller's part in handing the node over to the next agent: from being in charge, by way of having yielded,
//! to retirement. Where the next one comes to nothing before it has taken over, all goes on as before.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use understudy_common::PodEntry;

use super::{
    Leftovers,
    enroller::Enroller,
    place::State,
    steward::{GRACE, LONGEST_GRACE, Order, Request, StewardError},
};
use crate::{kernel::MapError, pod::CgroupId};

/// How often it is looked whether the listeners may close.
const LOOK: Duration = Duration::from_millis(100);

/// Whose the kernel side is.
#[derive(Debug)]
pub(super) struct Tenure {
    stage: Stage,
    retired: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    InCharge,
    Yielded,
    /// Since when another agent's listeners stand in the entries.
    Retiring(Instant),
    Retired,
}

impl Tenure {
    pub(super) fn new(retired: CancellationToken) -> Self {
        Self {
            stage: Stage::InCharge,
            retired,
        }
    }

    pub(super) fn is_in_charge(&self) -> bool {
        self.stage == Stage::InCharge
    }

    /// Whether another agent is about to take over.
    pub(super) fn has_yielded(&self) -> bool {
        self.stage == Stage::Yielded
    }

    /// Whether the listeners may close at any time: no entry names them, or it can be seen to that none does.
    pub(super) fn may_end(&self) -> bool {
        matches!(self.stage, Stage::InCharge | Stage::Retired)
    }

    /// The next look, while there is something to wait for.
    pub(super) async fn grace(&self) {
        match self.stage {
            Stage::Retiring(_) => sleep(LOOK).await,
            _ => std::future::pending().await,
        }
    }
}

impl Enroller {
    /// Carries out an order, or says why not.
    pub(super) async fn obey(&mut self, (order, done): Request) {
        let outcome = match (order, self.tenure.stage) {
            (Order::Yield, Stage::InCharge) => {
                self.kernel.yield_up();
                self.tenure.stage = Stage::Yielded;
                info!("another agent is about to take over: the kernel side is left to it");
                Ok(())
            }
            (Order::Resume, Stage::Yielded) => self.resume().await,
            (Order::Retire, Stage::Yielded) => {
                info!("another agent has taken over");
                self.tenure.stage = Stage::Retiring(Instant::now());
                Ok(())
            }
            _ => Err(StewardError::NotInCharge),
        };
        // Who asked may have gone: what was done stands.
        let _gone = done.send(outcome);
    }

    /// The next agent came to nothing. It may have replaced some entries, or all, and made some of pods that this one
    /// hasn't heard of yet: what isn't known is refused, and let go only where it was this agent that knew it and let
    /// it go.
    async fn resume(&mut self) -> Result<(), StewardError> {
        self.kernel.resume()?;
        self.tenure.stage = Stage::InCharge;
        warn!("the other agent came to nothing: this one goes on");
        let now = self.sources.wanted.heed();
        self.want(&now);
        for place in self.places.values() {
            let (id, entry) = match &place.state {
                State::Enrolled { pod, entry, .. } => (pod.cgroup_id, *entry),
                State::Tagged { id, .. } => (*id, PodEntry::without_listener(self.next_enrolment)),
                State::Absent | State::Failed { .. } => continue,
            };
            if let Err(error) = self.kernel.set_pod(id, &entry) {
                error!(%error, pod = %place.wanted.name, "the pod's entry is the other agent's, which is gone");
            }
        }
        let all: Vec<PathBuf> = self.places.keys().cloned().collect();
        self.tag_present(&all);
        self.settle_leftovers(Leftovers::Refuse);
        self.let_go_of_released();
        self.visit_all().await;
        Ok(())
    }

    /// What nobody wanted any more, and another agent's entries still name.
    fn let_go_of_released(&mut self) {
        let own = self.own();
        for id in std::mem::take(&mut self.released) {
            if !own.contains(&id)
                && let Err(error) = self.kernel.remove_pod(CgroupId(id))
            {
                error!(%error, cgroup_id = id, "the pod stays tagged, and refused");
            }
        }
    }

    /// Closes the listeners once nothing is turned to them any more.
    pub(super) async fn watch_grace(&mut self) {
        let Stage::Retiring(since) = self.tenure.stage else {
            return;
        };
        if since.elapsed() < GRACE {
            return;
        }
        match self.in_use() {
            Ok(false) => {}
            Ok(true) if since.elapsed() < LONGEST_GRACE => return,
            Ok(true) => self.silence(),
            Err(error) => error!(%error, "closing the listeners all the same"),
        }
        self.tenure.stage = Stage::Retired;
        if let Some(heart) = self.beating.take() {
            heart.stop().await;
        }
        self.acceptor.closing.cancel();
        self.tenure.retired.cancel();
        info!("the listeners are closed: new connections are the other agent's");
    }

    /// Whether an entry names one of our listeners, or a connection is on its way to one.
    fn in_use(&self) -> Result<bool, MapError> {
        let ours = self.ours();
        let named = self
            .kernel
            .pods()?
            .iter()
            .any(|(_, entry)| entry.port4 != 0 && ours.contains(&entry.enrolment));
        Ok(named || self.kernel.flows_of(&ours)? > 0)
    }

    fn ours(&self) -> RangeInclusive<u64> {
        self.first_enrolment..=self.next_enrolment
    }

    /// The other agent left entries that name our listeners. Where it is gone, they are for us to silence; where it
    /// isn't, they are its own, and it has said that it is done.
    fn silence(&self) {
        if let Err(error) = self.kernel.resume() {
            warn!(%error, "some connections are still on their way to this agent's listeners, which close");
            return;
        }
        let silence = || -> Result<(), MapError> {
            let ours = self.ours();
            for (id, entry) in self.kernel.pods()? {
                if ours.contains(&entry.enrolment) {
                    self.kernel.set_pod(id, &PodEntry::without_listener(entry.enrolment))?;
                }
            }
            Ok(())
        };
        if let Err(error) = silence() {
            error!(%error, "the kernel programs still know listeners that close now");
        }
        self.kernel.yield_up();
    }
}
