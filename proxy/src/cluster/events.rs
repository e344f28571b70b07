//! Events for operators: one task writes them, slowly where there are many, and drops what is too much. Nothing secret
//! is in any of them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::metrics::{Metrics, Written};

/// Events that wait to be written.
const QUEUE: usize = 512;
/// Not more than one in so long; a node has 250 pods or so.
const PACE: Duration = Duration::from_millis(100);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is said how many were dropped.
const TELL_DROPPED_EVERY: Duration = Duration::from_secs(30);
/// The API server's limit on a note.
const NOTE_MOST: usize = 1024;

/// Something that an operator should see.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The pod or the Session.
    pub regarding: ObjectReference,
    /// Whether something is wrong.
    pub is_warning: bool,
    /// A word for programs.
    pub reason: &'static str,
    /// What it was about: `Enrol`, `Resolve`, ...
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// Where Events are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Notice>,
    metrics: Metrics,
    dropped: Dropped,
}

impl Events {
    /// Starts the task that writes them, until all handles are gone.
    #[must_use]
    pub fn start(client: kube::Client, node: &str, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: "understudy.dev/agent".to_owned(),
            // As long as the API server lets it be.
            instance: Some(node.chars().take(128).collect()),
        };
        let recorder = Recorder::new(client, reporter);
        let (queue, notices) = mpsc::channel(QUEUE);
        tokio::spawn(write(recorder, notices, metrics.clone()));
        Self {
            queue,
            metrics,
            dropped: Dropped::default(),
        }
    }

    /// Hands one in. It never waits.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.queue.try_send(notice) {
            let notice = error.into_inner();
            self.metrics.event(Written::Dropped);
            if let Some(dropped) = self.dropped.count(Instant::now()) {
                tracing::warn!(
                    dropped,
                    reason = notice.reason,
                    note = notice.note,
                    "too many Events: some are dropped, this one the last so far"
                );
            }
        }
    }
}

/// Counts what is dropped, and says from time to time how many.
#[derive(Debug, Clone, Default)]
struct Dropped(Arc<Mutex<(u64, Option<Instant>)>>);

impl Dropped {
    /// One more. How many there were since it was last asked to be told, where it's time to.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (dropped, told) = &mut *counted;
        *dropped += 1;
        if told.is_some_and(|at| now.duration_since(at) < TELL_DROPPED_EVERY) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(dropped))
    }
}

async fn write(recorder: Recorder, mut notices: mpsc::Receiver<Notice>, metrics: Metrics) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(notice) = notices.recv().await {
        pace.tick().await;
        let event = Event {
            type_: if notice.is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: notice.reason.to_owned(),
            note: Some(cut(&notice.note)),
            action: notice.action.to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, recorder.publish(&event, &notice.regarding)).await {
            Ok(Ok(())) => metrics.event(Written::Done),
            Ok(Err(error)) => {
                metrics.event(Written::Failed);
                tracing::warn!(%error, reason = notice.reason, note = notice.note, "an Event can't be written");
            }
            Err(_) => metrics.event(Written::Failed),
        }
    }
}

fn cut(note: &str) -> String {
    let mut end = note.len().min(NOTE_MOST);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_is_dropped_is_told_of_once_and_counted() {
        let (dropped, start) = (Dropped::default(), Instant::now());
        let told: Vec<_> = (0..1000).filter_map(|_| dropped.count(start)).collect();
        assert_eq!(told, [1]);
        assert_eq!(dropped.count(start + TELL_DROPPED_EVERY), Some(1000));
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = format!("{}ü", "x".repeat(NOTE_MOST - 1));
        assert_eq!(cut(&long), "x".repeat(NOTE_MOST - 1));
    }
}
