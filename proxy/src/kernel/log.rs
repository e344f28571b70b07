//! What debug builds of the kernel programs (`cargo xtask ebpf --debug`) say of each decision, in the agent's own log.

use std::time::Duration;

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};
use tokio::{
    runtime::Handle,
    time::{MissedTickBehavior, interval},
};

/// How often the programs' buffer is emptied. For people who read along; nothing depends on it.
const LOOK: Duration = Duration::from_millis(100);

/// Follows the programs' log, if they were built with one.
pub(super) fn follow(object: &mut Ebpf) {
    let mut log = match EbpfLogger::init_with_logger(object, ToTracing) {
        Ok(log) => log,
        Err(Error::MapNotFound) => return,
        Err(error) => return tracing::warn!(%error, "the kernel programs' log can't be read"),
    };
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn(async move {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            log.flush();
        }
    });
}

struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "understudy::kernel", "{}", record.args());
    }

    fn flush(&self) {}
}
