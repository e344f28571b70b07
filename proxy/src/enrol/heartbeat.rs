//! The agent's sign of life to the kernel programs, and small chores that go by the clock.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::kernel::{Kernel, MapError};

/// Several in the second that the programs wait.
const BEAT: Duration = Duration::from_millis(250);
const SWEEP: Duration = Duration::from_secs(20);

/// Beats until the handle is dropped, for the first time now. On the runtime that serves the connections, for what
/// it tells is that they are served.
pub(super) fn start(kernel: Arc<Kernel>) -> AbortOnDropHandle<()> {
    report(kernel.beat());
    AbortOnDropHandle::new(tokio::spawn(go_on(kernel)))
}

async fn go_on(kernel: Arc<Kernel>) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beats.tick() => report(kernel.beat()),
            _ = sweeps.tick() => {
                let kernel = Arc::clone(&kernel);
                spawn_blocking(move || report(kernel.sweep_flows().map(drop)));
            }
        }
    }
}

fn report(done: Result<(), MapError>) {
    if let Err(error) = done {
        error!(%error, "the kernel programs may soon refuse tagged pods");
    }
}
