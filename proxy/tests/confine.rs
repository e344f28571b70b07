//! What the agent takes from itself, tried on threads that are confined as it is: what is forbidden fails with EPERM,
//! what it does still works. Needs root, like the agent.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

use std::{
    fs::File,
    io,
    net::{TcpListener, TcpStream},
    process::{self, Command},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    libc,
    sched::CloneFlags,
    sys::{
        prctl,
        resource::{Resource, getrlimit},
    },
};
use understudy::app::confine::{self, syscalls};

/// One test at a time: a filter for all threads is refused while one of them has a filter of its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On a thread for which the agent's system calls are forbidden, and which ends with it.
fn forbidden<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let confined = scope.spawn(|| {
            syscalls::forbid().unwrap();
            work()
        });
        confined.join().unwrap()
    })
}

/// A system call with arguments of which none is good.
fn call(number: libc::c_long) -> Result<libc::c_long, Errno> {
    // SAFETY: no pointer among them is one, so the kernel neither reads nor writes this process's memory.
    Errno::result(unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) })
}

fn call_with(number: libc::c_long, arguments: [libc::c_long; 3]) -> Result<libc::c_long, Errno> {
    let [first, second, third] = arguments;
    // SAFETY: as above; the callers pass numbers and null only.
    Errno::result(unsafe { libc::syscall(number, first, second, third, 0, 0, 0) })
}

/// Signal 0: whether one could be sent.
fn kill(process: libc::c_long) -> Result<libc::c_long, Errno> {
    call_with(libc::SYS_kill, [process, 0, 0])
}

fn socket(family: libc::c_int) -> Result<libc::c_long, Errno> {
    call_with(libc::SYS_socket, [family.into(), libc::SOCK_DGRAM.into(), 0])
}

#[test]
fn what_is_forbidden_fails_whatever_its_arguments() {
    let _alone = alone();
    let outcomes: Vec<_> = forbidden(|| {
        let outcome = |(name, number): &(&'static str, libc::c_long)| (*name, call(*number));
        syscalls::FORBIDDEN.iter().map(outcome).collect()
    });
    assert!(outcomes.len() > 50);
    for (name, outcome) in outcomes {
        assert_eq!(outcome, Err(Errno::EPERM), "{name}");
    }
}

#[test]
fn what_is_forbidden_by_its_arguments_fails_and_no_more() {
    let _alone = alone();
    // Root without a filter may all of this.
    assert!(kill(1).is_ok() && socket(libc::AF_ALG) != Err(Errno::EPERM));
    forbidden(|| {
        for family in [
            libc::AF_PACKET,
            libc::AF_ALG,
            libc::AF_VSOCK,
            libc::AF_XDP,
            libc::AF_BLUETOOTH,
        ] {
            assert_eq!(socket(family), Err(Errno::EPERM), "family {family}");
        }
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK] {
            assert_ne!(socket(family), Err(Errno::EPERM), "family {family}");
        }
        assert_eq!(kill(1), Err(Errno::EPERM));
        assert_eq!(kill(-1), Err(Errno::EPERM));
        assert_eq!(kill(process::id().into()), Ok(0));
        let page = 4096;
        let code = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).into();
        assert_eq!(call_with(libc::SYS_mmap, [0, page, code]), Err(Errno::EPERM));
        assert_eq!(call_with(libc::SYS_mprotect, [0, page, code]), Err(Errno::EPERM));
        assert_eq!(prctl::set_dumpable(true), Err(Errno::EPERM));
        assert_eq!(prctl::set_dumpable(false), Ok(()));
        assert!(getrlimit(Resource::RLIMIT_NOFILE).is_ok());
        let of_another = call_with(libc::SYS_prlimit64, [1, 0, 0]);
        assert_eq!(of_another, Err(Errno::EPERM));
    });
}

/// Of namespaces, those of the network alone can be entered, and none be made.
#[test]
fn other_namespaces_than_the_networks_are_closed() {
    let _alone = alone();
    forbidden(|| {
        let enter = |file: &str, kind: CloneFlags| {
            use std::os::fd::AsRawFd as _;
            let file = File::open(format!("/proc/self/ns/{file}")).unwrap();
            call_with(libc::SYS_setns, [file.as_raw_fd().into(), kind.bits().into(), 0])
        };
        assert_eq!(enter("net", CloneFlags::CLONE_NEWNET), Ok(0));
        assert_eq!(enter("uts", CloneFlags::CLONE_NEWUTS), Err(Errno::EPERM));
        assert_eq!(enter("ipc", CloneFlags::empty()), Err(Errno::EPERM));
        for flag in [
            CloneFlags::CLONE_NEWUSER,
            CloneFlags::CLONE_NEWNS,
            CloneFlags::CLONE_NEWNET,
        ] {
            let flags = flag | CloneFlags::CLONE_THREAD | CloneFlags::CLONE_SIGHAND | CloneFlags::CLONE_VM;
            assert_eq!(
                call_with(libc::SYS_clone, [flags.bits().into(), 0, 0]),
                Err(Errno::EPERM)
            );
        }
    });
}

#[test]
fn no_other_program_is_run_and_threads_and_connections_are_made() {
    let _alone = alone();
    forbidden(|| {
        let error = Command::new("/bin/true").spawn().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        assert_eq!(
            call_with(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
            Err(Errno::EPERM)
        );
        // C libraries take this for an older kernel, and use clone.
        assert_eq!(call(libc::SYS_clone3), Err(Errno::ENOSYS));
        thread::spawn(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            TcpStream::connect(listener.local_addr()?)?;
            listener.accept().map(drop)
        })
        .join()
        .unwrap()
        .unwrap();
    });
}

/// The second set of numbers that x86-64 kernels may have leads around no rule.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_other_numbers_of_system_calls_are_unknown() {
    const X32: libc::c_long = 0x4000_0000;
    let _alone = alone();
    forbidden(|| {
        assert_eq!(call(X32 + libc::SYS_ptrace), Err(Errno::ENOSYS));
        assert_eq!(call(X32 + libc::SYS_getpid), Err(Errno::ENOSYS));
    });
}

/// For the whole process, as no thread can be left out.
#[test]
fn in_service_no_kernel_program_is_loaded_and_maps_are_read() {
    const PROG_LOAD: libc::c_long = 5;
    const MAP_CREATE: libc::c_long = 0;
    const LINK_CREATE: libc::c_long = 28;
    const MAP_LOOKUP_ELEM: libc::c_long = 1;
    const MAP_LOOKUP_BATCH: libc::c_long = 24;
    let _alone = alone();
    let bpf = |command| call_with(libc::SYS_bpf, [command, 0, 0]);
    for command in [PROG_LOAD, MAP_CREATE, LINK_CREATE] {
        assert_ne!(bpf(command), Err(Errno::EPERM), "run this as root");
    }
    syscalls::forbid_loading().unwrap();
    for command in [PROG_LOAD, MAP_CREATE, LINK_CREATE] {
        assert_eq!(bpf(command), Err(Errno::EPERM), "command {command}");
        let elsewhere = thread::spawn(move || call_with(libc::SYS_bpf, [command, 0, 0]));
        assert_eq!(elsewhere.join().unwrap(), Err(Errno::EPERM), "command {command}");
    }
    for command in [MAP_LOOKUP_ELEM, MAP_LOOKUP_BATCH] {
        assert_ne!(bpf(command), Err(Errno::EPERM), "command {command}");
    }
}

#[test]
fn capabilities_but_those_kept_are_gone_from_every_set() {
    let _alone = alone();
    let sets = thread::spawn(|| {
        confine::drop_capabilities(confine::KEPT)?;
        let status = std::fs::read_to_string("/proc/thread-self/status")?;
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap_or_default().trim(), 16).unwrap()
        };
        Ok::<_, io::Error>(["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(set))
    });
    // CAP_BPF (39), CAP_SYS_ADMIN (21), CAP_SYS_PTRACE (19), CAP_NET_ADMIN (12).
    let kept = 1 << 39 | 1 << 21 | 1 << 19 | 1 << 12;
    assert_eq!(sets.join().unwrap().unwrap(), [0, kept, kept, kept, 0]);
}
