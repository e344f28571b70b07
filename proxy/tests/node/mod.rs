//! A node small enough for a test: a cgroup tree of its own, a BPF file system of its own, and processes in
//! network namespaces of their own that dial when told to. All of it goes when the test ends, however it ends.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    clippy::missing_panics_doc,
    reason = "shared by tests that use parts of it each"
)]

mod agent;
mod crowd;
mod dialler;
pub(crate) mod foreign;
mod mortal;
mod tagged;
mod tricks;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use understudy::{
    kernel::{self, Kernel, Options, cgroup},
    pod::{CgroupId, NetnsCookie},
};

pub(crate) use agent::{Agent, dial, dial_when_possible, patiently, wanted};
pub(crate) use crowd::Crowd;
pub(crate) use foreign::Foreign;
pub(crate) use mortal::{Death, Mortal};
pub(crate) use tagged::{TaggedPod, flow_table};

pub(crate) const API_V4: &str = "10.96.0.1:443";
pub(crate) const API_V6: &str = "[fd00:96::1]:443";
pub(crate) const API_MAPPED: &str = "[::ffff:10.96.0.1]:443";
/// An address of the same machine that isn't the API server's.
pub(crate) const OTHER_V4: &str = "10.96.0.2:443";

pub(crate) struct Node {
    root: PathBuf,
    scratch: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: run it through sudo"
        );
        for tool in ["unshare", "nsenter", "ip"] {
            let found = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            // `ip` knows -V only, and says so with an exit code.
            assert!(
                found.is_ok(),
                "this test needs `{tool}`: apt-get install util-linux iproute2"
            );
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = cgroup::mount_point()
            .unwrap()
            .join(format!("us-kernel-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("untagged")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let bpffs = scratch.path().join("bpf");
        fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|errno| panic!("this test needs to mount a bpffs: {errno}"));
        Self { root, scratch }
    }

    pub(crate) fn pin_dir(&self) -> PathBuf {
        self.scratch.path().join("bpf/understudy")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.scratch.path().join("run")
    }

    pub(crate) fn options(&self) -> Options {
        // A machine that is busy with other tests may be late by more than the second of a real node.
        Options {
            heartbeat_max_age: Duration::from_secs(30),
            // Beside those of other tests' nodes, which aren't to count each other's connects.
            whole_hierarchy: false,
            ..Options::new(self.pin_dir())
        }
    }

    pub(crate) fn root(&self) -> cgroup::CgroupRoot {
        cgroup::CgroupRoot::open(&self.root).unwrap()
    }

    pub(crate) fn path(&self, cgroup: &str) -> PathBuf {
        self.root.join(cgroup)
    }

    /// Installs the kernel side, with the API server's addresses set and a fresh heartbeat.
    pub(crate) fn install(&self) -> Kernel {
        self.install_with(&self.options())
    }

    pub(crate) fn install_with(&self, options: &Options) -> Kernel {
        let kernel = Kernel::install(&self.root(), options).unwrap();
        kernel.set_api_servers(&api_servers()).unwrap();
        kernel.beat().unwrap();
        kernel
    }

    /// Makes a cgroup and returns its id.
    pub(crate) fn cgroup(&self, name: &str) -> CgroupId {
        fs::create_dir_all(self.path(name)).unwrap();
        self.root().descend(Path::new(name)).unwrap().id()
    }

    /// A process in a cgroup, in a new network namespace in which the API server's addresses answer.
    pub(crate) fn pod(&self, cgroup: &str) -> Dialler {
        let mut dialler = self.dialler(cgroup, Command::new("unshare").arg("--net"));
        dialler.ask("set-up");
        dialler
    }

    /// A process in a cgroup, in the namespace of another one.
    pub(crate) fn neighbour(&self, cgroup: &str, other: &Dialler) -> Dialler {
        self.dialler(
            cgroup,
            Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", other.pid())),
        )
    }

    fn dialler(&self, cgroup: &str, wrapper: &mut Command) -> Dialler {
        fs::create_dir_all(self.path(cgroup)).unwrap();
        let mut dialler = start(wrapper);
        fs::write(self.path(cgroup).join("cgroup.procs"), dialler.pid().to_string()).unwrap();
        dialler.ask("hello");
        dialler
    }
}

/// Starts the process that does as it is told, in a wrapper.
fn start(wrapper: &mut Command) -> Dialler {
    let mut child = wrapper
        .arg(std::env::current_exe().unwrap())
        .args(["node::dialler::dialler_process", "--exact", "--ignored", "--nocapture"])
        .env(dialler::MARK, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    Dialler { child, stdin, stdout }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _uninstalled = kernel::uninstall(&self.pin_dir());
        let _unmounted = umount2(&self.scratch.path().join("bpf"), MntFlags::MNT_DETACH);
        remove_cgroups(&self.root);
    }
}

/// Children first. Their processes have been killed; the kernel may take a moment to let them go.
pub(crate) fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    eventually("the cgroup is removed", || {
        fs::remove_dir(path).is_ok() || !path.exists()
    });
}

pub(crate) fn api_servers() -> std::collections::BTreeSet<SocketAddr> {
    [API_V4, API_V6]
        .iter()
        .map(|address| address.parse().unwrap())
        .collect()
}

/// A port of the loopback's that nobody listens on.
pub(crate) fn free_port(process: &mut Dialler) -> u16 {
    process.socket("free", "v4");
    process.does("bind free 127.0.0.1:0");
    let port = process.ask("port free").parse().unwrap();
    process.close("free");
    port
}

/// Waits for a condition, for ten seconds at most.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        if Instant::now() > end {
            if std::thread::panicking() {
                return;
            }
            panic!("in vain waited for: {what}");
        }
        #[expect(clippy::disallowed_methods, reason = "nothing tells of it")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that does as it is told.
pub(crate) struct Dialler {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// An open connection's two ends, as its client sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Dialler {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A process that stays in the cgroup of the test, beside the node's, in its namespace.
    pub(crate) fn neighbour_outside(&self) -> Dialler {
        start(Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", self.pid())))
    }

    /// Runs a command of words in its network namespace.
    pub(crate) fn within(&self, command: &str) {
        let status = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid()))
            .args(command.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "{command}");
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(
                self.stdout.read_line(&mut line).unwrap(),
                0,
                "the dialler died at {command:?}"
            );
            // The test harness that it runs in writes lines of its own, and the first without an end.
            if let Some(at) = line.find(dialler::ANSWER) {
                return line[at + dialler::ANSWER.len()..].trim().to_owned();
            }
        }
    }

    /// Dials, and keeps the connection under a name. The error is an errno.
    pub(crate) fn dial(&mut self, name: &str, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("dial {name} {address}")))
    }

    /// Makes a socket, and keeps it under a name: `v4`, `v6` or `mptcp`.
    pub(crate) fn socket(&mut self, name: &str, kind: &str) {
        self.does(&format!("socket {name} {kind}"));
    }

    /// Dials with a socket that is there.
    pub(crate) fn connect(&mut self, name: &str, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("connect {name} {address}")))
    }

    /// A command that is to succeed.
    pub(crate) fn does(&mut self, command: &str) {
        assert_eq!(self.ask(command), "ok", "{command}");
    }

    /// A command that dials.
    pub(crate) fn dials(&mut self, command: &str) -> Result<Ends, i32> {
        ends(&self.ask(command))
    }

    /// Disconnects a connection's socket and dials again with it.
    pub(crate) fn redial(&mut self, name: &str, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("redial {name} {address}")))
    }

    /// Dials from a source address and port.
    pub(crate) fn dial_from(&mut self, name: &str, from: SocketAddr, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("dial-from {name} {from} {address}")))
    }

    /// Dials by sending, with TCP Fast Open: there is no `connect()`.
    pub(crate) fn fast_open(&mut self, name: &str, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("fast-open {name} {address}")))
    }

    /// Dials with Multipath TCP.
    pub(crate) fn dial_mptcp(&mut self, name: &str, address: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("mptcp {name} {address}")))
    }

    /// Listens on an address, and takes no connection: those that are dialled stay on their way.
    pub(crate) fn listen_full(&mut self, address: &str) {
        assert_eq!(self.ask(&format!("listen-full {address}")), "ok");
    }

    /// Begins to dial, and doesn't wait for it.
    pub(crate) fn begin_to_dial(&mut self, name: &str, address: &str) {
        let in_progress = format!("err {}", nix::libc::EINPROGRESS);
        assert_eq!(self.ask(&format!("dial-begin {name} {address}")), in_progress);
    }

    /// What has befallen a connection: an errno, or 0.
    pub(crate) fn error(&mut self, name: &str) -> i32 {
        self.ask(&format!("error {name}")).parse().unwrap()
    }

    /// Asks for an open connection's ends again.
    pub(crate) fn ends(&mut self, name: &str) -> Result<Ends, i32> {
        ends(&self.ask(&format!("ends {name}")))
    }

    pub(crate) fn close(&mut self, name: &str) {
        assert_eq!(self.ask(&format!("close {name}")), "ok");
    }

    /// Dials many times, and reads to the end each time: who was heard, and each failure.
    pub(crate) fn greetings(&mut self, address: &str, times: u32) -> Vec<String> {
        let heard = self.ask(&format!("greetings {address} {times}"));
        heard.split(',').map(str::to_owned).collect()
    }

    /// Dials and closes, many times; how many dials succeeded.
    pub(crate) fn churn(&mut self, address: &str, times: u32) -> u32 {
        self.ask(&format!("churn {address} {times}")).parse().unwrap()
    }

    /// Listens on a loopback address; the port.
    pub(crate) fn listen(&mut self, address: &str) -> u16 {
        self.ask(&format!("listen {address}")).parse().unwrap()
    }

    /// Reads to the end of a connection; what came.
    pub(crate) fn read(&mut self, name: &str) -> String {
        self.ask(&format!("read {name}"))
    }

    /// How many connections have reached the API server's own addresses, and the others', in its namespace.
    pub(crate) fn served(&mut self) -> u32 {
        self.ask("served").parse().unwrap()
    }

    pub(crate) fn cookie(&mut self) -> NetnsCookie {
        NetnsCookie(self.ask("cookie").parse().unwrap())
    }
}

fn ends(answer: &str) -> Result<Ends, i32> {
    let words: Vec<&str> = answer.split(' ').collect();
    match words[..] {
        ["ok", local, peer] => Ok(Ends {
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
        }),
        ["err", errno] => Err(errno.parse().unwrap()),
        _ => panic!("the dialler says {answer:?}"),
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
