//! The owner of all enrolments: the one task that tags, enrols, and lets go.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};
use understudy_common::{Counter, PodEntry};

use super::{
    Leftovers, PodStatus,
    accept::{Acceptor, Post},
    heartbeat,
    netns::{Listeners, Netns},
    observe::{Observation, observe},
    place::{Place, State},
    plan::{self, Seen},
    watches::{Change, Watches},
};
use crate::{
    kernel::{Kernel, MapError, boot_ns, cgroup::CgroupRoot},
    pod::{CgroupId, EnrolledPod, WantedPod},
};

/// How often everything is looked at, whatever was or wasn't reported.
const RESCAN: Duration = Duration::from_secs(10);

/// A container runtime puts a process into the pod's cgroup before it puts it into the pod's namespace. When a pod
/// has just been enrolled it is looked at again after these.
const SETTLING: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// The task's state.
#[derive(Debug)]
pub(super) struct Enroller {
    kernel: Arc<Kernel>,
    root: Arc<CgroupRoot>,
    acceptor: Acceptor,
    status: watch::Sender<Arc<[PodStatus]>>,
    listeners: TaskTracker,
    places: BTreeMap<PathBuf, Place>,
    /// Pods to look at again, and when.
    revisits: Vec<(Instant, PathBuf)>,
    next_enrolment: u64,
    foreign: u64,
}

impl Enroller {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        root: Arc<CgroupRoot>,
        acceptor: Acceptor,
        status: watch::Sender<Arc<[PodStatus]>>,
    ) -> Self {
        // What an earlier agent's programs refused was for it to say.
        let foreign = foreign_connects(&kernel);
        Self {
            kernel,
            root,
            acceptor,
            status,
            listeners: TaskTracker::new(),
            places: BTreeMap::new(),
            revisits: Vec::new(),
            // Time goes up across agents, and faster than pods are enrolled.
            next_enrolment: boot_ns(),
            foreign,
        }
    }

    /// Runs until `shutdown`.
    pub(super) async fn run(
        mut self,
        mut wanted: watch::Receiver<Arc<[WantedPod]>>,
        leftovers: Leftovers,
        shutdown: CancellationToken,
    ) {
        let mut watches = match Watches::new() {
            Ok(watches) => Some(watches),
            Err(error) => {
                warn!(%error, "no inotify: new pods are noticed at the next rescan only");
                None
            }
        };
        let first = wanted.borrow_and_update().clone();
        self.want(&first);
        self.tag_present();
        self.settle_leftovers(leftovers);
        // Every wanted pod is refused or unknown by now; the heartbeat can only turn refusals into redirects.
        let beating = heartbeat::start(Arc::clone(&self.kernel));
        self.visit_all().await;
        // Also where there is no pod: that the first look has been is news.
        self.status.send_modify(|_| ());

        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sources_live = true;
        loop {
            if let Some(watches) = &mut watches {
                let cgroups = self.places.keys().map(PathBuf::as_path);
                if watches.follow(self.root.path(), cgroups) {
                    self.visit_all().await;
                }
            }
            self.publish();
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = wanted.changed(), if sources_live => {
                    // A source that has ended leaves what it wanted last.
                    sources_live = changed.is_ok();
                    let now = wanted.borrow_and_update().clone();
                    self.want(&now);
                    self.tag_present();
                    self.visit_all().await;
                }
                change = changed(watches.as_mut()) => match change {
                    Ok(Change::At(paths)) => self.visit_below(&paths.into_iter().collect::<Vec<_>>()).await,
                    Ok(Change::Everything) => self.visit_all().await,
                    Err(error) => {
                        warn!(%error, "inotify failed: new pods are noticed at the next rescan only");
                        watches = None;
                    }
                },
                () = due(&self.revisits) => self.revisit().await,
                _ = rescan.tick() => self.visit_all().await,
            }
        }
        // Before the heartbeat is withdrawn, which it would give again.
        drop(beating);
        self.drain().await;
    }

    /// Takes on what is wanted now, and lets go of what isn't any more.
    fn want(&mut self, wanted: &[WantedPod]) {
        let (wanted, refused) = plan::distinct(wanted);
        for pod in refused {
            error!(pod = %pod.name, session = %pod.session, cgroup = %pod.cgroup.display(),
                "another session has the pod's cgroup already: ignored");
        }
        let mut old = std::mem::take(&mut self.places);
        for wanted in wanted {
            let state = match old.remove(&wanted.cgroup) {
                Some(place) if place.wanted == wanted => place.state,
                // To another session: it is enrolled anew, tagged throughout.
                Some(mut place) => {
                    self.close(&mut place);
                    place.state
                }
                None => State::Absent,
            };
            self.places.insert(wanted.cgroup.clone(), Place { wanted, state });
        }
        for mut place in old.into_values() {
            self.close(&mut place);
            self.untag(&mut place);
        }
    }

    /// Tags whatever exists, before anything is asked of it that takes time.
    fn tag_present(&mut self) {
        let root = Arc::clone(&self.root);
        let mut places = std::mem::take(&mut self.places);
        for place in places.values_mut().filter(|place| place.state.tagged().is_none()) {
            match root.descend(&place.wanted.cgroup) {
                Ok(directory) => self.tag(place, directory.id()),
                Err(error) if error.is_absent() => {}
                Err(error) => place.state = State::Failed(error.to_string()),
            }
        }
        self.places = places;
    }

    /// Pods that an earlier agent tagged and nobody wants. Done before the first heartbeat: the listeners that their
    /// entries name are gone.
    fn settle_leftovers(&self, leftovers: Leftovers) {
        let settle = || -> Result<(), MapError> {
            for (id, entry) in self.kernel.pods()? {
                if self.places.values().any(|place| place.state.tagged() == Some(id)) {
                    continue;
                }
                match leftovers {
                    Leftovers::Untag => {
                        info!(cgroup_id = id.0, "no longer tagged");
                        self.kernel.remove_pod(id)?;
                    }
                    Leftovers::Refuse => {
                        warn!(
                            cgroup_id = id.0,
                            "tagged by an earlier agent and not known to this one: refused"
                        );
                        let refused = PodEntry {
                            port4: 0,
                            port6: 0,
                            ..entry
                        };
                        self.kernel.set_pod(id, &refused)?;
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = settle() {
            error!(%error, "pods of an earlier agent stay tagged");
        }
    }

    async fn visit_all(&mut self) {
        let all = self.places.keys().cloned().collect();
        self.visit(all).await;
    }

    /// Visits the pods at and below these paths.
    async fn visit_below(&mut self, paths: &[PathBuf]) {
        let root = self.root.path();
        let concerned = |cgroup: &&PathBuf| paths.iter().any(|path| root.join(cgroup).starts_with(path));
        let cgroups = self.places.keys().filter(concerned).cloned().collect();
        self.visit(cgroups).await;
    }

    async fn revisit(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.revisits)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.revisits = later;
        let due: Vec<(Instant, PathBuf)> = due;
        self.visit(due.into_iter().map(|(_, cgroup)| cgroup).collect()).await;
    }

    /// Looks at these pods, and does what that calls for.
    async fn visit(&mut self, cgroups: Vec<PathBuf>) {
        if cgroups.is_empty() {
            return;
        }
        self.note_foreign();
        let root = Arc::clone(&self.root);
        let looked = spawn_blocking(move || {
            cgroups
                .into_iter()
                .map(|cgroup| (observe(&root, &cgroup), cgroup))
                .collect::<Vec<_>>()
        });
        let observations = match looked.await {
            Ok(observations) => observations,
            Err(error) => {
                error!(%error, "the pods could not be looked at");
                return;
            }
        };
        for (observation, cgroup) in observations {
            // Gone from the wanted meanwhile? It isn't: only this task changes them.
            let Some(mut place) = self.places.remove(&cgroup) else {
                continue;
            };
            self.act(&mut place, observation).await;
            self.places.insert(cgroup, place);
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

    async fn act(&mut self, place: &mut Place, observation: Observation) {
        let known = place.state.known();
        let (step, id, netns) = match observation {
            Observation::Absent => (plan::step(known, Seen::Absent), None, None),
            Observation::Empty(directory) => (
                plan::step(known, Seen::Empty(directory.id())),
                Some(directory.id()),
                None,
            ),
            Observation::Inhabited { directory, netns, all } => {
                let id = directory.id();
                (plan::step(known, Seen::Inhabited(id, &all)), Some(id), Some(netns))
            }
            Observation::Failed { id, error } => {
                if let Some(id) = id
                    && place.state.tagged() != Some(id)
                {
                    self.close(place);
                    self.untag(place);
                    self.tag(place, id);
                }
                place.fail(error);
                return;
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
        if let Some(netns) = netns
            && step.enrol
        {
            self.enrol(place, netns).await;
        }
    }

    /// Makes an entry without listeners: connects to the API server are refused.
    fn tag(&mut self, place: &mut Place, id: CgroupId) {
        let entry = PodEntry::without_listener(self.enrolment());
        place.state = match self.kernel.set_pod(id, &entry) {
            Ok(()) => State::Tagged { id, error: None },
            Err(error) => {
                error!(%error, pod = %place.wanted.name, "the pod can't be tagged");
                State::Failed(error.to_string())
            }
        };
    }

    async fn enrol(&mut self, place: &mut Place, netns: Netns) {
        let Some(cgroup_id) = place.state.tagged() else { return };
        let id = netns.id();
        let listeners = match spawn_blocking(move || netns.listen()).await {
            Ok(Ok(listeners)) => listeners,
            Ok(Err(error)) => return place.fail(error.to_string()),
            Err(error) => return place.fail(error.to_string()),
        };
        match self.open(place, cgroup_id, listeners) {
            Ok((pod, enrolment)) => {
                info!(pod = %place.wanted.name, session = %place.wanted.session, cgroup_id = cgroup_id.0, "enrolled");
                place.state = State::Enrolled {
                    pod,
                    enrolment,
                    netns: id,
                };
                let now = Instant::now();
                let cgroup = &place.wanted.cgroup;
                self.revisits
                    .extend(SETTLING.iter().map(|delay| (now + *delay, cgroup.clone())));
            }
            Err(error) => place.fail(error),
        }
    }

    /// Puts listeners to work, and then the kernel programs to using them.
    fn open(
        &mut self,
        place: &Place,
        cgroup_id: CgroupId,
        listeners: Listeners,
    ) -> Result<(Arc<EnrolledPod>, u64), String> {
        let text = |error: std::io::Error| error.to_string();
        let enrolment = self.enrolment();
        let v4 = TcpListener::from_std(listeners.v4).map_err(text)?;
        let v6 = listeners.v6.map(TcpListener::from_std).transpose().map_err(text)?;
        let port_of = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).map_err(text);
        let port4 = port_of(&v4)?;
        let port6 = v6.as_ref().map_or(Ok(0), port_of)?;
        let entry = PodEntry {
            netns_cookie: listeners.cookie.0,
            enrolment,
            port4,
            port6,
            reserved: 0,
        };

        let pod = Arc::new(EnrolledPod {
            wanted: place.wanted.clone(),
            cgroup_id,
            gone: CancellationToken::new(),
        });
        self.kernel
            .set_pod(cgroup_id, &entry)
            .map_err(|error| error.to_string())?;
        for (listener, port) in [(Some(v4), port4), (v6, port6)] {
            if let Some(listener) = listener {
                let place = Post {
                    pod: Arc::clone(&pod),
                    enrolment,
                    netns: listeners.cookie,
                    port,
                };
                self.listeners.spawn(self.acceptor.clone().run(listener, place));
            }
        }
        Ok((pod, enrolment))
    }

    /// Takes the listeners away, first from the kernel programs, and ends the pod's connections.
    fn close(&self, place: &mut Place) {
        let State::Enrolled { pod, enrolment, .. } = &place.state else {
            return;
        };
        info!(pod = %place.wanted.name, session = %pod.wanted.session, cgroup_id = pod.cgroup_id.0, "no longer enrolled");
        let silenced = self
            .kernel
            .set_pod(pod.cgroup_id, &PodEntry::without_listener(*enrolment));
        if let Err(error) = silenced {
            error!(%error, "the kernel programs still know a listener that closes now");
        }
        pod.gone.cancel();
        place.state = State::Tagged {
            id: pod.cgroup_id,
            error: None,
        };
    }

    fn untag(&self, place: &mut Place) {
        let Some(id) = place.state.tagged() else { return };
        if let Err(error) = self.kernel.remove_pod(id) {
            error!(%error, pod = %place.wanted.name, "the pod stays tagged, and refused");
        }
        place.state = State::Absent;
    }

    fn enrolment(&mut self) -> u64 {
        self.next_enrolment += 1;
        self.next_enrolment
    }

    fn publish(&self) {
        let now: Arc<[PodStatus]> = self.places.values().map(Place::status).collect();
        self.status.send_if_modified(|last| {
            let modified = *last != now;
            *last = now;
            modified
        });
    }

    /// Closes the listeners. Connections that were handed on are for others to end.
    async fn drain(self) {
        if let Err(error) = self.kernel.rest() {
            error!(%error, "the heartbeat can't be withdrawn");
        }
        for place in self.places.values() {
            if let State::Enrolled { pod, enrolment, .. } = &place.state
                && let Err(error) = self
                    .kernel
                    .set_pod(pod.cgroup_id, &PodEntry::without_listener(*enrolment))
            {
                error!(%error, "the kernel programs still know a listener that closes now");
            }
        }
        self.acceptor.closing.cancel();
        self.listeners.close();
        self.listeners.wait().await;
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

/// When the next revisit is due; never, where there is none.
async fn due(revisits: &[(Instant, PathBuf)]) {
    match revisits.iter().map(|(at, _)| *at).min() {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
