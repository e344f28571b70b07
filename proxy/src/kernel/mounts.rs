//! Reading the mounts of cgroup v2 from the text of `/proc/self/mountinfo`.

use std::path::{Component, Path, PathBuf};

/// A mount of cgroup v2.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which directory of the hierarchy is mounted; `/` for all of it.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
}

/// The cgroup v2 mounts in the text of `/proc/self/mountinfo`, as `proc_pid_mountinfo(5)` has it.
pub(super) fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount> + '_ {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        Some(Mount {
            root: unescape(fields.next()?),
            point: unescape(fields.next()?),
        })
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escape = bytes
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(code)) if *byte == b'\\' => {
                plain.push(code);
                at += 4;
            }
            _ => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(plain).into()
}

/// How deep in the hierarchy a directory lies, as far as the mounts tell.
pub(super) fn level(mountinfo: &str, path: &Path) -> usize {
    mounts(mountinfo)
        .filter_map(|mount| {
            let below = path.strip_prefix(&mount.point).ok()?;
            Some((
                mount.point.components().count(),
                named(&mount.root) + below.components().count(),
            ))
        })
        .max_by_key(|(specific, _)| *specific)
        .map_or(0, |(_, level)| level)
}

/// The levels in a mount's root. In a cgroup namespace, what lies above the namespace's own cgroup is shown by as many
/// `..` as it takes to get there: the node's whole hierarchy as nothing but those.
fn named(root: &Path) -> usize {
    root.components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const HYBRID: &str = "\
25 1 0:22 / /proc rw,nosuid - proc proc rw
31 26 0:27 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:36 / /sys/fs/cgroup/unified rw,relatime shared:17 master:1 - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    /// A container's own cgroup, the node's hierarchy, and the pods' part of it, as seen in the container.
    const CONTAINER: &str = "\
40 31 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
41 31 0:26 /../../../.. /host/sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
42 31 0:26 /../../../../kubepods.slice /host/pods rw,nosuid - cgroup2 cgroup2 rw
";
    const PART: &str = "30 24 0:26 /kubepods /mnt/a\\040b rw shared:4 - cgroup2 none rw\n";

    #[rstest]
    #[case(HYBRID, Some(("/", "/sys/fs/cgroup/unified")))]
    #[case(UNIFIED, Some(("/", "/sys/fs/cgroup")))]
    #[case(PART, Some(("/kubepods", "/mnt/a b")))]
    #[case("25 1 0:22 / /proc rw,nosuid - proc proc rw\n", None)]
    #[case("25 1 0:22 / /cgroup2 rw - ext4 cgroup2 rw\n", None)]
    #[case("", None)]
    #[case(" - cgroup2", None)]
    fn finds_the_mount(#[case] mountinfo: &str, #[case] expected: Option<(&str, &str)>) {
        let expected = expected.map(|(root, point)| Mount {
            root: root.into(),
            point: point.into(),
        });
        assert_eq!(mounts(mountinfo).next(), expected);
    }

    #[rstest]
    #[case(UNIFIED, "/sys/fs/cgroup", 0)]
    #[case(UNIFIED, "/sys/fs/cgroup/kubepods", 1)]
    #[case(HYBRID, "/sys/fs/cgroup/unified/a/b", 2)]
    #[case(PART, "/mnt/a b", 1)]
    #[case(PART, "/mnt/a b/c", 2)]
    #[case(CONTAINER, "/host/sys/fs/cgroup/kubelet/kubepods", 2)]
    #[case(CONTAINER, "/host/pods/besteffort", 2)]
    #[case("", "/x", 0)]
    fn levels(#[case] mountinfo: &str, #[case] path: &str, #[case] expected: usize) {
        assert_eq!(level(mountinfo, Path::new(path)), expected);
    }

    #[rstest]
    #[case("plain", "plain")]
    #[case("a\\040b", "a b")]
    #[case("a\\134", "a\\")]
    #[case("a\\", "a\\")]
    #[case("a\\04", "a\\04")]
    #[case("a\\999", "a\\999")]
    fn escapes(#[case] field: &str, #[case] plain: &str) {
        assert_eq!(unescape(field), Path::new(plain));
    }

    proptest! {
        #[test]
        fn no_mountinfo_upsets_it(text in "\\PC*") {
            let _mounts: Vec<_> = mounts(&text).collect();
        }
    }
}
