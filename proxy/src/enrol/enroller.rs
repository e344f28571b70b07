//! The owner of all enrolments: the one task that tags, enrols, and lets go.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{error, warn};
use understudy_common::{Counter, PodEntry};

use super::{
    PodStatus,
    accept::Acceptor,
    attempts::Attempts,
    chores::{Chore, Chores},
    heartbeat::Heart,
    netns::NetnsId,
    observe::Observation,
    place::{Cgroup, Place, State},
    plan::{self, Seen},
    sever::Severer,
    sources::Sources,
    steward::Request,
    succession::Tenure,
    watches::{Change, Watches},
    work::{Done, Job, Jobs},
};
use crate::{
    kernel::{Kernel, boot_ns, cgroup::CgroupRoot},
    pod::{CgroupId, WantedPod},
};

/// How often everything is looked at, whatever was or wasn't reported.
const RESCAN: Duration = Duration::from_secs(10);

/// A container runtime puts a process into the pod's cgroup before it puts it into the pod's namespace. When a pod
/// has just been enrolled it is looked at again after these; and where that has failed it is tried again.
const SETTLING: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// A connect that was judged before the pod was tagged, and was on no list yet when the pod's connections were gone
/// through, is found after this.
const SEVER_AGAIN: Duration = Duration::from_secs(1);

/// The task's state.
#[derive(Debug)]
pub(super) struct Enroller {
    pub(super) kernel: Arc<Kernel>,
    pub(super) root: Arc<CgroupRoot>,
    pub(super) acceptor: Acceptor,
    pub(super) status: watch::Sender<Arc<[PodStatus]>>,
    /// Whether a pod's state has changed since it was published.
    pub(super) changed: bool,
    pub(super) listeners: TaskTracker,
    pub(super) places: BTreeMap<PathBuf, Place>,
    pub(super) sources: Sources,
    pub(super) watches: Option<Watches>,
    severer: Severer,
    chores: Chores,
    pub(super) first_enrolment: u64,
    pub(super) next_enrolment: u64,
    foreign: u64,
    pub(super) attempts: Arc<Attempts>,
    pub(super) tenure: Tenure,
    pub(super) beating: Option<Heart>,
    /// Closes the listeners, however this ends.
    _closing: DropGuard,
    /// Until each entry that another agent serves by has been replaced.
    pub(super) adopting: bool,
    /// Leftovers are to be untagged once no wanted pod's cgroup is hidden any more.
    pub(super) untag_later: bool,
    /// Cgroups that were let go while another agent had the kernel side.
    pub(super) released: BTreeSet<u64>,
}

impl Enroller {
    pub(super) fn new(
        root: Arc<CgroupRoot>,
        acceptor: Acceptor,
        status: watch::Sender<Arc<[PodStatus]>>,
        severer: Severer,
        sources: Sources,
        retired: CancellationToken,
    ) -> Self {
        let kernel = Arc::clone(&acceptor.kernel);
        let acceptor_closing = acceptor.closing.clone().drop_guard();
        let watches = match Watches::new(root.path().to_owned()) {
            Ok(watches) => Some(watches),
            Err(error) => {
                warn!(%error, "no inotify: new pods are noticed at the next rescan only");
                None
            }
        };
        // Time goes up across agents, and faster than pods are enrolled.
        let first_enrolment = boot_ns();
        Self {
            // What an earlier agent's programs refused was for it to say.
            foreign: foreign_connects(&kernel),
            kernel,
            root,
            acceptor,
            status,
            changed: true,
            listeners: TaskTracker::new(),
            places: BTreeMap::new(),
            sources,
            watches,
            severer,
            chores: Chores::default(),
            first_enrolment,
            next_enrolment: first_enrolment,
            attempts: Arc::default(),
            tenure: Tenure::new(retired),
            beating: None,
            _closing: acceptor_closing,
            adopting: false,
            untag_later: false,
            released: BTreeSet::new(),
        }
    }

    /// Runs until `shutdown`.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Request>, shutdown: CancellationToken) {
        self.begin().await;
        let mut grown = self.kernel.api_servers_grown();
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        rescan.reset();
        loop {
            self.settle_delayed();
            self.publish();
            tokio::select! {
                () = shutdown.cancelled(), if self.tenure.may_end() => break,
                () = self.sources.wanted.changed() => {
                    let new = self.heed();
                    self.visit(new).await;
                }
                () = self.sources.leftovers.changed() => {
                    let new = self.heed();
                    self.visit(new).await;
                    // Anything that is wanted by now was heeded.
                    let leftovers = self.sources.leftovers.latest();
                    self.settle_leftovers(leftovers);
                }
                change = changed(self.watches.as_mut()) => {
                    let concerned = self.concerned(change);
                    self.tag_changed(&concerned);
                    let concerned: Vec<PathBuf> = concerned.into_iter().collect();
                    self.visit(concerned.clone()).await;
                    self.look_again(concerned);
                }
                // The kernel lives as long as this does, and so does its sender.
                Ok(()) = grown.changed() => {
                    let all: Vec<PathBuf> = self.places.keys().cloned().collect();
                    self.sever(all);
                }
                Some(request) = orders.recv() => self.obey(request).await,
                () = self.tenure.grace() => self.watch_grace().await,
                () = self.chores.due() => self.do_chores().await,
                _ = rescan.tick() => self.visit_all().await,
            }
        }
        self.drain().await;
    }

    /// Does what the sources say now, as far as it takes no time. Returns what is to be visited.
    fn heed(&mut self) -> Vec<PathBuf> {
        let now = self.sources.wanted.heed();
        let new = self.want(&now);
        self.tag_present(&new);
        new
    }

    /// Takes on what is wanted now, and lets go of what isn't any more. Returns the pods that are new, or to be
    /// enrolled anew.
    pub(super) fn want(&mut self, wanted: &[WantedPod]) -> Vec<PathBuf> {
        let (wanted, refused) = plan::distinct(wanted);
        for pod in refused {
            error!(pod = %pod.name, session = %pod.session, cgroup = %pod.cgroup.display(),
                "another session has the pod's cgroup already: ignored");
        }
        let mut new = Vec::new();
        let mut old = std::mem::take(&mut self.places);
        for wanted in wanted {
            let state = match old.remove(&wanted.cgroup) {
                Some(place) if place.wanted == wanted => {
                    self.places.insert(wanted.cgroup.clone(), place);
                    continue;
                }
                // To another session: it is enrolled anew, tagged throughout.
                Some(mut place) => {
                    self.close(&mut place);
                    place.state
                }
                None => State::Absent,
            };
            new.push(wanted.cgroup.clone());
            let place = Place {
                wanted,
                state,
                failures: 0,
            };
            self.places.insert(place.wanted.cgroup.clone(), place);
        }
        for (cgroup, mut place) in old {
            self.close(&mut place);
            self.untag(&mut place);
            if let Some(watches) = &mut self.watches {
                watches.forget(&cgroup);
            }
        }
        self.changed = true;
        new
    }

    pub(super) async fn visit_all(&mut self) {
        let all = self.places.keys().cloned().collect();
        self.visit(all).await;
    }

    /// The pods that a change concerns.
    fn concerned(&mut self, change: std::io::Result<Change>) -> BTreeSet<PathBuf> {
        let mut concerned = BTreeSet::new();
        let paths = match change {
            Ok(Change::At(paths)) => paths,
            Ok(Change::Everything) => return self.places.keys().cloned().collect(),
            Err(error) => {
                warn!(%error, "inotify failed: new pods are noticed at the next rescan only");
                self.watches = None;
                return concerned;
            }
        };
        for path in &paths {
            let Ok(relative) = path.strip_prefix(self.root.path()) else {
                continue;
            };
            let from = (Bound::Included(relative), Bound::Unbounded);
            let below = self.places.range::<Path, _>(from).map(|(cgroup, _)| cgroup);
            concerned.extend(below.take_while(|cgroup| cgroup.starts_with(relative)).cloned());
        }
        concerned
    }

    /// A container's cgroup is there before its process, and where the runtime's monitor is in the pod's as well, nothing
    /// tells when the process comes.
    fn look_again(&mut self, cgroups: Vec<PathBuf>) {
        let waiting = |cgroup: &PathBuf| {
            let place = self.places.get(cgroup);
            place.is_some_and(|place| matches!(place.state, State::Tagged { .. }))
        };
        let waiting: Vec<PathBuf> = cgroups.into_iter().filter(waiting).collect();
        for delay in SETTLING {
            self.chores.add(delay, Chore::Visit, waiting.iter().cloned());
        }
    }

    async fn do_chores(&mut self) {
        let (visits, severs) = self.chores.take();
        self.queue_severing(severs);
        self.visit(visits.into_iter().collect()).await;
    }

    /// Goes through the connections that these pods have, now and once more.
    fn sever(&mut self, cgroups: Vec<PathBuf>) {
        self.chores.add(SEVER_AGAIN, Chore::Sever, cgroups.iter().cloned());
        self.queue_severing(cgroups);
    }

    fn queue_severing(&self, cgroups: impl IntoIterator<Item = PathBuf>) {
        for place in cgroups.into_iter().filter_map(|cgroup| self.places.get(&cgroup)) {
            if place.state.tagged().is_some() {
                self.severer.queue(place.wanted.clone());
            }
        }
    }

    /// Looks at these pods, and does what that calls for. That may take long where they are many: what appears
    /// meanwhile is tagged at once (invariant 1), and visited next.
    pub(super) async fn visit(&mut self, cgroups: Vec<PathBuf>) {
        if cgroups.is_empty() {
            return;
        }
        self.note_foreign();
        if let Some(watches) = &mut self.watches {
            for cgroup in &cgroups {
                watches.follow(cgroup);
            }
        }
        let mut enrolling = Vec::new();
        let mut next = BTreeSet::new();
        let mut jobs = Jobs::look(Arc::clone(&self.root), &cgroups);
        loop {
            tokio::select! {
                change = changed(self.watches.as_mut()) => {
                    let concerned = self.concerned(change);
                    self.tag_changed(&concerned);
                    next.extend(concerned);
                }
                () = self.sources.wanted.changed() => next.extend(self.heed()),
                done = jobs.next() => match done {
                    None => break,
                    Some(Ok(done)) => self.finish(done, &mut jobs, &mut enrolling, &mut next),
                    Some(Err(error)) => error!(%error, "the pods could not be looked at"),
                },
            }
        }
        self.chores.add(Duration::ZERO, Chore::Visit, next);
        // After them all: it can wait, and what can't is done.
        self.sever(enrolling);
    }

    /// Does what a job's outcome calls for. `next` are pods to be visited again, for they have changed since it began.
    fn finish(&mut self, done: Done, jobs: &mut Jobs, enrolling: &mut Vec<PathBuf>, next: &mut BTreeSet<PathBuf>) {
        match done {
            Done::Looked(looks) => {
                for (cgroup, observation) in looks {
                    // Not wanted any more.
                    let Some(mut place) = self.places.remove(&cgroup) else {
                        continue;
                    };
                    // What was seen may be older than what is tagged.
                    let is_old = next.contains(&cgroup) && observation.cgroup() != place.state.tagged();
                    if !is_old && let Some(job) = self.act(&mut place, observation) {
                        enrolling.push(cgroup.clone());
                        jobs.push(job);
                    }
                    self.places.insert(cgroup, place);
                }
            }
            Done::Listening {
                cgroup,
                id,
                netns,
                listeners,
            } => {
                let Some(mut place) = self.places.remove(&cgroup) else {
                    return;
                };
                if matches!(place.state, State::Tagged { id: tagged, .. } if tagged == id) {
                    let enrolled = listeners
                        .map_err(|error| error.to_string())
                        .and_then(|listeners| self.open(&mut place, id, netns, listeners));
                    self.settle(&mut place, id, enrolled);
                } else {
                    next.insert(cgroup.clone());
                }
                self.places.insert(cgroup, place);
            }
        }
    }

    /// Says so when sockets of other namespaces than the enrolled were refused.
    fn note_foreign(&mut self) {
        let foreign = foreign_connects(&self.kernel);
        if foreign > self.foreign {
            warn!(
                connects = foreign - self.foreign,
                "refused: dialled from another namespace than the pod's"
            );
        }
        self.foreign = foreign;
    }

    /// Does what a look calls for, as far as it takes no time.
    fn act(&mut self, place: &mut Place, observation: Observation) -> Option<Job> {
        let known = place.state.known();
        let (step, id, netns) = match observation {
            Observation::Absent => (plan::step(known, Seen::Absent), None, None),
            Observation::Empty(directory) => (
                plan::step(known, Seen::Empty(directory.id())),
                Some(directory.id()),
                None,
            ),
            Observation::Inhabited { directory, namespaces } => {
                let id = directory.id();
                let ids: Vec<NetnsId> = namespaces.iter().map(super::netns::Netns::id).collect();
                let step = plan::step(known, Seen::Inhabited(id, &ids));
                (step, Some(id), namespaces.into_iter().next())
            }
            Observation::Failed { cgroup, error } => {
                if let Cgroup::Known(id) = cgroup
                    && place.state.tagged() != Some(id)
                {
                    self.close(place);
                    self.untag(place);
                    self.tag(place, id);
                }
                self.changed = true;
                self.attempts.count(false);
                place.fail(error, cgroup);
                return None;
            }
        };
        place.state.forget_error();
        if step.close {
            self.close(place);
        }
        if step.untag {
            self.untag(place);
        }
        if let Some(id) = id
            && step.tag
        {
            self.tag(place, id);
        }
        // An agent that has yielded takes nothing on: the other does.
        match (netns, place.state.tagged()) {
            (Some(netns), Some(id)) if step.enrol && self.tenure.is_in_charge() => Some(Job::Listen {
                cgroup: place.wanted.cgroup.clone(),
                id,
                netns,
            }),
            _ => None,
        }
    }

    /// Sees to what comes after a pod was enrolled, or wasn't.
    fn settle(&mut self, place: &mut Place, id: CgroupId, enrolled: Result<(), String>) {
        let mut revisit = |delay: &Duration| {
            self.chores.add(*delay, Chore::Visit, [place.wanted.cgroup.clone()]);
        };
        self.attempts.count(enrolled.is_ok());
        match enrolled {
            Ok(()) => {
                SETTLING.iter().for_each(revisit);
                place.failures = 0;
            }
            Err(error) => {
                SETTLING.get(place.failures).into_iter().for_each(&mut revisit);
                place.failures += 1;
                place.fail(error, Cgroup::Known(id));
            }
        }
        self.changed = true;
    }

    pub(super) fn statuses(&self) -> Arc<[PodStatus]> {
        self.places.values().map(Place::status).collect()
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let now = self.statuses();
        self.status.send_if_modified(|last| {
            let modified = *last != now;
            *last = now;
            modified
        });
    }

    /// Closes the listeners. Connections that were handed on are for others to end.
    async fn drain(mut self) {
        // Before the heartbeat is withdrawn, which it would give again.
        if let Some(heart) = self.beating.take() {
            heart.stop().await;
        }
        if let Err(error) = self.kernel.rest() {
            error!(%error, "the heartbeat can't be withdrawn");
        }
        for place in self.places.values() {
            if let State::Enrolled { pod, entry, .. } = &place.state
                && let Err(error) = self
                    .kernel
                    .set_pod(pod.cgroup_id, &PodEntry::without_listener(entry.enrolment))
            {
                error!(%error, "the kernel programs still know a listener that closes now");
            }
        }
        self.acceptor.closing.cancel();
        self.listeners.close();
        self.listeners.wait().await;
        self.severer.stop().await;
    }
}

fn foreign_connects(kernel: &Kernel) -> u64 {
    kernel
        .counters()
        .map_or(0, |counters| counters.of(Counter::ForeignNamespace))
}

/// Never, where there are no watches.
async fn changed(watches: Option<&mut Watches>) -> std::io::Result<Change> {
    match watches {
        Some(watches) => watches.changed().await,
        None => std::future::pending().await,
    }
}
