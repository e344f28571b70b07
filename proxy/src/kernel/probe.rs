//! Whether this node's kernel can run the programs: each needed thing is tried, not guessed from a version.

use std::{net::TcpListener, path::Path};

use aya::Ebpf;

use super::{
    cgroup::{self, CgroupRoot},
    install::{InstallError, load_program, load_unpinned, program_fd},
    link::attach_type,
    pins::check_bpffs,
    sys, tcp,
};

/// What trying one thing showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The thing tried.
    pub feature: &'static str,
    /// Whether it works, or what the system said.
    pub outcome: Outcome,
    /// What can't be had without it.
    pub loses: &'static str,
    /// What to do where it doesn't work.
    pub remedy: String,
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Works,
    /// It doesn't, for this reason, and the agent can't run without it.
    Fails(String),
    /// It doesn't, for this reason, and the agent can do without it.
    Lacks(String),
    /// It couldn't be tried, since something else failed first.
    Untried(String),
}

impl Probe {
    /// Whether it works.
    #[must_use]
    pub fn works(&self) -> bool {
        self.outcome == Outcome::Works
    }
}

/// Each program, what its hook is for, and what goes with it.
const HOOKS: [(&str, &str, &str); 6] = [
    (
        "connect4",
        "cgroup/connect4 programs",
        "interception of IPv4 connections",
    ),
    (
        "connect6",
        "cgroup/connect6 programs",
        "interception of IPv6 connections",
    ),
    (
        "peer_name4",
        "cgroup/getpeername4 programs",
        "the dialled address in getpeername() of IPv4 sockets",
    ),
    (
        "peer_name6",
        "cgroup/getpeername6 programs",
        "the dialled address in getpeername() of IPv6 sockets",
    ),
    (
        "flow_record",
        "sock_ops programs with bpf_get_netns_cookie",
        "telling whose connection a listener accepts",
    ),
    (
        "socket_release",
        "cgroup/sock_release programs",
        "clearing the flow table when a socket closes",
    ),
];

const NEWER_KERNEL: &str = "run Linux 5.15 or later with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF";

/// Tries everything that the kernel side needs. Nothing is attached and nothing is left behind.
#[must_use]
pub fn all(cgroup_root: Option<&Path>, pin_dir: &Path) -> Vec<Probe> {
    let mut probes = vec![
        cgroup2(cgroup_root),
        bpffs(pin_dir),
        netns_cookie(),
        ending_connections(),
    ];
    probes.extend(programs());
    probes
}

/// Cgroup v2 at the given root, or at the root of the pods that is found.
#[must_use]
pub fn cgroup2(root: Option<&Path>) -> Probe {
    let found = match root {
        Some(root) => CgroupRoot::open(root).map(drop),
        None => cgroup::pods_root().and_then(|root| CgroupRoot::open(&root)).map(drop),
    };
    Probe {
        feature: "cgroup v2",
        outcome: found.map_or_else(|error| Outcome::Fails(error.to_string()), |()| Outcome::Works),
        loses: "all interception",
        remedy: "mount cgroup v2 (`mount -t cgroup2 none /sys/fs/cgroup/unified`), and give --cgroup-root a \
                 directory of it"
            .to_owned(),
    }
}

/// A BPF file system to pin to.
#[must_use]
pub fn bpffs(pin_dir: &Path) -> Probe {
    Probe {
        feature: "BPF file system",
        outcome: check_bpffs(pin_dir).map_or_else(|error| Outcome::Fails(error.to_string()), |()| Outcome::Works),
        loses: "interception that outlives the agent",
        remedy: "mount one on the node (`mount -t bpf bpf /sys/fs/bpf`) and give --pin-dir a directory of it"
            .to_owned(),
    }
}

/// `SO_NETNS_COOKIE`.
#[must_use]
pub fn netns_cookie() -> Probe {
    let cookie = TcpListener::bind("127.0.0.1:0").and_then(sys::netns_cookie);
    Probe {
        feature: "SO_NETNS_COOKIE",
        outcome: cookie.map_or_else(|error| Outcome::Fails(error.to_string()), |_| Outcome::Works),
        loses: "telling whose connection a listener accepts",
        remedy: NEWER_KERNEL.to_owned(),
    }
}

/// `SOCK_DESTROY`.
#[must_use]
pub fn ending_connections() -> Probe {
    Probe {
        feature: "ending connections (CONFIG_INET_DIAG_DESTROY)",
        outcome: tcp::try_ending().map_or_else(|error| Outcome::Lacks(error.to_string()), |()| Outcome::Works),
        loses: "ending the connections to the API server that a pod opened before it was tagged",
        remedy:
            "run a kernel with CONFIG_INET_DIAG_DESTROY, and give the agent CAP_NET_ADMIN; until then, restart pods \
                 that are labelled while they run"
                .to_owned(),
    }
}

/// Each program, loaded for a moment, and links.
#[must_use]
pub fn programs() -> Vec<Probe> {
    let loaded = load_unpinned();
    let (mut object, failure) = match loaded {
        Ok(object) => (Some(object), String::new()),
        Err(error) => (None, error.to_string()),
    };
    let maps = Probe {
        feature: "BPF maps",
        outcome: if object.is_some() {
            Outcome::Works
        } else {
            Outcome::Fails(failure)
        },
        loses: "all interception",
        remedy: format!("give the agent CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN), and {NEWER_KERNEL}"),
    };
    let mut probes = vec![maps];
    for (name, feature, loses) in HOOKS {
        let outcome = match &mut object {
            Some(object) => outcome(load_program(object, name)),
            None => Outcome::Untried("the maps can't be made".to_owned()),
        };
        probes.push(Probe {
            feature,
            outcome,
            loses,
            remedy: NEWER_KERNEL.to_owned(),
        });
    }
    probes.push(Probe {
        feature: "BPF links to cgroups",
        outcome: object
            .as_ref()
            .map_or_else(|| Outcome::Untried("the maps can't be made".to_owned()), links),
        loses: "interception that outlives the agent, and its upgrade without a gap",
        remedy: NEWER_KERNEL.to_owned(),
    });
    probes
}

fn outcome(result: Result<(), InstallError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Works,
        Err(error) => Outcome::Fails(error.to_string()),
    }
}

/// A kernel that knows links for cgroups complains about the cgroup, another about the command or the program.
fn links(object: &Ebpf) -> Outcome {
    let name = "connect4";
    match (program_fd(object, name), attach_type(name)) {
        (Ok(program), Some(hook)) => {
            let error = sys::link_to_nowhere(program, hook);
            if error.raw_os_error() == Some(nix::errno::Errno::EBADF as i32) {
                Outcome::Works
            } else {
                Outcome::Fails(error.to_string())
            }
        }
        _ => Outcome::Untried("no program could be loaded".to_owned()),
    }
}
