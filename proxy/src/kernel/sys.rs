//! System calls that neither aya nor nix wraps: links, pins and `SO_NETNS_COOKIE`. Nothing here decides anything.
#![expect(unsafe_code, reason = "bpf(2) and getsockopt(2) take raw pointers")]

use std::{
    ffi::CString,
    io,
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use nix::libc;

use crate::pod::NetnsCookie;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The part of the kernel's `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` read.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// Likewise for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// Likewise for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct BatchAttr {
    cursor: u64,
    next: u64,
    keys: u64,
    values: u64,
    number: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The start of the kernel's `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfoRaw {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

/// What one system call read of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    /// How many entries.
    pub(crate) number: usize,
    /// Where it goes on; none at the end.
    pub(crate) next: Option<u32>,
}

/// Likewise for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Likewise for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// Likewise for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

/// The start of the kernel's `struct bpf_link_info`, with its cgroup variant.
#[repr(C)]
#[derive(Default)]
struct LinkInfoRaw {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad_end: u32,
}

/// Where a cgroup link is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The cgroup; 0 once it is gone.
    pub(crate) cgroup_id: u64,
    /// The hook, as `enum bpf_attach_type` numbers it.
    pub(crate) attach_type: u32,
}

/// A descriptor's number as bpf(2) has it.
fn number(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// `attr` is of the type that `command` reads, and what it points to outlives the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise; the kernel reads `size_of_val(attr)` bytes and takes what lies beyond as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of_val(attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

/// # Safety
/// As of [`bpf`], for a command that returns a descriptor.
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just handed it to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object.
pub(crate) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: BPF_OBJ_GET reads an ObjectAttr and returns a descriptor; the path outlives the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attr) }
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        fd: number(fd),
        flags: 0,
    };
    // SAFETY: BPF_OBJ_PIN reads an ObjectAttr; the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches a program to a cgroup by a link. No flags: a link is always one of several.
pub(crate) fn link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: number(program),
        target: number(cgroup),
        attach_type,
        flags: 0,
    };
    // SAFETY: BPF_LINK_CREATE reads a LinkCreateAttr and returns a descriptor.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Whether the kernel knows links for this program type: asks for one to nowhere.
pub(crate) fn link_to_nowhere(program: BorrowedFd<'_>, attach_type: u32) -> io::Error {
    let mut attr = LinkCreateAttr {
        program: number(program),
        target: u32::MAX,
        attach_type,
        flags: 0,
    };
    // SAFETY: BPF_LINK_CREATE reads a LinkCreateAttr and returns a descriptor; here it can't.
    match unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) } {
        Ok(_) => io::Error::other("a link to no cgroup was made"),
        Err(error) => error,
    }
}

/// Replaces a link's program. Every connect meets the old one or the new one.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: number(link),
        new_program: number(program),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: BPF_LINK_UPDATE reads a LinkUpdateAttr.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link's program out of force, at once.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: number(link) };
    // SAFETY: BPF_LINK_DETACH reads a LinkDetachAttr.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// Where a cgroup link is attached.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfoRaw::default();
    let length = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let mut attr = InfoAttr {
        fd: number(link),
        length,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD reads an InfoAttr and writes at most `length` bytes to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(LinkInfo {
        cgroup_id: info.cgroup_id,
        attach_type: info.attach_type,
    })
}

/// Reads the next entries of a hash map, from the start where there is no cursor.
///
/// # Errors
/// `EINVAL` where the map isn't one of such keys and values; `ENOSPC` where one of its buckets has more entries than
/// there is room for here.
pub(crate) fn lookup_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    cursor: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let mut info = MapInfoRaw::default();
    let mut attr = InfoAttr {
        fd: number(map),
        length: u32::try_from(size_of_val(&info)).map_err(io::Error::other)?,
        info: &raw mut info as u64,
    };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD reads an InfoAttr and writes at most `length` bytes to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let from = cursor.unwrap_or_default();
    let mut next: u32 = 0;
    let mut attr = BatchAttr {
        cursor: cursor.map_or(0, |_| &raw const from as u64),
        next: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        number: u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?,
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: BPF_MAP_LOOKUP_BATCH reads a BatchAttr and, where there is one, the cursor, which is a u32 as `next` is; and
    // writes at most `number` keys and values of the sizes that were just compared, for which any bytes will do.
    let read = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    let is_over = match read {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    Ok(Batch {
        number: attr.number as usize,
        next: (!is_over).then_some(next),
    })
}

/// The cookie of the network namespace that a socket lives in.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<NetnsCookie> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie: u64 = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the option is a u64, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(NetnsCookie(cookie))
}
