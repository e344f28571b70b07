//! Another cgroup program than Understudy's, of a few instructions: what a node's other software may attach.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use nix::libc;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// How a program may be attached, by `linux/bpf.h`.
pub(crate) const ALONE: u32 = 0;
pub(crate) const ALLOW_OVERRIDE: u32 = 1;
pub(crate) const ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// A program on `connect()` to IPv4 addresses, attached until it is dropped.
pub(crate) struct Foreign {
    cgroup: File,
    program: OwnedFd,
}

impl Foreign {
    /// One that turns connects from one address to another.
    pub(crate) fn turning(cgroup: &Path, flags: u32, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<Self> {
        let word = |address: Ipv4Addr| i32::from_ne_bytes(address.octets());
        let instruction = |code, registers, offset, immediate| Instruction {
            code,
            registers,
            offset,
            immediate,
        };
        // The destination is the second word of the context, which r1 points to.
        Self::attach(
            cgroup,
            flags,
            &[
                instruction(0x61, 0x12, 4, 0),          // r2 = context.user_ip4
                instruction(0xb4, 0x03, 0, word(from)), // w3 = from
                instruction(0x5e, 0x32, 2, 0),          // if w2 != w3 skip two
                instruction(0xb4, 0x02, 0, word(to)),   // w2 = to
                instruction(0x63, 0x21, 4, 0),          // context.user_ip4 = w2
                instruction(0xb7, 0x00, 0, 1),          // allow
                instruction(0x95, 0x00, 0, 0),
            ],
        )
    }

    /// One that does nothing, or refuses everything.
    pub(crate) fn saying(cgroup: &Path, flags: u32, allow: bool) -> io::Result<Self> {
        let instruction = |code, immediate| Instruction {
            code,
            registers: 0,
            offset: 0,
            immediate,
        };
        Self::attach(
            cgroup,
            flags,
            &[instruction(0xb7, i32::from(allow)), instruction(0x95, 0)],
        )
    }

    fn attach(cgroup: &Path, flags: u32, instructions: &[Instruction]) -> io::Result<Self> {
        let license = c"Apache-2.0";
        let mut load = LoadAttr {
            program_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            instruction_count: u32::try_from(instructions.len()).unwrap(),
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: [0; 16],
            interface: 0,
            expected_attach_type: BPF_CGROUP_INET4_CONNECT,
        };
        let number = bpf(BPF_PROG_LOAD, &mut load)?;
        // SAFETY: the kernel has just handed it to us, and to nobody else.
        let program = unsafe { OwnedFd::from_raw_fd(number) };
        let foreign = Self {
            cgroup: File::open(cgroup)?,
            program,
        };
        bpf(BPF_PROG_ATTACH, &mut foreign.attr(flags))?;
        Ok(foreign)
    }

    fn attr(&self, flags: u32) -> AttachAttr {
        AttachAttr {
            target: self.cgroup.as_raw_fd().cast_unsigned(),
            program: self.program.as_raw_fd().cast_unsigned(),
            attach_type: BPF_CGROUP_INET4_CONNECT,
            flags,
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _detached = bpf(BPF_PROG_DETACH, &mut self.attr(0));
    }
}

/// `attr` is of the type that the command reads, and what it points to outlives the call: so it is above.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: as said; the kernel reads as many bytes as it is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).unwrap())
}
