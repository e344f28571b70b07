//! Attaching a program by a pinned link, or taking over the link that an earlier agent left.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

use tracing::info;

use super::{
    cgroup::CgroupRoot,
    pins::{Pins, replacement},
    sys::{self, LinkInfo},
};

/// The hooks' numbers in the kernel's `enum bpf_attach_type`.
pub(super) const fn attach_type(program: &str) -> Option<u32> {
    // A match on strings isn't const; their bytes do.
    match program.as_bytes() {
        b"flow_record" => Some(3),
        b"connect4" => Some(10),
        b"connect6" => Some(11),
        b"peer_name4" => Some(29),
        b"peer_name6" => Some(30),
        b"socket_release" => Some(34),
        _ => None,
    }
}

/// Puts `program` in force at the root. There is no moment at which neither it nor its predecessor is.
pub(super) fn put_in_force(
    pins: &Pins,
    root: &CgroupRoot,
    name: &str,
    program: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    let path = pins.path(name);
    let here = LinkInfo {
        cgroup_id: root.id().0,
        attach_type,
    };
    match sys::object(&path) {
        Ok(link) if sys::link_info(link.as_fd())? == here => sys::update_link(link.as_fd(), program),
        Ok(former) => {
            // The root is another one, or was made anew. A second link is put up before the first goes: where both
            // apply for a moment, connects may fail but none goes straight through.
            info!(program = name, "the cgroup root has changed: attaching anew");
            let temporary = pins.path(&replacement(name));
            remove_leftover(&temporary)?;
            let link = sys::link(program, root.as_fd(), attach_type)?;
            sys::pin(link.as_fd(), &temporary)?;
            fs::rename(&temporary, &path)?;
            // Gone already, where its cgroup is.
            let _detached = sys::detach(former.as_fd());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link = sys::link(program, root.as_fd(), attach_type)?;
            sys::pin(link.as_fd(), &path)
        }
        Err(error) => Err(error),
    }
}

/// An agent may have died between pinning and renaming.
fn remove_leftover(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use understudy_common::PROGRAMS;

    use super::*;

    #[test]
    fn every_program_has_its_hook() {
        let mut hooks: Vec<_> = PROGRAMS.iter().map(|name| attach_type(name).unwrap()).collect();
        hooks.sort_unstable();
        hooks.dedup();
        assert_eq!(hooks.len(), PROGRAMS.len());
        assert_eq!(attach_type("other"), None);
    }
}
