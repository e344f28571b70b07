//! What the enroller hears from others.

use std::sync::Arc;

use tokio::sync::watch;

use super::Leftovers;
use crate::pod::WantedPod;

/// Which pods are wanted, and what becomes of those that an earlier agent left. One that has ended leaves what it said
/// last.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) wanted: Source<Arc<[WantedPod]>>,
    pub(super) leftovers: Source<Leftovers>,
}

impl Sources {
    pub(super) fn new(wanted: watch::Receiver<Arc<[WantedPod]>>, leftovers: watch::Receiver<Leftovers>) -> Self {
        Self {
            wanted: Source::new(wanted),
            leftovers: Source::new(leftovers),
        }
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct Source<T> {
    says: watch::Receiver<T>,
    is_live: bool,
}

impl<T: Clone> Source<T> {
    fn new(says: watch::Receiver<T>) -> Self {
        Self { says, is_live: true }
    }

    /// Waits for a change, and never returns where there will be none.
    pub(super) async fn changed(&mut self) {
        if !self.is_live {
            std::future::pending::<()>().await;
        }
        self.is_live = self.says.changed().await.is_ok();
    }

    /// What it says.
    pub(super) fn latest(&self) -> T {
        self.says.borrow().clone()
    }

    /// What it says, which isn't a change any more.
    pub(super) fn heed(&mut self) -> T {
        self.says.borrow_and_update().clone()
    }
}
