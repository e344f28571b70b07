//! Takes away what runs that were killed have left: processes, cgroups, mounts, namespaces, directories.

use std::{fs, path::Path};

use nix::mount::{MntFlags, umount2};

use super::{cgroup, mounts, name::BoxName, netns::NETNS_DIR, tools};

/// Sweeps as far as it can. Nothing here fails a run: what stays has a name of its own and is in nobody's way.
pub(crate) fn sweep() {
    if let Ok(root) = mounts::cgroup2() {
        for name in orphans_in(&root) {
            drop(cgroup::destroy(&root.join(name)));
        }
    }
    for name in orphans_in(Path::new(NETNS_DIR)) {
        drop(tools::run("ip", &["netns", "del", &name]));
    }
    let temporary = std::env::temp_dir();
    for name in orphans_in(&temporary) {
        let directory = temporary.join(name);
        if unmount_below(&directory) {
            drop(fs::remove_dir_all(directory));
        }
    }
}

fn orphans_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| BoxName::owner_of(name).is_some_and(BoxName::is_orphaned))
        .collect()
}

/// Whether nothing is mounted below `directory` any more, so that removing it removes nothing else.
fn unmount_below(directory: &Path) -> bool {
    let below = || {
        let found = mounts::mounts()
            .unwrap_or_default()
            .into_iter()
            .map(|mount| mount.target);
        found.filter(|target| target.starts_with(directory)).collect::<Vec<_>>()
    };
    for target in below().iter().rev() {
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
    below().is_empty()
}
