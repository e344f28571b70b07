//! Where the kubelet puts a pod's cgroup, below the root that the kernel programs are attached to: plain functions.
//!
//! The kubelet names a pod's cgroup by its QoS class and UID (`k8s.io/kubernetes/pkg/kubelet/cm`, `pod_container_manager_linux.go`
//! and `cgroup_manager_linux.go`): with the cgroupfs driver `kubepods/burstable/pod<uid>`, with the systemd driver
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`, the UID's dashes as underscores, since
//! a dash parts the levels of a slice. A guaranteed pod's stands directly below the root. A kubelet that has a cgroup
//! root of its own, as kind's has, puts its name in front: `kubelet.slice/kubelet-kubepods.slice`.

use std::path::{Path, PathBuf};

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

/// Where the pods' directory may be below a root that isn't it; the first that is there counts, as in
/// [`pods_root`](crate::kernel::cgroup::pods_root).
const BELOW: [&str; 4] = [
    "kubepods",
    "kubepods.slice",
    "kubelet/kubepods",
    "kubelet.slice/kubelet-kubepods.slice",
];

impl Layout {
    /// Tells it by the root's own name and, where that isn't the pods' directory, by what is below: `is_there` is asked
    /// for paths relative to the root.
    #[must_use]
    pub fn detect(root: &Path, is_there: impl Fn(&Path) -> bool) -> Self {
        let is_pods = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
        };
        let found = if is_pods(root) {
            Some(Path::new(""))
        } else {
            BELOW.iter().map(Path::new).find(|path| is_there(path))
        };
        let pods = found.unwrap_or(Path::new(BELOW[0])).to_owned();
        let named = if pods.as_os_str().is_empty() { root } else { &pods };
        let name = named.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let driver = name
            .strip_suffix(".slice")
            .map_or(Driver::Cgroupfs, |slice| Driver::Systemd(slice.to_owned()));
        Self {
            pods,
            driver,
            is_known: found.is_some(),
        }
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
    #[case::both("/sys/fs/cgroup", &["kubepods.slice", "kubepods"], Qos::Guaranteed, "kubepods/pod0b7c-11")]
    #[case::not_made_yet("/sys/fs/cgroup", &[], Qos::Guaranteed, "kubepods/pod0b7c-11")]
    #[case::slice_of_another_name("/sys/fs/cgroup/box.slice", &["kubepods"], Qos::Guaranteed, "kubepods/pod0b7c-11")]
    fn paths(#[case] root: &str, #[case] there: &[&str], #[case] qos: Qos, #[case] expected: &str) {
        let layout = Layout::detect(Path::new(root), |path| {
            there.iter().any(|there| Path::new(there) == path)
        });
        assert_eq!(layout.path(UID, qos), Path::new(expected));
        let names_pods = root.ends_with("kubepods") || root.ends_with("kubepods.slice");
        assert_eq!(layout.is_known(), names_pods || !there.is_empty());
    }
}
