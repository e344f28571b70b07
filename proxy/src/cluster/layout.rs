//! Where the kubelet puts a pod's cgroup, below the root that the kernel programs are attached to: plain functions.
//!
//! The kubelet names a pod's cgroup by its class of service and UID (`k8s.io/kubernetes/pkg/kubelet/cm`,
//! `pod_container_manager_linux.go` and `cgroup_manager_linux.go`): with the cgroupfs driver `kubepods/burstable/pod<uid>`, with the systemd driver
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`, the UID's dashes as underscores, since
//! a dash parts the levels of a slice. A guaranteed pod's stands directly below the root. A kubelet that has a cgroup
//! root of its own, as kind's has, puts its name in front: `kubelet.slice/kubelet-kubepods.slice`.

use std::path::{Path, PathBuf};

use crate::kernel::cgroup::is_populated;

/// A pod's class of service, as far as cgroups tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Qos {
    /// Every container has limits, and requests as much.
    Guaranteed,
    /// Some request or limit.
    Burstable,
    /// None.
    BestEffort,
}

/// How the kubelet of a node lays out its pods' cgroups, seen from the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// From the root to the directory of all pods; empty where the root is that.
    pods: PathBuf,
    driver: Driver,
    is_known: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Driver {
    Cgroupfs,
    /// With the name of the pods' slice, `.slice` left out.
    Systemd(String),
}

/// Where the pods' directory may be below a root that isn't it; of several the one with processes counts, as in
/// [`pods_root`](crate::kernel::cgroup::pods_root).
const BELOW: [&str; 4] = [
    "kubepods",
    "kubepods.slice",
    "kubelet/kubepods",
    "kubelet.slice/kubelet-kubepods.slice",
];

impl Layout {
    /// Tells it by the root's name and what is below it now. Blocks.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self::detect(root, |path| {
            let path = root.join(path);
            path.is_dir().then(|| is_populated(&path))
        })
    }

    /// Tells it by the root's own name and, where that isn't the pods' directory, by what is below: `populated` is
    /// asked, for paths relative to the root, whether a directory has processes; `None` where there is no such directory.
    /// Of several it isn't [known](Self::is_known) until one alone has processes.
    #[must_use]
    pub fn detect(root: &Path, populated: impl Fn(&Path) -> Option<bool>) -> Self {
        let is_pods = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
        };
        let there: Vec<(&Path, bool)> = BELOW
            .iter()
            .filter_map(|path| Some((Path::new(path), populated(Path::new(path))?)))
            .collect();
        let living: Vec<&Path> = there
            .iter()
            .filter(|(_, lives)| *lives)
            .map(|(path, _)| *path)
            .collect();
        let (pods, is_known) = match (there.as_slice(), living.as_slice()) {
            _ if is_pods(root) => (Path::new(""), true),
            ([(only, _)], _) | (_, [only]) => (*only, true),
            ([], _) => (Path::new(BELOW[0]), false),
            ([(first, _), ..], _) => (*living.first().unwrap_or(first), false),
        };
        let pods = pods.to_owned();
        let named = if pods.as_os_str().is_empty() { root } else { &pods };
        let name = named.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let driver = name
            .strip_suffix(".slice")
            .map_or(Driver::Cgroupfs, |slice| Driver::Systemd(slice.to_owned()));
        Self { pods, driver, is_known }
    }

    /// Whether there is such a directory. The kubelet makes it when it starts.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// A pod's cgroup, relative to the root. `uid` must be free of slashes ([`super::pods::TaggedPod`] has seen to it).
    #[must_use]
    pub fn path(&self, uid: &str, qos: Qos) -> PathBuf {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        match &self.driver {
            Driver::Cgroupfs => self.pods.join(class.unwrap_or_default()).join(format!("pod{uid}")),
            Driver::Systemd(slice) => {
                let uid = uid.replace('-', "_");
                match class {
                    None => self.pods.join(format!("{slice}-pod{uid}.slice")),
                    Some(class) => self
                        .pods
                        .join(format!("{slice}-{class}.slice"))
                        .join(format!("{slice}-{class}-pod{uid}.slice")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const UID: &str = "0b7c-11";

    #[rstest]
    #[case::cgroupfs("/sys/fs/cgroup/kubepods", &[], Qos::Burstable, "burstable/pod0b7c-11")]
    #[case::cgroupfs_best_effort("/sys/fs/cgroup/kubepods", &[], Qos::BestEffort, "besteffort/pod0b7c-11")]
    #[case::cgroupfs_guaranteed("/sys/fs/cgroup/kubepods", &[], Qos::Guaranteed, "pod0b7c-11")]
    #[case::systemd("/sys/fs/cgroup/kubepods.slice", &[], Qos::Burstable,
        "kubepods-burstable.slice/kubepods-burstable-pod0b7c_11.slice")]
    #[case::systemd_best_effort("/sys/fs/cgroup/kubepods.slice", &[], Qos::BestEffort,
        "kubepods-besteffort.slice/kubepods-besteffort-pod0b7c_11.slice")]
    #[case::systemd_guaranteed("/sys/fs/cgroup/kubepods.slice", &[], Qos::Guaranteed, "kubepods-pod0b7c_11.slice")]
    #[case::kind("/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice", &[], Qos::Burstable,
        "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b7c_11.slice")]
    #[case::kind_guaranteed("/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice", &[], Qos::Guaranteed,
        "kubelet-kubepods-pod0b7c_11.slice")]
    #[case::kind_cgroupfs("/sys/fs/cgroup/kubelet/kubepods", &[], Qos::Burstable, "burstable/pod0b7c-11")]
    #[case::above("/sys/fs/cgroup/box", &["kubepods"], Qos::Burstable, "kubepods/burstable/pod0b7c-11")]
    #[case::above_systemd("/sys/fs/cgroup", &["kubepods.slice"], Qos::Burstable,
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b7c_11.slice")]
    #[case::above_kind("/sys/fs/cgroup", &["kubelet.slice/kubelet-kubepods.slice"], Qos::Guaranteed,
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod0b7c_11.slice")]
    #[case::above_kind_cgroupfs("/sys/fs/cgroup", &["kubelet/kubepods"], Qos::Guaranteed, "kubelet/kubepods/pod0b7c-11")]
    #[case::not_made_yet("/sys/fs/cgroup", &[], Qos::Guaranteed, "kubepods/pod0b7c-11")]
    #[case::slice_of_another_name("/sys/fs/cgroup/box.slice", &["kubepods"], Qos::Guaranteed, "kubepods/pod0b7c-11")]
    fn paths(#[case] root: &str, #[case] there: &[&str], #[case] qos: Qos, #[case] expected: &str) {
        let layout = Layout::detect(Path::new(root), |path| {
            there.iter().any(|there| Path::new(there) == path).then_some(false)
        });
        assert_eq!(layout.path(UID, qos), Path::new(expected));
        let names_pods = root.ends_with("kubepods") || root.ends_with("kubepods.slice");
        assert_eq!(layout.is_known(), names_pods || !there.is_empty());
    }

    #[rstest]
    #[case::the_driver_was_changed(&[("kubepods", false), ("kubepods.slice", true)], "kubepods.slice/kubepods-pod0b7c_11.slice", true)]
    #[case::and_back(&[("kubepods", true), ("kubepods.slice", false)], "kubepods/pod0b7c-11", true)]
    #[case::both(&[("kubepods", true), ("kubepods.slice", true)], "kubepods/pod0b7c-11", false)]
    #[case::neither(&[("kubepods", false), ("kubepods.slice", false)], "kubepods/pod0b7c-11", false)]
    fn of_several_the_one_with_processes_counts(
        #[case] there: &[(&str, bool)],
        #[case] expected: &str,
        #[case] is_known: bool,
    ) {
        let layout = Layout::detect(Path::new("/sys/fs/cgroup"), |path| {
            there
                .iter()
                .find(|(there, _)| Path::new(there) == path)
                .map(|(_, lives)| *lives)
        });
        assert_eq!(layout.path(UID, Qos::Guaranteed), Path::new(expected));
        assert_eq!(layout.is_known(), is_known);
    }
}
