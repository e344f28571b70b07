//! What is waited for beside a connection, without being asked at each of its turns.

use std::iter;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// A future that is polled when it was woken itself, and not each time that its task is.
///
/// A connection's task has a turn for all that comes and goes, and waits meanwhile for ends that come once, if ever: of its
/// session, its pod, the agent. A `select!` asks each of them each time, at the price of a lock.
pub fn apart<F: Future<Output = ()>>(future: F) -> impl Future<Output = ()> {
    // Boxed, for room for another is kept beside.
    let mut alone: FuturesUnordered<_> = iter::once(Box::pin(future)).collect();
    async move {
        alone.next().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Poll,
    };

    use tokio::{sync::Notify, task};

    use super::*;

    #[tokio::test]
    async fn it_is_asked_when_it_was_woken_and_then_only() {
        let (asked, end) = (AtomicUsize::new(0), Notify::new());
        let waiting = async {
            let mut notified = Box::pin(end.notified());
            poll_fn(|cx| {
                asked.fetch_add(1, Ordering::Relaxed);
                notified.as_mut().poll(cx)
            })
            .await;
        };
        let mut waiting = Box::pin(apart(waiting));
        let mut turns = 0;
        let others = poll_fn(|cx| {
            turns += 1;
            assert!(waiting.as_mut().poll(cx).is_pending());
            if turns == 50 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        others.await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);

        end.notify_one();
        waiting.await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    /// The task that waits may be another than that which asked first.
    #[tokio::test]
    async fn it_wakes_whoever_waits_for_it() {
        let end = Arc::new(Notify::new());
        let mut waiting = Box::pin(apart({
            let end = Arc::clone(&end);
            async move { end.notified().await }
        }));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let other = tokio::spawn(waiting);
        task::yield_now().await;
        end.notify_one();
        other.await.expect("ended in order");
    }
}
