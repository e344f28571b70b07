//! The system calls that the agent never makes, and that somebody who came to steer it would want. They fail with EPERM.
//!
//! A list of what is forbidden, not of what is allowed: libraries and C libraries change which harmless call they make,
//! and an agent that fails on a node for that would refuse its pods' connections.

use std::{collections::BTreeMap, env::consts::ARCH, process};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads, sock_filter,
};

/// Why system calls can't be forbidden.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There are no filters for this architecture.
    #[error("system calls can't be filtered on {ARCH}: run the agent on x86_64 or aarch64")]
    Architecture,
    /// The filter isn't one.
    #[error("the filter of system calls can't be made: {0}")]
    Make(#[from] seccompiler::BackendError),
    /// The kernel doesn't take it.
    #[error("system calls can't be filtered ({0}): use a kernel with CONFIG_SECCOMP_FILTER, and let the agent call it")]
    Apply(#[from] seccompiler::Error),
}

/// Forbidden whatever the arguments.
pub const FORBIDDEN: &[(&str, libc::c_long)] = &[
    // Other processes: their memory, their descriptors, their signals.
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("process_madvise", libc::SYS_process_madvise),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("kcmp", libc::SYS_kcmp),
    ("tkill", libc::SYS_tkill),
    ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
    ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
    // Other programs.
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    #[cfg(target_arch = "x86_64")]
    ("fork", libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    ("vfork", libc::SYS_vfork),
    // The tree of files, and ways around it.
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("fsopen", libc::SYS_fsopen),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fspick", libc::SYS_fspick),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("quotactl", libc::SYS_quotactl),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    // Namespaces; setns is below.
    ("unshare", libc::SYS_unshare),
    // The kernel itself, and the machine.
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("reboot", libc::SYS_reboot),
    ("syslog", libc::SYS_syslog),
    ("acct", libc::SYS_acct),
    ("settimeofday", libc::SYS_settimeofday),
    ("clock_settime", libc::SYS_clock_settime),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("adjtimex", libc::SYS_adjtimex),
    ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname),
    ("vhangup", libc::SYS_vhangup),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("modify_ldt", libc::SYS_modify_ldt),
    // Where the kernel has had more faults than the agent has use.
    ("userfaultfd", libc::SYS_userfaultfd),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("keyctl", libc::SYS_keyctl),
    ("personality", libc::SYS_personality),
];

/// What sockets the agent makes: to clients and servers, to the agent before it, and to ask the kernel about sockets.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The commands of bpf(2) that an agent in service gives: elements of maps, one by one and in batches, and what a descriptor is.
const BPF_IN_SERVICE: [u32; 6] = [1, 2, 3, 4, 15, 24];

/// Requests of ioctl(2) that type on others' terminals: `TIOCSTI` and `TIOCLINUX`.
const ONTO_TERMINALS: [u64; 2] = [0x5412, 0x541c];

const WRITABLE_CODE: libc::c_int = libc::PROT_WRITE | libc::PROT_EXEC;

const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// For the calling thread and those that it makes. The kernel programs may still be loaded.
///
/// # Errors
/// Why not. Nothing is forbidden then.
pub fn forbid() -> Result<(), FilterError> {
    Ok(apply_filter(&starting()?)?)
}

/// For all threads, when the kernel programs are in force: no other program is loaded, attached or looked at from here.
/// With the rights that the agent has, a program of somebody else's could read all of the kernel's memory.
///
/// # Errors
/// Why not.
pub fn forbid_loading() -> Result<(), FilterError> {
    Ok(apply_filter_all_threads(&in_service()?)?)
}

fn starting() -> Result<BpfProgram, FilterError> {
    let mut rules: Rules = FORBIDDEN.iter().map(|(_, number)| (*number, Vec::new())).collect();
    let own = u64::from(process::id());
    let new_namespaces = NAMESPACES.map(|flag| vec![masked(0, flag, flag)]);
    let no_thread = vec![masked(0, libc::CLONE_THREAD, 0)];
    forbid_where(
        &mut rules,
        libc::SYS_clone,
        new_namespaces.into_iter().chain([no_thread]),
    )?;
    forbid_where(&mut rules, libc::SYS_setns, [vec![is_not(1, bits(libc::CLONE_NEWNET))]])?;
    let other_family = FAMILIES.map(|family| is_not(0, bits(family))).into_iter().collect();
    forbid_where(&mut rules, libc::SYS_socket, [other_family])?;
    for signal in [libc::SYS_kill, libc::SYS_tgkill] {
        forbid_where(&mut rules, signal, [vec![is_not(0, own)]])?;
    }
    forbid_where(&mut rules, libc::SYS_prlimit64, [vec![is_not(0, 0), is_not(0, own)]])?;
    for protection in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        forbid_where(&mut rules, protection, [vec![masked(2, WRITABLE_CODE, WRITABLE_CODE)]])?;
    }
    let dumpable = vec![is(0, bits(libc::PR_SET_DUMPABLE)), is_not(1, 0)];
    let tracer = vec![is(0, bits(libc::PR_SET_PTRACER))];
    forbid_where(&mut rules, libc::SYS_prctl, [dumpable, tracer])?;
    let onto_terminals = ONTO_TERMINALS.map(|request| vec![is(1, request)]);
    forbid_where(&mut rules, libc::SYS_ioctl, onto_terminals)?;
    let mut program = unknown_to_us();
    program.extend(compile(rules)?);
    Ok(program)
}

fn in_service() -> Result<BpfProgram, FilterError> {
    let mut rules = Rules::new();
    let other_command = BPF_IN_SERVICE.map(|command| is_not(0, command.into())).into();
    forbid_where(&mut rules, libc::SYS_bpf, [other_command])?;
    compile(rules)
}

fn compile(rules: Rules) -> Result<BpfProgram, FilterError> {
    let architecture = TargetArch::try_from(ARCH).map_err(|_| FilterError::Architecture)?;
    let forbid = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, forbid, architecture)?;
    Ok(filter.try_into()?)
}

/// What the rules can't say: `clone3`, whose flags lie in memory where no filter sees them, isn't known here, and C
/// libraries then use `clone`; and neither are the second numbers that x86-64 kernels may have for all calls (x32),
/// which would lead around every rule.
fn unknown_to_us() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        // All of these fit: `linux/bpf_common.h`.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or_default();
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    vec![
        // The number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, clone3),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, absent),
    ]
}

/// Forbids a call where all conditions of one of the lists are met.
fn forbid_where(
    rules: &mut Rules,
    number: libc::c_long,
    lists: impl IntoIterator<Item = Vec<Condition>>,
) -> Result<(), FilterError> {
    let mut made = Vec::new();
    for list in lists {
        made.push(SeccompRule::new(list.into_iter().collect::<Result<_, _>>()?)?);
    }
    rules.insert(number, made);
    Ok(())
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

// The kernel looks at 32 bits of all the arguments that are named here.

fn is(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Ne, value)
}

fn masked(argument: u8, mask: libc::c_int, value: libc::c_int) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bits(mask)), bits(value))
}

/// An argument of type `int` as the register's lower half has it.
fn bits(value: libc::c_int) -> u64 {
    value.cast_unsigned().into()
}
