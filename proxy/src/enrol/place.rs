//! What the enroller knows of one wanted pod.

use std::sync::Arc;

use tracing::warn;
use understudy_common::PodEntry;

use super::{PodState, PodStatus, netns::NetnsId, plan::Known};
use crate::{
    kernel::cgroup::CgroupError,
    pod::{CgroupId, EnrolledPod, WantedPod},
};

/// One wanted pod.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) wanted: WantedPod,
    pub(super) state: State,
    /// How often enrolling it has failed since it last succeeded.
    pub(super) failures: usize,
}

/// How far it has come.
#[derive(Debug)]
pub(super) enum State {
    Absent,
    Tagged {
        id: CgroupId,
        error: Option<String>,
    },
    Enrolled {
        pod: Arc<EnrolledPod>,
        entry: PodEntry,
        netns: NetnsId,
    },
    Failed {
        error: String,
        cgroup: Cgroup,
    },
}

/// What is known of the cgroup of a pod that couldn't be tagged: an earlier agent may have tagged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cgroup {
    /// It can have none: its path is none of a cgroup.
    None,
    /// Which it is.
    Known(CgroupId),
    /// It couldn't be opened.
    Hidden,
}

impl Cgroup {
    /// What an error in opening it tells.
    pub(super) fn after(error: &CgroupError) -> Self {
        match error {
            CgroupError::Path(_) | CgroupError::TooDeep(_) => Self::None,
            _ => Self::Hidden,
        }
    }
}

impl Place {
    /// For others to see.
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            name: Arc::clone(&self.wanted.name),
            cgroup: self.wanted.cgroup.clone(),
            session: self.wanted.session.clone(),
            state: self.state.public(),
        }
    }

    /// Keeps the tag, as long as there is one, and remembers the error.
    pub(super) fn fail(&mut self, error: String, cgroup: Cgroup) {
        warn!(pod = %self.wanted.name, error, "the pod can't be enrolled");
        match &mut self.state {
            State::Absent | State::Failed { .. } => self.state = State::Failed { error, cgroup },
            State::Tagged { error: last, .. } => *last = Some(error),
            State::Enrolled { .. } => {}
        }
    }
}

impl State {
    /// As far as deciding needs it.
    pub(super) fn known(&self) -> Known {
        match self {
            Self::Absent | Self::Failed { .. } => Known::Nothing,
            Self::Tagged { id, .. } => Known::Tagged(*id),
            Self::Enrolled { pod, netns, .. } => Known::Enrolled(pod.cgroup_id, *netns),
        }
    }

    /// A look succeeded: what failed before is no longer so.
    pub(super) fn forget_error(&mut self) {
        match self {
            Self::Failed { .. } => *self = Self::Absent,
            Self::Tagged { error, .. } => *error = None,
            Self::Absent | Self::Enrolled { .. } => {}
        }
    }

    /// The cgroup that has an entry.
    pub(super) fn tagged(&self) -> Option<CgroupId> {
        match self.known() {
            Known::Nothing => None,
            Known::Tagged(id) | Known::Enrolled(id, _) => Some(id),
        }
    }

    /// The cgroup that is its own, tagged or not.
    pub(super) fn own(&self) -> Option<CgroupId> {
        match self {
            Self::Failed {
                cgroup: Cgroup::Known(id),
                ..
            } => Some(*id),
            _ => self.tagged(),
        }
    }

    /// Whether it may be any of the cgroups that somebody tagged.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                cgroup: Cgroup::Hidden,
                ..
            }
        )
    }

    fn public(&self) -> PodState {
        match self {
            Self::Absent => PodState::Absent,
            Self::Tagged { id, error: None } => PodState::Waiting(*id),
            Self::Tagged { error: Some(error), .. } | Self::Failed { error, .. } => PodState::Failed(error.clone()),
            Self::Enrolled { pod, .. } => PodState::Enrolled(pod.cgroup_id),
        }
    }
}
