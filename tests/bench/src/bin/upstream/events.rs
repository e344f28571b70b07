//! Events: ordered by one, awaited by all watches.

use bytes::Bytes;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// The order in which they come, and the last.
#[derive(Debug)]
pub(crate) struct Events(watch::Sender<Event>);

/// One event, as its line in a watch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Event {
    number: u64,
    pub(crate) line: Bytes,
}

impl Default for Events {
    fn default() -> Self {
        Self(watch::Sender::new(Event::default()))
    }
}

impl Events {
    /// Sends one to all watches, stamped with the time by the machine's monotonic clock, in nanoseconds.
    pub(crate) fn send(&self) -> nix::Result<()> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let stamp = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
        self.0.send_modify(|event| {
            let number = event.number + 1;
            let line = format!(
                "{{\"type\":\"ADDED\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":\
                 {{\"name\":\"event-{number}\",\"namespace\":\"bench\",\"resourceVersion\":\"{number}\"}},\
                 \"data\":{{\"sent\":\"{stamp}\"}}}}}}\n"
            );
            *event = Event {
                number,
                line: line.into(),
            };
        });
        Ok(())
    }

    /// Those that are sent from now on.
    pub(crate) fn follow(&self) -> watch::Receiver<Event> {
        self.0.subscribe()
    }
}

/// The next event; none once nobody can send any.
pub(crate) async fn next(events: &mut watch::Receiver<Event>) -> Option<Bytes> {
    events.changed().await.ok()?;
    Some(events.borrow_and_update().line.clone())
}
