//! The command line, parsed into types that can't be wrong.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::{
    audit::{AuditFailure, Rotation, mask::Mask},
    limits::Limits,
    pod::SessionId,
    recording::{
        age::Recipient,
        upload::destination::{Destination, Origin},
    },
    tools::{
        Tool,
        recordings::{ExportOptions, Identities, ListOptions, PlayOptions},
    },
    traces::TracesOptions,
};

/// Lends pods an identity for a session: a transparent proxy for the Kubernetes API server.
#[derive(Debug, Parser)]
#[command(name = "understudy", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The form of the log on standard error. Its level is set by the variable `RUST_LOG`.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Cli {
    /// What the command line says; ends the process where it can't be meant, and for `--help`. Called as
    /// `kubectl-understudy`, it speaks of itself as kubectl's plugin.
    pub fn from_command_line(words: impl IntoIterator<Item = OsString>) -> Self {
        let mut words = words.into_iter().peekable();
        let mut command = Self::command();
        if words.peek().is_some_and(|word| is_plugin(Path::new(word))) {
            command = command
                .bin_name("kubectl understudy")
                .display_name("kubectl understudy");
        }
        let matches = command.get_matches_from(words);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// kubectl runs `kubectl understudy` as a program of that name on PATH.
fn is_plugin(program: &Path) -> bool {
    program.file_stem().is_some_and(|name| name == "kubectl-understudy")
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Where links and maps are pinned unless told otherwise.
const PIN_DIR: &str = "/sys/fs/bpf/understudy";

/// Where agents of a node find each other unless told otherwise.
pub const RUN_DIR: &str = "/run/understudy";

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs on a node: intercepts the pods that carry a session, and acts for them.
    Agent(Box<AgentOptions>),
    /// Says line by line whether this node can run the agent, and what to do where it can't.
    Check(Box<CheckOptions>),
    /// Prints the definition of the Session resource as YAML, for `kubectl apply -f -`.
    Crd,
    /// Removes everything that agents left on the node: programs, links, maps, pins, and the sockets in --run-dir.
    Uninstall {
        /// Where they are pinned.
        #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
        pin_dir: PathBuf,
        /// Where agents of this node find each other.
        #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
        run_dir: PathBuf,
        /// Stay when it is done, until SIGTERM: a `DaemonSet`'s pods may not end.
        #[arg(long)]
        stay: bool,
    },
    /// Lists, plays, exports and verifies recordings of exec, attach and port-forward.
    Recordings {
        /// What to do with them.
        #[command(subcommand)]
        command: RecordingsCommand,
    },
    /// For operators, as the plugin of kubectl.
    #[command(flatten)]
    Tool(Tool),
    /// Waits until this pod's connections to the API server are intercepted: for an init container.
    Gate {
        /// How long to wait before it fails, in seconds.
        #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
        timeout: Duration,
    },
}

/// What can be done with recordings.
#[derive(Debug, Subcommand)]
pub enum RecordingsCommand {
    /// Says of each whether it is as it was written, and whether its end is there.
    Verify {
        /// Recordings, and directories of them.
        #[arg(value_name = "DIR|FILE", required = true)]
        paths: Vec<PathBuf>,
        /// Without one, only the sums of those that are sealed are checked.
        #[command(flatten)]
        identities: Identities,
    },
    /// Writes what was sealed in one to standard output, as a player reads it.
    Decrypt {
        /// The recording.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// One of them has to open it, if it is sealed.
        #[command(flatten)]
        identities: Identities,
    },
    /// Lists recordings: whose, where, what command, since when, how long, and whether they are to be believed.
    Ls(ListOptions),
    /// Plays one in this terminal, with pause, steps, speed and seeking. `?` shows the keys.
    ///
    /// What isn't proven isn't played. Exits with 0 if the recording is whole, 3 if its end is missing, 4 if it was
    /// changed, and 1 if it can't be played.
    Play(PlayOptions),
    /// Makes a page of one that plays in any browser, or text.
    ///
    /// What isn't proven is left out. Exits with 0 if the recording is whole, 3 if its end is missing, 4 if it was
    /// changed, and 1 if nothing could be made.
    Export(ExportOptions),
}

/// The options of `agent`.
#[derive(Debug, Args)]
pub struct AgentOptions {
    /// A YAML file of sessions, or a directory of them; read again when it changes. Without it, the sessions are the
    /// cluster's Session resources, and the pods those of this node that carry the label understudy.dev/session.
    #[arg(long, value_name = "PATH")]
    pub sessions: Option<PathBuf>,
    /// Where this agent stands in the kernel.
    #[command(flatten)]
    pub kernel: KernelOptions,
    /// Which cluster it serves.
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// What it shows to workloads.
    #[command(flatten)]
    pub trust: TrustOptions,
    /// An address of the API server to intercept besides the environment's, such as its IPv6 `ClusterIP` or an
    /// endpoint behind it. May be repeated.
    #[arg(long = "api-address", value_name = "IP:PORT")]
    pub api_addresses: Vec<SocketAddr>,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9902")]
    pub admin_address: SocketAddr,
    /// Where operators may ask over TCP: a loopback address, to which the API server forwards a port. Who asks shows a token
    /// that was made for this node's agent, of somebody who may get it. On the node they ask on a socket in --run-dir.
    #[arg(long, value_name = "IP:PORT", value_parser = loopback)]
    pub operator_address: Option<SocketAddr>,
    /// The audit log.
    #[command(flatten)]
    pub audit: AuditOptions,
    /// The traces.
    #[command(flatten)]
    pub traces: TracesOptions,
    /// A file with the log's levels, written as in `RUST_LOG`; read again when it changes. Missing or empty, it says
    /// nothing, and `RUST_LOG` holds.
    #[arg(long, value_name = "PATH")]
    pub log_level_file: Option<PathBuf>,
    /// Where to keep recordings of exec, attach and port-forward, a file for each. Sessions that ask for it are recorded.
    #[arg(long, value_name = "DIR")]
    pub recordings: Option<PathBuf>,
    /// Whom recordings are sealed for, by age: age1..., as age-keygen prints it. Only whoever has the identity of one
    /// can read them. May be given several times.
    #[arg(long = "recording-recipient", value_name = "RECIPIENT", requires = "recordings")]
    pub recording_recipients: Vec<Recipient>,
    /// Where recordings are brought, once they have come to their end.
    #[command(flatten)]
    pub upload: UploadOptions,
    /// This node's name: for the audit log and, without `--sessions`, for finding its pods.
    #[arg(
        long,
        value_name = "NAME",
        env = "NODE_NAME",
        default_value = "",
        required_unless_present = "sessions"
    )]
    pub node_name: String,
    /// The agent's own namespace: where `--trust-secret` is, and its Events are from.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "understudy-system"
    )]
    pub namespace: String,
    /// The agent's own pod, which can't carry a session. Without `--sessions` only.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The agent's own listener.
    #[command(flatten)]
    pub listen: ListenOptions,
    /// How much a pod's clients may ask of the agent.
    #[command(flatten)]
    pub limits: Limits,
    /// Accept sessions that go to a server of their own without verifying it.
    #[arg(long)]
    pub allow_insecure_servers: bool,
    /// Serve HTTP without TLS as well to pods that speak it.
    #[arg(long)]
    pub allow_plain_http: bool,
    /// Where this agent finds the one that runs on the node, to take over from it without a gap, and is found by the
    /// next.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// How long open streams may go on after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub drain_deadline: Duration,
}

/// Where recordings are brought, and as whom.
#[derive(Debug, Args)]
pub struct UploadOptions {
    /// Bring each recording that has come to its end to a store as well: `s3://BUCKET/PREFIX`, or the https URL of a
    /// collection on a server that takes PUT. Until it is there, it stays on the node, whatever happens.
    #[arg(long, value_name = "URL", requires = "recordings")]
    pub recording_upload: Option<Destination>,
    /// Remove a recording from the node once the store has it.
    #[arg(long, requires = "recording_upload")]
    pub recording_upload_remove: bool,
    /// The CA that signs the store's certificate, PEM; read again when it changes. Without it, those that this system
    /// trusts.
    #[arg(long, value_name = "PATH", requires = "recording_upload")]
    pub recording_upload_ca: Option<PathBuf>,
    /// A file with the credentials for the store; read again for each request. Lines NAME = VALUE: for S3
    /// `aws_access_key_id`, `aws_secret_access_key` and, where there is one, `aws_session_token`; else `token`, or
    /// `username` and `password`. Without it, S3 is asked with what the variables `AWS_*` say.
    #[arg(
        long,
        value_name = "PATH",
        requires = "recording_upload",
        conflicts_with = "recording_upload_anonymous"
    )]
    pub recording_upload_credentials: Option<PathBuf>,
    /// Ask the store without credentials.
    #[arg(long, requires = "recording_upload")]
    pub recording_upload_anonymous: bool,
    /// Where an S3 store is that isn't Amazon's: its https URL, without a path.
    #[arg(long, value_name = "URL", requires = "recording_upload")]
    pub recording_upload_endpoint: Option<Origin>,
    /// The bucket's region. Without it, what `AWS_REGION` or `AWS_DEFAULT_REGION` says, or us-east-1.
    #[arg(long, value_name = "NAME", requires = "recording_upload")]
    pub recording_upload_region: Option<String>,
    /// Where the bucket's name stands. Without it, in the path with --recording-upload-endpoint, else in the host's name.
    #[arg(long, value_enum, value_name = "STYLE", requires = "recording_upload")]
    pub recording_upload_addressing: Option<Addressing>,
    /// Speak without TLS to a store on another machine, if its URL begins with http.
    #[arg(long, requires = "recording_upload")]
    pub recording_upload_allow_plaintext: bool,
}

/// Where a bucket's name stands in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Addressing {
    /// First in the path.
    Path,
    /// First in the host's name.
    VirtualHost,
}

/// What is written down of requests, and where.
#[derive(Debug, Args)]
pub struct AuditOptions {
    /// Where to write audit events, one JSON object a line; `-` is standard output, `none` is nowhere but to the
    /// webhook.
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub audit_log: PathBuf,
    /// Begin a new file when the audit log has as many MiB, and give the old one a name with the time in it; 0 is never.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub audit_log_maxsize: u64,
    /// Remove such old files after as many days; 0 is never.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u32,
    /// Keep as many of them; 0 is all.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// What becomes of requests while audit events can't be written.
    #[arg(long, value_enum, default_value_t = AuditFailure::Block)]
    pub audit_failure: AuditFailure,
    /// How much to write down of which request: an audit.k8s.io/v1 Policy, as kube-apiserver takes it. Without it, the
    /// metadata of every request.
    #[arg(long, value_name = "PATH")]
    pub audit_policy: Option<PathBuf>,
    /// How much of a body to write down, in bytes, where the policy asks for bodies. Larger ones aren't written.
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024)]
    pub audit_max_body: usize,
    /// Mask a field of the bodies that are written, as RESOURCE[.GROUP]:PATH, such as configmaps:data.password. Secrets
    /// and tokens always are. May be repeated.
    #[arg(long = "audit-mask", value_name = "FIELD")]
    pub audit_masks: Vec<Mask>,
    /// Send audit events to a webhook: a file in the form of a kubeconfig, as kube-apiserver takes it.
    #[arg(long, value_name = "PATH")]
    pub audit_webhook_config: Option<PathBuf>,
    /// Where events wait that the webhook hasn't taken. It should outlive the agent.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/understudy/audit")]
    pub audit_webhook_queue: PathBuf,
    /// How many MiB of them may wait there.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_webhook_queue_size: u64,
}

impl AuditOptions {
    /// How the agent itself keeps the log's size.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        Rotation {
            max_size: self.audit_log_maxsize,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
        }
    }
}

/// The options of `check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Where the agent would stand in the kernel.
    #[command(flatten)]
    pub kernel: KernelOptions,
    /// Which cluster it would serve.
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// The form of the report.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where things stand in the kernel.
#[derive(Debug, Clone, Args)]
pub struct KernelOptions {
    /// The root of the pods' cgroup tree, to which the kernel programs are attached. Must be in cgroup v2; by
    /// default `kubepods` or `kubepods.slice`, where this node has one.
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Where programs' links and maps are pinned, in a bpffs.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// Which cluster the agent serves: as the kubelet tells every container, unless told otherwise.
#[derive(Debug, Clone, Args)]
pub struct ClusterOptions {
    /// The agent's own pod token; read again as the kubelet rotates it.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub token_file: PathBuf,
    /// The CA that signs the API server's certificate.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub ca_file: PathBuf,
    /// The CA of the cluster's clients, for sessions whose callers prove who they are; read again when it changes. Without
    /// `--sessions` it is otherwise what the API server publishes in
    /// kube-system/extension-apiserver-authentication.
    #[arg(long, value_name = "PATH")]
    pub client_ca_file: Option<PathBuf>,
}

/// The agent's own listener, for clients outside pods that prove who they are.
#[derive(Debug, Clone, Args)]
pub struct ListenOptions {
    /// Serve clients outside pods as well, at this address of the node's. They need a session of the method
    /// caller-identity, and prove who they are by certificate or token.
    #[arg(long, value_name = "IP:PORT", requires = "listen_session")]
    pub listen: Option<SocketAddr>,
    /// The session that they come under.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "listen")]
    pub listen_session: Option<SessionId>,
    /// A name or an address by which they come, for the serving certificate to carry. May be repeated.
    #[arg(long = "listen-name", value_name = "NAME", requires = "listen")]
    pub listen_names: Vec<String>,
}

impl ListenOptions {
    /// Where to listen, and the session; clap has seen to it that both are there.
    #[must_use]
    pub fn at(&self) -> Option<(SocketAddr, SessionId)> {
        Some((self.listen?, self.listen_session.clone()?))
    }

    /// What the serving certificate has to name for it: addresses, and DNS names.
    #[must_use]
    pub fn names(&self) -> (Vec<IpAddr>, Vec<String>) {
        let mut addresses: Vec<IpAddr> = self.listen.iter().map(SocketAddr::ip).collect();
        addresses.retain(|address| !address.is_unspecified());
        let mut names = Vec::new();
        for name in &self.listen_names {
            match name.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => names.push(name.clone()),
            }
        }
        (addresses, names)
    }
}

/// Why a workload accepts our certificate.
#[derive(Debug, Args)]
pub struct TrustOptions {
    /// Who signs the certificate that workloads see.
    #[arg(long, value_enum, default_value_t = TrustMode::OwnCa)]
    pub trust: TrustMode,
    /// With `--trust files`: the certificate chain, PEM; read again when it changes.
    #[arg(long, value_name = "PATH", required_if_eq("trust", "files"))]
    pub tls_cert: Option<PathBuf>,
    /// With `--trust files`: its private key, PEM.
    #[arg(long, value_name = "PATH", required_if_eq("trust", "files"))]
    pub tls_key: Option<PathBuf>,
    /// With `--trust own-ca` and `--sessions`: the directory that keeps the CA, made there where there is none.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/understudy/ca")]
    pub trust_dir: PathBuf,
    /// With `--trust own-ca` and without `--sessions`: the Secret that keeps the CA, made where there is none.
    #[arg(long, value_name = "NAME", default_value = "understudy-ca")]
    pub trust_secret: String,
    /// With `--trust cluster-signed`: who signs.
    #[arg(long, value_name = "NAME", default_value = "kubernetes.io/kubelet-serving")]
    pub signer_name: String,
}

/// Who signs the certificate that workloads see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrustMode {
    /// The operator: a certificate and a key in files.
    Files,
    /// A CA of the agents' own, whose certificate workloads are given.
    OwnCa,
    /// A signer of the cluster's, which workloads trust as they are.
    ClusterSigned,
}

impl TrustOptions {
    /// The certificate and key of `--trust files`; clap has seen to it that both are there.
    #[must_use]
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.tls_cert.as_deref()?, self.tls_key.as_deref()?))
    }
}

/// What is forwarded comes from there, and nobody else has to be able to dial it.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "not an address and a port: write it as 127.0.0.1:9903".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{} is not a loopback address: use 127.0.0.1 or [::1]",
            address.ip()
        ))
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn operators_are_answered_at_loopback_only() {
        let parse = |address| {
            let agent = ["understudy", "agent", "--sessions", "/s", "--operator-address", address];
            Cli::try_parse_from(agent).map(drop).map_err(|error| error.to_string())
        };
        for good in ["127.0.0.1:9903", "[::1]:9903"] {
            assert_eq!(parse(good), Ok(()));
        }
        for bad in ["0.0.0.0:9903", "192.0.2.1:9903", "[::]:9903"] {
            assert!(parse(bad).unwrap_err().contains("not a loopback address"), "{bad}");
        }
        assert!(parse("9903").unwrap_err().contains("127.0.0.1:9903"));
    }

    #[test]
    fn a_plugin_of_kubectl_is_told_by_its_name() {
        for (program, expected) in [
            ("kubectl-understudy", true),
            ("/usr/local/bin/kubectl-understudy", true),
            ("understudy", false),
            ("/usr/bin/understudy", false),
        ] {
            assert_eq!(is_plugin(Path::new(program)), expected, "{program}");
        }
    }

    #[test]
    fn a_listener_needs_its_session() {
        let parse = |more: &[&str]| {
            let agent = ["understudy", "agent", "--sessions", "/s"];
            match Cli::try_parse_from(agent.iter().chain(more))?.command {
                Command::Agent(options) => Ok(options.listen),
                other => panic!("{other:?}"),
            }
        };
        let said = |more: &[&str]| parse(more).map_err(|error: clap::Error| error.to_string()).unwrap_err();
        assert!(said(&["--listen", "192.0.2.1:8443"]).contains("--listen-session"));
        assert!(said(&["--listen-session", "a/b"]).contains("--listen"));
        assert!(said(&["--listen", "192.0.2.1:8443", "--listen-session", "b"]).contains("namespace/name"));
        let listen = parse(&[
            "--listen",
            "0.0.0.0:8443",
            "--listen-session",
            "a/b",
            "--listen-name",
            "api.example.org",
            "--listen-name",
            "192.0.2.1",
        ])
        .unwrap();
        assert_eq!(listen.at().unwrap().1.to_string(), "a/b");
        let expected = (vec!["192.0.2.1".parse().unwrap()], vec!["api.example.org".to_owned()]);
        assert_eq!(listen.names(), expected);
    }

    #[test]
    fn files_need_both() {
        let agent = [
            "understudy",
            "agent",
            "--sessions",
            "/s",
            "--trust",
            "files",
            "--tls-cert",
            "/c",
        ];
        let error = Cli::try_parse_from(agent).unwrap_err().to_string();
        assert!(error.contains("--tls-key"), "{error}");
    }
}
