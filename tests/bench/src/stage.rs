//! Where a run takes place: a node in a box with a tagged pod, the upstream in the control plane's place, and the
//! targets, each a proxy between the two. Everything is pinned: proxies to one processor, all else to another.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};
use understudy_tests::node::{
    Agent, AgentOptions, Command, Node, Patience, Pod, PodSpec, Running, Session, network::SERVICE_V4,
};

use crate::{
    clients,
    peers::{Executables, Peer, Terms},
    process,
};

/// The processor of clients, upstream and this program.
pub const OTHERS: usize = 0;
/// The processor of whatever is measured.
pub const PROXY: usize = 1;
/// The name in every certificate.
pub const SERVER_NAME: &str = "kubernetes.default.svc";
/// Where the upstream listens for proxies.
const UPSTREAM: &str = "172.30.0.2:6443";
/// Where it listens for clients that dial it themselves: no address of the API server's, so that it isn't intercepted.
const UPSTREAM_DIRECT: &str = "172.30.0.2:7443";
/// The node's address, at which pods reach peers.
const NODE: &str = "172.30.0.1";
/// What a request of the upstream's asks for: about a kilobyte of JSON.
const SMALL: &str = "/api/v1/namespaces/default/pods/small";

/// A box with everything in it but the targets.
#[derive(Debug, Clone)]
pub struct Stage {
    node: Node,
    pod: Pod,
    /// Its execs are recorded.
    recorded: Pod,
    upstream: Arc<Running>,
    control: PathBuf,
    programs: PathBuf,
    open_files: u64,
}

/// Of which pod a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Of one that all measures use.
    Plain,
    /// Of one whose session is recorded.
    Recorded,
}

/// What is measured, running.
#[derive(Debug)]
pub struct Target {
    /// Who it is.
    pub peer: Peer,
    /// Where the pod reaches it.
    pub address: SocketAddr,
    /// The box that it is in.
    pub stage: Stage,
    executables: Executables,
    /// What the agent is told besides.
    arguments: Vec<String>,
    server: Server,
}

#[derive(Debug)]
enum Server {
    None,
    Agent(Box<Agent>),
    Program(Box<Running>),
}

/// Keeps this process and what it starts on [`OTHERS`].
///
/// # Errors
/// The machine has fewer than two processors.
pub fn pin() -> Result<()> {
    let mut both = CpuSet::new();
    both.set(PROXY)?;
    sched_setaffinity(Pid::from_raw(0), &both)
        .context("a second processor is needed: one for the proxy, one for everything else")?;
    let mut ours = CpuSet::new();
    ours.set(OTHERS)?;
    sched_setaffinity(Pid::from_raw(0), &ours).context("a first processor is needed")
}

impl Stage {
    /// Makes a box, and starts the upstream and a tagged pod in it.
    ///
    /// # Errors
    /// Names what is missing here and how to get it.
    pub async fn new() -> Result<Self> {
        let node = Node::new()?;
        let agent = node.directory().join("agent");
        node.cluster_ca().api_server_identity()?.write(&agent)?;
        fs::write(agent.join("token"), &node.accounts().agent.token)?;
        let pod = node.pod(PodSpec::named("client"))?;
        let session = Session::named("default", "bench").acting_as(&node.accounts().viewer);
        node.sessions().write(&session.for_pod(&pod))?;
        let recorded = node.pod(PodSpec::named("recorded"))?;
        let session = Session::named("default", "recorded").acting_as(&node.accounts().viewer);
        let session = session.field("recording", "required".into());
        node.sessions().write(&session.for_pod(&recorded))?;

        let programs = std::env::current_exe().context("where this program is")?;
        let programs = programs.parent().context("a program lies in a directory")?.to_owned();
        let open_files = getrlimit(Resource::RLIMIT_NOFILE)?.1;
        let control = node.directory().join("upstream.sock");
        let command =
            launcher(node.control_plane_command("prlimit")?, open_files, OTHERS).arg(programs.join("upstream"));
        let mut upstream = command
            .args(["--listen", UPSTREAM, "--listen", UPSTREAM_DIRECT, "--listen"])
            .arg(SERVICE_V4.to_string())
            .arg("--cert")
            .arg(agent.join("tls.crt"))
            .arg("--key")
            .arg(agent.join("tls.key"))
            .arg("--token-file")
            .arg(agent.join("token"))
            .args(["--user", &node.accounts().viewer.username()])
            .arg("--control")
            .arg(&control)
            .spawn()?;
        upstream.stdout_until(|text| text.contains("ready")).await?;
        Ok(Self {
            node,
            pod,
            recorded,
            upstream: Arc::new(upstream),
            control,
            programs,
            open_files,
        })
    }

    /// How many files a process may have open here.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        self.open_files
    }

    /// The upstream's process.
    ///
    /// # Errors
    /// It has ended.
    pub fn upstream(&self) -> Result<u32> {
        self.upstream
            .pid()
            .with_context(|| format!("the upstream has ended: {}", self.upstream.stderr()))
    }

    /// Where the upstream takes orders.
    #[must_use]
    pub fn control(&self) -> &std::path::Path {
        &self.control
    }

    /// Asks the upstream for something: `event` or `counts`.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn ask_upstream(&self, what: &str) -> Result<Value> {
        let socket = UnixStream::connect(&self.control)
            .await
            .context("reaching the upstream's control socket")?;
        let mut socket = BufReader::new(socket);
        socket.write_all(format!("{what}\n").as_bytes()).await?;
        let mut line = String::new();
        let answered = tokio::time::timeout(Duration::from_secs(10), socket.read_line(&mut line)).await;
        answered.context("the upstream doesn't answer")??;
        serde_json::from_str(&line).context("the upstream answers JSON")
    }

    /// How many requests the upstream refused so far, for they weren't as a proxy must send them.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn refused(&self) -> Result<f64> {
        clients::number(&self.ask_upstream("counts").await?, "refused")
    }

    /// A program of the machine's in the pod, on the processor of clients.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        launcher(self.pod.command("prlimit"), self.open_files, OTHERS).arg(program)
    }

    /// The project's own client in a pod.
    #[must_use]
    pub fn load(&self, via: Via) -> Command {
        launcher(self.pod(via).command("prlimit"), self.open_files, OTHERS).arg(self.programs.join("load"))
    }

    fn pod(&self, via: Via) -> &Pod {
        match via {
            Via::Plain => &self.pod,
            Via::Recorded => &self.recorded,
        }
    }

    /// Beside what the agent watches, as on a node: a file that is written in a directory wakes whoever watches that.
    fn audit_log(&self) -> PathBuf {
        self.node.directory().join("audit/audit.jsonl")
    }

    fn recordings(&self) -> PathBuf {
        self.node.directory().join("recordings")
    }

    /// Writes a file for the agent, and says where it is.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.node.directory().join("agent").join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A program of the node's own, on the processor of clients.
    ///
    /// # Errors
    /// Its cgroup couldn't be made.
    pub fn on_node(&self, program: &str) -> Result<Command> {
        Ok(launcher(self.node.command("prlimit")?, self.open_files, OTHERS).arg(program))
    }

    /// What the upstream wants to see: the token that may impersonate, and whom it does.
    fn identity(&self) -> Vec<(String, String)> {
        let accounts = self.node.accounts();
        let mut headers = vec![
            ("Authorization".to_owned(), format!("Bearer {}", accounts.agent.token)),
            ("Impersonate-User".to_owned(), accounts.viewer.username()),
        ];
        let groups = accounts.viewer.groups();
        for group in groups.into_iter().chain(["system:authenticated".to_owned()]) {
            headers.push(("Impersonate-Group".to_owned(), group));
        }
        headers
    }
}

impl Target {
    /// Starts `peer` on `stage` and waits until it listens.
    ///
    /// # Errors
    /// It isn't on this machine, or doesn't come up; the error says what it printed.
    pub async fn start(stage: &Stage, peer: Peer, executables: &Executables) -> Result<Self> {
        let address = match peer {
            Peer::Direct => UPSTREAM_DIRECT.parse()?,
            Peer::Understudy | Peer::Against => SERVICE_V4,
            _ => SocketAddr::new(NODE.parse()?, peer.port()),
        };
        let mut target = Self {
            peer,
            address,
            stage: stage.clone(),
            executables: executables.clone(),
            arguments: Vec::new(),
            server: Server::None,
        };
        target.server = target.serve().await?;
        Ok(target)
    }

    /// Ends it and starts it anew, with nothing open and nothing remembered.
    ///
    /// # Errors
    /// As [`Target::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.server = match std::mem::replace(&mut self.server, Server::None) {
            Server::None => Server::None,
            Server::Agent(agent) => Server::Agent(Box::new(agent.restart().await?)),
            Server::Program(running) => {
                running.kill().await?;
                self.serve().await?
            }
        };
        Ok(())
    }

    /// Ends an agent and starts it anew with other arguments besides those that all are started with.
    ///
    /// # Errors
    /// As [`Target::start`].
    pub async fn restart_with(&mut self, arguments: &[String]) -> Result<()> {
        if let Server::Agent(mut agent) = std::mem::replace(&mut self.server, Server::None) {
            agent.kill9().await?;
        }
        arguments.clone_into(&mut self.arguments);
        self.server = self.serve().await?;
        Ok(())
    }

    /// Its process; none where nothing stands between client and upstream.
    ///
    /// # Errors
    /// It has ended.
    pub fn process(&self) -> Result<Option<u32>> {
        Ok(match &self.server {
            Server::None => None,
            Server::Agent(agent) => Some(u32::try_from(agent.pid()?.as_raw())?),
            Server::Program(running) => {
                let ended = || format!("{} has ended: {}", self.peer, running.stderr());
                Some(running.pid().with_context(ended)?)
            }
        })
    }

    /// The last line of what a peer printed on its standard error; the agent keeps a log of its own.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        match &self.server {
            Server::None | Server::Agent(_) => None,
            Server::Program(running) => running.stderr().trim().lines().last().map(str::to_owned),
        }
    }

    /// The header fields that a client has to send here, as `Name: value`.
    #[must_use]
    pub fn headers(&self, via: Via) -> Vec<String> {
        let fields = if self.peer.is_proxy() {
            let own = format!("Bearer {}", self.stage.pod(via).token());
            vec![("Authorization".to_owned(), own)]
        } else {
            self.stage.identity()
        };
        let mut headers: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        headers.push("Accept: application/json".to_owned());
        headers
    }

    /// `load`, told where this is and what to send.
    #[must_use]
    pub fn load(&self, what: &str) -> Command {
        self.load_via(Via::Plain, what)
    }

    /// `load` in another pod.
    #[must_use]
    pub fn load_via(&self, via: Via, what: &str) -> Command {
        let mut command = self
            .stage
            .load(via)
            .arg(what)
            .args(["--address", &self.address.to_string(), "--name", SERVER_NAME, "--ca"])
            .arg(self.stage.node.cluster_ca_file());
        for header in self.headers(via) {
            command = command.args(["--header", &header]);
        }
        command
    }

    /// wrk over that many connections.
    #[must_use]
    pub fn wrk(&self, connections: u32, seconds: u32) -> Command {
        self.wrk_at(SMALL, connections, seconds)
    }

    /// wrk, asking for something else.
    #[must_use]
    pub fn wrk_at(&self, path: &str, connections: u32, seconds: u32) -> Command {
        let mut command = self.stage.client("wrk").args([
            "--threads=1",
            "--timeout=10s",
            &format!("--connections={connections}"),
            &format!("--duration={seconds}s"),
            &format!("--header=Host: {SERVER_NAME}"),
        ]);
        for header in self.headers(Via::Plain) {
            command = command.arg(format!("--header={header}"));
        }
        command.arg(format!("https://{}{path}", self.address))
    }

    /// h2load over that many connections, each with that many streams.
    #[must_use]
    pub fn h2load(&self, connections: u32, streams: u32, seconds: u32) -> Command {
        let mut command = self.stage.client("h2load").args([
            format!("--clients={connections}"),
            format!("--max-concurrent-streams={streams}"),
            format!("--duration={seconds}"),
            format!("--connect-to={}", self.address),
        ]);
        for header in self.headers(Via::Plain) {
            command = command.arg(format!("--header={header}"));
        }
        command.arg(format!("https://{SERVER_NAME}{SMALL}"))
    }

    /// Empties the agent's audit log, which would fill a disk over a run.
    ///
    /// # Errors
    /// It can't be written.
    pub fn tidy(&self) -> Result<()> {
        if self.peer.is_understudy() {
            self.take_audit_log()?;
        }
        Ok(())
    }

    /// Empties the agent's audit log, and says how long it was.
    ///
    /// # Errors
    /// It can't be written.
    pub fn take_audit_log(&self) -> Result<u64> {
        let log = self.stage.audit_log();
        let file = fs::File::options().write(true).open(&log);
        let emptied = file.and_then(|file| {
            let length = file.metadata()?.len();
            file.set_len(0)?;
            Ok(length)
        });
        emptied.with_context(|| format!("emptying {}", log.display()))
    }

    /// Removes the agent's recordings, and says how long they were together.
    ///
    /// # Errors
    /// They can't be removed.
    pub fn take_recordings(&self) -> Result<u64> {
        let directory = self.stage.recordings();
        let taken = || {
            let mut length = 0;
            for file in fs::read_dir(&directory)? {
                let path = file?.path();
                length += fs::metadata(&path)?.len();
                fs::remove_file(path)?;
            }
            Ok::<_, std::io::Error>(length)
        };
        taken().with_context(|| format!("emptying {}", directory.display()))
    }

    async fn serve(&self) -> Result<Server> {
        match self.peer {
            Peer::Direct => Ok(Server::None),
            Peer::Understudy => self.agent(self.executables.understudy.clone()).await,
            Peer::Against => self.agent(self.executables.against.clone()).await,
            _ => self.program().await,
        }
    }

    /// As on a node, with one processor. Its limits on a pod are raised, for the pod is all clients at once.
    async fn agent(&self, executable: Option<PathBuf>) -> Result<Server> {
        let audit_log = self.stage.audit_log();
        if let Some(directory) = audit_log.parent() {
            fs::create_dir_all(directory).context("making a directory for the audit log")?;
        }
        let mut options = AgentOptions::default()
            .log_level("info")
            .audit_log(audit_log)
            .open_files(u32::try_from(self.stage.open_files).unwrap_or(u32::MAX))
            .processors(&PROXY.to_string())
            .args(["--max-connections-per-pod", "65536"])
            .args(["--max-requests-per-pod", "65536"])
            .args(["--max-handshakes-per-pod", "1024"])
            .args(["--max-pending-connections", "16384"])
            .args(["--recordings", &self.stage.recordings().display().to_string()]);
        for argument in &self.arguments {
            options = options.arg(argument);
        }
        if let Some(executable) = executable {
            options = options.executable(executable);
        }
        Ok(Server::Agent(Box::new(Agent::start(&self.stage.node, options).await?)))
    }

    async fn program(&self) -> Result<Server> {
        let agent = self.stage.node.directory().join("agent");
        let terms = Terms {
            listen: self.address,
            upstream: UPSTREAM.parse()?,
            name: SERVER_NAME.to_owned(),
            ca: self.stage.node.cluster_ca_file(),
            certificate: agent.join("tls.crt"),
            key: agent.join("tls.key"),
            headers: self.stage.identity(),
            directory: self.stage.node.directory().join("peers").join(self.peer.to_string()),
            open_files: self.stage.open_files,
        };
        let start = self.peer.start(&terms, &self.executables)?;
        let command = self.stage.node.command("prlimit")?;
        let mut running = launcher(command, self.stage.open_files, PROXY)
            .arg(&start.program)
            .args(&start.arguments)
            .spawn()?;
        let port = self.address.port();
        let listening = Patience(Duration::from_secs(20)).until("it listens", async || {
            if running.has_ended()? {
                return Ok(Some(false));
            }
            let Some(process) = running.pid() else {
                return Ok(Some(false));
            };
            Ok(process::listens(process, port)?.then_some(true))
        });
        let listening = listening.await;
        if matches!(listening, Ok(true)) {
            return Ok(Server::Program(Box::new(running)));
        }
        bail!(
            "{} does not come up: {}{}",
            self.peer,
            running.stderr().trim(),
            running.stdout().trim()
        )
    }
}

/// `prlimit` and `taskset`, before the program itself.
fn launcher(prlimit: Command, open_files: u64, processor: usize) -> Command {
    prlimit
        .arg(format!("--nofile={open_files}:{open_files}"))
        .args(["taskset", "--cpu-list", &processor.to_string()])
}

/// A client's output, where it succeeded. What went wrong is said without the command line, for that has tokens in it.
///
/// # Errors
/// It failed, or took too long; the error holds what it printed on its standard error.
pub async fn printed(command: Command, limit: Duration) -> Result<String> {
    let Ok(output) = command.limit(limit).output().await else {
        bail!("the client can't be started, or still ran after {limit:?}");
    };
    if !output.succeeded() {
        bail!("the client failed: {}", output.stderr.trim());
    }
    Ok(output.stdout)
}
