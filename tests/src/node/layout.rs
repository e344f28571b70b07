//! Where kubelet and the container runtimes put a pod's cgroups: by driver, runtime and quality of service, from the
//! pod's UID. Names only; `cgroup` makes the directories.

use std::path::PathBuf;

use uuid::Uuid;

/// A pod's quality of service, which is a level of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// Limits on all that it uses.
    Guaranteed,
    /// Some requests.
    #[default]
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// As `status.qosClass` has it.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    fn level(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// Who lays the tree out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// kubelet's cgroupfs driver with containerd.
    #[default]
    Cgroupfs,
    /// The systemd driver with containerd.
    Systemd,
    /// The systemd driver with CRI-O.
    SystemdCrio,
    /// The cgroupfs driver in a node that is a container itself, as kind's are.
    KindCgroupfs,
    /// The systemd driver in such a node.
    KindSystemd,
}

impl Layout {
    /// The pod's own cgroup, from the root of the tree.
    #[must_use]
    pub fn pod(self, uid: Uuid, qos: Qos) -> PathBuf {
        let level = qos.level();
        match self {
            Self::Cgroupfs | Self::KindCgroupfs => {
                let root = if self == Self::Cgroupfs { "" } else { "kubelet" };
                let root = PathBuf::from(root).join("kubepods");
                level
                    .map_or(root.clone(), |level| root.join(level))
                    .join(format!("pod{uid}"))
            }
            Self::Systemd | Self::SystemdCrio | Self::KindSystemd => {
                // A slice's name holds its parents' names, so that a UID's dashes have to go.
                let uid = uid.to_string().replace('-', "_");
                let (mut path, mut name) = if self == Self::KindSystemd {
                    let name = "kubelet-kubepods".to_owned();
                    (PathBuf::from("kubelet.slice").join(format!("{name}.slice")), name)
                } else {
                    (PathBuf::from("kubepods.slice"), "kubepods".to_owned())
                };
                if let Some(level) = level {
                    name = format!("{name}-{level}");
                    path.push(format!("{name}.slice"));
                }
                path.join(format!("{name}-pod{uid}.slice"))
            }
        }
    }

    /// The cgroup of one of its containers, below the pod's own.
    #[must_use]
    pub fn container(self, id: &str) -> String {
        match self {
            Self::Cgroupfs | Self::KindCgroupfs => id.to_owned(),
            Self::Systemd | Self::KindSystemd => format!("cri-containerd-{id}.scope"),
            Self::SystemdCrio => format!("crio-{id}.scope"),
        }
    }
}

/// A container's id, as runtimes make them.
pub(crate) fn container_id() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        Layout::Cgroupfs,
        Qos::Burstable,
        "kubepods/burstable/pod01234567-89ab-cdef-0123-456789abcdef"
    )]
    #[case(
        Layout::Cgroupfs,
        Qos::Guaranteed,
        "kubepods/pod01234567-89ab-cdef-0123-456789abcdef"
    )]
    #[case(
        Layout::KindCgroupfs,
        Qos::BestEffort,
        "kubelet/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef"
    )]
    #[case(
        Layout::Systemd,
        Qos::Burstable,
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice"
    )]
    #[case(
        Layout::SystemdCrio,
        Qos::Guaranteed,
        "kubepods.slice/kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice"
    )]
    #[case(
        Layout::KindSystemd,
        Qos::BestEffort,
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod01234567_89ab_cdef_0123_456789abcdef.slice"
    )]
    fn paths(#[case] layout: Layout, #[case] qos: Qos, #[case] expected: &str) {
        let uid = "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
        assert_eq!(layout.pod(uid, qos), PathBuf::from(expected));
    }

    #[rstest]
    #[case(Layout::Cgroupfs, "abc")]
    #[case(Layout::Systemd, "cri-containerd-abc.scope")]
    #[case(Layout::SystemdCrio, "crio-abc.scope")]
    fn containers(#[case] layout: Layout, #[case] expected: &str) {
        assert_eq!(layout.container("abc"), expected);
    }
}
