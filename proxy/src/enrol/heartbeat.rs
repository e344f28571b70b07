//! The agent's sign of life to the kernel programs, and small chores that go by the clock.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::error;

use crate::{
    clock,
    kernel::{Kernel, MapError},
};

/// Several in the second that the programs wait, while connections come.
const BEAT: Duration = Duration::from_millis(256);
/// While none do: there is little on the processors that could hold a beat up, and each of them wakes one.
const RESTING_BEAT: Duration = clock::MOMENTS;
/// How long after the last connection it beats faster.
const EXERTION: Duration = Duration::from_secs(5);
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
    let mut next = Instant::now();
    let mut pulse = Pulse::new(kernel.flows_taken(), next);
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let tracker = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            () = sleep_until(next) => {
                report(kernel.beat());
                pulse.beaten(kernel.flows_taken(), Instant::now());
                next = if pulse.pause == BEAT { clock::slot_in(BEAT) } else { clock::moment_in(pulse.pause) };
            }
            _ = sweeps.tick() => {
                let kernel = Arc::clone(&kernel);
                tracker.spawn_blocking(move || report(kernel.sweep_flows().map(drop)));
            }
        }
    }
    tracker.close();
    tracker.wait().await;
}

/// How fast to beat.
#[derive(Debug)]
struct Pulse {
    /// How long to wait.
    pause: Duration,
    /// How many connections had come at the last beat.
    taken: u64,
    /// Until when more are expected.
    exerted: Instant,
}

impl Pulse {
    fn new(taken: u64, now: Instant) -> Self {
        Self {
            pause: BEAT,
            taken,
            exerted: now + EXERTION,
        }
    }

    /// It was beaten just now, when so many connections had come.
    fn beaten(&mut self, taken: u64, now: Instant) {
        if taken != self.taken {
            self.taken = taken;
            self.exerted = now + EXERTION;
        }
        self.pause = if now < self.exerted { BEAT } else { RESTING_BEAT };
    }
}

fn report(done: Result<(), MapError>) {
    if let Err(error) = done {
        error!(%error, "the kernel programs may soon refuse tagged pods");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_beats_faster_while_connections_come() {
        let start = Instant::now();
        let mut pulse = Pulse::new(0, start);
        let mut after = |taken, now| {
            pulse.beaten(taken, now);
            pulse.pause
        };
        assert_eq!(after(0, start), BEAT, "pods may have waited for this agent");
        let rested = start + EXERTION;
        assert_eq!(after(0, rested), RESTING_BEAT);
        assert_eq!(after(1, rested), BEAT);
        assert_eq!(after(1, rested + EXERTION), RESTING_BEAT);
    }
}
