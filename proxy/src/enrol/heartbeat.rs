//! The agent's sign of life to the kernel programs, and small chores that go by the clock.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::error;

use crate::kernel::{Kernel, MapError};

/// Several in the second that the programs wait.
const BEAT: Duration = Duration::from_millis(250);
const SWEEP: Duration = Duration::from_secs(20);

/// Beats until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Heart {
    task: JoinHandle<()>,
    stopping: DropGuard,
}

impl Heart {
    /// For the first time now. On the runtime that serves the connections, for what it tells is that they are served.
    pub(super) fn start(kernel: Arc<Kernel>) -> Self {
        report(kernel.beat());
        let stopping = CancellationToken::new();
        Self {
            task: tokio::spawn(go_on(kernel, stopping.clone())),
            stopping: stopping.drop_guard(),
        }
    }

    /// Waits for what is under way: the kernel side is let go of afterwards.
    pub(super) async fn stop(self) {
        drop(self.stopping);
        if let Err(error) = self.task.await {
            error!(%error, "the heart");
        }
    }
}

async fn go_on(kernel: Arc<Kernel>, stopping: CancellationToken) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let tracker = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            _ = beats.tick() => report(kernel.beat()),
            _ = sweeps.tick() => {
                let kernel = Arc::clone(&kernel);
                tracker.spawn_blocking(move || report(kernel.sweep_flows().map(drop)));
            }
        }
    }
    tracker.close();
    tracker.wait().await;
}

fn report(done: Result<(), MapError>) {
    if let Err(error) = done {
        error!(%error, "the kernel programs may soon refuse tagged pods");
    }
}
