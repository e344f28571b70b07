//! A pod: a cgroup, a network namespace and the files that kubelet would have given it.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use uuid::Uuid;

use super::{
    Command, Family, Output, PodSpec, binaries,
    cgroup::{self, Cgroup},
    command::Place,
    host::Inner,
    layout::container_id,
    netns::Netns,
    network::{SERVICE_V4, SERVICE_V6},
};

/// A pod on the node. Its processes die with it.
#[derive(Debug, Clone)]
pub struct Pod {
    sandbox: Arc<Sandbox>,
}

/// The fields fall in this order: the cgroup with its processes, then the namespace, then the box.
#[derive(Debug)]
struct Sandbox {
    cgroup: Cgroup,
    own_network: Option<Netns>,
    /// The cgroup of its one container, made anew where that restarts.
    container: Mutex<PathBuf>,
    cgroup_in_sessions: PathBuf,
    uid: Uuid,
    appeared: Instant,
    files: PathBuf,
    token: String,
    spec: PodSpec,
    pause: Option<Pause>,
    inner: Arc<Inner>,
}

/// The process that holds a pod's namespaces while none of its containers runs.
#[derive(Debug)]
struct Pause(Child);

impl Pause {
    /// Starts it, and returns once it is where it belongs.
    fn start(command: Command) -> Result<Self> {
        let mut command = command
            .args(["-c", "echo paused; exec sleep infinity"])
            .build_blocking();
        let mut child = command
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .context("starting the pod's pause")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the pause process has a standard output")?;
        let pause = Self(child);
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "paused" {
            bail!("the pod's pause process did not start");
        }
        Ok(pause)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // Its cgroup is gone by now, or goes with the box; without this it would stay a zombie.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A pod of which all is made but the cgroups: what kubelet does before the runtime starts the sandbox.
#[derive(Debug)]
pub struct PreparedPod {
    own_network: Option<Netns>,
    uid: Uuid,
    files: PathBuf,
    token: String,
    spec: PodSpec,
    inner: Arc<Inner>,
}

impl PreparedPod {
    pub(crate) fn new(inner: Arc<Inner>, spec: PodSpec) -> Result<Self> {
        let uid = spec.uid.unwrap_or_else(Uuid::new_v4);
        let own_network = if spec.host_network {
            None
        } else {
            Some(inner.pod_netns()?)
        };
        let files = inner.directory().join("pods").join(format!("{}-{uid}", spec.name));
        let token = spec
            .token
            .clone()
            .unwrap_or_else(|| inner.accounts().powerless.token.clone());
        write_files(&files, &spec, &token, &inner.cluster_ca().certificate())?;
        Ok(Self {
            own_network,
            uid,
            files,
            token,
            spec,
            inner,
        })
    }

    /// Makes its cgroups and starts its sandbox in them.
    ///
    /// # Errors
    /// A cgroup couldn't be made, or the sandbox didn't start.
    pub fn appear(self) -> Result<Pod> {
        let Self {
            own_network,
            uid,
            files,
            token,
            spec,
            inner,
        } = self;
        let cgroup_in_sessions = spec.layout.pod(uid, spec.qos);
        let container = |cgroup: &Cgroup| cgroup.child(&spec.layout.container(&container_id()));
        let appeared = Instant::now();
        let cgroup = Cgroup::create(inner.cgroups().path().join(&cgroup_in_sessions))?;
        let pause = container(&cgroup)?;
        let mut sandbox = Sandbox {
            container: Mutex::new(pause.clone()),
            cgroup,
            own_network,
            cgroup_in_sessions,
            uid,
            appeared,
            files,
            token,
            spec,
            pause: None,
            inner,
        };
        let place = sandbox.place(sandbox.network());
        sandbox.pause = Some(Pause::start(Command::new(place, "sh"))?);
        sandbox.new_container()?;
        Ok(Pod {
            sandbox: Arc::new(sandbox),
        })
    }
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.sandbox.spec.name
    }

    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> Uuid {
        self.sandbox.uid
    }

    /// What it was asked to be.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.sandbox.spec
    }

    /// The time before its cgroup was made.
    #[must_use]
    pub fn appeared(&self) -> Instant {
        self.sandbox.appeared
    }

    /// Kills what runs in its container and gives it another in the same sandbox, as kubelet does when one ends.
    ///
    /// # Errors
    /// The cgroups couldn't be removed or made.
    pub fn restart_container(&self) -> Result<()> {
        cgroup::destroy(&self.sandbox.container())?;
        self.sandbox.new_container()
    }

    /// Its own service account token, which it holds and which must grant it nothing.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.sandbox.token
    }

    /// Its cgroup as a session file names it: relative to the agent's `--cgroup-root`.
    #[must_use]
    pub fn cgroup_in_sessions(&self) -> &Path {
        &self.sandbox.cgroup_in_sessions
    }

    /// The ClusterIP family that it was told of.
    #[must_use]
    pub fn family(&self) -> Family {
        self.sandbox.spec.family
    }

    /// Adds a CA certificate to those in its ca.crt, as the published bundle of `own-ca` would.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn trust_also(&self, certificate: &str) -> Result<()> {
        self.mount_ca(&format!(
            "{}{certificate}",
            self.sandbox.inner.cluster_ca().certificate()
        ))
    }

    /// Makes `bundle` its ca.crt, as kubelet does with the `ConfigMap` that the pod mounts.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn mount_ca(&self, bundle: &str) -> Result<()> {
        fs::write(self.sandbox.files.join("serviceaccount/ca.crt"), bundle).context("writing the pod's ca.crt")
    }

    /// Its ca.crt.
    ///
    /// # Errors
    /// It can't be read.
    pub fn ca(&self) -> Result<String> {
        fs::read_to_string(self.sandbox.files.join("serviceaccount/ca.crt")).context("reading the pod's ca.crt")
    }

    /// A command inside the pod.
    #[must_use]
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        Command::new(self.sandbox.place(self.sandbox.network()), program)
    }

    /// A command in the pod's cgroup but in the node's network: what a process that left the pod's namespace is.
    #[must_use]
    pub fn command_on_host_network(&self, program: impl Into<PathBuf>) -> Command {
        Command::new(self.sandbox.place(self.sandbox.inner.node()), program)
    }

    /// kubectl inside the pod, with no kubeconfig and no flags: it finds the cluster as any program in a pod does.
    ///
    /// # Errors
    /// There is no kubectl on this machine.
    pub fn kubectl_command<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(&self, arguments: I) -> Result<Command> {
        Ok(self.command(binaries::kubectl()?).args(arguments))
    }

    /// Runs kubectl with the words of `line`.
    ///
    /// # Errors
    /// There is no kubectl, or it hangs. A failure of its own is in the output.
    pub async fn kubectl(&self, line: &str) -> Result<Output> {
        self.kubectl_command(line.split_whitespace())?.output().await
    }
}

impl Sandbox {
    fn container(&self) -> PathBuf {
        self.container.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn new_container(&self) -> Result<()> {
        let name = self.spec.layout.container(&container_id());
        *self.container.lock().unwrap_or_else(PoisonError::into_inner) = self.cgroup.child(&name)?;
        Ok(())
    }

    fn network(&self) -> &Netns {
        self.own_network.as_ref().unwrap_or_else(|| self.inner.node())
    }

    /// Where the pod's processes run, in `network`.
    fn place(&self, network: &Netns) -> Place {
        let service = self.spec.family.service();
        let env = [
            ("KUBERNETES_SERVICE_HOST", service.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", service.port().to_string()),
            ("KUBERNETES_SERVICE_PORT_HTTPS", service.port().to_string()),
        ];
        Place {
            cgroup: self.container(),
            netns: network.path(),
            view: Some(self.files.clone()),
            home: self.files.join("home"),
            env: env
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
            held: Arc::clone(&self.inner),
        }
    }
}

fn write_files(files: &Path, spec: &PodSpec, token: &str, ca: &str) -> Result<()> {
    let account = files.join("serviceaccount");
    for directory in [&account, &files.join("home")] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    fs::write(account.join("token"), token)?;
    fs::write(account.join("namespace"), &spec.namespace)?;
    fs::write(account.join("ca.crt"), ca)?;
    let (first, second) = match spec.family {
        Family::V4 => (SERVICE_V4.ip(), SERVICE_V6.ip()),
        Family::V6 => (SERVICE_V6.ip(), SERVICE_V4.ip()),
    };
    let names = "kubernetes.default.svc.cluster.local kubernetes.default.svc kubernetes.default kubernetes";
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{first} {names}\n{second} {names}\n");
    fs::write(files.join("hosts"), hosts)?;
    fs::write(
        files.join("resolv.conf"),
        "# Names come from /etc/hosts; there is no name server in the box.\n",
    )?;
    Ok(())
}
