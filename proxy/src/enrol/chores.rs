//! What is to be done for pods at a later time.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Something to do for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chore {
    /// To look at it.
    Visit,
    /// To go through its connections.
    Sever,
}

/// By when they are due, each once.
#[derive(Debug, Default)]
pub(super) struct Chores(BTreeSet<(Instant, Chore, PathBuf)>);

impl Chores {
    /// To be done for each of these pods in that time.
    pub(super) fn add(&mut self, delay: Duration, chore: Chore, cgroups: impl IntoIterator<Item = PathBuf>) {
        let due = Instant::now() + delay;
        self.0.extend(cgroups.into_iter().map(|cgroup| (due, chore, cgroup)));
    }

    /// Resolves when the next is due; never, where there is none.
    pub(super) async fn due(&self) {
        match self.0.first() {
            Some((at, ..)) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Takes out what is due: the pods to visit, and those whose connections are to be gone through.
    pub(super) fn take(&mut self) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let (mut visits, mut severs) = (BTreeSet::new(), BTreeSet::new());
        let now = Instant::now();
        while self.0.first().is_some_and(|(due, ..)| *due <= now)
            && let Some((_, chore, cgroup)) = self.0.pop_first()
        {
            match chore {
                Chore::Visit => visits.insert(cgroup),
                Chore::Sever => severs.insert(cgroup),
            };
        }
        (visits, severs)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    fn paths<const N: usize>(names: [&str; N]) -> BTreeSet<PathBuf> {
        names.map(PathBuf::from).into()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_taken_once_and_the_rest_stays() {
        let began = Instant::now();
        let mut chores = Chores::default();
        chores.add(Duration::from_secs(2), Chore::Visit, paths(["a", "b"]));
        chores.add(Duration::from_secs(1), Chore::Visit, paths(["b"]));
        chores.add(Duration::from_secs(1), Chore::Sever, paths(["b"]));
        assert_eq!(chores.take(), (paths([]), paths([])));
        chores.due().await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert_eq!(chores.take(), (paths(["b"]), paths(["b"])));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(chores.take(), (paths(["a", "b"]), paths([])));
        let never = timeout(Duration::from_hours(1), chores.due()).await;
        assert!(never.is_err(), "nothing is left");
    }
}
