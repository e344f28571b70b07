//! The agent as a process of the node: started, killed, brought back, and asked how it is.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Child, time::timeout};

use super::{
    AuditEvent, Command, MemoryLimit, Metrics, NODE_NAME, Node, audit, binaries,
    network::{API_SERVER, SERVICE_V4},
    session,
};

/// The namespace that the agent runs in.
pub const AGENT_NAMESPACE: &str = "understudy";
/// The Secret in that namespace in which agents of a cluster keep their CA.
pub const TRUST_SECRET: &str = "understudy-ca";
/// Where the first agent answers about itself.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9902);

/// Where a pod's trust in the agent's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// A certificate that the cluster's own CA signed: pods trust it as they are.
    #[default]
    Files,
    /// The agent's own CA, published to pods by [`Agent::publish_ca`]. In a cluster it is kept in a Secret.
    OwnCa,
    /// A certificate that the cluster's signer makes at the agent's request: pods trust it as they are.
    ClusterSigned,
}

/// Where the agent has its sessions from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sessions {
    /// The node's session files.
    #[default]
    Files,
    /// The cluster's resources, and pods that name them.
    Cluster,
}

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    trust: Trust,
    sessions: Sessions,
    instance: String,
    admin: SocketAddr,
    node_name: String,
    log_level: String,
    env: BTreeMap<String, String>,
    token: Option<String>,
    ca_file: Option<PathBuf>,
    audit_log: Option<PathBuf>,
    executable: Option<PathBuf>,
    launcher: Vec<String>,
    arguments: Vec<String>,
}

impl Default for AgentOptions {
    /// As a DaemonSet would start it on a dual-stack node, at trace level.
    fn default() -> Self {
        let env = [
            ("KUBERNETES_SERVICE_HOST", SERVICE_V4.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT_HTTPS", SERVICE_V4.port().to_string()),
        ];
        Self {
            trust: Trust::default(),
            sessions: Sessions::default(),
            instance: "agent".to_owned(),
            admin: ADMIN,
            node_name: NODE_NAME.to_owned(),
            log_level: "trace".to_owned(),
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            token: None,
            ca_file: None,
            audit_log: None,
            executable: None,
            launcher: Vec::new(),
            arguments: Vec::new(),
        }
    }
}

impl AgentOptions {
    /// An agent that has its sessions from the cluster, as the DaemonSet's pod `understudy/agent-box`.
    #[must_use]
    pub fn cluster() -> Self {
        let options = Self {
            sessions: Sessions::Cluster,
            ..Self::default()
        };
        options
            .env("POD_NAMESPACE", AGENT_NAMESPACE)
            .env("POD_NAME", "agent-box")
    }

    /// Another agent beside the first, which has its own files, its own log and its own admin address: the port after
    /// the first's for 1, and so on. The pins, and the directory in which agents meet, are the node's.
    #[must_use]
    pub fn beside(mut self, number: u16) -> Self {
        self.instance = format!("agent-{number}");
        self.admin.set_port(ADMIN.port().saturating_add(number));
        let name = format!("agent-{}-{number}", self.node_name);
        self.env("POD_NAME", &name)
    }

    /// The name of the node that it is told it runs on.
    #[must_use]
    pub fn node_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.node_name);
        self
    }

    /// Chooses where its certificate comes from.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Sets `RUST_LOG`.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Which of the service's addresses its own environment speaks of.
    #[must_use]
    pub fn service(self, address: SocketAddr) -> Self {
        self.env("KUBERNETES_SERVICE_HOST", &address.ip().to_string())
            .env("KUBERNETES_SERVICE_PORT_HTTPS", &address.port().to_string())
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Its own token, in place of that of the scene's account.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The file that it is told the cluster's CA is in.
    #[must_use]
    pub fn ca_file(mut self, file: &Path) -> Self {
        self.ca_file = Some(file.to_owned());
        self
    }

    /// The file that it writes its audit log to.
    #[must_use]
    pub fn audit_log(mut self, file: PathBuf) -> Self {
        self.audit_log = Some(file);
        self
    }

    /// The agent's executable, in place of the one that [`binaries::understudy`] finds.
    #[must_use]
    pub fn executable(mut self, file: PathBuf) -> Self {
        self.executable = Some(file);
        self
    }

    /// The processors that it may run on, as taskset(1) lists them.
    #[must_use]
    pub fn processors(mut self, list: &str) -> Self {
        let launcher = ["taskset", "--cpu-list", list].map(str::to_owned);
        self.launcher.extend(launcher);
        self
    }

    /// How many files it may have open.
    #[must_use]
    pub fn open_files(mut self, most: u32) -> Self {
        let launcher = ["prlimit".to_owned(), format!("--nofile={most}:{most}")];
        self.launcher.extend(launcher);
        self
    }

    /// How much memory it may have.
    #[must_use]
    pub fn memory(mut self, limit: &MemoryLimit) -> Self {
        let join = r#"echo $$ > "$0"; exec "$@""#;
        let processes = limit.processes().display().to_string();
        self.launcher
            .extend(["sh".to_owned(), "-euc".to_owned(), join.to_owned(), processes]);
        self
    }

    /// Grants it these capabilities, named as in a container's securityContext, and no others: as a container's root.
    #[must_use]
    pub fn capabilities(mut self, names: &[String]) -> Self {
        let granted = names
            .iter()
            .fold(String::new(), |text, name| text + ",+" + &name.to_lowercase());
        let launcher = ["setpriv", "--inh-caps=-all", "--no-new-privs"].map(str::to_owned);
        self.launcher.extend(launcher);
        self.launcher.push(format!("--bounding-set=-all{granted}"));
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<const N: usize>(self, arguments: [&str; N]) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }
}

/// A running agent; killed where it is dropped.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    options: AgentOptions,
    child: Child,
}

impl Agent {
    /// Starts the agent on `node` and waits until it is ready.
    ///
    /// # Errors
    /// It isn't built, or isn't ready within 30 seconds; the error holds the end of its log.
    pub async fn start(node: &Node, options: AgentOptions) -> Result<Self> {
        let agent = Self::launch(node, options)?;
        agent.ready().await
    }

    /// Starts the agent and doesn't wait.
    ///
    /// # Errors
    /// It isn't built, or couldn't be started.
    pub fn launch(node: &Node, options: AgentOptions) -> Result<Self> {
        let files = files(node, &options);
        fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
        if let Some(token) = &options.token {
            fs::write(files.join("token"), token)?;
        } else if !files.join("token").exists() {
            fs::write(files.join("token"), &node.accounts().agent.token)?;
        }
        if !files.join("tls.crt").exists() {
            node.cluster_ca().api_server_identity()?.write(&files)?;
        }
        let child = Self::command(node, &options)?.spawn_logging_to(&files.join("log"))?;
        Ok(Self {
            node: node.clone(),
            options,
            child,
        })
    }

    /// `understudy check` on the node, asking about what the agent would be started with.
    ///
    /// # Errors
    /// It isn't built.
    pub fn check(node: &Node, options: &AgentOptions) -> Result<Command> {
        Ok(with_cluster(
            with_kernel(understudy(node, options)?.arg("check"), node),
            node,
            options,
        ))
    }

    /// `understudy uninstall` on the node.
    ///
    /// # Errors
    /// It isn't built.
    pub fn uninstall(node: &Node) -> Result<Command> {
        let command = understudy(node, &AgentOptions::default())?;
        Ok(command
            .arg("uninstall")
            .arg("--pin-dir")
            .arg(node.pin_dir())
            .arg("--run-dir")
            .arg(node.run_dir()))
    }

    /// The agent's program on the node, called as kubectl's plugin or for anything else that isn't an agent.
    ///
    /// # Errors
    /// It isn't built.
    pub fn program(node: &Node) -> Result<Command> {
        understudy(node, &AgentOptions::default().log_level("warn"))
    }

    /// A command of the operators' on the node, which asks the agent's socket.
    ///
    /// # Errors
    /// It isn't built.
    pub fn operator(node: &Node, command: &str) -> Result<Command> {
        let socket = node.run_dir().join("operator.sock");
        Ok(Self::program(node)?
            .arg(command)
            .arg(format!("--socket={}", socket.display())))
    }

    fn command(node: &Node, options: &AgentOptions) -> Result<Command> {
        let files = files(node, options);
        let command = understudy(node, options)?.arg("agent");
        let mut command = with_cluster(with_kernel(command, node), node, options);
        command = command.arg("--run-dir").arg(node.run_dir());
        command = command.arg("--audit-log").arg(audit_log(node, options));
        command = command.arg("--admin-address").arg(options.admin.to_string());
        match options.sessions {
            Sessions::Files => {
                command = command.arg("--sessions").arg(node.sessions().path());
                for address in API_SERVER {
                    command = command.arg("--api-address").arg(address.to_string());
                }
            }
            // The addresses are the cluster's to tell.
            Sessions::Cluster => {}
        }
        command = match options.trust {
            Trust::Files => {
                let (certificate, key) = (files.join("tls.crt"), files.join("tls.key"));
                command
                    .args(["--trust", "files", "--tls-cert"])
                    .arg(certificate)
                    .arg("--tls-key")
                    .arg(key)
            }
            Trust::ClusterSigned => command.args(["--trust", "cluster-signed"]),
            Trust::OwnCa if options.sessions == Sessions::Cluster => {
                command.args(["--trust", "own-ca", "--trust-secret", TRUST_SECRET])
            }
            Trust::OwnCa => command
                .args(["--trust", "own-ca", "--trust-dir"])
                .arg(files.join("trust")),
        };
        Ok(command
            .args(["--node-name", &options.node_name])
            .args(&options.arguments))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It can't be killed.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child.kill().await.context("killing the agent")
    }

    /// Starts it again as it was, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn restart(mut self) -> Result<Self> {
        self.kill9().await?;
        Self::start(&self.node, self.options.clone()).await
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// It has ended already.
    pub fn terminate(&self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM).context("terminating the agent")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It doesn't end within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = timeout(limit, self.child.wait()).await;
        Ok(ended.with_context(|| format!("the agent still ran after {limit:?}"))??)
    }

    /// Replaces its token file, as kubelet does when it rotates a token.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn rotate_token(&self, token: &str) -> Result<()> {
        session::replace(&files(&self.node, &self.options).join("token"), token)
    }

    /// Puts its own CA into the ca.crt of `pods`, as the published bundle would.
    ///
    /// # Errors
    /// It has written none.
    pub fn publish_ca<'a>(&self, pods: impl IntoIterator<Item = &'a super::Pod>) -> Result<()> {
        let file = files(&self.node, &self.options).join("trust/ca.crt");
        let certificate = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        pods.into_iter().try_for_each(|pod| pod.trust_also(&certificate))
    }

    /// Everything it has logged, over restarts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(files(&self.node, &self.options).join("log"))
            .map_or_else(|_| String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// What it has written to its standard output in a cluster, and its standard error: the audit log, and the log.
    #[must_use]
    pub fn files(&self) -> [PathBuf; 2] {
        let log = files(&self.node, &self.options).join("log");
        [audit_log(&self.node, &self.options), log]
    }

    /// Its audit log so far.
    ///
    /// # Errors
    /// A line is no audit event.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&audit_log(&self.node, &self.options))
    }

    /// Its audit log so far, each request at every stage.
    ///
    /// # Errors
    /// A line is no audit event.
    pub fn audit_stages(&self) -> Result<Vec<AuditEvent>> {
        audit::stages(&audit_log(&self.node, &self.options))
    }

    /// What its audit log says that it lacks: how many events, for each gap.
    ///
    /// # Errors
    /// A line is neither an event nor a gap.
    pub fn audit_gaps(&self) -> Result<Vec<u64>> {
        audit::gaps(&audit_log(&self.node, &self.options))
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::new(self.admin("metrics").await?))
    }

    /// Its resident memory in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).context("the agent has ended")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("the agent has ended")?;
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .context("VmRSS is a number of kB")
    }

    /// How many files it has open, sockets and all.
    ///
    /// # Errors
    /// It has ended.
    pub fn open_files(&self) -> Result<usize> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()?)).context("the agent has ended")?;
        Ok(files.count())
    }

    /// Its process id.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<Pid> {
        let id = self.child.id().context("the agent has ended")?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    async fn admin(&self, path: &str) -> Result<String> {
        let url = format!("http://{}/{path}", self.options.admin);
        self.node
            .command(binaries::probe()?)?
            .args(["get", &url])
            .stdout()
            .await
    }

    /// What it answers where it is asked whether it is ready: what it waits for, where it isn't.
    ///
    /// # Errors
    /// It couldn't be asked.
    pub async fn readiness(&self) -> Result<String> {
        let url = format!("http://{}/readyz", self.options.admin);
        let asking = self.node.command(binaries::probe()?)?.args(["get", &url]);
        Ok(asking.output().await?.text())
    }

    /// Whether it answers `/livez`, within a probe's patience.
    ///
    /// # Errors
    /// It doesn't.
    pub async fn alive(&self) -> Result<()> {
        self.admin("livez").await.map(drop)
    }

    /// Waits until it is ready, after [`Agent::launch`].
    ///
    /// # Errors
    /// It ends, or isn't ready within 30 seconds; the error holds the end of its log.
    pub async fn ready(mut self) -> Result<Self> {
        let url = format!("http://{}/readyz", self.options.admin);
        let asking = self
            .node
            .command(binaries::probe()?)?
            .args(["get", &url, "--wait", "30"]);
        tokio::select! {
            answer = asking.output() => match answer.and_then(super::Output::success) {
                Ok(_) => Ok(self),
                Err(error) => bail!("the agent is not ready: {error:#}\n{}", tail(&self.log())),
            },
            ended = self.child.wait() => bail!("the agent ended ({}) before it was ready\n{}", ended?, tail(&self.log())),
        }
    }
}

impl Drop for Agent {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test's output is where its agent's last words belong"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the agent's log ---\n{}", tail(&self.log()));
        }
    }
}

fn understudy(node: &Node, options: &AgentOptions) -> Result<Command> {
    let program = options.executable.clone().map_or_else(binaries::understudy, Ok)?;
    let command = match options.launcher.split_first() {
        None => node.command(program)?,
        Some((launcher, arguments)) => node.command(launcher)?.args(arguments).arg(program),
    };
    let command = command.env("RUST_LOG", &options.log_level);
    Ok(options
        .env
        .iter()
        .fold(command, |command, (name, value)| command.env(name, value)))
}

fn with_kernel(command: Command, node: &Node) -> Command {
    command
        .arg("--cgroup-root")
        .arg(node.cgroup_root())
        .arg("--pin-dir")
        .arg(node.pin_dir())
}

fn with_cluster(command: Command, node: &Node, options: &AgentOptions) -> Command {
    let ca_file = options.ca_file.clone().unwrap_or_else(|| node.cluster_ca_file());
    command
        .arg("--token-file")
        .arg(files(node, options).join("token"))
        .arg("--ca-file")
        .arg(ca_file)
}

fn audit_log(node: &Node, options: &AgentOptions) -> PathBuf {
    let default = || files(node, options).join("audit.jsonl");
    options.audit_log.clone().unwrap_or_else(default)
}

fn files(node: &Node, options: &AgentOptions) -> PathBuf {
    Path::new(node.directory()).join(&options.instance)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
