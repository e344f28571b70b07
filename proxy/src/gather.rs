//! Many small writes made one.
//!
//! An HTTP/2 connection has a task of its own, which is woken by each of its streams that has something to send. tokio
//! runs a task that another woke right after that one: the connection would be written to once for each stream, though
//! dozens have their turn in the same moment. [`Gather`] has it wait for them.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// Polls a future only when whatever else was ready at its wake has had its turn: the task goes to the end of its
/// worker's queue first. Where nothing else is ready, that is at once.
#[derive(Debug)]
pub struct Gather<F> {
    inner: F,
    has_waited: bool,
}

impl<F> Gather<F> {
    /// Of a future that others wake for more to do.
    pub const fn new(inner: F) -> Self {
        Self {
            inner,
            has_waited: false,
        }
    }

    /// The future.
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.inner
    }
}

impl<F: Future + Unpin> Future for Gather<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.has_waited {
            self.has_waited = false;
            return Pin::new(&mut self.inner).poll(cx);
        }
        self.has_waited = true;
        // A task that wakes itself is put behind all others that are ready.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use tokio::sync::Notify;

    use super::*;

    /// Without it the connection has as many turns as there are streams.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_wakes_together_is_served_together() {
        const STREAMS: usize = 100;
        let (begin, woken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let turns = Arc::new(AtomicUsize::new(0));
        let connection = {
            let (woken, turns) = (Arc::clone(&woken), Arc::clone(&turns));
            async move {
                loop {
                    woken.notified().await;
                    turns.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        let connection = tokio::spawn(Gather::new(Box::pin(connection)));
        let streams: Vec<_> = (0..STREAMS)
            .map(|_| {
                let (begin, woken) = (Arc::clone(&begin), Arc::clone(&woken));
                tokio::spawn(async move {
                    begin.notified().await;
                    woken.notify_one();
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        begin.notify_waiters();
        for stream in streams {
            stream.await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        connection.abort();
        let turns = turns.load(Ordering::SeqCst);
        assert!((1..=STREAMS / 10).contains(&turns), "{turns} turns");
    }
}
