//! What takes time, done in parallel on threads of its own: looking at pods, and making listeners.

use std::{path::PathBuf, sync::Arc};

use tokio::task::{JoinError, JoinSet};

use super::{
    netns::{Listeners, Netns, NetnsError, NetnsId},
    observe::{Observation, observe},
};
use crate::{kernel::cgroup::CgroupRoot, pod::CgroupId};

/// How many jobs run at a time. Most of what they do is wait for the kernel.
const AT_A_TIME: usize = 8;
/// How many pods one job looks at.
const CHUNK: usize = 16;

/// A job.
#[derive(Debug)]
pub(super) enum Job {
    /// Look at these pods.
    Look(Vec<PathBuf>),
    /// Make a pod's listeners.
    Listen {
        cgroup: PathBuf,
        id: CgroupId,
        netns: Netns,
    },
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum Done {
    Looked(Vec<(PathBuf, Observation)>),
    Listening {
        cgroup: PathBuf,
        id: CgroupId,
        netns: NetnsId,
        listeners: Result<Listeners, NetnsError>,
    },
}

impl Job {
    fn run(self, root: &CgroupRoot) -> Done {
        match self {
            Self::Look(cgroups) => Done::Looked(
                cgroups
                    .into_iter()
                    .map(|cgroup| {
                        let observation = observe(root, &cgroup);
                        (cgroup, observation)
                    })
                    .collect(),
            ),
            Self::Listen { cgroup, id, netns } => Done::Listening {
                cgroup,
                id,
                netns: netns.id(),
                listeners: netns.listen(),
            },
        }
    }
}

/// Jobs to do and under way.
#[derive(Debug)]
pub(super) struct Jobs {
    root: Arc<CgroupRoot>,
    waiting: Vec<Job>,
    running: JoinSet<Done>,
}

impl Jobs {
    /// A look at each of these pods.
    pub(super) fn look(root: Arc<CgroupRoot>, cgroups: &[PathBuf]) -> Self {
        Self {
            root,
            waiting: cgroups
                .chunks(CHUNK)
                .rev()
                .map(|chunk| Job::Look(chunk.to_vec()))
                .collect(),
            running: JoinSet::new(),
        }
    }

    /// Another job, before those that wait.
    pub(super) fn push(&mut self, job: Job) {
        self.waiting.push(job);
    }

    /// The next that is done; none when all are.
    pub(super) async fn next(&mut self) -> Option<Result<Done, JoinError>> {
        while self.running.len() < AT_A_TIME
            && let Some(job) = self.waiting.pop()
        {
            let root = Arc::clone(&self.root);
            self.running.spawn_blocking(move || job.run(&root));
        }
        self.running.join_next().await
    }
}
