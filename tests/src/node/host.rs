//! The node itself: what pods, the agent and the API server share, and the order in which it is taken down.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{
    Accounts, CertificateAuthority, Command, Pod, PodSpec, PreparedPod, SessionsDir,
    cgroup::Cgroup,
    command::Place,
    mounts::{self, BpfFs},
    name::BoxName,
    netns::Netns,
    network, sweep, tools,
};

/// A node in a box. It goes when the last of its pods, commands and clones is dropped.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// The fields fall in this order: processes first, then what they used.
#[derive(Debug)]
pub(crate) struct Inner {
    cgroups: Cgroup,
    pins: BpfFs,
    node: Netns,
    control_plane: Netns,
    name: BoxName,
    next_pod: AtomicU8,
    cluster_ca: CertificateAuthority,
    accounts: Accounts,
    directory: TempDir,
}

impl Node {
    /// Makes a node: its namespaces, cgroup tree, BPF file system, certificates and accounts.
    ///
    /// # Errors
    /// Names what is missing here and how to get it.
    pub fn new() -> Result<Self> {
        static SWEPT: Once = Once::new();
        tools::preflight()?;
        SWEPT.call_once(sweep::sweep);

        let name = BoxName::fresh();
        let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let cgroups = Cgroup::create(mounts::cgroup2()?.join(name.to_string()))?;
        let pins = BpfFs::mount(directory.path().join("bpf"))?;
        let node = Netns::create(format!("{name}-node"))?;
        let control_plane = Netns::create(format!("{name}-control-plane"))?;
        network::join_control_plane(&node, &control_plane)?;

        let accounts = Accounts::new();
        let cluster_ca = CertificateAuthority::new("kubernetes")?;
        fs::write(directory.path().join("ca.crt"), cluster_ca.certificate())?;
        for subdirectory in ["sessions", "pods", "agent", "control-plane"] {
            fs::create_dir(directory.path().join(subdirectory))?;
        }
        // Pods are numbered from 10, so that their addresses stand apart from the gateways'.
        let next_pod = AtomicU8::new(10);
        let inner = Inner {
            cgroups,
            pins,
            node,
            control_plane,
            name,
            next_pod,
            cluster_ca,
            accounts,
            directory,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts a pod sandbox: its namespace, cgroup and files. Commands run in it as they are asked for.
    ///
    /// # Errors
    /// A namespace or cgroup couldn't be made.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        self.prepare_pod(spec)?.appear()
    }

    /// Makes all of a pod but its cgroups, so that what follows their appearance can be timed.
    ///
    /// # Errors
    /// A namespace or file couldn't be made.
    pub fn prepare_pod(&self, spec: PodSpec) -> Result<PreparedPod> {
        PreparedPod::new(Arc::clone(&self.inner), spec)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The session files that the agent reads.
    #[must_use]
    pub fn sessions(&self) -> SessionsDir {
        SessionsDir::new(self.inner.directory.path().join("sessions"))
    }

    /// The service accounts of the scenario.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.inner.accounts
    }

    /// The CA that signs the API server's certificate.
    #[must_use]
    pub fn cluster_ca(&self) -> &CertificateAuthority {
        &self.inner.cluster_ca
    }

    /// The cluster CA's certificate file.
    #[must_use]
    pub fn cluster_ca_file(&self) -> PathBuf {
        self.inner.directory.path().join("ca.crt")
    }

    /// The cgroup that the agent's programs are attached to; sessions name pods relative to it.
    #[must_use]
    pub fn cgroup_root(&self) -> &Path {
        self.inner.cgroups.path()
    }

    /// The directory that the agent pins its programs in; the agent makes it, in a BPF file system of the box's own.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        self.inner.pins.path().join("understudy")
    }

    /// The directory in which agents of the node meet; they make it.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.inner.directory.path().join("run")
    }

    /// Where the box's files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.inner.directory.path()
    }

    /// A command of the node's own, outside every pod, in its network.
    ///
    /// # Errors
    /// Its cgroup couldn't be made.
    pub fn command(&self, program: impl Into<PathBuf>) -> Result<Command> {
        let place = self.place("node", &self.inner.node)?;
        Ok(Command::new(place, program))
    }

    /// A command in the control plane's network.
    ///
    /// # Errors
    /// Its cgroup couldn't be made.
    pub fn control_plane_command(&self, program: impl Into<PathBuf>) -> Result<Command> {
        let place = self.place("control-plane", &self.inner.control_plane)?;
        Ok(Command::new(place, program))
    }

    fn place(&self, name: &str, netns: &Netns) -> Result<Place> {
        Ok(Place {
            cgroup: self.inner.cgroups.child(&format!("system/{name}"))?,
            netns: netns.path(),
            view: None,
            home: self.inner.directory.path().to_owned(),
            env: BTreeMap::new(),
            held: Arc::clone(&self.inner),
        })
    }
}

impl Inner {
    pub(crate) fn cgroups(&self) -> &Cgroup {
        &self.cgroups
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn node(&self) -> &Netns {
        &self.node
    }

    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    pub(crate) fn cluster_ca(&self) -> &CertificateAuthority {
        &self.cluster_ca
    }

    /// A network namespace joined to the node.
    pub(crate) fn pod_netns(&self) -> Result<Netns> {
        let index = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(format!("{}-pod-{index}", self.name))?;
        network::join_pod(&self.node, &netns, index)
            .with_context(|| format!("joining {} to the node", netns.name()))?;
        Ok(netns)
    }
}
