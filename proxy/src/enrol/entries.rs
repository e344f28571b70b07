//! The enroller's writing: what stands in the kernel programs' entries at the start, and when a pod is tagged, enrolled
//! and let go.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use understudy_common::PodEntry;

use super::{
    Leftovers,
    accept::Post,
    enroller::Enroller,
    heartbeat::Heart,
    netns::{Listeners, NetnsId},
    place::{Cgroup, Place, State},
};
use crate::{
    kernel::MapError,
    limits::load::Load,
    pod::{CgroupId, EnrolledPod},
};

impl Enroller {
    /// Puts in force what the sources say now.
    pub(super) async fn begin(&mut self) {
        let first = self.sources.wanted.heed();
        let leftovers = self.sources.leftovers.heed();
        let new = self.want(&first);
        if self.kernel.succeeds() {
            // The other agent serves until each entry is replaced, and none is taken away before.
            self.adopting = true;
            self.tag_present(&new);
            self.beating = Some(Heart::start(Arc::clone(&self.kernel)));
            self.visit(new).await;
            self.adopting = false;
            self.replace_entries();
            self.settle_leftovers(leftovers);
        } else {
            self.tag_present(&new);
            self.settle_leftovers(leftovers);
            // Every wanted pod is refused or unknown by now; the heartbeat can only turn refusals into redirects.
            self.beating = Some(Heart::start(Arc::clone(&self.kernel)));
            self.visit(new).await;
        }
        // Also where there is no pod: that the first look has been is news.
        self.changed = false;
        let now = self.statuses();
        self.status.send_replace(now);
    }

    /// Tags whatever exists of these, before anything is asked of it that takes time.
    pub(super) fn tag_present(&mut self, cgroups: &[PathBuf]) {
        let root = Arc::clone(&self.root);
        for cgroup in cgroups {
            let Some(mut place) = self.places.remove(cgroup) else {
                continue;
            };
            if place.state.tagged().is_none() {
                match root.descend(cgroup) {
                    Ok(directory) => self.tag(&mut place, directory.id()),
                    Err(error) if error.is_absent() => {}
                    Err(error) => {
                        place.state = State::Failed {
                            error: error.to_string(),
                            cgroup: Cgroup::after(&error),
                        };
                    }
                }
            }
            self.places.insert(cgroup.clone(), place);
        }
    }

    /// Tags what has appeared at these places, or has taken the place of what was tagged there. All of them are to be
    /// visited.
    pub(super) fn tag_changed(&mut self, cgroups: &BTreeSet<PathBuf>) {
        let root = Arc::clone(&self.root);
        for cgroup in cgroups {
            let Some(mut place) = self.places.remove(cgroup) else {
                continue;
            };
            let tagged = place.state.tagged();
            if let Some(watches) = self.watches.as_mut().filter(|_| tagged.is_none()) {
                watches.follow(cgroup);
            }
            if let Ok(directory) = root.descend(cgroup)
                && tagged != Some(directory.id())
            {
                self.close(&mut place);
                self.untag(&mut place);
                self.tag(&mut place, directory.id());
            }
            self.places.insert(cgroup.clone(), place);
        }
    }

    /// What couldn't be enrolled mustn't name the other agent's listeners, which will close.
    fn replace_entries(&mut self) {
        let mut next = self.next_enrolment;
        for place in self.places.values_mut() {
            let State::Tagged { id, .. } = place.state else {
                continue;
            };
            next += 1;
            if let Err(error) = self.kernel.set_pod(id, &PodEntry::without_listener(next)) {
                error!(%error, pod = %place.wanted.name, "the kernel programs still know another agent's listener");
                place.fail(error.to_string(), Cgroup::Known(id));
            }
        }
        self.next_enrolment = next;
    }

    /// Pods that an earlier agent tagged and nobody wants. The listeners that their entries name are gone, or will be.
    /// While a wanted pod's cgroup can't be opened, any of them may be that pod's: they are refused until it can.
    pub(super) fn settle_leftovers(&mut self, leftovers: Leftovers) {
        let hidden = self.places.values().any(|place| place.state.is_hidden());
        self.untag_later = hidden && leftovers == Leftovers::Untag;
        let leftovers = if hidden { Leftovers::Refuse } else { leftovers };
        let known = self.own();
        let settle = || -> Result<(), MapError> {
            for (id, entry) in self.kernel.pods()? {
                if known.contains(&id.0) {
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

    /// Untags what couldn't be while a wanted pod's cgroup was hidden.
    pub(super) fn settle_delayed(&mut self) {
        if self.untag_later && !self.places.values().any(|place| place.state.is_hidden()) {
            self.settle_leftovers(Leftovers::Untag);
        }
    }

    /// The cgroups that are wanted pods', as far as is known.
    pub(super) fn own(&self) -> BTreeSet<u64> {
        let own = self.places.values().filter_map(|place| place.state.own());
        own.map(|id| id.0).collect()
    }

    /// Makes an entry without listeners: connects to the API server are refused.
    pub(super) fn tag(&mut self, place: &mut Place, id: CgroupId) {
        let entry = PodEntry::without_listener(self.enrolment());
        self.changed = true;
        let tagged = if self.adopting || self.tenure.has_yielded() {
            // The other agent's entry may have a listener that serves.
            self.kernel.add_pod(id, &entry)
        } else {
            self.kernel.set_pod(id, &entry)
        };
        place.state = match tagged {
            Ok(()) => State::Tagged { id, error: None },
            Err(error) => {
                error!(%error, pod = %place.wanted.name, "the pod can't be tagged");
                State::Failed {
                    error: error.to_string(),
                    cgroup: Cgroup::Known(id),
                }
            }
        };
    }

    /// Puts listeners to work, and then the kernel programs to using them.
    pub(super) fn open(
        &mut self,
        place: &mut Place,
        cgroup_id: CgroupId,
        netns: NetnsId,
        listeners: Listeners,
    ) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let v4 = TcpListener::from_std(listeners.v4).map_err(text)?;
        let v6 = listeners.v6.map(TcpListener::from_std).transpose().map_err(text)?;
        let port_of = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).map_err(text);
        let entry = PodEntry {
            netns_cookie: listeners.cookie.0,
            enrolment: self.enrolment(),
            port4: port_of(&v4)?,
            port6: v6.as_ref().map_or(Ok(0), port_of)?,
            reserved: 0,
        };
        let pod = Arc::new(EnrolledPod {
            wanted: place.wanted.clone(),
            cgroup_id,
            gone: CancellationToken::new(),
            load: Load::default(),
            in_audit: crate::audit::PodText::default(),
        });
        self.kernel
            .set_pod(cgroup_id, &entry)
            .map_err(|error| error.to_string())?;
        for (listener, port) in [(Some(v4), entry.port4), (v6, entry.port6)] {
            if let Some(listener) = listener {
                let post = Post {
                    pod: Arc::clone(&pod),
                    enrolment: entry.enrolment,
                    netns: listeners.cookie,
                    port,
                };
                self.listeners.spawn(self.acceptor.clone().run(listener, post));
            }
        }
        info!(pod = %place.wanted.name, session = %place.wanted.session, cgroup_id = cgroup_id.0, "enrolled");
        place.state = State::Enrolled { pod, entry, netns };
        Ok(())
    }

    /// Takes the listeners away, first from the kernel programs, and ends the pod's connections.
    pub(super) fn close(&mut self, place: &mut Place) {
        let State::Enrolled { pod, entry, .. } = &place.state else {
            return;
        };
        info!(pod = %place.wanted.name, session = %pod.wanted.session, cgroup_id = pod.cgroup_id.0, "no longer enrolled");
        let silenced = self
            .kernel
            .set_pod(pod.cgroup_id, &PodEntry::without_listener(entry.enrolment));
        if let Err(error) = silenced {
            error!(%error, "the kernel programs still know a listener that closes now");
        }
        pod.gone.cancel();
        self.changed = true;
        place.state = State::Tagged {
            id: pod.cgroup_id,
            error: None,
        };
    }

    pub(super) fn untag(&mut self, place: &mut Place) {
        let Some(id) = place.state.tagged() else { return };
        if self.tenure.has_yielded() {
            self.released.insert(id.0);
        }
        if let Err(error) = self.kernel.remove_pod(id) {
            error!(%error, pod = %place.wanted.name, "the pod stays tagged, and refused");
        }
        self.changed = true;
        place.state = State::Absent;
    }

    fn enrolment(&mut self) -> u64 {
        self.next_enrolment += 1;
        self.next_enrolment
    }
}
