//! Light pods, by the hundred: each one a sleeping process with a network namespace and a cgroup of kubelet's layout,
//! and nothing else. The namespaces are made by `unshare` on a thread that ends; nobody enters one.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use uuid::Uuid;

use super::{
    Command, PodSpec,
    cgroup::Cgroup,
    command::Place,
    host::{Inner, Node},
    layout::container_id,
};

/// Pods that are there in name only until [`LightPods::appear`].
#[derive(Debug)]
pub struct LightPods {
    pods: Vec<LightPod>,
    inner: Arc<Inner>,
}

/// One of them.
#[derive(Debug)]
pub struct LightPod {
    spec: PodSpec,
    sleeper: Sleeper,
    path: PathBuf,
    cgroup: Option<Cgroup>,
    container: PathBuf,
}

/// The one process of a pod.
#[derive(Debug)]
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have been killed with its cgroup; it is reaped either way.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Node {
    /// Starts the processes of light pods, each in a network namespace of its own (the node's for a host-network pod)
    /// with its loopback up, and in none of the pods' cgroups yet. A thousand take seconds.
    ///
    /// # Errors
    /// A process or namespace couldn't be made.
    pub fn light_pods(&self, specs: impl IntoIterator<Item = PodSpec>) -> Result<LightPods> {
        let inner = self.inner();
        let waiting = inner.cgroups().child("system/waiting")?;
        let specs: Vec<PodSpec> = specs.into_iter().collect();
        // A thread that has left the first namespace doesn't come back to it: it ends here.
        let thread = thread::Builder::new().name("light-pods".to_owned());
        let started = thread
            .spawn(move || {
                specs
                    .into_iter()
                    .map(|spec| start(&spec, &waiting).map(|child| (spec, child)))
                    .collect()
            })?
            .join();
        let Ok(started): Result<Result<Vec<(PodSpec, Sleeper)>>, _> = started else {
            bail!("the thread that starts light pods panicked");
        };
        let root = inner.cgroups().path();
        let pods = started?.into_iter().map(|(spec, sleeper)| {
            let uid = spec.uid.unwrap_or_else(Uuid::new_v4);
            let path = spec.layout.pod(uid, spec.qos);
            let container = root.join(&path).join(spec.layout.container(&container_id()));
            LightPod {
                spec,
                sleeper,
                path,
                cgroup: None,
                container,
            }
        });
        Ok(LightPods {
            pods: pods.collect(),
            inner: Arc::clone(inner),
        })
    }
}

impl LightPods {
    /// Makes every pod's cgroups and puts its process into them, one after the other. Returns the time before the
    /// first.
    ///
    /// # Errors
    /// A cgroup couldn't be made, or a process is gone.
    pub fn appear(&mut self) -> Result<Instant> {
        let before = Instant::now();
        for pod in &mut self.pods {
            pod.appear(&self.inner)?;
        }
        Ok(before)
    }

    /// The pods.
    #[must_use]
    pub fn pods(&self) -> &[LightPod] {
        &self.pods
    }

    /// A command in one of them, which sees the node's own files.
    #[must_use]
    pub fn command(&self, pod: &LightPod, program: impl Into<PathBuf>) -> Command {
        let place = Place {
            cgroup: pod.container.clone(),
            netns: PathBuf::from(format!("/proc/{}/ns/net", pod.sleeper.0.id())),
            view: None,
            home: self.inner.directory().to_owned(),
            env: BTreeMap::new(),
            held: Arc::clone(&self.inner),
        };
        Command::new(place, program)
    }
}

impl LightPod {
    fn appear(&mut self, inner: &Inner) -> Result<()> {
        if self.cgroup.is_none() {
            self.cgroup = Some(Cgroup::create(inner.cgroups().path().join(&self.path))?);
            Cgroup::make(&self.container)?;
            fs::write(self.container.join("cgroup.procs"), self.sleeper.0.id().to_string())
                .with_context(|| format!("moving the process of the pod {}", self.spec.name))?;
        }
        Ok(())
    }

    /// What it was asked to be.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its cgroup, relative to the root of the pods' tree.
    #[must_use]
    pub fn cgroup_in_sessions(&self) -> &Path {
        &self.path
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.sleeper.0.id()
    }
}

/// Starts one process, in a new namespace of the calling thread's, and out of the cgroup of the tests.
fn start(spec: &PodSpec, waiting: &Path) -> Result<Sleeper> {
    if spec.host_network {
        bail!("{}: a light pod has a network of its own; use Node::pod", spec.name);
    }
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    loopback_up()?;
    let child = std::process::Command::new("sleep")
        .arg("infinity")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting a light pod's process")?;
    let sleeper = Sleeper(child);
    fs::write(waiting.join("cgroup.procs"), sleeper.0.id().to_string())?;
    Ok(sleeper)
}

/// Brings `lo` up in the calling thread's namespace, by rtnetlink: `ip` would cost a process for each.
fn loopback_up() -> Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 0x1 | 0x4;
    const UP: u32 = 0x1;
    const LO: i32 = 1;
    const ERROR: u16 = 2;
    let netlink: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // struct nlmsghdr and struct ifinfomsg, of linux/netlink.h and linux/rtnetlink.h.
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(LO.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let read = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr follows the header: an errno, negative or 0.
    let mut fields = answer.get(4..read).unwrap_or_default();
    let (mut kind, mut rest, mut errno) = ([0; 2], [0; 10], [0; 4]);
    fields.read_exact(&mut kind)?;
    fields.read_exact(&mut rest)?;
    fields.read_exact(&mut errno)?;
    if u16::from_ne_bytes(kind) != ERROR || i32::from_ne_bytes(errno) != 0 {
        bail!(
            "the loopback of a light pod didn't come up: errno {}",
            -i32::from_ne_bytes(errno)
        );
    }
    Ok(())
}
